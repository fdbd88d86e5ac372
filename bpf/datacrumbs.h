/*
 * What the BPF programs and the daemon (datacrumbs/tracer/layout.py) both know.
 * Change DC_LAYOUT when anything here changes.
 */
#pragma once
#include <linux/types.h>

#define DC_LAYOUT 9
#define DC_SYSCALLS 512	     /* system call numbers below this can be traced */
#define DC_MAX_CPUS 1024     /* counters are kept per CPU, modulo this */
#define DC_RUN_ID_MAX 64
#define DC_TEXT_MAX 4096     /* a path's bytes in a name record */
#define DC_DEPTH 64	     /* user functions nested on one thread; a power of two */
#define DC_KERNEL_DEPTH 64   /* kernel functions nested on one thread; a power of two */
#define DC_POINTS 64	     /* tracepoints in use, a program for each */
#define DC_URING_OPERATIONS 64 /* io_uring's opcodes below this can be traced */
#define DC_RULES 32	     /* path prefixes, include and exclude together */
#define DC_RULE_MAX 256	     /* bytes of one, with what ends it */
#define DC_POWERS 48	     /* of a profile's histogram: the last has longer calls, too */

/* one event: EVENT_DTYPE in datacrumbs/trace/schema.py */
struct dc_event {
	__s64 ts, dur;
	__u64 file;
	__s64 offset, size, ret;
	__s32 pid, tid;
	__u16 func, flags;
	__s32 fd;
};
enum { DC_UNFINISHED = 1, DC_PEER = 2, DC_ASYNC = 4, DC_HAS_ARGUMENTS = 8 };

/*
 * Which tasks a function is recorded for, and what a task is. DC_HELD, shifted: what it will be
 * again once it executes a program that has the user's rights and no others.
 */
enum { DC_JOINED = 1, DC_IN_JOB = 2, DC_IS = 3, DC_HELD = 8 };

/* what to do about one system call; argument indices are -1 for none */
struct dc_call {
	__u16 func; /* 0: not wanted */
	__u8 select;
	__u8 bits;
	__s8 fd, path, dirfd, size, iov, iovcnt, offset, offset_ptr;
	__s8 fd2, offset2_ptr, path2, dirfd2;
};
enum {
	DC_USES_POS = 1,
	DC_RETURNS_FD = 2,
	DC_LEAN = 4, /* profile mode, no path rules: which file it is about does not matter */
	DC_PROBED = 8, /* its own function is probed: call_session */
	DC_CHANGES_DIR = 16, /* afterwards, the directory that its path named is where paths start */
};

/* what to do about one opcode of io_uring */
struct dc_operation {
	__u16 func; /* 0: not wanted */
	__u8 bits, unused;
};
enum {
	DC_URING_FILE = 1,     /* its descriptor is one that it works on */
	DC_URING_TRANSFER = 2, /* it has an offset and a size */
	DC_URING_VECTOR = 4,   /* the size is a number of buffers */
	DC_URING_OPENS = 8,    /* it returns a descriptor */
};

/* any function, by its number; argument indices are -1 for none. Of no kernel function: zeros. */
struct dc_function {
	__u8 select;
	__u8 layer; /* index of dc_config.layers */
	__u8 bits;  /* DC_PROFILED ... */
	__u8 kind;  /* DC_OF_...: what argument `object` is */
	__s8 object, offset, size;
	__u8 how;	/* DC_OFFSET_POINTER ... */
	__u8 returns;	/* DC_RETURNS_... */
	__u8 unused;
	__u16 embedded; /* where the structure that argument `object` points to has its inode */
};
enum {
	DC_PROFILED = 1, /* profile mode */
	DC_MOVES = 2,	 /* a positive result is bytes moved */
	DC_ERRNO = 4,	 /* a negative result is a failure */
	DC_LIMITED = 8,	 /* its layer has min_duration_ns or max_per_s */
};
/* what tells a kernel function's file */
enum {
	DC_OF_NONE, DC_OF_FILE, DC_OF_KIOCB, DC_OF_INODE, DC_OF_DENTRY, DC_OF_PATH, DC_OF_FOLIO,
	DC_OF_PAGE, DC_OF_MAPPING, DC_OF_FAULT, DC_OF_READAHEAD, DC_OF_BIO, DC_OF_REQUEST,
	DC_OF_JOURNAL, DC_OF_NFS_IO, DC_OF_NFS_COMMIT,
};
enum {
	DC_OFFSET_POINTER = 1, DC_SIZE_ITER = 2, DC_OFFSET_PAGES = 4, DC_SIZE_32 = 8,
	DC_KEEPS = 16, /* arguments are kept */
};
enum { DC_RETURNS_LONG, DC_RETURNS_NOTHING, DC_RETURNS_INT, DC_RETURNS_UINT, DC_RETURNS_BYTE };

/* one tracepoint */
struct dc_point {
	__u16 func;
	__u8 part;	/* DC_SINGLE ... */
	__u8 arguments; /* how many it has, 8 at most */
	__s8 result;	/* index of what the function returns; -1: none */
	__u8 unused[3];
	struct dc_function roles;
};
enum { DC_NO_POINT, DC_SINGLE, DC_ENTER, DC_LEAVE, DC_ISSUE, DC_DONE, DC_REPLY };

/* what an attach cookie has besides the function's number */
#define DC_TAIL (1ULL << 16) /* an exit: a jump into another function, the result is not known */
#define DC_KEEP (1ULL << 17) /* arguments are kept */
#define DC_PLACE 32	     /* shift of the key of `usdt_places` */

/* which arguments of a function are kept */
#define DC_ARGUMENTS 6
#define DC_ARGUMENT_MAX 256
enum { DC_INT, DC_UINT, DC_STRING, DC_BYTES };
struct dc_argument {
	__u16 index, type, bytes, unused;
};
struct dc_arguments {
	struct dc_argument list[DC_ARGUMENTS];
	__u64 count;
};

/* where the arguments are at one place of a USDT point */
enum { DC_NOWHERE, DC_CONSTANT, DC_REGISTER, DC_MEMORY };
enum { DC_INDEX_32 = 4, DC_INDEX_SIGNED = 8 }; /* only that much of the index, in `scale` */
struct dc_operand {
	__u8 how, bytes, is_signed, scale; /* scale: the index is shifted left by its lowest 2 bits */
	__u16 base, index; /* offsets in struct pt_regs; index: 0xffff for none */
	__s64 value;	   /* of a constant, or what is added to the address */
};
struct dc_place {
	struct dc_operand list[DC_ARGUMENTS];
};

/* one layer: an entry of the probe file */
struct dc_layer {
	__u64 min_duration_ns;
	__u32 max_per_s; /* of one function on one CPU; 0: no limit */
	__u32 unused[5];
};

/*
 * A path prefix. `names` has its parts as a file record has them: from the leaf up, each ended
 * by NUL; both forms are `length` bytes, 0 for the root.
 */
struct dc_rule {
	char path[DC_RULE_MAX], names[DC_RULE_MAX];
	__u32 length, unused;
};

/* Where a request to an NFS server has what it is about, in bytes; no `count`: not known. The
 * types are a module's: looking for those would need CAP_SYS_ADMIN, and time, in every run. */
struct dc_nfs {
	__u16 inode, offset, count, done;
};

/* set before load */
#define DC_FUNCTIONS 65536
#define DC_JOB_NAME_MAX 64
#define DC_LAYERS 256
struct dc_config {
	struct dc_call calls[DC_SYSCALLS];
	struct dc_function functions[DC_FUNCTIONS];
	struct dc_layer layers[DC_LAYERS];
	struct dc_point points[DC_POINTS];
	struct dc_operation operations[DC_URING_OPERATIONS];
	struct dc_rule rules[DC_RULES]; /* first those to include, then those to exclude */
	__u32 includes, rules_used;
	char run_id[DC_RUN_ID_MAX];
	char job_name[DC_JOB_NAME_MAX]; /* of the job's cgroup, which need not be there yet; or "" */
	__u64 job_cgroup;    /* its kernfs id, in version 2; neither: no `select: job` */
	__u64 secret[2];     /* of this run: what file ids are made with */
	__u32 uid;	     /* the run's user */
	__u32 ns_inum;	     /* the daemon's PID namespace */
	__u32 layout;
	__u32 page_shift; /* log2 of a page's bytes */
	__u32 cells;	  /* of a bank of profile mode; a power of two */
	__u32 wake_events;  /* after so many of one CPU the daemon is woken; a power of two */
	__u32 wake_strings; /* the same, for bytes in the ring `strings` */
	__u16 ring_of_cpu[DC_MAX_CPUS]; /* index in `rings` */
	struct dc_nfs nfs_io, nfs_commit;
	__u16 rpc_status; /* where an rpc_task has it, or 0 */
};

/* per CPU, read by the daemon through the memory map of .data.counters */
struct dc_counters {
	__u64 lost, lost_strings, filtered;
	__u64 kept; /* events, to know when to wake; one may count for another that it preempts */
	__u64 filtered_duration, filtered_rate, filtered_path; /* not in `filtered` */
	__u64 lost_profile; /* calls that found the profile full */
};

/* profile mode: what is added up under one key */
struct dc_profile_key {
	__s32 pid;
	__u16 func, cpu;
};
struct dc_profile {
	__s64 time, max, bytes;
	__u64 errors;
	__u32 calls[DC_POWERS]; /* element i: calls of 2^i up to 2^(i+1) ns */
};

/* the same of one function on one thread, which alone adds to it */
struct dc_cell {
	__u64 who; /* thread and function; 0: nobody's */
	__s32 pid;
	__u32 unused;
	struct dc_profile sums;
	__u64 unused_too[2]; /* whole cache lines */
};

/* changed by both sides */
struct dc_banks {
	__u32 used;	  /* 0 or 1 */
	__u32 spilled[2]; /* since a bank is used, there were calls that went to a map */
};

/* records of the string ring */
enum { DC_FILE = 1, DC_NAME, DC_PROCESS, DC_PEER_RECORD, DC_ARGUMENTS_RECORD };
enum { DC_START = 1, DC_FORK, DC_EXEC, DC_EXIT };

struct dc_string {
	__u32 kind;   /* DC_FILE ... */
	__u32 length; /* bytes of text in use */
	__s64 ts;
	__u64 file; /* DC_FILE, DC_NAME, DC_PEER_RECORD: the id; DC_PROCESS: the executable's */
	__u64 base; /* DC_NAME: id of the directory a relative path starts at */
	__u64 ino;
	__u32 dev, generation;
	__u32 mode, what; /* what: DC_START ..., or for DC_FILE 1 = deleted, 2 = path cut short */
	__s32 pid, ppid;
	__s32 fd, exit_code;
	__s64 offset;
	char fstype[16]; /* or the process's comm */
	/*
	 * DC_FILE: names from the leaf up, each ended by NUL. DC_ARGUMENTS_RECORD (`what` is the
	 * function): for each argument its length as __s64, -1 if it could not be read, and its
	 * bytes, up to a multiple of 8. Else one string.
	 */
	char text[DC_TEXT_MAX + 256];
};
