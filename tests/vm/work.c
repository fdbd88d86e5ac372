/* work FILE [sync]: 23 writes of 4097 bytes, and fsync. */
#include <fcntl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static char data[4097];
	int fd = open(argv[1], O_CREAT | O_TRUNC | O_WRONLY, 0644);

	for (int i = 0; i < 23; i++)
		if (write(fd, data, sizeof(data)) != sizeof(data))
			return 1;
	return (argc > 2 && fsync(fd)) || close(fd);
}
