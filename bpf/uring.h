/*
 * What io_uring carries out: an operation lasts from its submission to its completion, which may
 * come on another thread of the program (a worker, the one that polls the queue). The submitter
 * does not wait for it meanwhile, so such events are DC_ASYNC.
 */
#pragma once

enum { REQUEST_FIXED_FILE = 1 << 0, REQUEST_NO_COMPLETION = 1 << 6 }; /* req->flags */
enum { COMPLETION_MORE = 1 << 1 };				     /* IORING_CQE_F_MORE */

static __always_inline void operation_place(struct request_start *start, struct io_kiocb *request,
					    struct file *file, __u8 bits)
{
	struct io_rw *rw = (void *)request;

	start->offset = start->size = -1;
	if (!(bits & DC_URING_TRANSFER) || !bpf_core_type_exists(struct io_rw))
		return;
	start->offset = BPF_CORE_READ(rw, kiocb.ki_pos);
	if (start->offset == -1 && file)
		start->offset = READ(as(struct file, file), f_pos);
	if (!(bits & DC_URING_VECTOR))
		start->size = BPF_CORE_READ(rw, len);
}

/* The first argument is the request. */
SEC("raw_tp")
int uring_submit(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();

	__u64 key = ctx->args[0];
	struct io_kiocb *request = (void *)key;

	if (!bpf_core_field_exists(request->cqe) || !of_user(task))
		return 0; /* without it, before 5.19, this is attached nowhere, but loaded */
	struct dc_task *self = traced(task);
	if (!self)
		return 0;
	__u8 opcode = BPF_CORE_READ(request, opcode);
	if (opcode >= DC_URING_OPERATIONS)
		return 0;
	const volatile struct dc_operation *operation = &config.operations[opcode];
	if (!operation->func)
		return 0;
	if (!(self->is & config.functions[operation->func].select)) {
		COUNT(filtered);
		return 0;
	}
	__u64 flags = BPF_CORE_READ(request, flags);
	struct request_start start = {
		.ts = bpf_ktime_get_ns(), .pid = self->event.pid, .tid = self->event.tid,
		.func = operation->func, .fd = -1,
	};
	struct file *file = 0;
	if ((operation->bits & DC_URING_FILE) && !(flags & REQUEST_FIXED_FILE)) {
		start.fd = BPF_CORE_READ(request, cqe.fd);
		file = file_of(task, start.fd);
		if (file)
			start.file = identify(self, file);
	}
	operation_place(&start, request, file, operation->bits);
	if (flags & REQUEST_NO_COMPLETION)
		return emit_request(0, 0, &start, 0);
	/* one that is there still: its completion overflowed the queue, and its memory is used again */
	if (bpf_map_update_elem(&requests, &key, &start, BPF_NOEXIST)) {
		COUNT(lost);
		bpf_map_update_elem(&requests, &key, &start, BPF_ANY);
	}
	return 0;
}

/* Of a registered file, or one that the operation opened, is known only now which it is. */
static __always_inline __u64 operation_file(struct io_kiocb *request, __u8 bits, __s32 result)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct io_open *open = (void *)request;
	struct file *file = 0;

	if (!of_user(task))
		return 0; /* completed for it by somebody else, as its program ended */
	struct dc_task *self = traced(task);
	if (!self)
		return 0;
	if (bits & DC_URING_FILE)
		file = BPF_CORE_READ(request, file);
	else if ((bits & DC_URING_OPENS) && result >= 0 && bpf_core_type_exists(struct io_open) &&
		 !BPF_CORE_READ(open, file_slot))
		file = file_of(task, result);
	return file ? identify(self, file) : 0;
}

static __always_inline int completed(__u64 key, __s32 result, __u32 flags)
{
	struct request_start *start = bpf_map_lookup_elem(&requests, &key);
	__s64 now = bpf_ktime_get_ns();

	if (!start)
		return 0;
	struct dc_event event = {
		.ts = start->ts, .dur = now - start->ts, .file = start->file, .offset = start->offset,
		.size = start->size, .ret = result, .fd = start->fd, .func = start->func,
		.flags = DC_ASYNC, .pid = start->pid, .tid = start->tid,
	};
	struct io_kiocb *request = (void *)key;
	__u8 opcode = BPF_CORE_READ(request, opcode);
	if (!event.file && opcode < DC_URING_OPERATIONS)
		event.file = operation_file(request, config.operations[opcode].bits, result);
	if (flags & COMPLETION_MORE)
		start->ts = now; /* what comes next has taken from here on */
	else
		bpf_map_delete_elem(&requests, &key);
	finish(&event);
	return 0;
}

/* The third argument is the completion's entry in the queue, since 6.15. */
SEC("raw_tp")
int uring_complete(struct bpf_raw_tracepoint_args *ctx)
{
	struct io_uring_cqe *entry = (void *)ctx->args[2];

	return completed(ctx->args[1], BPF_CORE_READ(entry, res), BPF_CORE_READ(entry, flags));
}

/* Before, its parts were arguments; on later kernels there are not as many. */
SEC("raw_tp")
int uring_complete_parts(struct bpf_raw_tracepoint_args *ctx)
{
	return completed(ctx->args[1], ctx->args[3], ctx->args[4]);
}
