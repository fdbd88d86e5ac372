/*
 * Profile mode: calls added up by function and process.
 *
 * First by thread and function, in a cell of an array that is found by a hash of both: no call
 * into the kernel, and no atomic additions, for a thread makes one call at a time. Where another
 * one has the cell, and for what a kernel thread does in a process's name, there is a hash map.
 *
 * The CPU is part of the key of that map, which is a plain one. A per-CPU hash would hold every
 * key's value for every CPU there may be, though a process runs on few: 128 times the memory on
 * 128 CPUs. Nor would it save the atomic additions: programs on uprobes can be preempted by
 * another thread of the same process.
 *
 * The daemon changes banks of cells, then puts another map in place, at each interval. The kernel
 * then waits for the programs that may still use the old one (kernel/bpf/syscall.c,
 * maybe_wait_bpf_programs), so both are at rest when they are emptied.
 */
#pragma once

struct profile_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct dc_profile_key));
	__uint(value_size, sizeof(struct dc_profile));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct profile_map);
} profiles SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2); /* two banks */
	__type(key, __u32);
	__type(value, struct dc_cell);
} cells SEC(".maps");

volatile struct dc_banks banks SEC(".data.banks");

static const volatile struct dc_profile nothing SEC(".rodata.nothing");

static __always_inline __u32 power_of(__u64 value)
{
	__u32 power = 0;

	for (__u32 step = 32; step; step /= 2) {
		if (value >> step) {
			power += step;
			value >>= step;
		}
		barrier_var(power); /* or clang makes five truth values of it, in memory */
	}
	return power < DC_POWERS ? power : DC_POWERS - 1;
}

static __always_inline void raise_max(struct dc_profile *sums, __s64 dur)
{
	__s64 max = sums->max;

	for (int i = 0; i < 8 && dur > max; i++) {
		__s64 seen = __sync_val_compare_and_swap(&sums->max, max, dur);
		if (seen == max)
			break;
		max = seen;
	}
}

/* The cell of the thread and the function; 0 if others have it. */
static __always_inline struct dc_cell *cell_of(const struct dc_event *event)
{
	__u64 who = (__u64)event->tid << 16 | event->func;
	__u32 at = (who * 0x9e3779b97f4a7c15ULL) >> 40;

	at = (at & (config.cells - 1)) + (banks.used ? config.cells : 0);
	struct dc_cell *cell = bpf_map_lookup_elem(&cells, &at);
	if (!cell)
		return 0;
	if (!cell->who && !__sync_val_compare_and_swap(&cell->who, 0, who))
		cell->pid = event->pid;
	return cell->who == who && cell->pid == event->pid ? cell : 0;
}

static __always_inline void add_to_cell(struct dc_profile *sums, const struct dc_event *event,
					__u8 bits)
{
	__s64 dur = event->dur, ret = event->ret;

	sums->calls[power_of(dur)]++;
	sums->time += dur;
	if (dur > sums->max)
		sums->max = dur;
	if (ret > 0 && (bits & DC_MOVES))
		sums->bytes += ret;
	if (ret < 0 && (bits & DC_ERRNO))
		sums->errors++;
}

/* Where others add as well. */
static __always_inline void add_to_map(const struct dc_event *event, __u8 bits)
{
	__u32 zero = 0;

	if (!banks.spilled[banks.used & 1])
		banks.spilled[banks.used & 1] = 1;
	struct dc_profile_key key = {
		.pid = event->pid, .func = event->func, .cpu = bpf_get_smp_processor_id(),
	};
	void *profile = bpf_map_lookup_elem(&profiles, &zero);
	if (!profile)
		return;
	struct dc_profile *sums = bpf_map_lookup_elem(profile, &key);
	if (!sums) {
		bpf_map_update_elem(profile, &key, (const void *)&nothing, BPF_NOEXIST);
		sums = bpf_map_lookup_elem(profile, &key);
	}
	if (!sums) {
		COUNT(lost_profile);
		return;
	}
	__s64 dur = event->dur, ret = event->ret;
	__sync_fetch_and_add(&sums->calls[power_of(dur)], 1);
	__sync_fetch_and_add(&sums->time, dur);
	raise_max(sums, dur);
	if (ret > 0 && (bits & DC_MOVES))
		__sync_fetch_and_add(&sums->bytes, ret);
	if (ret < 0 && (bits & DC_ERRNO))
		__sync_fetch_and_add(&sums->errors, 1);
}

/* Add a call that has returned. */
static __always_inline void add_to_profile(const struct dc_event *event, __u8 bits)
{
	struct dc_cell *cell = event->flags & DC_ASYNC ? 0 : cell_of(event);

	if (cell)
		add_to_cell(&cell->sums, event, bits);
	else
		add_to_map(event, bits);
}
