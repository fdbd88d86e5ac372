/*
 * Which file a call is about: an id for every event, the path once.
 *
 * Functions that are not static are verified once, not at each call; their pointers into the
 * kernel are plain numbers, because the verifier takes no others there.
 */
#pragma once

#define UNWANTED 2ULL /* set in the id of a file that the path rules leave out */

/* what is known of a file or a name that was seen before */
struct sight {
	__u32 above;  /* rules for something below this directory */
	__u16 length; /* of its path, so far as it is that of these rules */
	__u16 bits;
};
enum { INCLUDED = 1, EXCLUDED = 2, SENT = 4, FAILED = 8 };

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct sight);
} announced SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 23);
} strings SEC(".maps");

/* room to put a path together, for each thread that needs it */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct dc_string);
} scratch SEC(".maps");

static __always_inline struct dc_string *scratch_for(struct task_struct *task)
{
	struct dc_string *record = storage(&scratch, task, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!record)
		COUNT(lost_strings);
	return record;
}

static __always_inline bool send_string(struct dc_string *record)
{
	__u32 length = record->length;

	if (length > DC_TEXT_MAX)
		length = DC_TEXT_MAX;
	length += offsetof(struct dc_string, text);
	__u64 fill = bpf_ringbuf_query(&strings, BPF_RB_AVAIL_DATA);
	bool wake = (fill ^ (fill + length)) & -(__u64)config.wake_strings;
	if (!bpf_ringbuf_output(&strings, record, length,
				wake ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP))
		return true;
	COUNT(lost_strings);
	return false;
}

/*
 * Loads without a helper call, where the kernel lets a program say what an address points to:
 * such a load cannot fault either, it reads 0. bpf_rdonly_cast() came with Linux 6.2; struct
 * bpf_iter_num, by which we tell, with 6.4. Elsewhere bpf_probe_read_kernel() does the same.
 */
extern void *bpf_rdonly_cast(const void *address, __u32 type) __ksym __weak;

#define direct() bpf_core_type_exists(struct bpf_iter_num)
#define as(type, address)                                                                          \
	((type *)(direct() ? bpf_rdonly_cast((const void *)(address), bpf_core_type_id_kernel(type)) \
			   : (void *)(address)))
#define READ(pointer, member) (direct() ? (pointer)->member : BPF_CORE_READ(pointer, member))

/*
 * Is a kprobe.session's program at the return? bpf_session_is_return() would say; its prototype
 * changed in 7.0, and what it reads did not.
 */
static __always_inline bool session_returns(void)
{
	__u64 run = (__u64)bpf_get_current_task_btf()->bpf_ctx;

	return READ(as(struct bpf_session_run_ctx, run), is_return);
}

/* The `struct file` behind a descriptor of the current task; 0 for none. */
static __always_inline struct file *file_of(struct task_struct *task, int fd)
{
	struct fdtable *table = task->files ? task->files->fdt : 0;
	__u64 file = 0;

	if (!table || (unsigned int)fd >= table->max_fds)
		return 0;
	__u64 slot = (__u64)table->fd + (__u32)fd * sizeof(file);
	if (direct()) /* of structures that begin with a pointer, any will do */
		return (struct file *)as(struct path, slot)->mnt;
	bpf_probe_read_kernel(&file, sizeof(file), (void *)slot);
	return (struct file *)file;
}

static __always_inline __u64 mix(__u64 a, __u64 b)
{
	a = (a ^ b) * 0x9e3779b97f4a7c15ULL;
	return a ^ (a >> 29);
}

#define ROTATE(word, bits) ((word) << (bits) | (word) >> (64 - (bits)))
#define SIP_ROUND                                                                                  \
	do {                                                                                       \
		a += b; b = ROTATE(b, 13) ^ a; a = ROTATE(a, 32);                                  \
		c += d; d = ROTATE(d, 16) ^ c;                                                     \
		a += d; d = ROTATE(d, 21) ^ a;                                                     \
		c += b; b = ROTATE(b, 17) ^ c; c = ROTATE(c, 32);                                  \
	} while (0)

/*
 * SipHash-2-4 of one word under the run's secret: the words that ids are made of tell where
 * the kernel has its structures, what the user sees must not.
 */
__noinline __u64 concealed(__u64 word)
{
	__u64 k0 = config.secret[0], k1 = config.secret[1], length = 8ULL << 56;
	__u64 a = k0 ^ 0x736f6d6570736575ULL, b = k1 ^ 0x646f72616e646f6dULL;
	__u64 c = k0 ^ 0x6c7967656e657261ULL, d = k1 ^ 0x7465646279746573ULL;

	d ^= word;
	SIP_ROUND; SIP_ROUND;
	a ^= word;
	d ^= length;
	SIP_ROUND; SIP_ROUND;
	a ^= length;
	c ^= 0xff;
	SIP_ROUND; SIP_ROUND; SIP_ROUND; SIP_ROUND;
	return a ^ b ^ c ^ d;
}

struct walk {
	struct dc_string *record;
	struct dentry *dentry;
	struct mount *mount;
	__u32 at;
	bool whole;
};

static long put_name(__u64 i, struct walk *walk)
{
	struct dentry *dentry = walk->dentry, *parent = BPF_CORE_READ(dentry, d_parent);
	struct mount *mount = walk->mount;
	__u32 at = walk->at;

	/* memfd and the like: a name without a tree, its own parent */
	if (dentry == BPF_CORE_READ(mount, mnt.mnt_root) || (dentry == parent && at)) {
		walk->mount = BPF_CORE_READ(mount, mnt_parent);
		walk->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
		walk->whole = walk->mount == mount || !walk->mount;
		return walk->whole;
	}
	if (at > DC_TEXT_MAX - 256)
		return 1;
	long n = bpf_probe_read_kernel_str(walk->record->text + (at & (DC_TEXT_MAX - 1)), 256,
					   BPF_CORE_READ(dentry, d_name.name));
	if (n <= 0)
		return 1;
	walk->at = at + n;
	walk->dentry = parent;
	return 0;
}

/* Names from the leaf up to the root of the mount namespace. */
static __always_inline void put_path(struct dc_string *record, __u64 dentry, __u64 mnt)
{
	struct walk walk = {
		.record = record,
		.dentry = (void *)dentry,
		.mount = (void *)(mnt - bpf_core_field_offset(struct mount, mnt)),
	};

	bpf_loop(DC_TEXT_MAX, put_name, &walk, 0);
	record->length = walk.at;
	if (!walk.whole)
		record->what |= 2;
}

#include "paths.h"

/* Sends the file's record if it is wanted, or a directory (names start there), or if it `must`
 * be; returns bits of struct sight. */
__noinline int announce_file(__u64 id, __u64 dentry_address, __u64 mnt_address, int must)
{
	struct dentry *dentry = (void *)dentry_address;
	struct dc_string *record = scratch_for(bpf_get_current_task_btf());
	struct sight sight = {};

	if (!record)
		return FAILED | INCLUDED;
	struct inode *inode = BPF_CORE_READ(dentry, d_inode);
	struct super_block *sb = BPF_CORE_READ(inode, i_sb);
	record->kind = DC_FILE;
	record->ts = bpf_ktime_get_ns();
	record->file = id;
	record->base = 0;
	record->ino = BPF_CORE_READ(inode, i_ino);
	record->dev = BPF_CORE_READ(sb, s_dev);
	record->generation = BPF_CORE_READ(inode, i_generation);
	record->mode = BPF_CORE_READ(inode, i_mode);
	record->what = BPF_CORE_READ(inode, i_nlink) ? 0 : 1;
	bpf_probe_read_kernel_str(record->fstype, sizeof(record->fstype),
				  BPF_CORE_READ(sb, s_type, name));
	put_path(record, dentry_address, mnt_address);
	if (config.rules_used)
		judge_path(record, &sight);
	if (must || wanted(sight.bits) || (record->mode & 0170000) == 0040000) {
		if (!send_string(record))
			return sight.bits | FAILED;
		sight.bits |= SENT;
	}
	bpf_map_update_elem(&announced, &id, &sight, BPF_ANY);
	return sight.bits;
}

/* What tells a file, under its name, from all others; not for the user to see. */
static __always_inline __u64 inside_of(struct dc_task *self, struct dentry *dentry)
{
	struct inode *inode = READ(dentry, d_inode);
	struct super_block *sb = READ(inode, i_sb);
	__u64 inside = mix(READ(inode, i_ino), READ(inode, i_generation));

	inside = mix(inside, READ(sb, s_dev));
	inside = mix(inside, READ(dentry, d_name.hash_len));
	*(volatile __u64 *)&self->parent = (__u64)READ(dentry, d_parent);
	return mix(inside, *(volatile __u64 *)&self->parent) | 1;
}

/* The id, if it is known; 0 if not, or if its record is not out and `must` be. */
static __always_inline __u64 known_id(const struct dc_task *self, __u64 inside, bool must)
{
	__u32 slot = (inside >> 2) & 7;
	__u64 id = self->known[slot].id;

	return self->known[slot].inside == inside && !(must && (id & UNWANTED)) ? id : 0;
}

/* The id, marked if it is UNWANTED; kept for the next call, unless its record did not get out. */
static __always_inline __u64 seen(struct dc_task *self, __u64 inside, __u64 id, int bits)
{
	__u32 slot = (inside >> 2) & 7;

	if (!wanted(bits))
		id |= UNWANTED;
	if (!(bits & FAILED)) {
		self->known[slot].inside = inside;
		self->known[slot].id = id;
	}
	return id;
}

/* The first time (or after a long time): announce the file whose dentry and mount `self` has. */
__noinline __u64 see_file(struct dc_task *self, __u64 inside, int must)
{
	if (!self)
		return 0;
	__u64 id = (concealed(inside) & ~UNWANTED) | 1;
	struct sight *sight = bpf_map_lookup_elem(&announced, &id);
	int bits = sight ? sight->bits : 0;

	if (!sight || (must && !(bits & SENT)))
		bits = announce_file(id, self->dentry, self->mnt, must);
	return seen(self, inside, id, bits);
}

static __always_inline __u64 identify_path(struct dc_task *self, struct dentry *dentry,
					   struct vfsmount *mnt, bool must)
{
	__u64 inside = inside_of(self, as(struct dentry, dentry));

	if (config.rules_used) { /* its path, and so the answer, depends on the mount */
		self->mnt = (__u64)mnt;
		inside = mix(inside, *(volatile __u64 *)&self->mnt) | 1;
	}
	__u64 known = known_id(self, inside, must);

	if (known)
		return known;
	self->dentry = (__u64)dentry;
	self->mnt = (__u64)mnt;
	return see_file(self, inside, must);
}

/*
 * The id of an open file: its inode under the name it was opened by. It is UNWANTED if the
 * path rules say so; its path is then announced only if it `must` be.
 */
static __always_inline __u64 identify_for(struct dc_task *self, struct file *address, bool must)
{
	struct file *file = as(struct file, address);

	return identify_path(self, READ(file, f_path.dentry), READ(file, f_path.mnt), must);
}

static __always_inline __u64 identify(struct dc_task *self, struct file *address)
{
	return identify_for(self, address, false);
}

struct hashing {
	struct dc_string *record;
	__u64 hash;
};

static long hash_word(__u64 i, struct hashing *hashing)
{
	__u64 *words = (__u64 *)hashing->record->text;

	hashing->hash = mix(hashing->hash, words[i & (DC_TEXT_MAX / 8 - 1)]);
	return 0;
}

static __always_inline __u64 hash_text(struct dc_string *record)
{
	__u32 length = record->length & (DC_TEXT_MAX - 1);
	struct hashing hashing = {.record = record, .hash = length};

	*(__u64 *)(record->text + length) = 0; /* so that the last word has no old bytes */
	bpf_loop((length + 7) / 8, hash_word, &hashing, 0);
	return hashing.hash;
}

static __always_inline __u64 see_name(struct dc_task *self, struct dc_string *record, bool must)
{
	__u64 id = record->file, known = known_id(self, id, must);
	struct sight fresh = {}, *sight;

	if (known)
		return known;
	sight = bpf_map_lookup_elem(&announced, &id);
	if (sight && !(must && !(sight->bits & SENT)))
		return seen(self, id, id, sight->bits);
	if (config.rules_used)
		judge_name(record, &fresh);
	if (must || wanted(fresh.bits)) {
		if (!send_string(record))
			return seen(self, id, id, fresh.bits | FAILED);
		fresh.bits |= SENT;
	}
	bpf_map_update_elem(&announced, &id, &fresh, BPF_ANY);
	return seen(self, id, id, fresh.bits);
}

/* The id of the working directory. */
static __always_inline __u64 identify_directory(struct dc_task *self, struct task_struct *task)
{
	return identify_path(self, BPF_CORE_READ(task, fs, pwd.dentry),
			     BPF_CORE_READ(task, fs, pwd.mnt), false);
}

/* The id of a path as the program gave it (`address`, in user memory, relative to `dirfd`). */
__noinline __u64 named(struct dc_task *self, __u64 address, int dirfd, int must)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct dc_string *record;
	__u64 base = 0;
	char first = 0;

	if (!self)
		return 0;
	bpf_probe_read_user(&first, 1, (void *)address);
	if (first != '/') {
		struct file *file = dirfd == -100 ? 0 : file_of(task, dirfd);
		if (file)
			base = identify_for(self, file, must && !first);
		else if (dirfd == -100)
			base = identify_directory(self, task);
		if (!first)
			return base; /* AT_EMPTY_PATH: the descriptor itself */
	}
	record = scratch_for(task);
	if (!record)
		return 0;
	long n = bpf_probe_read_user_str(record->text, DC_TEXT_MAX, (void *)address);
	if (n <= 0)
		return 0;
	record->length = n - 1;
	record->kind = DC_NAME;
	record->base = base & ~UNWANTED;
	record->ts = self->event.ts;
	record->file = mix(hash_text(record), record->base) & ~(UNWANTED | 1);
	return see_name(self, record, must);
}
