/*
 * crowd THREADS CALLS: so many calls of step() by each of so many threads and, as long as these
 * run, by threads that begin, make a few and end, one after another, while others map memory.
 * Prints how many calls there were.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define FEW 5
#define MAPPING 2
#define MAP_BYTES (64 << 12)

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

static void *map(void *unused)
{
	while (busy) {
		char *at = mmap(0, MAP_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (at == MAP_FAILED)
			abort();
		for (int i = 0; i < MAP_BYTES; i += 4096)
			at[i] = 1;
		munmap(at, MAP_BYTES);
	}
	return 0;
}

static void start(pthread_t *thread, void *(*what)(void *))
{
	if (pthread_create(thread, 0, what, 0))
		abort();
}

int main(int argc, char **argv)
{
	int threads = atoi(argv[1]);
	pthread_t all[threads + MAPPING], visitor;

	calls = atol(argv[2]);
	busy = threads;
	for (int i = 0; i < MAPPING; i++)
		start(&all[threads + i], map);
	for (int i = 0; i < threads; i++)
		start(&all[i], work);
	do {
		start(&visitor, visit);
		pthread_join(visitor, 0);
	} while (busy);
	for (int i = 0; i < threads + MAPPING; i++)
		pthread_join(all[i], 0);
	printf("%ld\n", made);
	return 0;
}
