/* busy THREADS CALLS: each thread makes so many reads of one byte, all at once. */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static int zero;
static long calls;

__attribute__((noinline)) int read_one(long at)
{
	char byte;

	return pread(zero, &byte, 1, at);
}

static void *work(void *unused)
{
	for (long i = 0; i < calls; i++)
		if (read_one(i) != 1)
			abort();
	return 0;
}

int main(int argc, char **argv)
{
	int threads = atoi(argv[1]);
	pthread_t all[threads];

	calls = atol(argv[2]);
	zero = open("/dev/zero", O_RDONLY);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&all[i], 0, work, 0))
			return 1;
	for (int i = 0; i < threads; i++)
		pthread_join(all[i], 0);
	return 0;
}
