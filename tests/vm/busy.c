/* busy THREADS CALLS: so many calls of step(); each thread makes so many reads, all at once. */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static int zero;
static long calls;

__attribute__((noinline)) long step(long at)
{
	asm volatile("");
	return at + 1;
}

static void *work(void *unused)
{
	char byte;

	for (long i = 0; i < calls; i++)
		if (pread(zero, &byte, 1, 0) != 1)
			abort();
	return 0;
}

int main(int argc, char **argv)
{
	int threads = atoi(argv[1]);
	pthread_t all[threads];

	calls = atol(argv[2]);
	zero = open("/dev/zero", O_RDONLY);
	for (long i = 0; i < calls;)
		i = step(i);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&all[i], 0, work, 0))
			return 1;
	for (int i = 0; i < threads; i++)
		pthread_join(all[i], 0);
	return 0;
}
