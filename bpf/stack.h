/*
 * Where a thread's own stack is: see user.h for what depends on it.
 *
 * bpf_find_vma() tells which mapping an address is in, but not while another thread holds or waits
 * for the lock of the memory map: of threads that began while others mapped memory, it lost calls.
 * So we go down the tree of mappings as the kernel does at page faults, without the lock: a node
 * that is replaced is freed when no program can be reading there any more. The tree came with
 * Linux 6.1.
 */
#pragma once
#include <linux/sched.h>

#define CLONE3 435 /* the system call's number, everywhere */

struct bounds {
	__u64 low, high;
};

#define MAPLE_NODE_MASK 255UL /* of what is not address in a pointer to a node */
#define MAPLE_TYPE(entry) ((entry) >> 3 & 15)
enum { MAPLE_LEAF_64 = 1, MAPLE_ARANGE_64 = 3 };

/* What a node has for `address`: the node below it or, a leaf, the mapping. 0 for none. */
__noinline __u64 maple_entry(__u64 entry, __u64 address)
{
	struct maple_range_64 *range = (void *)(entry & ~MAPLE_NODE_MASK);
	struct maple_arange_64 *arange = (void *)range;
	__u64 pivots = (__u64)&range->pivot[0], slots = (__u64)&range->slot[0], last;
	__u32 i = 0, end;

	if (MAPLE_TYPE(entry) == MAPLE_ARANGE_64) {
		pivots = (__u64)&arange->pivot[0];
		slots = (__u64)&arange->slot[0];
		end = BPF_CORE_READ(arange, meta.end);
	} else { /* where all slots are in use, the last is in the place of `meta` */
		end = BPF_CORE_READ(range, pivot[14]) ? 15 : BPF_CORE_READ(range, meta.end);
	}
	for (; i < 15 && i < end; i++) {
		bpf_probe_read_kernel(&last, sizeof(last), (void *)(pivots + i * sizeof(last)));
		if (last >= address)
			break;
	}
	bpf_probe_read_kernel(&entry, sizeof(entry), (void *)(slots + i * sizeof(entry)));
	return entry;
}

static __always_inline bool look_up(struct mm_struct *mm, __u64 address, struct bounds *found)
{
	struct vm_area_struct *mapping;
	bool leaf = false;

	if (!bpf_core_field_exists(struct mm_struct, mm_mt))
		return false;
	__u64 entry = (__u64)BPF_CORE_READ(mm, mm_mt.ma_root);
	for (int i = 0; i < 8 && entry && !leaf; i++) {
		leaf = MAPLE_TYPE(entry) <= MAPLE_LEAF_64;
		entry = maple_entry(entry, address);
	}
	mapping = (void *)entry;
	found->low = BPF_CORE_READ(mapping, vm_start);
	found->high = BPF_CORE_READ(mapping, vm_end);
	return BPF_CORE_READ(mapping, vm_mm) == mm && address - found->low < found->high - found->low;
}

static long take_bounds(struct task_struct *task, struct vm_area_struct *mapping,
			struct bounds *found)
{
	found->low = mapping->vm_start;
	found->high = mapping->vm_end;
	return 0;
}

static __always_inline __u64 control_block(struct task_struct *task)
{
#if defined(__TARGET_ARCH_x86)
	return BPF_CORE_READ(task, thread.fsbase);
#else
	return BPF_CORE_READ(task, thread.uw.tp_value);
#endif
}

/*
 * Is `sp` on the thread's own stack? That is where the program began or, of a further thread, below
 * its control block, in the same mapping: the C libraries put that at the top of the stack. (Of the
 * first thread the control block is anywhere, perhaps among stacks of coroutines.) A child that
 * shares its parent's memory until it execs, as posix_spawn() makes one, has one stack only.
 */
__noinline int find_stack(struct dc_task *self, __u64 sp)
{
	struct task_struct *task = bpf_get_current_task_btf();
	bool first = task->pid == task->tgid;
	struct bounds found = {};

	if (BPF_CORE_READ(task, vfork_done))
		return 1;
	if (!self || (self->stack_bytes && !first)) /* that of a further thread does not grow */
		return 0;
	if (!look_up(task->mm, sp, &found) && bpf_find_vma(task, sp, take_bounds, &found, 0))
		return 0; /* the map is being changed: nothing is certain */
	__u64 top = first ? BPF_CORE_READ(task, mm, start_stack) : control_block(task);
	if (top - found.low >= found.high - found.low || sp > top)
		return 0; /* equal: the first call on aarch64, which pushes nothing */
	self->stack_low = found.low;
	self->stack_bytes = top - found.low;
	return 1;
}

/* What clone3(), by which the C libraries of today start threads, is told of a new one's stack. */
static __always_inline void take_stack(struct dc_task *child, struct task_struct *parent)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs(parent);
	__u64 asked;

#if defined(__TARGET_ARCH_x86)
	if (BPF_CORE_READ(regs, orig_ax) != CLONE3)
		return;
	asked = BPF_CORE_READ(regs, di);
#else
	if (BPF_CORE_READ(regs, regs[8]) != CLONE3)
		return;
	asked = BPF_CORE_READ(regs, orig_x0);
#endif
	bpf_probe_read_user(&child->stack_low, 2 * sizeof(__u64),
			    (void *)asked + offsetof(struct clone_args, stack));
}
