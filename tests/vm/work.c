/*
 * work FILE [sync|held|read]: 23 writes of 4097 bytes; and fsync; or, before the file is closed, a
 * sync of everything, so that kernel threads write them. read: what was written, and not from memory.
 */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static char data[4097];

static int read_back(int fd)
{
	if (posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
		return 1;
	for (int i = 0; i < 23; i++)
		if (read(fd, data, sizeof(data)) != sizeof(data))
			return 1;
	return close(fd);
}

int main(int argc, char **argv)
{
	const char *how = argc > 2 ? argv[2] : "";

	if (!strcmp(how, "read"))
		return read_back(open(argv[1], O_RDONLY));
	int fd = open(argv[1], O_CREAT | O_TRUNC | O_WRONLY, 0644);

	for (int i = 0; i < 23; i++)
		if (write(fd, data, sizeof(data)) != sizeof(data))
			return 1;
	if (!strcmp(how, "held"))
		sync();
	return (!strcmp(how, "sync") && fsync(fd)) || close(fd);
}
