/*
 * placed FILE, aarch64: 23 calls each of functions whose probes may lie elsewhere than at their
 * beginning, and of one with a USDT point, then 23 writes of 4097 bytes and an fsync. Prints a
 * line for each function: how far in its first breakpoint is (-1: none), and the sum of what its
 * calls returned.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/sdt.h>
#include <unistd.h>

#define CALLS 23
#define UPROBE_BREAKPOINT 0xd42000a0 /* brk #5 */
#define FUNCTION(name, code)                                                                       \
	long name(long a, long b);                                                                 \
	__asm__(".globl " #name "\n.type " #name ",%function\n" #name ":\n" code                   \
		"\n.size " #name ", .-" #name "\n")

FUNCTION(compares, "cmp x0, x1; b.lo 1f; sub x0, x0, x1; ret; 1: sub x0, x1, x0; ret");
FUNCTION(tests_bit, "mov x9, #5; tbnz w0, #0, 1f; mov x0, #0; ret; 1: mov x0, x9; ret");
FUNCTION(finds_page, "mov x9, x0; adrp x10, 1f; add x0, x9, x1; ret; 1:");
FUNCTION(adds, "add x0, x0, #3; ret");
FUNCTION(jumps, "mov x9, #0; b compares");
FUNCTION(recurs, "mov x9, #0; cbz x0, 1f; stp x29, x30, [sp, #-16]!; sub x0, x0, #1; bl recurs;"
		 "add x0, x0, #2; ldp x29, x30, [sp], #16; 1: ret");
FUNCTION(saves, "stp x29, x30, [sp, #-16]!; bl compares; ldp x29, x30, [sp], #16; ret");
FUNCTION(signs, "hint #25; stp x29, x30, [sp, #-16]!; bl adds; ldp x29, x30, [sp], #16;"
		"hint #29; ret");

#define ENTRY(name) {#name, name}
static const struct {
	const char *name;
	long (*call)(long, long);
} functions[] = {
	ENTRY(compares), ENTRY(tests_bit), ENTRY(finds_page), ENTRY(adds),
	ENTRY(jumps), ENTRY(recurs), ENTRY(saves), ENTRY(signs),
};

static int breakpoint(const void *function)
{
	const uint32_t *words = function;

	for (int i = 0; i < 4; i++)
		if (words[i] == UPROBE_BREAKPOINT)
			return i * 4;
	return -1;
}

struct part {
	long first[10];
	int second;
};

/* its arguments are in registers, on the stack and in memory, with and without an index */
__attribute__((noinline)) void marks(struct part *part, short *of, long at, signed char *from, int i)
{
	volatile long local = at;

	STAP_PROBE6(placed, mark, part->first[3], of[at], local, from[i], 77, part->second);
}

int main(int argc, char **argv)
{
	static char data[4097];
	int fd;

	(void)argc;
	for (unsigned int i = 0; i < sizeof(functions) / sizeof(*functions); i++) {
		long sum = 0;

		for (long a = 0; a < CALLS; a++)
			sum += functions[i].call(a, 7);
		printf("%s %d %ld\n", functions[i].name, breakpoint(functions[i].call), sum);
	}
	for (int i = 0; i < CALLS; i++) {
		static struct part part = {.first = {[3] = 33}, .second = -9};
		static short of[CALLS];
		static signed char around[2 * CALLS];

		of[i] = -1000 - i;
		around[CALLS - i] = -i;
		marks(&part, of, i, around + CALLS, -i);
	}
	fd = open(argv[1], O_CREAT | O_TRUNC | O_WRONLY, 0644);
	for (int i = 0; i < CALLS; i++)
		if (write(fd, data, sizeof(data)) != sizeof(data))
			return 1;
	return fsync(fd) || close(fd);
}
