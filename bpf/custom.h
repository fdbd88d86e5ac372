/*
 * For custom programs: this text stands before yours. Both are compiled together by BCC where
 * the run is traced; its reference guide has the rest of the language (BPF_HASH,
 * TRACEPOINT_PROBE, RAW_TRACEPOINT_PROBE, kprobe__... and so on).
 *
 *	TRACEPOINT_PROBE(sched, sched_wakeup) {
 *		struct dc_event event = {};
 *		if (!dc_of_user())
 *			return 0;
 *		dc_begin(&event, DC_FUNCTION(wakeup));
 *		event.ret = args->pid;
 *		dc_emit(&event);
 *		return 0;
 *	}
 *
 * `functions: [wakeup]` of the capture config gives the names that DC_FUNCTION() knows.
 *
 * You see the whole node: keep to what belongs to the run, with dc_of_user() or otherwise.
 */

/* One event: a row of the trace's table `events`, see docs/trace-format.md. */
struct dc_event {
	s64 ts, dur; /* CLOCK_MONOTONIC, ns: bpf_ktime_get_ns() */
	u64 file;    /* 0 */
	s64 offset, size, ret;
	s32 pid, tid;
	u16 func, flags;
	s32 fd;
};

#define DC_FUNCTION(name) DC_FUNCTION_##name

BPF_RINGBUF_OUTPUT(dc_ring, DC_RING_PAGES);
BPF_F_TABLE("array", u32, u64, dc_lost, 1, BPF_F_MMAPABLE);

/* Does the running task belong to the run's user? */
static inline int dc_of_user(void)
{
	return (u32)bpf_get_current_uid_gid() == DC_UID;
}

/* Fill in an event that begins now, by the running task: pid and tid are 0 outside the daemon's
 * PID namespace, and what is not known is -1. */
static inline void dc_begin(struct dc_event *event, u16 func)
{
	struct bpf_pidns_info task = {};

	bpf_get_ns_current_pid_tgid(DC_NS_DEV, DC_NS_INO, &task, sizeof(task));
	event->ts = bpf_ktime_get_ns();
	event->dur = 0;
	event->file = 0;
	event->offset = event->size = -1;
	event->ret = 0;
	event->pid = task.tgid;
	event->tid = task.pid;
	event->func = func;
	event->flags = 0;
	event->fd = -1;
}

/* Hand it to the trace. If there is no room it is counted as lost. */
static inline void dc_emit(struct dc_event *event)
{
	u32 zero = 0;

	if (!dc_ring.ringbuf_output(event, sizeof(*event), BPF_RB_NO_WAKEUP))
		return;
	u64 *lost = dc_lost.lookup(&zero);
	if (lost)
		__sync_fetch_and_add(lost, 1);
}
