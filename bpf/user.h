/*
 * User functions: the attach cookie is the function's number.
 *
 * A return probe works by the kernel exchanging the return address on the stack. It keeps what
 * it took in a list per task which it takes for one stack: at each entry it forgets all that
 * lie below the stack pointer. A function that runs on another stack (a coroutine's, an
 * alternate signal stack above) so makes it forget calls that are still going on, and when
 * these return the program dies of SIGILL. Hence:
 *
 * - Where the entry can refuse the return probe (uprobe.session), it does for calls that are
 *   not on the thread's own stack, nor on an alternate signal stack below all calls in
 *   progress. They count as lost.
 * - The frames we keep are a copy of the kernel's list: at entry, those below the stack pointer
 *   were left without a return (longjmp, an exception) and end as unfinished. A frame is found
 *   again by function and stack pointer, so that one that was left out disturbs no other.
 *
 * The kernel arms no more than 64 returns of one task at a time, so neither do we.
 */
#pragma once

static __always_inline struct dc_frame *frame(struct dc_task *self, __u32 index)
{
	return &self->stack[index & (DC_DEPTH - 1)];
}

/* May a return probe be set for a call that begins at `sp`? */
static __always_inline bool returns_here(struct dc_task *self, struct task_struct *task, __u64 sp)
{
	if (sp - self->stack_low < self->stack_bytes)
		return true;
	if (sp - task->sas_ss_sp < task->sas_ss_size) /* signal handlers end before what they interrupt */
		return !self->depth || frame(self, self->depth - 1)->sp >= sp;
	return find_stack(self, sp);
}

/* Take the innermost frame off and record its call. */
__noinline int finish_frame(struct dc_task *self, __s64 now, __s64 ret, __u32 flags)
{
	if (!self || !self->depth)
		return 0;
	struct dc_frame *top = frame(self, --self->depth);
	struct dc_event event = {
		.ts = top->ts, .dur = now - top->ts, .offset = -1, .size = -1, .ret = ret, .fd = -1,
		.func = top->func, .flags = top->flags | flags,
		.pid = self->event.pid, .tid = self->event.tid,
	};
	finish(&event);
	return 0;
}

/* Frames below `sp` will not return: something left them. */
static __always_inline void drop_left(struct dc_task *self, __u64 sp, __s64 now)
{
	for (int i = 0; i < DC_DEPTH; i++) {
		if (!self->depth || frame(self, self->depth - 1)->sp >= sp)
			break;
		finish_frame(self, now, 0, DC_UNFINISHED);
	}
}

/* Is the return address that of the kernel's trampoline: a tail call out of a probed function? */
static __always_inline bool chained(struct pt_regs *ctx, struct task_struct *task, __u64 sp)
{
	__u64 address = 0;

#if defined(__TARGET_ARCH_x86)
	bpf_probe_read_user(&address, sizeof(address), (void *)sp);
#else
	address = ctx->regs[30];
#endif
	return address && address == BPF_CORE_READ(task, mm, uprobes_state.xol_area, vaddr);
}

/* True if the call is followed, and so its return wanted. */
static __always_inline bool enter_function(struct pt_regs *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 cookie = bpf_get_attach_cookie(ctx);
	__u16 func = cookie;

	if (!of_user(task))
		return false;
	struct dc_task *self = traced(task);
	if (!self || !(self->is & config.functions[func].select))
		return false;
	__u64 sp = PT_REGS_SP(ctx);
	bool room = returns_here(self, task, sp);
	if (room && self->depth) {
		__s64 now = bpf_ktime_get_ns();
		drop_left(self, sp, now);
		if (self->depth && frame(self, self->depth - 1)->sp == sp && !chained(ctx, task, sp))
			drop_left(self, sp + 1, now);
		room = self->depth < DC_DEPTH;
	}
	if (!room) {
		COUNT(lost);
		return false;
	}
	struct dc_frame *top = frame(self, self->depth++);
	top->sp = sp;
	top->func = func;
	top->flags = 0;
	top->ts = bpf_ktime_get_ns();
	if (cookie & DC_KEEP) {
		top->flags = DC_HAS_ARGUMENTS;
		keep_registers(self, task, ctx, func, top->ts);
	}
	return true;
}

/* A call of `func` that began at `sp` has returned. */
static __always_inline void leave_function(struct pt_regs *ctx, __u64 sp, __u16 func, __s64 ret)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (!of_user(task))
		return;
	struct dc_task *self = storage(&tasks, task, 0);
	if (!self || !self->depth)
		return;
	__s64 now = bpf_ktime_get_ns();
	drop_left(self, sp, now);
	/* of calls that jumped one into the other, the last returns first */
	if (self->depth && frame(self, self->depth - 1)->sp == sp &&
	    frame(self, self->depth - 1)->func == func)
		finish_frame(self, now, ret, 0);
}

/* The stack pointer at entry, seen from behind the return. */
static __always_inline __u64 returned_sp(struct pt_regs *ctx)
{
#if defined(__TARGET_ARCH_x86)
	return PT_REGS_SP(ctx) - 8;
#else
	return PT_REGS_SP(ctx);
#endif
}

OWN_STACK(user_enter)

SEC("uprobe")
int user_enter(struct pt_regs *ctx)
{
	user_enter_uses_own_stack(ctx);
	enter_function(ctx);
	return 0;
}

OWN_STACK(user_leave)

SEC("uretprobe")
int user_leave(struct pt_regs *ctx)
{
	user_leave_uses_own_stack(ctx);
	leave_function(ctx, returned_sp(ctx), bpf_get_attach_cookie(ctx), PT_REGS_RC(ctx));
	return 0;
}

OWN_STACK(user_session)

/* uprobe.session: both in one; what the entry returns says whether the return is of no interest.
 * At the return the instruction pointer is the caller's. */
SEC("uprobe")
int user_session(struct pt_regs *ctx)
{
	user_session_uses_own_stack(ctx);
	if (PT_REGS_IP(ctx) == bpf_get_func_ip(ctx))
		return !enter_function(ctx);
	leave_function(ctx, returned_sp(ctx), bpf_get_attach_cookie(ctx), PT_REGS_RC(ctx));
	return 0;
}

OWN_STACK(user_exit)

/* Functions that exceptions pass have probes at their exits instead: the stack stays as it is. */
SEC("uprobe")
int user_exit(struct pt_regs *ctx)
{
	__u64 cookie = bpf_get_attach_cookie(ctx);

	user_exit_uses_own_stack(ctx);
	leave_function(ctx, PT_REGS_SP(ctx), cookie, cookie & DC_TAIL ? 0 : PT_REGS_RC(ctx));
	return 0;
}
