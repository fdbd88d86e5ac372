/* Who joins, forks, executes and ends; what has not returned at the end. */
#pragma once

OWN_STACK(client_start)

/* datacrumbs_start(run_id) of libdatacrumbs_client.so */
SEC("uprobe")
int client_start(struct pt_regs *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	char asked[DC_RUN_ID_MAX] = {};

	client_start_uses_own_stack(ctx);
	if (!is_plain(task))
		return 0;
	bpf_probe_read_user_str(asked, sizeof(asked), (void *)PT_REGS_PARM1(ctx));
	for (int i = 0; i < DC_RUN_ID_MAX; i++) {
		if (asked[i] != config.run_id[i])
			return 0;
		if (!asked[i])
			break;
	}
	struct dc_task *self = traced(task);
	if (self && (self->is & DC_JOINED))
		return 0; /* inherited: the program before this one joined */
	self = join(task, DC_JOINED);
	if (!self)
		return 0;
	if (task->pid != task->tgid)
		join(task->group_leader, DC_JOINED);
	emit_process(self, task, DC_START);
	return 0;
}

static __always_inline __u64 stack_of(struct task_struct *task)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs(task);

	return BPF_CORE_READ(regs, sp);
}

static __always_inline int begin_task(struct task_struct *parent, struct task_struct *child)
{
	struct dc_task *mine = traced(parent);
	__u32 is = mine ? mine->is : 0;

	if (!may_join(child))
		return 0;
	if (selects_job() && in_job(child))
		is |= held(DC_IN_JOB, is_plain(child));
	if (!is)
		return 0;
	struct dc_task *self = join(child, is);
	if (!self)
		return 0;
	if (child->pid != child->tgid) {
		take_stack(self, parent);
	} else {
		if (mine) { /* a thread's child goes on where the thread was */
			if (parent->pid != parent->tgid && !mine->stack_bytes)
				find_stack(mine, stack_of(parent));
			self->stack_low = mine->stack_low;
			self->stack_bytes = mine->stack_bytes;
		}
		emit_process(self, child, DC_FORK);
	}
	return 0;
}

/* An execve() that comes to a program with other rights: nobody looks at its return. */
__noinline int end_call(struct dc_task *self)
{
	if (!self || !self->event.func)
		return 0;
	self->event.dur = bpf_ktime_get_ns() - self->event.ts;
	self->event.ret = 0;
	finish(&self->event);
	self->event.func = 0;
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	return begin_task(parent, child);
}

/*
 * Instead, where the kernel may preempt a program on a tracepoint and meanwhile runs it for nobody
 * else on that CPU (Linux 7.2): of a process that is missed, every call is. This tracepoint is
 * passed with interrupts off.
 */
SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(on_new_task, struct task_struct *child)
{
	return begin_task(bpf_get_current_task_btf(), child);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid)
{
	struct dc_task *self = traced(task);

	if (!self)
		return 0;
	drop_left(self, ~0ULL, bpf_ktime_get_ns());
	emit_unfinished_usdt(self, bpf_task_storage_get(&usdt_tasks, task, 0, 0));
	self->stack_bytes = 0;
	number(self, task); /* a thread that execs becomes the leader */
	struct file *program = BPF_CORE_READ(task, mm, exe_file);
	bool plain = is_plain(task);
	/* the path's memory went with the old program */
	if (self->event.func && program && (plain || !self->event.file))
		self->event.file = identify(self, program);
	if (!plain)
		end_call(self);
	self->is = held(self->is, plain);
	emit_process(self, task, DC_EXEC);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	struct dc_task *self = bpf_task_storage_get(&tasks, task, 0, 0);

	if (!self)
		return 0;
	emit_unfinished(self);
	emit_unfinished_usdt(self, bpf_task_storage_get(&usdt_tasks, task, 0, 0));
	emit_unfinished_kernel(task);
	if (!task->signal->live.counter)
		emit_process(self, task, DC_EXIT);
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(on_cgroup, struct cgroup *to, const char *path, struct task_struct *task)
{
	if (may_join(task) && (config.job_name[0] ? below(to) : config.job_cgroup && in_job(task))) {
		struct dc_task *self = join(task, held(DC_IN_JOB, is_plain(task)));
		if (self && task->pid == task->tgid)
			emit_process(self, task, DC_START);
	}
	return 0;
}

/* Read at start: mark what is in the job's cgroup already. */
SEC("iter/task")
int mark_job(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;

	if (task && selects_job() && may_join(task) && in_job(task)) {
		struct dc_task *self = join(task, held(DC_IN_JOB, is_plain(task)));
		if (self && task->pid == task->tgid)
			emit_process(self, task, DC_START);
	}
	return 0;
}

/* Read at the stop, after detaching: calls that have not returned. */
SEC("iter/task")
int unfinished(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;

	if (!task) { /* once, after the last */
		emit_unfinished_requests();
		return 0;
	}
	struct dc_task *self = bpf_task_storage_get(&tasks, task, 0, 0);
	if (self) {
		emit_unfinished(self);
		emit_unfinished_usdt(self, bpf_task_storage_get(&usdt_tasks, task, 0, 0));
	}
	emit_unfinished_kernel(task);
	return 0;
}
