/*
 * explained prepare FILE STEP, then explained half FILE: writes of one size to blocks that are in
 * the page cache, in turn with ones of which only each STEPth page is there, or none for 0.
 * explained forced|direct FILE: blocks written and forced to disk, or past the page cache.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PAGE = 4096, HALF = 512 * PAGE, PAIRS = 12, BLOCK = 65536, BLOCKS = 24 };

static char data[HALF] __attribute__((aligned(PAGE)));

static int put(int fd, size_t size, off_t at)
{
	return pwrite(fd, data, size, at) == (ssize_t)size;
}

static int prepare(int fd, int step)
{
	off_t end = 2 * PAIRS * (off_t)HALF;

	for (off_t block = 0; block < end; block += 2 * HALF) {
		for (int page = PAGE; step && page < HALF; page += step * PAGE)
			if (!put(fd, PAGE, block + page))
				return 1;
		if (!put(fd, HALF, block + HALF))
			return 1;
	}
	return 0;
}

static int half(int fd)
{
	for (int i = 0; i < 2 * PAIRS; i++)
		if (write(fd, data, HALF) != HALF)
			return 1;
	return 0;
}

static int blocks(int fd, int force)
{
	for (int i = 0; i < BLOCKS; i++)
		if (!put(fd, BLOCK, (off_t)i * BLOCK) || (force && fsync(fd)))
			return 1;
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argv[1];
	int direct = !strcmp(what, "direct"), failed;
	int fd = open(argv[2], O_CREAT | O_WRONLY | (direct ? O_DIRECT : 0), 0666);

	memset(data, 7, sizeof(data));
	if (!strcmp(what, "prepare"))
		failed = prepare(fd, atoi(argv[3]));
	else
		failed = strcmp(what, "half") ? blocks(fd, !direct) : half(fd);
	return failed || close(fd);
}
