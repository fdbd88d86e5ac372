/*
 * libdatacrumbs_client.so: tells the daemon, at the start of a process, which run it joins.
 *
 * It is preloaded into every process of a job, so it asks nothing of the process: no libc, no
 * thread-local storage, no writable data, no system call, no output. When no daemon watches
 * `datacrumbs_start`, calling it is one nop.
 */

#define RUN_ID_MAX 63 /* as datacrumbs.run.RUN_ID_MAX */

/*
 * The daemon's uprobe sits on the first instruction and reads the argument. A nop, because the
 * kernel emulates it where it would single-step a lone `ret`.
 */
__attribute__((visibility("default"), noinline)) void datacrumbs_start(const char *run_id)
{
	__asm__ volatile("nop" : : "r"(run_id) : "memory");
}

/*
 * NULL where the libc has not set it (yet), or the program has no libc. Not `environ`: a program
 * may have a variable of its own by that name, and would be asked first.
 */
extern char **__environ __attribute__((weak, visibility("default")));

/* The value of `name` in the entry "name=value"; NULL when it is another variable or empty. */
static const char *value_of(const char *entry, const char *name)
{
	while (*name && *entry == *name) {
		entry++;
		name++;
	}
	return !*name && entry[0] == '=' && entry[1] ? entry + 1 : 0;
}

static void start(const char *run_id)
{
	char copy[RUN_ID_MAX + 1];
	unsigned int length = 0;

	/* Flux writes its ids with U+0192, "f" with a hook, where the locale has it */
	if (run_id[0] == '\xc6' && run_id[1] == '\x92') {
		run_id += 2;
		copy[length++] = 'f';
	}
	/* copied so that the whole id is in memory that the probe can read without a fault */
	for (; *run_id; run_id++) {
		if (length == RUN_ID_MAX)
			return;
		copy[length++] = *run_id;
	}
	copy[length] = 0;
	datacrumbs_start(copy);
}

/*
 * glibc passes (argc, argv, envp) to constructors but may not have set `__environ` yet when this
 * one runs; musl passes nothing but has set it. So `envp` is looked at only without `__environ`.
 */
__attribute__((constructor)) static void datacrumbs_constructor(int argc, char **argv, char **envp)
{
	const char *flux = 0, *slurm = 0, *value;
	char **entry = &__environ && __environ ? __environ : envp;

	(void)argc;
	(void)argv;
	if (!entry)
		return;
	for (; *entry; entry++) {
		if ((value = value_of(*entry, "DATACRUMBS_RUN_ID"))) {
			start(value);
			return;
		}
		if (!flux)
			flux = value_of(*entry, "FLUX_JOB_ID");
		if (!slurm)
			slurm = value_of(*entry, "SLURM_JOB_ID");
	}
	if (flux || slurm)
		start(flux ? flux : slurm);
}
