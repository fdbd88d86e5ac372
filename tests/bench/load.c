/*
 * load read REPEATS | load SIZE_BYTES REPEATS | load speed SECONDS | load steady SECONDS
 *
 * The first two print ns per call (for SIZE_BYTES: of a pread and a pwrite of a file in the page
 * cache together), the best of REPEATS: what other programs do to this machine only ever adds.
 * The others make calls for so long: as fast as they can, or some 100,000 a second on 64 files.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static char buffer[1 << 20];

static int read_zero(int zero, int times)
{
	while (times--)
		if (read(zero, buffer, 1) != 1)
			return 0;
	return 1;
}

static int both_ways(int data, size_t size, int times)
{
	while (times--)
		if (pread(data, buffer, size, 0) != (ssize_t)size ||
		    pwrite(data, buffer, size, 0) != (ssize_t)size)
			return 0;
	return 1;
}

static int open_data(int number)
{
	char name[32];

	snprintf(name, sizeof(name), "load-%d.data", number);
	return open(name, O_RDWR | O_CREAT, 0600);
}

static int steady(double until_ns)
{
	for (unsigned int i = 0; now_ns() < until_ns; i++) {
		int data = open_data(i % 64);

		if (pwrite(data, buffer, 4096, 0) != 4096 || !both_ways(data, 4096, 50) ||
		    close(data))
			return 1;
		usleep(500);
	}
	return 0;
}

int main(int argc, char **argv)
{
	int zero = open("/dev/zero", O_RDONLY);
	double repeats = atof(argv[argc - 1]), best = 1e18, start = now_ns();

	if (!strcmp(argv[1], "steady"))
		return steady(start + repeats * 1e9);
	if (!strcmp(argv[1], "speed")) {
		while (now_ns() < start + repeats * 1e9)
			if (!read_zero(zero, 1000))
				return 1;
		return 0;
	}
	size_t size = atol(argv[1]); /* 0 for "read" */
	int count = size ? (1 << 24) / (size + 16384) : 10000;
	int data = size ? open_data(0) : -1;
	if (size && pwrite(data, buffer, size, 0) != (ssize_t)size)
		return 1;
	while (repeats-- > 0) {
		start = now_ns();
		if (!(size ? both_ways(data, size, count) : read_zero(zero, count)))
			return 1;
		double per_call = (now_ns() - start) / count;
		if (per_call < best)
			best = per_call;
	}
	printf("%.1f\n", best);
	return 0;
}
