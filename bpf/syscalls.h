/* System calls: entry keeps arguments and file, exit makes the event. */
#pragma once

/* copied all at once: cheaper than to choose a register for every index */
static __always_inline void keep_arguments(struct dc_task *self, struct pt_regs *regs)
{
#if defined(__TARGET_ARCH_x86)
	self->arguments[0] = regs->di;
	self->arguments[1] = regs->si;
	self->arguments[2] = regs->dx;
	self->arguments[3] = regs->r10;
	self->arguments[4] = regs->r8;
	self->arguments[5] = regs->r9;
#else
	self->arguments[0] = regs->orig_x0;
	self->arguments[1] = regs->regs[1];
	self->arguments[2] = regs->regs[2];
	self->arguments[3] = regs->regs[3];
	self->arguments[4] = regs->regs[4];
	self->arguments[5] = regs->regs[5];
#endif
}

static __always_inline __u64 argument(const struct dc_task *self, __s8 index)
{
	return self->arguments[index & 7];
}

/* a 32-bit program's calls have other numbers and other arguments */
static __always_inline bool compat(struct task_struct *task)
{
#if defined(__TARGET_ARCH_x86)
	return task->thread_info.status & 2; /* TS_COMPAT */
#else
	return task->thread_info.flags & (1UL << 22); /* TIF_32BIT */
#endif
}

struct summing {
	__u64 iov;
	__s64 sum;
};

static long add_one(__u64 i, struct summing *summing)
{
	__u64 one[2]; /* struct iovec: base, length */

	if (bpf_probe_read_user(one, sizeof(one), (void *)(summing->iov + i * sizeof(one)))) {
		summing->sum = -1;
		return 1;
	}
	summing->sum += one[1];
	return 0;
}

static __always_inline __s64 iov_bytes(__u64 iov, __u64 count)
{
	struct summing summing = {.iov = iov};

	if (count > 1024) /* UIO_MAXIOV: the call fails */
		return -1;
	bpf_loop(count, add_one, &summing, 0);
	return summing.sum;
}

/* -1 without one: a read that fails would leave 0 */
static __always_inline __s64 user_offset(__u64 address)
{
	__s64 offset;

	return bpf_probe_read_user(&offset, sizeof(offset), (void *)address) ? -1 : offset;
}

/* The file position a transfer begins at, by what the call says. */
static __always_inline __s64 start_offset(const volatile struct dc_call *call,
					  const struct dc_task *self, struct file *file)
{
	__s64 offset = -1;

	if (call->offset >= 0)
		offset = argument(self, call->offset);
	else if (call->offset_ptr >= 0)
		offset = user_offset(argument(self, call->offset_ptr));
	if (offset == -1 && (call->bits & DC_USES_POS) && file)
		offset = READ(as(struct file, file), f_pos);
	return offset;
}

static __always_inline void second_file(struct dc_task *self, struct task_struct *task,
					const volatile struct dc_call *call)
{
	self->fd2 = argument(self, call->fd2);
	self->offset2 = -1;
	struct file *file = file_of(task, self->fd2);
	self->file2 = file ? identify_for(self, file, true) : 0;
	if (call->offset2_ptr >= 0)
		self->offset2 = user_offset(argument(self, call->offset2_ptr));
	if (self->offset2 == -1 && file)
		self->offset2 = READ(as(struct file, file), f_pos);
	self->event.flags = DC_PEER;
}

/* a call about two files is wanted if either is, and then both have names */
static __always_inline bool has_peer(const volatile struct dc_call *call)
{
	return call->fd2 >= 0 || call->path2 >= 0;
}

/* What the arguments tell of the call, before it runs. */
static __always_inline void keep_details(struct dc_task *self, struct task_struct *task,
					 const volatile struct dc_call *call)
{
	if (call->size >= 0)
		self->event.size = argument(self, call->size);
	else if (call->iov >= 0)
		self->event.size = iov_bytes(argument(self, call->iov), argument(self, call->iovcnt));
	if (call->fd >= 0) {
		self->event.fd = argument(self, call->fd);
		struct file *file = file_of(task, self->event.fd);
		if (file)
			self->event.file = identify_for(self, file, has_peer(call));
		self->event.offset = start_offset(call, self, file);
		if (file && (call->bits & DC_USES_POS) &&
		    (READ(as(struct file, file), f_flags) & 02000))
			self->position = (__u64)file; /* O_APPEND: only known afterwards */
	}
	if (call->fd2 >= 0)
		second_file(self, task, call);
	if (call->path >= 0) {
		self->path = argument(self, call->path);
		self->dirfd = call->dirfd >= 0 ? (int)argument(self, call->dirfd) : -100;
	}
	if (call->path2 >= 0) {
		self->path2 = argument(self, call->path2);
		self->dirfd2 = call->dirfd2 >= 0 ? (int)argument(self, call->dirfd2) : -100;
		self->event.flags |= DC_PEER;
	}
}

/* True if the call is followed, and so its return wanted. */
static __always_inline bool enter_call(const volatile struct dc_call *call, struct pt_regs *regs,
				       __u32 id)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (!of_user(task))
		return false;
	struct dc_task *self = traced(task);
	if (!self)
		return false;
	if (!(self->is & call->select) || compat(task)) {
		COUNT(filtered); /* a layer for others, or a 32-bit program */
		return false;
	}

	if (!(call->bits & DC_LEAN))
		keep_arguments(self, regs);
	self->event.ts = bpf_ktime_get_ns();
	self->event.func = call->func;
	self->event.flags = 0;
	self->event.file = 0;
	self->event.fd = -1;
	self->event.offset = -1;
	self->event.size = -1;
	self->position = 0;
	self->number = id;
	if (!(call->bits & DC_LEAN))
		keep_details(self, task, call);
	return true;
}

static __always_inline bool killed(struct task_struct *task, long ret)
{
	/* ERESTARTSYS .. ERESTART_RESTARTBLOCK: a signal ended the wait; SIGKILL: for good */
	return ret <= -512 && ret >= -516 && (task->pending.signal.sig[0] & (1UL << 8));
}

/* What is known when it has returned. */
static __always_inline void add_details(struct dc_task *self, struct task_struct *task,
					const volatile struct dc_call *call, long ret)
{
	if ((call->bits & DC_RETURNS_FD) && ret >= 0) {
		struct file *file = file_of(task, ret);
		if (call->fd < 0)
			self->event.fd = ret;
		if (file && !self->event.file)
			self->event.file = identify(self, file);
	}
	if ((call->bits & DC_CHANGES_DIR) && !ret)
		self->event.file = identify_directory(self, task);
	if (call->path >= 0 && !self->event.file)
		self->event.file = named(self, self->path, self->dirfd, has_peer(call));
	if (call->path2 >= 0) {
		self->file2 = named(self, self->path2, self->dirfd2, true);
		self->fd2 = -1;
		self->offset2 = -1;
	}
	struct file *appended = (struct file *)self->position;
	if (appended && ret > 0)
		self->event.offset = BPF_CORE_READ(appended, f_pos) - ret;
	if ((self->event.flags & DC_PEER) && self->file2 && !(self->file2 & UNWANTED))
		self->event.file &= ~UNWANTED;
}

static __always_inline int leave_call(long ret)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (!of_user(task))
		return 0;
	struct dc_task *self = bpf_task_storage_get(&tasks, task, 0, 0);
	if (!self || !self->event.func)
		return 0;
	__u32 id = self->number;
	if (id >= DC_SYSCALLS)
		return 0;
	const volatile struct dc_call *call = &config.calls[id];
	self->event.dur = bpf_ktime_get_ns() - self->event.ts;
	self->event.ret = ret;
	if (killed(task, ret))
		self->event.flags |= DC_UNFINISHED;
	if (!(call->bits & DC_LEAN))
		add_details(self, task, call, ret);
	bool kept = self->event.flags & DC_UNFINISHED ? finish_open(&self->event) : finish(&self->event);
	if (kept && (self->event.flags & DC_PEER))
		emit_peer(self);
	self->event.func = 0;
	return 0;
}

SEC("tp_btf/sys_enter")
int BPF_PROG(sys_enter, struct pt_regs *regs, long id)
{
	if ((unsigned long)id >= DC_SYSCALLS)
		return 0;
	const volatile struct dc_call *call = &config.calls[id];
	if (call->func && !(call->bits & DC_PROBED))
		enter_call(call, regs, id);
	return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(sys_exit, struct pt_regs *regs, long ret)
{
	return leave_call(ret);
}

/*
 * The same on the function of the system call, whose number is the cookie and whose argument are
 * the registers that the program came with (__x64_sys_read() and so on): where programs on
 * tracepoints can be preempted, which these cannot.
 */
SEC("kprobe")
int call_session(struct pt_regs *ctx)
{
	__u64 id = bpf_get_attach_cookie(ctx);

	if (!bpf_core_type_exists(struct bpf_session_run_ctx) || id >= DC_SYSCALLS)
		return 1;
	if (session_returns())
		return leave_call(PT_REGS_RC(ctx));
	return !enter_call(&config.calls[id], as(struct pt_regs, PT_REGS_PARM1(ctx)), id);
}
