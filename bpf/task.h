/* Which tasks are traced, and what is kept for each. */
#pragma once

const volatile struct dc_config config SEC(".rodata.config") = {.layout = DC_LAYOUT};

struct dc_counters counters[DC_MAX_CPUS] SEC(".data.counters");

static __always_inline struct dc_counters *counters_here(void)
{
	return &counters[bpf_get_smp_processor_id() & (DC_MAX_CPUS - 1)];
}

/* Atomic: a program on a uprobe may be preempted by another one on the same CPU. Those of kernel
 * functions are not, and with atomic additions would need more stack than Linux 6.1 gives. */
#define COUNT(what) __sync_fetch_and_add(&counters_here()->what, 1)

/*
 * For programs on uprobes, which the kernel may preempt and then run for another thread on the same
 * CPU. From 6.13 on a program has its stack in memory of the CPU's, and the two threads would write
 * into each other's: seen on 7.2, it takes the kernel down. A program with a tail call keeps to the
 * thread's stack; this one is never made, which the verifier knows. The map goes with one program:
 * it takes those of one attach type only.
 */
#define OWN_STACK(program)                                                                         \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY);                                             \
		__uint(max_entries, 1);                                                            \
		__type(key, __u32);                                                                \
		__type(value, __u32);                                                              \
	} program##_tail SEC(".maps");                                                             \
	static __always_inline void program##_uses_own_stack(struct pt_regs *ctx)                  \
	{                                                                                          \
		if (!config.layout)                                                                \
			bpf_tail_call(ctx, &program##_tail, 0);                                    \
	}

/* a call of a user function that has not returned; see user.h */
struct dc_frame {
	__s64 ts;
	__u64 sp; /* stack pointer at entry */
	__u16 func, flags;
};

struct dc_task {
	__u32 is;     /* DC_JOINED | DC_IN_JOB, these two << DC_HELD */
	__u32 number; /* system call in progress, while event.func is set */
	struct dc_event event;
	__u64 arguments[8]; /* of the system call in progress; 6 are used */
	__u64 position; /* struct file whose position tells the offset afterwards */
	__u64 path, path2;
	__s32 dirfd, dirfd2, fd2;
	__u32 depth;
	__u64 file2;
	__s64 offset2;
	__u64 parent, dentry, mnt; /* pointers, stored to be read back as numbers */
	struct {
		__u64 inside, id; /* see file.h */
	} known[8];		      /* files announced lately */
	__u64 stack_low, stack_bytes; /* the thread's own stack, if known: as clone3() has it */
	struct dc_frame stack[DC_DEPTH]; /* the user functions it is in, the innermost last */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct dc_task);
} tasks SEC(".maps");

/*
 * What a map keeps for a task: for functions that programs on uprobes call. Before Linux 7 the kernel
 * makes no room for a task while another program on that CPU is at a task's storage, be it one
 * that was preempted there: whole threads were missing. So none is. That can be had since Linux
 * 6.10; we tell both by types that came with them.
 */
extern void bpf_preempt_disable(void) __ksym __weak;
extern void bpf_preempt_enable(void) __ksym __weak;

static __always_inline void *storage(void *map, struct task_struct *task, __u64 flags)
{
	bool stays = bpf_core_type_exists(struct bpf_session_run_ctx) &&
		     !bpf_core_field_exists(struct bpf_local_storage, mem_charge);

	if (stays)
		bpf_preempt_disable();
	void *found = bpf_task_storage_get(map, task, 0, flags);
	if (stays)
		bpf_preempt_enable();
	return found;
}

/* Only the run's user, and no program that runs with somebody else's rights (setuid, setgid). */
static __always_inline bool of_user(struct task_struct *task)
{
	const struct cred *cred = task->cred;

	return cred->uid.val == config.uid && cred->euid.val == config.uid && cred->suid.val == config.uid &&
	       cred->gid.val == cred->egid.val && cred->gid.val == cred->sgid.val;
}

#define AUXV_ENTRIES 32 /* at most */
#define TYPE_SECURE 23 /* AT_SECURE */

/*
 * Does the program run with more rights than those of who executed it (setuid, setgid, file
 * capabilities)? As the kernel told its loader, which then preloads nothing. Entries of a 32-bit
 * program are half as wide; the first, an address, shows it.
 */
__noinline int is_secure(__u64 mm)
{
	__u64 at = mm + bpf_core_field_offset(struct mm_struct, saved_auxv);
	__u64 entry[2]; /* type, value */
	bool narrow = false;

	for (int i = 0; i < AUXV_ENTRIES; i++) {
		if (bpf_probe_read_kernel(entry, sizeof(entry), (void *)at) || !(__u32)entry[0])
			break;
		narrow |= !i && entry[0] >> 32;
		if ((__u32)entry[0] == TYPE_SECURE)
			return (narrow ? entry[0] >> 32 : entry[1]) != 0;
		at += narrow ? sizeof(__u64) : sizeof(entry);
	}
	return 0;
}

/* Does its program have the rights of the run's user, and no others? */
static __always_inline bool is_plain(struct task_struct *task)
{
	return of_user(task) && !is_secure((__u64)BPF_CORE_READ(task, mm));
}

/*
 * A program with other rights is none of the run's, whatever it gives up later: it may hold what
 * its user must not see. The plain programs that it executes are the run's again.
 */
static __always_inline __u32 held(__u32 is, bool plain)
{
	return plain ? (is | is >> DC_HELD) & DC_IS : (is | is << DC_HELD) & (DC_IS << DC_HELD);
}

/* The number `pid` has in the daemon's PID namespace; 0 when it is not in it or below. */
__noinline int number_at(__u64 address)
{
	struct pid *pid = (void *)address;
	unsigned int level = BPF_CORE_READ(pid, level);

	for (unsigned int i = 0; i < 8; i++) { /* PID namespaces above us, from the root down */
		struct upid upid;
		if (i > level)
			break;
		bpf_probe_read_kernel(&upid, sizeof(upid), (void *)&pid->numbers[0] + i * sizeof(upid));
		if (BPF_CORE_READ(upid.ns, ns.inum) == config.ns_inum)
			return upid.nr;
	}
	return 0;
}

static __always_inline int number_of(struct pid *pid)
{
	return number_at((__u64)pid);
}

static __always_inline void number(struct dc_task *self, struct task_struct *task)
{
	self->event.tid = number_of(BPF_CORE_READ(task, thread_pid));
	self->event.pid = number_of(BPF_CORE_READ(task, group_leader, thread_pid));
}

static __always_inline struct dc_task *join(struct task_struct *task, __u32 is)
{
	struct dc_task *self;

	if (!number_of(BPF_CORE_READ(task, thread_pid)))
		return 0;
	self = storage(&tasks, task, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!self) {
		COUNT(lost);
		return 0;
	}
	self->is |= is;
	number(self, task);
	return self;
}

/* What is kept for `task`, if it is traced. A thread older than its process's joining is found
 * by its leader, once. */
static __always_inline struct dc_task *traced(struct task_struct *task)
{
	struct dc_task *self = storage(&tasks, task, 0);

	if (self || task->pid == task->tgid)
		return self;
	self = storage(&tasks, task->group_leader, 0);
	return self ? join(task, self->is) : 0;
}

/* Ids are unique in one hierarchy only: version 2's. A job's name is its own in all of them. */
__noinline int is_job(__u64 address)
{
	struct kernfs_node *node = (void *)address;
	__u64 name[DC_JOB_NAME_MAX / 8] = {};

	if (config.job_cgroup)
		return BPF_CORE_READ(node, id) == config.job_cgroup;
	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(node, name));
	for (int i = 0; i < DC_JOB_NAME_MAX / 8; i++)
		if (name[i] != ((const volatile __u64 *)config.job_name)[i])
			return 0;
	return 1;
}

static __always_inline bool selects_job(void)
{
	return config.job_cgroup || config.job_name[0];
}

/*
 * Is it the user's, or root's, as those of a scheduler are that become the user's? Anybody else
 * may give a cgroup the job's name, and would fill the run's rings with what they start there.
 */
static __always_inline bool may_join(struct task_struct *task)
{
	__u32 uid = task->cred->uid.val;

	return !uid || uid == config.uid;
}

/* Is this cgroup the job's, or below it? */
static __always_inline bool below(struct cgroup *group)
{
	struct cgroup_subsys_state *css = &((struct cgroup___self *)group)->self;

	for (int i = 0; i < 24 && css; i++) {
		if (is_job((__u64)BPF_CORE_READ(css, cgroup, kn)))
			return true;
		css = BPF_CORE_READ(css, parent);
	}
	return false;
}

static __always_inline bool in_job(struct task_struct *task)
{
	return below(BPF_CORE_READ(task, cgroups, dfl_cgrp));
}
