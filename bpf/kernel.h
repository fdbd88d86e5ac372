/* The kernel's types as far as we look at them; CO-RE finds the real offsets at load. */
#pragma once
#define __VMLINUX_H__ /* bpf_tracing.h: registers have the kernel's names */

#include <linux/types.h>
#include <linux/bpf.h>
#include <stdbool.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs,
		flags, sp, ss;
};
struct thread_info {
	unsigned long flags;
	__u32 status;
};
struct thread_struct {
	unsigned long fsbase;
};
#else
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp, pc, pstate;
};
struct pt_regs {
	union {
		struct user_pt_regs user_regs;
		struct {
			__u64 regs[31];
			__u64 sp, pc, pstate;
		};
	};
	__u64 orig_x0;
};
struct thread_info {
	unsigned long flags;
	__u64 preempt_count;
};
struct thread_struct {
	struct {
		unsigned long tp_value;
	} uw;
};
#endif

typedef struct {
	int counter;
} atomic_t;
typedef struct {
	__u32 val;
} kuid_t;
typedef struct {
	__u32 val;
} kgid_t;
typedef struct {
	unsigned long sig[1];
} sigset_t;

struct cred {
	kuid_t uid;
	kgid_t gid;
	kuid_t suid;
	kgid_t sgid;
	kuid_t euid;
	kgid_t egid;
};
struct ns_common {
	unsigned int inum;
};
struct pid_namespace {
	struct ns_common ns;
};
struct upid {
	int nr;
	struct pid_namespace *ns;
};
struct pid {
	unsigned int level;
	struct upid numbers[1];
};
struct qstr {
	__u64 hash_len;
	const unsigned char *name;
};
struct list_head {
	struct list_head *next;
};
struct hlist_node {
	struct hlist_node *next;
};
struct hlist_head {
	struct hlist_node *first;
};
struct file_system_type {
	const char *name;
};
struct mount;
struct super_block {
	__u32 s_dev;
	struct file_system_type *s_type;
	struct mount *s_mounts; /* since 6.18 */
};
struct super_block___list {
	struct list_head s_mounts;
};
struct address_space {
	struct inode *host;
};
struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
	struct address_space *i_mapping;
	unsigned long i_ino;
	__u32 i_generation;
	unsigned int i_nlink;
	__u32 i_rdev;
	struct hlist_head i_dentry;
};
struct dentry {
	unsigned int d_flags;
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct hlist_node d_alias; /* since 7.0 */
};
struct dentry___union {
	union {
		struct hlist_node d_alias;
	} d_u;
};
struct vfsmount {
	struct dentry *mnt_root;
};
struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
	struct list_head mnt_instance; /* in super_block___list */
};
struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};
struct file {
	unsigned int f_flags;
	long long f_pos;
	struct inode *f_inode;
	struct path f_path;
};
struct kiocb {
	struct file *ki_filp;
	long long ki_pos;
};
struct io_cqe {
	int fd;
};
struct io_kiocb {
	struct file *file;
	__u8 opcode;
	__u64 flags;
	struct io_cqe cqe;
};
struct io_rw {
	struct kiocb kiocb;
	__u32 len;
};
struct io_open {
	__u32 file_slot;
};
struct io_uring_cqe {
	__s32 res;
	__u32 flags;
};
struct iov_iter {
	unsigned long count;
};
struct vm_area_struct {
	unsigned long vm_start, vm_end;
	struct mm_struct *vm_mm;
	struct file *vm_file;
};
struct vm_fault {
	struct vm_area_struct *vma;
	unsigned long pgoff;
};
struct page {
	struct address_space *mapping;
	unsigned long index; /* without struct folio */
	unsigned long compound_head;
	unsigned long compound_info; /* since 7.0 */
};
struct folio {
	struct address_space *mapping;
	unsigned long index;
};
struct readahead_control {
	struct address_space *mapping;
	unsigned long _index;
	unsigned int _nr_pages;
};
struct bio_vec {
	struct page *bv_page;
	unsigned int bv_offset;
};
struct bvec_iter {
	__u64 bi_sector;
	unsigned int bi_size, bi_idx, bi_bvec_done;
};
struct block_device {
	__u32 bd_dev;
};
struct bio {
	struct block_device *bi_bdev;
	struct bvec_iter bi_iter;
	struct bio_vec *bi_io_vec;
};
struct request {
	__u32 cmd_flags;
	unsigned int __data_len;
	__u64 __sector;
	struct bio *bio;
	struct block_device *part;
};
struct journal_s {
	struct block_device *j_fs_dev;
};
struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};
struct files_struct {
	struct fdtable *fdt;
};
struct fs_struct {
	struct path pwd;
};
struct xol_area {
	unsigned long vaddr;
};
struct uprobes_state {
	struct xol_area *xol_area;
};
struct maple_tree {
	void *ma_root;
};
struct maple_metadata {
	unsigned char end;
};
struct maple_range_64 {
	unsigned long pivot[15];
	void *slot[16];
	struct maple_metadata meta;
};
struct maple_arange_64 {
	unsigned long pivot[9];
	void *slot[10];
	struct maple_metadata meta;
};
struct mm_struct {
	struct file *exe_file;
	struct maple_tree mm_mt; /* since 6.1 */
	unsigned long start_stack;
	unsigned long saved_auxv[2]; /* and more */
	struct uprobes_state uprobes_state;
};
struct kernfs_node {
	const char *name;
	__u64 id;
};
struct cgroup {
	int level;
	struct kernfs_node *kn;
};
struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};
struct cgroup___self {
	struct cgroup_subsys_state self;
};
struct css_set {
	struct cgroup *dfl_cgrp;
	struct cgroup_subsys_state *subsys[1];
};
struct signal_struct {
	atomic_t live;
};
struct sigpending {
	sigset_t signal;
};
struct completion;
struct bpf_run_ctx {};
struct bpf_session_run_ctx {
	struct bpf_run_ctx run_ctx;
	bool is_return;
};
struct bpf_local_storage {
	__u64 mem_charge;
};
struct task_struct {
	struct thread_info thread_info;
	void *stack;
	unsigned int flags;
	struct bpf_run_ctx *bpf_ctx;
	int pid;
	int tgid;
	int exit_code;
	char comm[16];
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	const struct cred *cred;
	struct fs_struct *fs;
	struct files_struct *files;
	struct signal_struct *signal;
	struct sigpending pending;
	unsigned long sas_ss_sp, sas_ss_size;
	struct mm_struct *mm;
	struct css_set *cgroups;
	struct completion *vfork_done;
	struct thread_struct thread;
};
struct linux_binprm;
struct seq_file;
struct bpf_iter_meta {
	union {
		struct seq_file *seq;
	};
};
struct bpf_iter_num {
	__u64 __opaque[1];
};
struct bpf_iter__task {
	union {
		struct bpf_iter_meta *meta;
	};
	union {
		struct task_struct *task;
	};
};
#pragma clang attribute pop
