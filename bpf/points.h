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
	__u32 func, unused;
};

/* requests that a device works on */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct request_start);
} requests SEC(".maps");

static __always_inline void point_arguments(struct arguments *to,
					    struct bpf_raw_tracepoint_args *ctx, __u8 count)
{
	/* the kernel refuses programs that look beyond a tracepoint's last argument */
	to->value[0] = count > 0 ? ctx->args[0] : 0;
	to->value[1] = count > 1 ? ctx->args[1] : 0;
	to->value[2] = count > 2 ? ctx->args[2] : 0;
	to->value[3] = count > 3 ? ctx->args[3] : 0;
	to->value[4] = count > 4 ? ctx->args[4] : 0;
	to->value[5] = count > 5 ? ctx->args[5] : 0;
	to->value[6] = count > 6 ? ctx->args[6] : 0;
	to->value[7] = count > 7 ? ctx->args[7] : 0;
}

static __always_inline void emit_found(const struct found *found, __u16 func, __s64 ret)
{
	struct dc_event event = {
		.ts = bpf_ktime_get_ns(), .file = found->file, .offset = found->offset,
		.size = found->size, .ret = ret, .fd = -1, .func = func, .flags = found->flags,
		.pid = found->pid, .tid = found->tid,
	};
	finish(&event);
}

/* func, func + 1 and func + 2 are reads, writes and the rest */
static __always_inline void issue(const struct found *found, __u64 request, __u16 func)
{
	__u32 what = BPF_CORE_READ((struct request *)request, cmd_flags) & 0xff; /* REQ_OP_MASK */
	struct request_start start = {
		.ts = bpf_ktime_get_ns(), .file = found->file, .offset = found->offset,
		.size = found->size, .pid = found->pid, .tid = found->tid,
		.func = func + (what < 2 ? what : 2),
	};

	if (bpf_map_update_elem(&requests, &request, &start, BPF_ANY))
		counters_here()->lost++;
}

/* The second argument is a blk_status_t, the third the bytes done now. */
static __always_inline int done(const struct arguments *arguments)
{
	__u64 request = pick(arguments, 0);
	struct request_start *start = bpf_map_lookup_elem(&requests, &request);

	if (!start || (__u32)pick(arguments, 2) < BPF_CORE_READ((struct request *)request, __data_len))
		return 0;
	struct dc_event event = {
		.ts = start->ts, .dur = bpf_ktime_get_ns() - start->ts, .file = start->file,
		.offset = start->offset, .size = start->size, .ret = (__u8)pick(arguments, 1) ? -5 /* EIO */ : start->size,
		.fd = -1, .func = start->func, .flags = DC_ASYNC, .pid = start->pid, .tid = start->tid,
	};
	bpf_map_delete_elem(&requests, &request);
	finish(&event);
	return 0;
}

static __noinline int at_point(struct bpf_raw_tracepoint_args *ctx,
				    const volatile struct dc_point *point)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct arguments arguments;
	struct found found = {};
	__u64 here; /* the context lies on the stack; read back as a plain number */

	bpf_probe_read_kernel(&here, sizeof(here), &ctx);
	point_arguments(&arguments, ctx, point->arguments);
	__s64 ret = point->result >= 0 ? (__s64)pick(&arguments, point->result) : 0;
	ret = returned(ret, point->roles.returns);
	switch (point->part) {
	case DC_ENTER:
		begin(task, &arguments, &point->roles, point->func, 0, here);
		return 0;
	case DC_LEAVE:
		return end(task, point->func, ret, here);
	case DC_DONE:
		return done(&arguments);
	}
	if (!find(&found, task, &arguments, &point->roles, here))
		return 0;
	if (point->part == DC_ISSUE)
		issue(&found, pick(&arguments, 0), point->func);
	else
		emit_found(&found, point->func, ret);
	return 0;
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
