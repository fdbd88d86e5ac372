/*
 * load read | cold | SIZE_BYTES   REPEATS
 * load speed | steady             SECONDS
 *
 * The first three print ns per call: of a 1-byte read of /dev/zero; of the same after a copy of
 * 1 MiB, when no cache near the CPU has what it needs; of a pread and a pwrite of a file in the
 * page cache together. It is the best of REPEATS: what other programs do to this machine only
 * ever adds. The others make calls for so long: such reads as fast as they can, printing how
 * many, or some 100,000 calls a second on 64 files.
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

static char buffer[1 << 20], copied[1 << 20];

static int read_zero(int zero, int times)
{
	while (times--)
		if (read(zero, buffer, 1) != 1)
			return 0;
	return 1;
}

/* ns of `times` reads together, each after a copy; 0 if one fails. */
static double read_cold(int zero, int times)
{
	double sum = 0;

	while (times--) {
		memcpy(copied, buffer, sizeof(buffer));
		__asm__ volatile("" : : "r"(copied) : "memory");
		double start = now_ns();
		if (!read_zero(zero, 1))
			return 0;
		sum += now_ns() - start;
	}
	return sum;
}

static int both_ways(int data, size_t size, int times)
{
	while (times--)
		if (pread(data, buffer, size, 0) != (ssize_t)size ||
		    pwrite(data, buffer, size, 0) != (ssize_t)size)
			return 0;
	return 1;
}

/* ns of `count` reads together, or if there is a size, of as many preads and pwrites; 0 if one
 * fails. */
static double warm(int zero, int data, size_t size, int count)
{
	double start = now_ns();

	if (!(size ? both_ways(data, size, count) : read_zero(zero, count)))
		return 0;
	return now_ns() - start;
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
		long calls = 0;
		for (; now_ns() < start + repeats * 1e9; calls += 1000)
			if (!read_zero(zero, 1000))
				return 1;
		printf("%ld\n", calls);
		return 0;
	}
	size_t size = atol(argv[1]); /* 0 for "read" and "cold" */
	int cold = !strcmp(argv[1], "cold");
	int count = cold ? 100 : size ? (1 << 24) / (size + 16384) : 10000;
	int data = size ? open_data(0) : -1;
	if (size && pwrite(data, buffer, size, 0) != (ssize_t)size)
		return 1;
	while (repeats-- > 0) {
		double took = cold ? read_cold(zero, count) : warm(zero, data, size, count);
		if (!took)
			return 1;
		if (took / count < best)
			best = took / count;
	}
	printf("%.1f\n", best);
	return 0;
}
