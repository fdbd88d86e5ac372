/* Handing records to the daemon. */
#pragma once

struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
};

/* one ring per CPU, or few: many cores do not fight over one lock */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct ring);
} rings SEC(".maps");

__noinline int emit(const struct dc_event *event)
{
	if (!event)
		return 0;
	struct dc_counters *mine = counters_here();
	__u32 index = config.ring_of_cpu[bpf_get_smp_processor_id() & (DC_MAX_CPUS - 1)];
	void *ring = bpf_map_lookup_elem(&rings, &index);
	struct dc_event *slot = ring ? bpf_ringbuf_reserve(ring, sizeof(*slot), 0) : 0;

	if (!slot) {
		COUNT(lost);
		return 0;
	}
	__builtin_memcpy(slot, event, sizeof(*slot));
	bool wake = !(++mine->kept & (config.wake_events - 1));
	bpf_ringbuf_submit(slot, wake ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
	return 0;
}

static __always_inline bool by_path(const struct dc_event *event)
{
	if (!(event->file & UNWANTED))
		return true;
	COUNT(filtered_path);
	return false;
}

/* A call that is over, whatever observed it; true when it is kept as an event. */
static __always_inline bool finish(const struct dc_event *event)
{
	const volatile struct dc_function *function = &config.functions[event->func];
	__u8 bits = function->bits;

	if (!by_path(event) || ((bits & DC_LIMITED) && over_limits(event, function->layer)))
		return false;
	if (bits & DC_PROFILED) {
		add_to_profile(event, bits);
		return false;
	}
	emit(event);
	return true;
}

/* A call that its thread's end, or the run's, finds going on: kept however short, in each mode. */
static __always_inline bool finish_open(const struct dc_event *event)
{
	if (!by_path(event))
		return false;
	emit(event);
	return true;
}

static __always_inline void emit_peer(struct dc_task *self)
{
	struct dc_string *record = scratch_for(bpf_get_current_task_btf());

	if (!record)
		return;
	record->kind = DC_PEER_RECORD;
	record->length = 0;
	record->ts = self->event.ts;
	record->pid = self->event.tid;
	record->file = self->file2 & ~UNWANTED;
	record->fd = self->fd2;
	record->offset = self->offset2;
	send_string(record);
}

/* `named`: its program is plain. Of others it is told that they are there, not what they are. */
__noinline int put_process(struct dc_task *self, __u64 address, __u32 what, int named)
{
	struct task_struct *task = (void *)address;
	struct dc_string *record = scratch_for(bpf_get_current_task_btf());
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	__u64 id = 0;

	if (!record || !self)
		return 0;
	if (exe && named && what != DC_EXIT)
		id = identify_for(self, exe, true) & ~UNWANTED;
	record->kind = DC_PROCESS;
	record->length = 0;
	record->ts = bpf_ktime_get_ns();
	record->file = id;
	record->what = what;
	record->pid = self->event.pid;
	record->ppid = number_of(BPF_CORE_READ(task, real_parent, group_leader, thread_pid));
	record->exit_code = BPF_CORE_READ(task, exit_code);
	record->fstype[0] = 0;
	if (named)
		BPF_CORE_READ_STR_INTO(&record->fstype, task, comm);
	send_string(record);
	return 0;
}

static __always_inline void emit_process(struct dc_task *self, struct task_struct *task, __u32 what)
{
	__u64 address; /* read back as a plain number, see file.h */

	bpf_probe_read_kernel(&address, sizeof(address), &task);
	put_process(self, address, what, (self->is & DC_IS) && of_user(task));
}

/* The calls this task is in. The daemon tells them apart by DC_UNFINISHED. */
__noinline int emit_unfinished(struct dc_task *self)
{
	if (!self)
		return 0;
	__s64 now = bpf_ktime_get_ns();

	for (__u32 i = 0; i < DC_DEPTH && i < self->depth; i++) {
		struct dc_event event = {
			.ts = self->stack[i].ts, .dur = now - self->stack[i].ts, .offset = -1,
			.size = -1, .fd = -1, .func = self->stack[i].func,
			.flags = self->stack[i].flags | DC_UNFINISHED,
			.pid = self->event.pid, .tid = self->event.tid,
		};
		finish_open(&event);
	}
	self->depth = 0;
	if (self->event.func) {
		self->event.dur = now - self->event.ts;
		self->event.ret = 0;
		self->event.flags |= DC_UNFINISHED;
		finish_open(&self->event);
		self->event.func = 0;
	}
	return 0;
}
