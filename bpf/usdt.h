/*
 * USDT points: the attach cookie has the function's number and, with arguments, the place.
 *
 * Calls between two points are kept on a stack of their own: an interpreter's calls may all be
 * on one and the same C stack frame, so the stack pointer tells nothing.
 */
#pragma once

#define DC_USDT_DEPTH 512 /* a power of two; interpreters allow some hundred calls */

struct dc_usdt {
	__u32 depth;
	struct {
		__s64 ts;
		__u16 func, flags;
	} stack[DC_USDT_DEPTH];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct dc_usdt);
} usdt_tasks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dc_place);
} usdt_places SEC(".maps");

static __always_inline __u64 register_at(struct pt_regs *ctx, __u16 offset)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)ctx + offset);
	return value;
}

static __always_inline __u64 index_of(struct pt_regs *ctx, const struct dc_operand *where)
{
	__u64 index = register_at(ctx, where->index);

	if (where->scale & DC_INDEX_32)
		index = where->scale & DC_INDEX_SIGNED ? (__u64)(__s32)index : (__u32)index;
	return index << (where->scale & 3);
}

static __always_inline __u64 operand(struct pt_regs *ctx, const struct dc_operand *where)
{
	__u64 value = where->value;
	__u32 unused_bits = (8 - (where->bytes & 7)) * 8 & 63; /* 8 bytes: none */

	if (where->how == DC_REGISTER)
		value = register_at(ctx, where->base);
	if (where->how == DC_MEMORY) {
		value += register_at(ctx, where->base);
		if (where->index != 0xffff)
			value += index_of(ctx, where);
		if (bpf_probe_read_user(&value, sizeof(value), (void *)value))
			return 0;
	}
	value <<= unused_bits;
	return where->is_signed ? (__u64)((__s64)value >> unused_bits) : value >> unused_bits;
}

/* The flags that the event of time `ts` then has. */
static __always_inline __u16 keep_operands(struct dc_task *self, struct task_struct *task,
					   struct pt_regs *ctx, __u64 cookie, __s64 ts)
{
	__u32 key = cookie >> DC_PLACE;

	if (!(cookie & DC_KEEP))
		return 0;
	struct dc_place *place = bpf_map_lookup_elem(&usdt_places, &key);
	__u64 *values = argument_values(task);
	if (!place || !values)
		return 0;
	for (int i = 0; i < DC_ARGUMENTS; i++)
		values[i] = operand(ctx, &place->list[i]);
	send_arguments(self, cookie & 0xffff, ts, true);
	return DC_HAS_ARGUMENTS;
}

static __always_inline struct dc_task *wanted_here(struct task_struct *task, __u16 func)
{
	struct dc_task *self = of_user(task) ? traced(task) : 0;

	return self && (self->is & config.functions[func].select) ? self : 0;
}

__noinline int finish_usdt(struct dc_task *self, struct dc_usdt *usdt, __s64 now, __u32 flags)
{
	if (!self || !usdt || !usdt->depth)
		return 0;
	__u32 top = --usdt->depth & (DC_USDT_DEPTH - 1);
	struct dc_event event = {
		.ts = usdt->stack[top].ts, .dur = now - usdt->stack[top].ts, .offset = -1,
		.size = -1, .fd = -1, .func = usdt->stack[top].func,
		.flags = usdt->stack[top].flags | flags, .pid = self->event.pid,
		.tid = self->event.tid,
	};
	finish(&event);
	return 0;
}

/* The calls this task is in between two points. */
__noinline int emit_unfinished_usdt(struct dc_task *self, struct dc_usdt *usdt)
{
	__s64 now = bpf_ktime_get_ns();

	if (!self || !usdt)
		return 0;
	for (__u32 i = 0; i < DC_USDT_DEPTH && i < usdt->depth; i++) {
		struct dc_event event = {
			.ts = usdt->stack[i].ts, .dur = now - usdt->stack[i].ts, .offset = -1,
			.size = -1, .fd = -1, .func = usdt->stack[i].func,
			.flags = usdt->stack[i].flags | DC_UNFINISHED, .pid = self->event.pid,
			.tid = self->event.tid,
		};
		finish_open(&event);
	}
	usdt->depth = 0;
	return 0;
}

OWN_STACK(usdt_point)

/* A point of its own. */
SEC("uprobe")
int usdt_point(struct pt_regs *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 cookie = bpf_get_attach_cookie(ctx);
	struct dc_task *self = wanted_here(task, cookie);

	usdt_point_uses_own_stack(ctx);
	if (!self)
		return 0;
	struct dc_event event = {
		.ts = bpf_ktime_get_ns(), .offset = -1, .size = -1, .fd = -1, .func = cookie,
		.pid = self->event.pid, .tid = self->event.tid,
	};
	event.flags = keep_operands(self, task, ctx, cookie, event.ts);
	finish(&event);
	return 0;
}

OWN_STACK(usdt_enter)

/* The point at which a call begins. */
SEC("uprobe")
int usdt_enter(struct pt_regs *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 cookie = bpf_get_attach_cookie(ctx);
	struct dc_task *self = wanted_here(task, cookie);

	usdt_enter_uses_own_stack(ctx);
	if (!self)
		return 0;
	struct dc_usdt *usdt =
		storage(&usdt_tasks, task, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!usdt || usdt->depth >= DC_USDT_DEPTH) {
		COUNT(lost);
		if (usdt)
			usdt->depth++;
		return 0;
	}
	__u32 top = usdt->depth++ & (DC_USDT_DEPTH - 1);
	usdt->stack[top].func = cookie;
	usdt->stack[top].ts = bpf_ktime_get_ns();
	usdt->stack[top].flags = keep_operands(self, task, ctx, cookie, usdt->stack[top].ts);
	return 0;
}

OWN_STACK(usdt_leave)

/* The point at which one ends. Calls above it were left by another way. */
SEC("uprobe")
int usdt_leave(struct pt_regs *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u16 func = bpf_get_attach_cookie(ctx);
	struct dc_task *self = wanted_here(task, func);
	struct dc_usdt *usdt = self ? storage(&usdt_tasks, task, 0) : 0;

	usdt_leave_uses_own_stack(ctx);
	if (!usdt || !usdt->depth)
		return 0;
	if (usdt->depth > DC_USDT_DEPTH) { /* of one that did not fit */
		usdt->depth--;
		return 0;
	}
	__s64 now = bpf_ktime_get_ns();
	__u32 above = 0;
	for (; above < 64 && above < usdt->depth; above++)
		if (usdt->stack[(usdt->depth - 1 - above) & (DC_USDT_DEPTH - 1)].func == func)
			break;
	if (above == 64 || above == usdt->depth)
		return 0;
	for (__u32 i = 0; i < 64 && i < above; i++)
		finish_usdt(self, usdt, now, DC_UNFINISHED);
	finish_usdt(self, usdt, now, 0);
	return 0;
}
