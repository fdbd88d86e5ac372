/* What any tracer of system calls costs at least: an empty program at entry and one at exit; and
 * any that takes the time: the same, and each reads the clock. */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("tp_btf/sys_enter")
int enter(void *ctx)
{
	(void)ctx;
	return 0;
}

SEC("tp_btf/sys_exit")
int leave(void *ctx)
{
	(void)ctx;
	return 0;
}

SEC("tp_btf/sys_enter")
int clock_enter(void *ctx)
{
	(void)ctx;
	return bpf_ktime_get_ns() == 1;
}

SEC("tp_btf/sys_exit")
int clock_leave(void *ctx)
{
	(void)ctx;
	return bpf_ktime_get_ns() == 1;
}
