/*
 * Profile mode: calls added up by function, process and CPU.
 *
 * The CPU is part of the key of a plain hash. A per-CPU hash would hold every key's value for
 * every CPU there may be, though a process runs on few: 128 times the memory on 128 CPUs. Nor
 * would it save the atomic additions: programs on uprobes can be preempted by another thread
 * of the same process.
 *
 * The daemon puts another map in place at each interval. The kernel then waits for the programs
 * that may still use the old one (kernel/bpf/syscall.c, maybe_wait_bpf_programs), so it is at
 * rest when it is emptied.
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

/* Add a call that has returned. */
static __always_inline void add_to_profile(const struct dc_event *event, __u8 bits)
{
	__u32 zero = 0;
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
		counters_here()->lost_profile++;
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
