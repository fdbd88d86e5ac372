/*
 * Functions of the kernel, told apart by the attach cookie.
 *
 * A call is the task's own when the task is traced; when a kernel thread makes it for data of
 * the run (see subject.h) it is recorded as DC_ASYNC. Code that runs in an interrupt on top of
 * a traced task is not its call: it is filtered.
 */
#pragma once

#define PF_KTHREAD 0x00200000

struct frame {
	__s64 ts;
	__u64 sp;   /* stack pointer at entry; 0: a tracepoint, which has none */
	__s64 call; /* start of the system call it is in */
	__u64 file;
	__s64 offset, size;
	__s32 pid, tid;
	__u16 func, flags;
	__u32 unused;
};
struct frames {
	__u32 depth, unused;
	struct frame frame[DC_KERNEL_DEPTH];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct frames);
} kernel_frames SEC(".maps");

/*
 * Is this an interrupt or softirq on top of the current task? `here` is an address on the stack
 * in use. On x86 interrupts have stacks of their own; the count of them is a variable whose name
 * not every kernel knows.
 */
static __always_inline bool interrupted(struct task_struct *task, __u64 here)
{
#if defined(__TARGET_ARCH_x86)
	return here - (__u64)task->stack >= 16384; /* THREAD_SIZE */
#else
	return task->thread_info.preempt_count & 0x0f0100; /* hard interrupts, serving softirq */
#endif
}

/* Where arguments are: in registers at a function's entry, or handed to a tracepoint. */
struct origin {
	void *ctx;
	bool point;
};

/*
 * Each a load of its own, which the compiler must not make one of: a context is read at constant
 * offsets only. And the kernel refuses programs that look beyond a tracepoint's last argument:
 * where `index` is known at load, the others are not there.
 */
#define ARGUMENT(n, expression)                                                                    \
	case n: {                                                                                  \
		__u64 value = (__u64)(expression);                                                 \
		asm volatile("" : "+r"(value) : "i"(n));                                           \
		return value;                                                                      \
	}

static __always_inline __u64 point_argument(struct bpf_raw_tracepoint_args *ctx, __s8 index)
{
	switch (index) {
		ARGUMENT(0, ctx->args[0])
		ARGUMENT(1, ctx->args[1])
		ARGUMENT(2, ctx->args[2])
		ARGUMENT(3, ctx->args[3])
		ARGUMENT(4, ctx->args[4])
		ARGUMENT(5, ctx->args[5])
		ARGUMENT(6, ctx->args[6])
		ARGUMENT(7, ctx->args[7])
	}
	return 0;
}

static __always_inline __u64 function_argument(struct pt_regs *ctx, __s8 index)
{
	switch (index) {
		ARGUMENT(0, PT_REGS_PARM1(ctx))
		ARGUMENT(1, PT_REGS_PARM2(ctx))
		ARGUMENT(2, PT_REGS_PARM3(ctx))
		ARGUMENT(3, PT_REGS_PARM4(ctx))
		ARGUMENT(4, PT_REGS_PARM5(ctx))
#if defined(__TARGET_ARCH_x86)
		ARGUMENT(5, ctx->r9)
#else
		ARGUMENT(5, ctx->regs[5])
#endif
	}
	return 0;
}

static __always_inline __u64 pick(struct origin from, __s8 index)
{
	return from.point ? point_argument(from.ctx, index) : function_argument(from.ctx, index);
}

static __always_inline void read_place(struct subject *subject, struct origin from,
				       const volatile struct dc_function *function)
{
	subject->offset = subject->size = -1;
	if (function->kind)
		look_at(subject, pick(from, function->object) + function->embedded, function->kind);
	if (function->offset >= 0) {
		__u64 offset = pick(from, function->offset), file = subject->file;
		if (function->how & DC_OFFSET_POINTER) {
			__u64 address = offset;
			if (bpf_probe_read_kernel(&offset, sizeof(offset), (void *)address))
				offset = file ? BPF_CORE_READ((struct file *)file, f_pos) : -1;
		}
		subject->offset = function->how & DC_OFFSET_PAGES ? offset << config.page_shift : offset;
	}
	if (function->size >= 0) {
		__u64 size = pick(from, function->size);
		if (function->how & DC_SIZE_ITER)
			size = BPF_CORE_READ((struct iov_iter *)size, count);
		subject->size = function->how & DC_SIZE_32 ? (__u32)size : size;
	}
}

/*
 * Frames that a lost return left: of an earlier system call, or the stack has been used beyond
 * them since. A function that another one jumps to at its end begins at the same place.
 */
__noinline int drop_stale(struct frames *frames, __u64 sp, __s64 call)
{
	if (!frames)
		return 0;
	__u32 depth = frames->depth;

	if (depth > DC_KERNEL_DEPTH)
		return 0;
	for (int i = 0; i < DC_KERNEL_DEPTH && depth; i++) {
		struct frame *top = &frames->frame[(depth - 1) & (DC_KERNEL_DEPTH - 1)];
		if (top->call == call && (!top->sp || !sp || top->sp >= sp))
			break;
		depth--;
		counters_here()->lost++;
	}
	frames->depth = depth;
	return 0;
}

/* A new frame; 0 when there is no room for it, which is counted. */
static __always_inline struct frame *push(struct task_struct *task, __u64 sp, __s64 call)
{
	struct frames *frames =
		bpf_task_storage_get(&kernel_frames, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!frames) {
		counters_here()->lost++;
		return 0;
	}
	if (frames->depth)
		drop_stale(frames, sp, call);
	__u32 depth = frames->depth++;
	if (depth >= DC_KERNEL_DEPTH) {
		counters_here()->lost++;
		return 0;
	}
	struct frame *frame = &frames->frame[depth & (DC_KERNEL_DEPTH - 1)];
	frame->sp = sp;
	frame->call = call;
	return frame;
}

/* The frame around the one that a kernel thread pushes now, if any. */
static __always_inline struct frame *enclosing(struct task_struct *task, __u64 sp)
{
	struct frames *frames = bpf_task_storage_get(&kernel_frames, task, 0, 0);

	if (!frames || !frames->depth)
		return 0;
	drop_stale(frames, sp, 0);
	__u32 depth = frames->depth;
	if (!depth || depth > DC_KERNEL_DEPTH)
		return 0;
	return &frames->frame[(depth - 1) & (DC_KERNEL_DEPTH - 1)];
}

/* What is known of a call at its entry. */
struct found {
	struct dc_task *self; /* 0: a kernel thread's call */
	__u64 file;
	__s64 call; /* start of the system call it is in */
	__s32 pid, tid;
	__u32 flags, unused;
};

static __always_inline bool find_own(struct found *found, struct dc_task *self,
				     struct subject *subject)
{
	found->file = identify_subject(self, subject);
	found->call = self->event.func ? self->event.ts : 0;
	if (subject->anonymous && self->event.func && self->event.file)
		found->file = self->event.file; /* direct I/O of the call in progress */
	found->pid = self->event.pid;
	found->tid = self->event.tid;
	return true;
}

static __always_inline bool find_async(struct found *found, struct task_struct *task,
				       const volatile struct dc_function *function,
				       struct subject *subject, __u64 sp)
{
	struct dirt dirt;

	found->flags = DC_ASYNC;
	struct frame *around = enclosing(task, sp);
	if (whose(&dirt, subject) && (dirt.is & function->select)) {
		found->file = dirt.file;
		found->pid = dirt.pid;
		found->tid = dirt.tid;
		return true;
	}
	if (!around)
		return false;
	found->file = around->file; /* a part of what is done for that file */
	found->pid = around->pid;
	found->tid = around->tid;
	return true;
}

/* Is this call the run's? Fills `found` with what it is about. */
static __always_inline bool find(struct found *found, struct subject *subject,
				 struct task_struct *task, struct origin from,
				 const volatile struct dc_function *function, __u64 sp, __u64 here)
{
	struct dc_task *self = 0;
	bool thread = task->flags & PF_KTHREAD;

	if (!thread) {
		if (!of_user(task))
			return false;
		self = traced(task);
		if (!self)
			return false;
		if (!(self->is & function->select)) {
			counters_here()->filtered++;
			return false;
		}
	} else if (!function->kind && !enclosing(task, sp)) {
		return false;
	}
	if (interrupted(task, here)) {
		if (self)
			counters_here()->filtered++;
		return false;
	}
	read_place(subject, from, function);
	found->self = self;
	return self ? find_own(found, self, subject)
		    : find_async(found, task, function, subject, sp);
}

static __always_inline __u32 keep(struct dc_task *self, struct task_struct *task,
				  struct origin from, __u16 func, __s64 ts)
{
	__u64 *values = argument_values(task);

	if (!values)
		return 0;
	for (int i = 0; i < 6; i++)
		values[i] = pick(from, i);
	send_arguments(self, func, ts, false);
	return DC_HAS_ARGUMENTS;
}

static __always_inline bool begin(struct task_struct *task, struct origin from,
				  const volatile struct dc_function *function, __u16 func, __u64 sp,
				  __u64 here)
{
	struct found found = {};
	struct subject subject = {};

	if (!find(&found, &subject, task, from, function, sp, here))
		return false;
	struct frame *frame = push(task, sp, found.call);
	if (!frame)
		return true; /* counted in the depth: its return must come */
	frame->file = found.file;
	frame->offset = subject.offset;
	frame->size = subject.size;
	frame->pid = found.pid;
	frame->tid = found.tid;
	frame->flags = found.flags;
	frame->func = func;
	frame->ts = bpf_ktime_get_ns();
	if (found.self && (function->how & DC_KEEPS))
		frame->flags |= keep(found.self, task, from, func, frame->ts);
	return true;
}

/* Take the frame of `func` off; those above it had no return, which is counted. */
__noinline int pop(struct frames *frames, __u32 func)
{
	if (!frames)
		return -1;
	__u32 depth = frames->depth;

	if (depth > DC_KERNEL_DEPTH) {
		frames->depth = depth - 1;
		return -1;
	}
	for (int i = 0; i < DC_KERNEL_DEPTH && depth; i++) {
		depth--;
		if (frames->frame[depth & (DC_KERNEL_DEPTH - 1)].func != func)
			continue;
		counters_here()->lost += i;
		frames->depth = depth;
		return depth;
	}
	return -1; /* not one of ours */
}

static __always_inline int end(struct task_struct *task, __u16 func, __s64 ret, __u64 here)
{
	__s64 now = bpf_ktime_get_ns();
	struct frames *frames = bpf_task_storage_get(&kernel_frames, task, 0, 0);

	if (!frames || !frames->depth || interrupted(task, here))
		return 0;
	int at = pop(frames, func);
	if (at < 0)
		return 0;
	struct frame *frame = &frames->frame[at & (DC_KERNEL_DEPTH - 1)];
	struct dc_event event = {
		.ts = frame->ts, .dur = now - frame->ts, .file = frame->file, .offset = frame->offset,
		.size = frame->size, .ret = ret, .fd = -1, .func = func, .flags = frame->flags,
		.pid = frame->pid, .tid = frame->tid,
	};
	finish(&event);
	return 0;
}

/* What may be shown of it: no address of the kernel. */
static __always_inline __s64 returned(__u64 value, __u8 returns)
{
	switch (returns) {
	case DC_RETURNS_NOTHING:
		return 0;
	case DC_RETURNS_INT:
		return (__s32)value;
	case DC_RETURNS_UINT:
		return (__u32)value;
	case DC_RETURNS_BYTE:
		return (__u8)value;
	}
	return (__s64)value < -4095 ? 0 : value;
}

static __always_inline bool enter_kernel(struct pt_regs *ctx)
{
	__u16 func = bpf_get_attach_cookie(ctx);
	struct origin from = {.ctx = ctx};

	return begin(bpf_get_current_task_btf(), from, &config.functions[func], func,
		     PT_REGS_SP(ctx), PT_REGS_SP(ctx));
}

static __always_inline int leave_kernel(struct pt_regs *ctx)
{
	__u16 func = bpf_get_attach_cookie(ctx);

	return end(bpf_get_current_task_btf(), func,
		   returned(PT_REGS_RC(ctx), config.functions[func].returns), PT_REGS_SP(ctx));
}

SEC("kprobe")
int kernel_enter(struct pt_regs *ctx)
{
	enter_kernel(ctx);
	return 0;
}

SEC("kretprobe")
int kernel_leave(struct pt_regs *ctx)
{
	return leave_kernel(ctx);
}

/* Entry and return in one. 1 at entry: do not run at the return. */
SEC("kprobe")
int kernel_session(struct pt_regs *ctx)
{
	if (!bpf_core_type_exists(struct bpf_session_run_ctx))
		return 1;
	if (session_returns())
		return leave_kernel(ctx);
	return !enter_kernel(ctx);
}

/* The kernel functions this task is in, when it or the run ends. */
static __always_inline void emit_unfinished_kernel(struct task_struct *task)
{
	struct frames *frames = bpf_task_storage_get(&kernel_frames, task, 0, 0);
	__s64 now = bpf_ktime_get_ns();

	if (!frames)
		return;
	for (__u32 i = 0; i < DC_KERNEL_DEPTH && i < frames->depth; i++) {
		struct frame *frame = &frames->frame[i];
		struct dc_event event = {
			.ts = frame->ts, .dur = now - frame->ts, .file = frame->file,
			.offset = frame->offset, .size = frame->size, .fd = -1, .func = frame->func,
			.flags = frame->flags | DC_UNFINISHED, .pid = frame->pid, .tid = frame->tid,
		};
		finish_open(&event);
	}
	frames->depth = 0;
}
