/* Calls of one C library function, timed: prints ns per call, the best of 5 rounds. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char byte;
static FILE *stream;
static int zero;

static void empty(long n) { while (n--) asm volatile(""); }
static void call_read(long n) { while (n--) read(zero, &byte, 1); }
static void call_write(long n) { while (n--) write(zero, &byte, 1); }
static void call_pread(long n) { while (n--) pread(zero, &byte, 1, 0); }
static void call_open(long n) { while (n--) close(open("/dev/zero", O_RDWR)); }
static void call_fread(long n) { while (n--) fread(&byte, 1, 1, stream); }

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*call)(long); } cases[] = {
		{"empty", empty}, {"read", call_read}, {"write", call_write},
		{"pread", call_pread}, {"open", call_open}, {"fread", call_fread},
	};
	long n = argc > 2 ? atol(argv[2]) : 0;
	double best = 1e18;

	stream = fopen("/dev/zero", "r");
	zero = open("/dev/zero", O_RDWR);
	for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		if (argc < 2 || strcmp(cases[i].name, argv[1]))
			continue;
		for (int round = 0; round < 5; round++) {
			struct timespec from, to;
			clock_gettime(CLOCK_MONOTONIC, &from);
			cases[i].call(n);
			clock_gettime(CLOCK_MONOTONIC, &to);
			double ns = (to.tv_sec - from.tv_sec) * 1e9 + to.tv_nsec - from.tv_nsec;
			if (ns / n < best)
				best = ns / n;
		}
	}
	printf("%.1f\n", best);
	return best == 1e18;
}
