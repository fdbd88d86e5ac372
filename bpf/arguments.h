/*
 * Arguments of calls: read at entry, sent at once over the string ring, found again by time,
 * thread and function. A function that has some:
 *
 *	__u64 *values = argument_values(task);
 *	if (values) {
 *		values[0] = ...; values[5] = ...;
 *		send_arguments(self, func, ts, pointers lead into user memory);
 *	}
 *
 * and DC_HAS_ARGUMENTS in the flags of the call's event, whose time is `ts`.
 */
#pragma once

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32); /* function */
	__type(value, struct dc_arguments);
} arguments SEC(".maps");

/* Room for 8 values, behind the text of the record that they will be in. */
static __always_inline __u64 *argument_values(struct task_struct *task)
{
	struct dc_string *record = scratch_for(task);

	return record ? (__u64 *)(record->text + DC_TEXT_MAX) : 0;
}

static __always_inline long read_argument(char *to, __u32 bytes, __u16 type, __u64 from, bool user)
{
	long n;

	if (type == DC_STRING) {
		n = user ? bpf_probe_read_user_str(to, bytes, (void *)from)
			 : bpf_probe_read_kernel_str(to, bytes, (void *)from);
		return n > 0 ? n - 1 : n; /* without NUL; Linux 6.12 gives 0 for "" */
	}
	n = user ? bpf_probe_read_user(to, bytes, (void *)from)
		 : bpf_probe_read_kernel(to, bytes, (void *)from);
	return n ? -1 : (long)bytes;
}

__noinline int send_arguments(struct dc_task *self, __u32 func, __s64 ts, __u32 user)
{
	struct dc_arguments *wanted = bpf_map_lookup_elem(&arguments, &func);
	struct dc_string *record = scratch_for(bpf_get_current_task_btf());
	__u32 at = 0;

	if (!self || !wanted || !record)
		return 0;
	__u64 *values = (__u64 *)(record->text + DC_TEXT_MAX);
	for (__u32 i = 0; i < DC_ARGUMENTS && i < wanted->count; i++) {
		struct dc_argument *one = &wanted->list[i];
		char *to = record->text + (at & (DC_TEXT_MAX / 2 - 8));
		__u32 bytes = one->bytes;
		__s64 length = sizeof(__u64);

		if (one->type == DC_INT || one->type == DC_UINT) {
			__u64 value = values[one->index & 7];
			/* addresses of the kernel are not shown to users */
			*(__u64 *)(to + 8) = user || (__s64)value >= -4095 ? value : 0;
		} else {
			if (!bytes || bytes > DC_ARGUMENT_MAX)
				bytes = DC_ARGUMENT_MAX;
			length = read_argument(to + 8, bytes, one->type, values[one->index & 7], user);
			if (length < 0 || length > DC_ARGUMENT_MAX)
				length = -1;
		}
		*(__s64 *)to = length;
		at += 8 + (length < 0 ? 0 : (length + 7) & ~7ULL);
	}
	record->kind = DC_ARGUMENTS_RECORD;
	record->length = at;
	record->ts = ts;
	record->what = func;
	record->pid = self->event.tid;
	send_string(record);
	return 0;
}

/* Of a function that has just been entered. */
static __always_inline void keep_registers(struct dc_task *self, struct task_struct *task,
					   struct pt_regs *ctx, __u16 func, __s64 ts)
{
	__u64 *values = argument_values(task);

	if (!values)
		return;
	values[0] = PT_REGS_PARM1(ctx);
	values[1] = PT_REGS_PARM2(ctx);
	values[2] = PT_REGS_PARM3(ctx);
	values[3] = PT_REGS_PARM4(ctx);
	values[4] = PT_REGS_PARM5(ctx);
#if defined(__TARGET_ARCH_x86)
	values[5] = ctx->r9;
#else
	values[5] = ctx->regs[5];
#endif
	send_arguments(self, func, ts, true);
}
