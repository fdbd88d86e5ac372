/*
 * What a kernel function works on: from a pointer of any of the kinds DC_OF_... to the inode,
 * the file or else the device, and the place in it. Pointers are plain numbers, see file.h.
 */
#pragma once

#define MAPPING_FLAGS 3UL  /* of page->mapping: anonymous memory, or movable */

struct subject {
	__u64 inode, file, dentry, mnt;
	__s64 offset, size;
	__u32 dev;
	__u32 anonymous; /* the data is a program's memory, not the page cache */
};

/* a file whose data the run made, which the kernel will write later */
struct dirt_key {
	__u64 ino;
	__u32 dev, generation;
};
struct dirt {
	__u64 file;
	__s32 pid, tid;
	__u32 is, unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct dirt_key);
	__type(value, struct dirt);
} dirty SEC(".maps");

/* devices of such files */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct dirt);
} devices SEC(".maps");

static __always_inline struct dirt_key key_of(__u64 address)
{
	struct inode *inode = (void *)address;
	struct dirt_key key = {
		.ino = BPF_CORE_READ(inode, i_ino),
		.dev = BPF_CORE_READ(inode, i_sb, s_dev),
		.generation = BPF_CORE_READ(inode, i_generation),
	};

	return key;
}

/* One of the names that the inode has in the dentry cache; 0 for none (a device, a pipe). */
static __always_inline __u64 alias_of(__u64 address)
{
	__u64 first = (__u64)BPF_CORE_READ((struct inode *)address, i_dentry.first);

	if (!first)
		return 0;
	if (bpf_core_field_exists(struct dentry, d_alias))
		return first - bpf_core_field_offset(struct dentry, d_alias);
	return first - bpf_core_field_offset(struct dentry___union, d_u.d_alias);
}

/* The first place where the inode's file system is mounted. */
static __always_inline __u64 mount_of(__u64 address)
{
	struct inode *inode = (void *)address;
	struct super_block *sb = BPF_CORE_READ(inode, i_sb);
	__u64 mount;

	if (bpf_core_field_exists(struct super_block, s_mounts))
		mount = (__u64)BPF_CORE_READ(sb, s_mounts);
	else
		mount = (__u64)BPF_CORE_READ((struct super_block___list *)sb, s_mounts.next) -
			bpf_core_field_offset(struct mount, mnt_instance);
	return mount + bpf_core_field_offset(struct mount, mnt);
}

static __always_inline void look_at_mapping(struct subject *subject, __u64 mapping)
{
	__u64 inode;

	subject->anonymous = mapping & MAPPING_FLAGS;
	if (!mapping || subject->anonymous)
		return;
	inode = (__u64)BPF_CORE_READ((struct address_space *)mapping, host);
	/* a page of the kernel's own memory has something else there */
	if ((__u64)BPF_CORE_READ((struct inode *)inode, i_mapping) != mapping)
		return;
	if ((BPF_CORE_READ((struct inode *)inode, i_mode) & 0170000) == 0060000) /* S_ISBLK */
		subject->dev = BPF_CORE_READ((struct inode *)inode, i_rdev);
	else
		subject->inode = inode;
}

static __always_inline void look_at_page(struct subject *subject, __u64 address)
{
	struct page *page = (void *)address;
	__u64 head = 0, size = bpf_core_type_size(struct page);

	if (bpf_core_field_exists(page->compound_head)) {
		head = BPF_CORE_READ(page, compound_head);
		head = head & 1 ? head - 1 : address;
	} else if (bpf_core_field_exists(page->compound_info)) {
		/* the head itself or a mask that makes it of the page (since 7.0) */
		head = BPF_CORE_READ(page, compound_info);
		if (!(head & 1))
			head = address;
		else
			head = head - 1 <= address ? head - 1 : head & address;
	}
	__u64 index = size ? (address - head) / size : 0;
	if (bpf_core_type_exists(struct folio)) {
		index += BPF_CORE_READ((struct folio *)head, index);
		look_at_mapping(subject, (__u64)BPF_CORE_READ((struct folio *)head, mapping));
	} else {
		index += BPF_CORE_READ((struct page *)head, index);
		look_at_mapping(subject, (__u64)BPF_CORE_READ((struct page *)head, mapping));
	}
	if (subject->inode || subject->dev)
		subject->offset = index << config.page_shift;
}

static __always_inline void look_at_bio(struct subject *subject, __u64 address)
{
	struct bio *bio = (void *)address;
	struct block_device *device = BPF_CORE_READ(bio, bi_bdev);
	__u32 at = BPF_CORE_READ(bio, bi_iter.bi_idx), size = BPF_CORE_READ(bio, bi_iter.bi_size);
	struct bio_vec *vector = BPF_CORE_READ(bio, bi_io_vec);
	__u64 page = 0;

	subject->dev = BPF_CORE_READ(device, bd_dev);
	subject->size = size;
	if (!size || !vector)
		return;
	vector = (void *)vector + at * bpf_core_type_size(struct bio_vec);
	page = (__u64)BPF_CORE_READ(vector, bv_page);
	if (page)
		look_at_page(subject, page);
	if (subject->inode)
		subject->offset += BPF_CORE_READ(vector, bv_offset) + BPF_CORE_READ(bio, bi_iter.bi_bvec_done);
}

static __always_inline void look_at_request(struct subject *subject, __u64 address)
{
	struct request *request = (void *)address;
	__u64 bio = (__u64)BPF_CORE_READ(request, bio);

	if (bio)
		look_at_bio(subject, bio);
	subject->dev = BPF_CORE_READ(request, part, bd_dev);
	subject->size = BPF_CORE_READ(request, __data_len);
	if (!subject->inode)
		subject->offset = BPF_CORE_READ(request, __sector) << 9;
}

/* What a client of NFS asks a server for. */
static __always_inline void look_at_nfs(struct subject *subject, __u64 address,
					const volatile struct dc_nfs *at)
{
	__u32 count = 0;

	if (!at->count)
		return;
	bpf_probe_read_kernel(&subject->inode, sizeof(subject->inode), (void *)(address + at->inode));
	bpf_probe_read_kernel(&subject->offset, sizeof(subject->offset), (void *)(address + at->offset));
	bpf_probe_read_kernel(&count, sizeof(count), (void *)(address + at->count));
	subject->size = count;
}

static __always_inline void look_at_file(struct subject *subject, __u64 address)
{
	struct file *file = as(struct file, address);

	subject->file = address;
	subject->inode = (__u64)READ(file, f_inode);
	subject->dentry = (__u64)READ(file, f_path.dentry);
	subject->mnt = (__u64)READ(file, f_path.mnt);
}

__noinline int look_at(struct subject *subject, __u64 address, __u32 kind)
{
	if (!subject || !address)
		return 0;
	switch (kind) {
	case DC_OF_FILE:
		look_at_file(subject, address);
		break;
	case DC_OF_KIOCB:
		look_at_file(subject, (__u64)BPF_CORE_READ((struct kiocb *)address, ki_filp));
		subject->offset = BPF_CORE_READ((struct kiocb *)address, ki_pos);
		break;
	case DC_OF_INODE:
		subject->inode = address;
		break;
	case DC_OF_DENTRY:
		subject->dentry = address;
		subject->inode = (__u64)BPF_CORE_READ((struct dentry *)address, d_inode);
		break;
	case DC_OF_PATH:
		subject->dentry = (__u64)BPF_CORE_READ((struct path *)address, dentry);
		subject->mnt = (__u64)BPF_CORE_READ((struct path *)address, mnt);
		address = subject->dentry;
		subject->inode = (__u64)BPF_CORE_READ((struct dentry *)address, d_inode);
		break;
	case DC_OF_FOLIO:
	case DC_OF_PAGE:
		look_at_page(subject, address);
		break;
	case DC_OF_MAPPING:
		look_at_mapping(subject, address);
		break;
	case DC_OF_FAULT:
		look_at_file(subject, (__u64)BPF_CORE_READ((struct vm_fault *)address, vma, vm_file));
		subject->offset = BPF_CORE_READ((struct vm_fault *)address, pgoff) << config.page_shift;
		break;
	case DC_OF_READAHEAD:
		look_at_mapping(subject,
				(__u64)BPF_CORE_READ((struct readahead_control *)address, mapping));
		subject->offset = BPF_CORE_READ((struct readahead_control *)address, _index)
				  << config.page_shift;
		subject->size = (__u64)BPF_CORE_READ((struct readahead_control *)address, _nr_pages)
				<< config.page_shift;
		break;
	case DC_OF_BIO:
		look_at_bio(subject, address);
		break;
	case DC_OF_REQUEST:
		look_at_request(subject, address);
		break;
	case DC_OF_JOURNAL:
		subject->dev = BPF_CORE_READ((struct journal_s *)address, j_fs_dev, bd_dev);
		break;
	case DC_OF_NFS_IO:
		look_at_nfs(subject, address, &config.nfs_io);
		break;
	case DC_OF_NFS_COMMIT:
		look_at_nfs(subject, address, &config.nfs_commit);
		break;
	}
	return 0;
}

/* The id of a block device, which is its own "file"; it is below no directory. */
static __always_inline __u64 identify_device(__u32 dev)
{
	__u64 id = (mix(dev, 0x6465766963650000ULL) & ~UNWANTED) | 1;
	struct dc_string *record;
	struct sight sight = {.bits = SENT};

	if (!wanted(0))
		return id | UNWANTED;
	if (bpf_map_lookup_elem(&announced, &id))
		return id;
	record = scratch_for(bpf_get_current_task_btf());
	if (!record)
		return id;
	record->kind = DC_FILE;
	record->length = 0;
	record->ts = bpf_ktime_get_ns();
	record->file = id;
	record->base = record->ino = 0;
	record->dev = dev;
	record->generation = 0;
	record->mode = 0060000; /* S_IFBLK */
	record->what = 0;
	record->fstype[0] = 0;
	if (send_string(record))
		bpf_map_update_elem(&announced, &id, &sight, BPF_ANY);
	return id;
}

/* The file id of what a traced task works on; 0 if that is no file. */
__noinline __u64 identify_subject(struct dc_task *self, struct subject *subject)
{
	if (!self || !subject)
		return 0;
	__u64 dentry = subject->dentry, mnt = subject->mnt, inode = subject->inode;

	if (!dentry && inode)
		dentry = alias_of(inode);
	if (!dentry)
		return subject->dev ? identify_device(subject->dev) : 0;
	if (!BPF_CORE_READ((struct dentry *)dentry, d_inode))
		return 0; /* a name that does not exist yet */
	if (!mnt)
		mnt = mount_of(inode);
	return identify_path(self, (struct dentry *)dentry, (struct vfsmount *)mnt, false);
}

/* Remember whose data the kernel will have to write. */
__noinline int remember_dirt(struct dc_task *self, __u64 mapping)
{
	struct subject subject = {};

	if (!self)
		return 0;
	look_at_mapping(&subject, mapping);
	if (!subject.inode)
		return 0;
	struct dirt_key key = key_of(subject.inode);
	struct dirt *known = bpf_map_lookup_elem(&dirty, &key);
	if (known) {
		known->pid = self->event.pid;
		known->tid = self->event.tid;
		known->is = self->is;
		return 0;
	}
	struct dirt dirt = {
		.file = identify_subject(self, &subject), .pid = self->event.pid,
		.tid = self->event.tid, .is = self->is,
	};
	if (!dirt.file)
		return 0;
	bpf_map_update_elem(&dirty, &key, &dirt, BPF_ANY);
	dirt.file = dirt.pid = dirt.tid = 0;
	bpf_map_update_elem(&devices, &key.dev, &dirt, BPF_ANY);
	return 0;
}

/* Who made what the kernel works on now: a file's data, or something of a device; or nobody. */
static __always_inline bool whose(struct dirt *dirt, const struct subject *subject)
{
	struct dirt *found;

	if (subject->inode && alias_of(subject->inode)) {
		struct dirt_key key = key_of(subject->inode);
		found = bpf_map_lookup_elem(&dirty, &key);
	} else {
		found = bpf_map_lookup_elem(&devices, &subject->dev);
	}
	if (!found)
		return false;
	*dirt = *found;
	if (!dirt->file)
		dirt->file = identify_device(subject->dev);
	return true;
}

/* The first argument is a folio or, before 5.18, a page; the second its mapping. */
SEC("raw_tp")
int on_dirty(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (!of_user(task))
		return 0;
	struct dc_task *self = traced(task);
	if (self && (self->is & DC_IS))
		remember_dirt(self, ctx->args[1]);
	return 0;
}
