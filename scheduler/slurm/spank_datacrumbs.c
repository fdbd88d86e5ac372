/*
 * SPANK plugin: --datacrumbs-enable and --datacrumbs-probe-file for plain sbatch, salloc and srun,
 * and the client library in the tasks of a job that is traced.
 *
 *   plugstack.conf:  optional <prefix>/lib/datacrumbs/spank_datacrumbs.so \
 *                      run_dir=/run/datacrumbs library=<prefix>/lib/datacrumbs/libdatacrumbs_client.so
 *
 * Where a job is submitted it checks what can be checked there and hands the path to the prolog,
 * as SPANK_DATACRUMBS_PROBE_FILE. On the node it runs as the user, just before a task's exec.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <slurm/spank.h>

SPANK_PLUGIN(datacrumbs, 1);

#define ENV_MAX 32768 /* of a value we make longer */

static char probe_file[PATH_MAX];
static int enabled;
static const char *run_dir = "/run/datacrumbs";
static const char *library = "";

static int refuse(const char *what, const char *why)
{
	slurm_error("datacrumbs: --datacrumbs-probe-file=%s: %s", what, why);
	return -1;
}

static int printable(const char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			return 0;
	return 1;
}

/* Makes it absolute: the job may run in another directory. */
static int take_probe_file(int val, const char *path, int remote)
{
	char here[PATH_MAX] = "";
	struct stat status;

	(void)val;
	if (remote)
		return 0;
	if (!path || !printable(path))
		return refuse("...", "give the path of a probe file, without control characters");
	if (path[0] != '/' && !getcwd(here, sizeof(here)))
		return refuse(path, strerror(errno));
	if (snprintf(probe_file, sizeof(probe_file), "%s%s%s", here, here[0] ? "/" : "", path) >=
	    (int)sizeof(probe_file))
		return refuse(path, "the path is too long");
	int fd = open(probe_file, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return refuse(path, strerror(errno));
	int regular = !fstat(fd, &status) && S_ISREG(status.st_mode);
	close(fd);
	return regular ? 0 : refuse(path, "not a regular file");
}

static int take_enable(int val, const char *argument, int remote)
{
	(void)val;
	(void)argument;
	(void)remote;
	enabled = 1;
	return 0;
}

static struct spank_option enable_option = {
	.name = "datacrumbs-enable",
	.usage = "trace the job's I/O; needs --datacrumbs-probe-file",
	.cb = take_enable,
};
static struct spank_option probe_file_option = {
	.name = "datacrumbs-probe-file",
	.arginfo = "FILE",
	.usage = "trace the job's I/O as this signed probe file says",
	.has_arg = 1,
	.cb = take_probe_file,
};

/* Registered here: options of a static table are known to srun only. */
int slurm_spank_init(spank_t sp, int argc, char **argv)
{
	spank_context_t context = spank_context();

	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "run_dir=", 8))
			run_dir = argv[i] + 8;
		else if (!strncmp(argv[i], "library=", 8))
			library = argv[i] + 8;
		else
			slurm_error("datacrumbs: plugstack.conf: unknown argument %s", argv[i]);
	}
	if (context != S_CTX_LOCAL && context != S_CTX_ALLOCATOR && context != S_CTX_REMOTE)
		return 0;
	if (spank_option_register(sp, &enable_option) || spank_option_register(sp, &probe_file_option))
		slurm_error("datacrumbs: its options cannot be registered");
	return 0;
}

/* Options have been read, nothing is submitted yet. */
int slurm_spank_init_post_opt(spank_t sp, int argc, char **argv)
{
	spank_context_t context = spank_context();

	(void)argc;
	(void)argv;
	if (context != S_CTX_LOCAL && context != S_CTX_ALLOCATOR)
		return 0;
	if (enabled && !probe_file[0]) {
		slurm_error("datacrumbs: --datacrumbs-enable: add --datacrumbs-probe-file=FILE");
		exit(1); /* an error returned by an optional plugin stops nothing */
	}
	if (!probe_file[0])
		return 0;
	if (context == S_CTX_LOCAL && getenv("SLURM_JOB_ID")) {
		/* of a job that was submitted with the options, srun inherits them */
		if (!getenv("SLURM_SPANK_DATACRUMBS_PROBE_FILE"))
			slurm_info("datacrumbs: the job has started: give the options to sbatch or salloc");
		return 0;
	}
	if (spank_job_control_setenv(sp, "DATACRUMBS_PROBE_FILE", probe_file, 1)) {
		slurm_error("datacrumbs: the probe file cannot be passed on; the job is not traced");
		return -1;
	}
	return 0;
}

/* Add `text` to the end of the task's variable `name`, unless it is in there. */
static void append(spank_t sp, const char *name, char separator, const char *text)
{
	static char value[ENV_MAX];

	spank_err_t found = spank_getenv(sp, name, value, sizeof(value));
	if (found == ESPANK_ENV_NOEXIST)
		value[0] = 0;
	else if (found != ESPANK_SUCCESS) /* longer than we can take: it stays as it is */
		return;
	size_t length = strlen(value), added = strlen(text);
	if (strstr(value, text) || length + added + 2 > sizeof(value))
		return;
	if (length)
		value[length++] = separator;
	memcpy(value + length, text, added + 1);
	spank_setenv(sp, name, value, 1);
}

/* Why the job is not traced on this node, if it asked to be: a file that root wrote for us. */
static void tell_why_not(const char *path)
{
	char reason[1024];
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		return;
	ssize_t length = read(fd, reason, sizeof(reason) - 1);
	close(fd);
	if (length <= 0)
		return;
	reason[length] = 0;
	reason[strcspn(reason, "\n")] = 0;
	dprintf(STDERR_FILENO, "datacrumbs: not traced: %s\n", reason);
}

/* In the task, as its user, its standard streams in place. */
int slurm_spank_task_init(spank_t sp, int argc, char **argv)
{
	char path[PATH_MAX], run_id[16];
	uint32_t job;
	int task;

	(void)argc;
	(void)argv;
	if (spank_get_item(sp, S_JOB_ID, &job) || spank_get_item(sp, S_TASK_ID, &task))
		return 0;
	/* first: a run of this id may go on that is not the job's */
	snprintf(path, sizeof(path), "%s/datacrumbs-%u.failed", run_dir, job);
	if (!access(path, F_OK)) {
		if (task == 0)
			tell_why_not(path);
		return 0;
	}
	snprintf(path, sizeof(path), "%s/datacrumbs-%u.ready", run_dir, job);
	if (access(path, F_OK))
		return 0;
	/* not one that is not there: the loader would complain in every process of the job */
	if (access(library, R_OK))
		return 0;
	snprintf(run_id, sizeof(run_id), "%u", job);
	spank_setenv(sp, "DATACRUMBS_RUN_ID", run_id, 1);
	append(sp, "LD_PRELOAD", ':', library);
	/* gcc's AddressSanitizer insists on being the first library; ours hides nothing from it */
	append(sp, "ASAN_OPTIONS", ':', "verify_asan_link_order=0");
	return 0;
}
