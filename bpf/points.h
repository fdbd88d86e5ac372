/*
 * Tracepoints, where the kernel has no probes on functions or where they say more: one program
 * for each, which knows at load what its tracepoint has, so that the verifier drops the rest.
 */
#pragma once

struct request_start {
	__s64 ts;
	__u64 file;
	__s64 offset, size;
	__s32 pid, tid;
	__u32 func;
	__s32 fd;
};

/* requests that a device, a server or io_uring works on; by address */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct request_start);
} requests SEC(".maps");

static __always_inline void emit_found(const struct found *found, const struct subject *subject,
				       __u16 func, __s64 ret)
{
	struct dc_event event = {
		.ts = bpf_ktime_get_ns(), .file = found->file, .offset = subject->offset,
		.size = subject->size, .ret = ret, .fd = -1, .func = func, .flags = found->flags,
		.pid = found->pid, .tid = found->tid,
	};
	finish(&event);
}

/* What a request is known by: what it is about, else the first argument. */
static __always_inline __u64 request_of(struct origin from, const volatile struct dc_point *point)
{
	return pick(from, point->roles.object < 0 ? 0 : point->roles.object);
}

/* Of a device's requests func, func + 1 and func + 2 are reads, writes and the rest. */
static __always_inline __u16 func_of(__u64 request, const volatile struct dc_point *point)
{
	if (point->roles.kind != DC_OF_REQUEST)
		return point->func;
	__u32 what = BPF_CORE_READ((struct request *)request, cmd_flags) & 0xff; /* REQ_OP_MASK */
	return point->func + (what < 2 ? what : 2);
}

static __always_inline void issue(const struct found *found, const struct subject *subject,
				  __u64 request, __u16 func)
{
	struct request_start start = {
		.ts = bpf_ktime_get_ns(), .file = found->file, .offset = subject->offset,
		.size = subject->size, .pid = found->pid, .tid = found->tid,
		.func = func, .fd = -1,
	};

	if (bpf_map_update_elem(&requests, &request, &start, BPF_ANY))
		counters_here()->lost++;
}

/* A device's: the second argument is a blk_status_t, the third the bytes done now. */
static __always_inline bool is_done(struct origin from, __u64 request,
				    const struct request_start *start, __s64 *ret)
{
	if ((__u32)pick(from, 2) < BPF_CORE_READ((struct request *)request, __data_len))
		return false;
	*ret = (__u8)pick(from, 1) ? -5 /* EIO */ : start->size;
	return true;
}

/* A server's answer: the first argument is the rpc_task. A commit moves no bytes. */
static __always_inline __s64 answer(struct origin from, __u64 request, __u8 kind)
{
	__s32 status = 0;
	__u64 bytes = 0;

	if (config.rpc_status)
		bpf_probe_read_kernel(&status, sizeof(status), (void *)(pick(from, 0) + config.rpc_status));
	if (status < 0 || kind != DC_OF_NFS_IO || !config.nfs_io.done)
		return status;
	bpf_probe_read_kernel(&bytes, sizeof(bytes), (void *)(request + config.nfs_io.done));
	return bytes;
}

static __always_inline int end_request(struct origin from, const volatile struct dc_point *point)
{
	__u64 request = request_of(from, point);
	struct request_start *start = bpf_map_lookup_elem(&requests, &request);
	__s64 ret;

	if (!start)
		return 0;
	if (point->part == DC_REPLY)
		ret = answer(from, request, point->roles.kind);
	else if (!is_done(from, request, start, &ret))
		return 0;
	struct dc_event event = {
		.ts = start->ts, .dur = bpf_ktime_get_ns() - start->ts, .file = start->file,
		.offset = start->offset, .size = start->size, .ret = ret, .fd = -1,
		.func = start->func, .flags = DC_ASYNC, .pid = start->pid, .tid = start->tid,
	};
	bpf_map_delete_elem(&requests, &request);
	finish(&event);
	return 0;
}

static __noinline int at_point(struct bpf_raw_tracepoint_args *ctx,
				    const volatile struct dc_point *point)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct origin from = {.ctx = ctx, .point = true};
	struct subject subject = {};
	struct found found = {};
	__u64 here; /* the context lies on the stack; read back as a plain number */

	bpf_probe_read_kernel(&here, sizeof(here), &ctx);
	__s64 ret = point->result >= 0 ? (__s64)pick(from, point->result) : 0;
	ret = returned(ret, point->roles.returns);
	switch (point->part) {
	case DC_ENTER:
		begin(task, from, &point->roles, point->func, 0, here);
		return 0;
	case DC_LEAVE:
		return end(task, point->func, ret, here);
	case DC_DONE:
	case DC_REPLY:
		return end_request(from, point);
	}
	if (!find(&found, &subject, task, from, &point->roles, 0, here))
		return 0;
	if (point->part == DC_ISSUE) {
		__u64 request = request_of(from, point);
		if (!found.file && found.self && found.self->event.func)
			found.file = found.self->event.file; /* of the system call it is for */
		issue(&found, &subject, request, func_of(request, point));
	} else {
		emit_found(&found, &subject, point->func, ret);
	}
	return 0;
}

static long emit_request(void *map, __u64 *key, struct request_start *start, void *unused)
{
	struct dc_event event = {
		.ts = start->ts, .dur = bpf_ktime_get_ns() - start->ts, .file = start->file,
		.offset = start->offset, .size = start->size, .fd = start->fd, .func = start->func,
		.flags = DC_ASYNC | DC_UNFINISHED, .pid = start->pid, .tid = start->tid,
	};
	finish_open(&event);
	return 0;
}

/* The requests that are still worked on when the run ends. */
static __always_inline void emit_unfinished_requests(void)
{
	bpf_for_each_map_elem(&requests, emit_request, 0, 0);
}

#define POINT(n)                                                                                   \
	SEC("raw_tp")                                                                              \
	int point_##n(struct bpf_raw_tracepoint_args *ctx)                                         \
	{                                                                                          \
		return at_point(ctx, &config.points[n]);                                           \
	}
#define POINTS(a) POINT(a##0) POINT(a##1) POINT(a##2) POINT(a##3) POINT(a##4) POINT(a##5)          \
	POINT(a##6) POINT(a##7)

/* DC_POINTS of them, numbered in octal: point_00, point_01 ... point_077 */
POINTS(0) POINTS(01) POINTS(02) POINTS(03) POINTS(04) POINTS(05) POINTS(06) POINTS(07)
