/* User functions: the attach cookie is the function's number. */
#pragma once

static __always_inline int enter_function(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u16 func = bpf_get_attach_cookie(ctx);

	if (!of_user(task))
		return 0;
	struct dc_task *self = traced(task);
	if (!self || !(self->is & config.functions[func].select))
		return 0;
	__u32 depth = self->depth++;
	if (depth >= DC_DEPTH) {
		counters_here()->lost++;
		return 0;
	}
	self->stack[depth].func = func;
	self->stack[depth].ts = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int leave_function(struct pt_regs *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u16 func = bpf_get_attach_cookie(ctx);

	if (!of_user(task))
		return 0;
	struct dc_task *self = bpf_task_storage_get(&tasks, task, 0, 0);
	if (!self || !self->depth)
		return 0;
	__u32 depth = --self->depth;
	if (depth >= DC_DEPTH)
		return 0;
	/* longjmp and exceptions leave frames behind: find ours below them */
	for (int i = 0; i < DC_DEPTH; i++) {
		if (self->stack[depth & (DC_DEPTH - 1)].func == func)
			break;
		if (!depth)
			return 0;
		self->depth = --depth;
	}
	depth &= DC_DEPTH - 1;
	struct dc_event event = {
		.ts = self->stack[depth].ts, .offset = -1, .size = -1, .fd = -1, .func = func,
		.pid = self->event.pid, .tid = self->event.tid,
	};
	event.dur = bpf_ktime_get_ns() - event.ts;
	event.ret = PT_REGS_RC(ctx);
	finish(&event);
	return 0;
}

SEC("uprobe")
int user_enter(struct pt_regs *ctx)
{
	return enter_function(ctx);
}

SEC("uretprobe")
int user_leave(struct pt_regs *ctx)
{
	return leave_function(ctx);
}
