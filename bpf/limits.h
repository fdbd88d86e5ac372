/* What a layer leaves out: short calls, and more than so many a second. */
#pragma once

struct rate {
	__s64 since; /* start of the second that `count` is of */
	__u64 count;
};

/* by function; as long as there are functions with a limit, else 1 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rate);
} rates SEC(".maps");

static __always_inline bool too_many(const struct dc_event *event, __u32 max_per_s)
{
	__u32 func = event->func;
	struct rate *rate = bpf_map_lookup_elem(&rates, &func);
	__s64 end = event->ts + event->dur;

	if (!rate)
		return false;
	if (end - rate->since >= 1000000000) {
		rate->since = end;
		rate->count = 0;
	}
	return __sync_fetch_and_add(&rate->count, 1) >= max_per_s;
}

static __always_inline bool over_limits(const struct dc_event *event, __u8 index)
{
	const volatile struct dc_layer *layer = &config.layers[index];
	__u32 max_per_s = layer->max_per_s;

	if ((__u64)event->dur < layer->min_duration_ns) {
		COUNT(filtered_duration);
		return true;
	}
	if (max_per_s && too_many(event, max_per_s)) {
		COUNT(filtered_rate);
		return true;
	}
	return false;
}
