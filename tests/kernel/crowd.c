/*
 * crowd THREADS CALLS: so many calls of step() by each of so many threads and, as long as these
 * run, a few by each of the threads and processes that others begin and wait for, while yet others
 * map memory. The first thread's are each further down its stack. Prints how many there were.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define FEW 5
#define OTHERS 3 /* threads of each other kind */
#define PAGE 4096
#define MAP_BYTES (64 * PAGE)
#define DEPTH 1000 /* pages */

static long calls;
static atomic_long made;
static atomic_int busy;

__attribute__((noinline)) long step(long at)
{
	asm volatile("");
	return at + 1;
}

static void steps(long count)
{
	for (long i = 0; i < count;)
		i = step(i);
	made += count;
}

static void start(pthread_t *thread, void *(*what)(void *))
{
	if (pthread_create(thread, 0, what, 0))
		abort();
}

static void *work(void *unused)
{
	steps(calls);
	busy--;
	return 0;
}

static void *visit(void *unused)
{
	steps(FEW);
	return 0;
}

static void begin_process(void)
{
	pid_t child = fork();
	int status;

	if (!child) {
		steps(FEW);
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) < 0 || status)
		abort();
	made += FEW;
}

static void *begin_others(void *unused)
{
	while (busy) {
		pthread_t visitor;
		start(&visitor, visit);
		pthread_join(visitor, 0);
		begin_process();
	}
	return 0;
}

static void *map(void *unused)
{
	while (busy) {
		char *at = mmap(0, MAP_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (at == MAP_FAILED)
			abort();
		for (int i = 0; i < MAP_BYTES; i += PAGE)
			at[i] = 1;
		munmap(at, MAP_BYTES);
	}
	return 0;
}

static void descend(int pages)
{
	volatile char page[PAGE];

	page[0] = 1;
	steps(1);
	if (pages > 1)
		descend(pages - 1);
	page[0] = 0; /* not a tail call */
}

int main(int argc, char **argv)
{
	int threads = atoi(argv[1]), all = threads + 2 * OTHERS;
	pthread_t thread[all];

	calls = atol(argv[2]);
	busy = threads;
	for (int i = 0; i < 2 * OTHERS; i++)
		start(&thread[threads + i], i < OTHERS ? map : begin_others);
	for (int i = 0; i < threads; i++)
		start(&thread[i], work);
	descend(DEPTH);
	for (int i = 0; i < all; i++)
		pthread_join(thread[i], 0);
	printf("%ld\n", made);
	return 0;
}
