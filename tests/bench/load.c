/*
 * load read REPEATS | load SIZE_BYTES REPEATS | load speed SECONDS
 * Prints ns per call (of a pread and a pwrite together for SIZE_BYTES), the best of REPEATS:
 * what other programs do to this machine only ever adds.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static char buffer[1 << 20];

int main(int argc, char **argv)
{
	int zero = open("/dev/zero", O_RDONLY);
	double repeats = atof(argv[argc - 1]), best = 1e18, start = now_ns();

	if (!strcmp(argv[1], "speed")) {
		while (now_ns() < start + repeats * 1e9)
			for (int i = 0; i < 1000; i++)
				if (read(zero, buffer, 1) != 1)
					return 1;
		return 0;
	}
	size_t size = atol(argv[1]); /* 0 for "read" */
	int data = memfd_create("data", 0);
	int count = size ? (1 << 24) / (size + 16384) : 10000;
	if (size && pwrite(data, buffer, size, 0) != (ssize_t)size)
		return 1;
	while (repeats-- > 0) {
		start = now_ns();
		for (int i = 0; i < count; i++)
			if (!size ? read(zero, buffer, 1) != 1
				  : pread(data, buffer, size, 0) != (ssize_t)size ||
					    pwrite(data, buffer, size, 0) != (ssize_t)size)
				return 1;
		double per_call = (now_ns() - start) / count;
		if (per_call < best)
			best = per_call;
	}
	printf("%.1f\n", best);
	return 0;
}
