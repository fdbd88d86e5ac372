/* What any tracer of system calls costs at least: an empty program at entry and one at exit. */
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
