/* Programs that do nothing, on the entry and the return of one function: what each way to attach
 * them costs by itself. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define EMPTY(section, name)                                                                       \
	SEC(section)                                                                               \
	int name(void *ctx)                                                                        \
	{                                                                                          \
		return 0;                                                                          \
	}

EMPTY("tp_btf/sys_enter", tp_btf_enter)
EMPTY("tp_btf/sys_exit", tp_btf_leave)
EMPTY("kprobe/vfs_read", session)
EMPTY("fentry/vfs_read", fentry_enter)
EMPTY("fexit/vfs_read", fentry_leave)
EMPTY("kprobe/vfs_read", kprobe_enter)
EMPTY("kretprobe/vfs_read", kprobe_leave)
