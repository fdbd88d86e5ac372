/* One operation of io_uring after the other, each with what a trace must say of it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct io_uring ring;
static char buffer[8192];

static struct io_uring_sqe *next(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

	if (!sqe)
		abort();
	return sqe;
}

static int result(void)
{
	struct io_uring_cqe *cqe;

	if (io_uring_submit_and_wait(&ring, 1) < 0 || io_uring_wait_cqe(&ring, &cqe))
		abort();
	int res = cqe->res;
	io_uring_cqe_seen(&ring, cqe);
	return res;
}

int main(int argc, char **argv)
{
	struct iovec two[] = {{buffer, 1000}, {buffer, 2000}};
	int polled = argc > 1 && !strcmp(argv[1], "polled");
	int pipes[2], fd;

	if (io_uring_queue_init(8, &ring, polled ? IORING_SETUP_SQPOLL : 0) || pipe(pipes))
		return 1;
	io_uring_prep_openat(next(), AT_FDCWD, "ring.out", O_CREAT | O_RDWR | O_TRUNC, 0600);
	if ((fd = result()) < 0)
		return 2;
	io_uring_prep_write(next(), fd, buffer, 4097, 100);
	if (result() != 4097)
		return 3;
	io_uring_prep_writev(next(), fd, two, 2, 10000);
	if (result() != 3000)
		return 4;
	io_uring_prep_fsync(next(), fd, 0);
	if (result())
		return 5;
	struct io_uring_sqe *forced = next(); /* on a worker thread */
	io_uring_prep_read(forced, fd, buffer, 8000, 10000);
	io_uring_sqe_set_flags(forced, IOSQE_ASYNC);
	if (result() != 3000)
		return 6;
	if (lseek(fd, 50, SEEK_SET) != 50)
		return 7;
	io_uring_prep_read(next(), fd, buffer, 60, -1); /* where the file stands */
	if (result() != 60)
		return 8;
	io_uring_prep_read(next(), 999, buffer, 10, 0);
	if (result() != -9) /* EBADF */
		return 9;
	if (io_uring_register_files(&ring, &fd, 1))
		return 10;
	struct io_uring_sqe *fixed = next();
	io_uring_prep_read(fixed, 0, buffer, 77, 7);
	io_uring_sqe_set_flags(fixed, IOSQE_FIXED_FILE);
	if (result() != 77)
		return 11;
	struct io_uring_sqe *silent = next();
	io_uring_prep_write(silent, fd, buffer, 55, 20000);
	io_uring_sqe_set_flags(silent, IOSQE_CQE_SKIP_SUCCESS);
	io_uring_prep_nop(next()); /* no I/O */
	if (result())
		return 12;
	io_uring_prep_close(next(), fd);
	if (result())
		return 13;
	io_uring_prep_read(next(), pipes[0], buffer, 4321, 0); /* never returns */
	if (io_uring_submit(&ring) != 1)
		return 14;
	puts("waiting");
	fflush(stdout);
	if (argc > 2)
		pause();
	return 0;
}
