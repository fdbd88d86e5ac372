"""What a function's time is spent on: the one table of names that mean something.

A *strong* cause says why a call took long, whatever is inside it: a journal commit that waits
for the disk is a journal commit. A *weak* one says what was asked for (fsync), and gives way to
a strong cause found inside. Between them is a *broad* one: it stands over a weak cause around it,
and gives way to a strong one inside (``ext4_da_write_begin`` may find a page or allocate one). The
first pattern that matches a name counts; patterns are shell globs. A function that none matches
has the weak cause of its op, if that has one. Names of tracepoints count without their group
(``jbd2:jbd2_commit``).
"""

from __future__ import annotations

import fnmatch
import re
from enum import IntEnum, StrEnum
from functools import cache
from typing import NamedTuple

from datacrumbs.trace.schema import Op


class Cause(StrEnum):
    """Why time was spent. Values are part of the JSON of `datacrumbs_explain`."""

    THROTTLING = "throttling"
    JOURNAL = "journal"
    RECLAIM = "memory reclaim"
    SPACE = "block allocation"
    PAGES = "page allocation"
    CACHE_MISS = "cache miss"
    WRITEBACK = "writeback"
    DIRECT = "direct I/O"
    BLOCK = "block I/O"
    LOCK = "lock"
    NETWORK = "network"
    FUSE = "user-space file system"
    FAULT = "page fault"
    COPY = "copying"
    SYNC = "sync"
    OPEN = "opening"
    NAMES = "names and attributes"
    WAIT = "waiting"
    READ = "reading"
    WRITE = "writing"
    NONE = "none"


class Grade(IntEnum):
    """Which of nested causes counts: the outermost of the strong ones, else of the broad ones,
    else of the weak ones. `PLAIN`: no cause."""

    PLAIN = 0
    WEAK = 1
    BROAD = 2
    STRONG = 3


class Meaning(NamedTuple):
    """The cause of a function's time, and how it stands to those around and inside."""

    cause: Cause
    grade: Grade


MEANING: dict[Cause, str] = {
    Cause.THROTTLING: "throttling: the writer waits because too many pages are dirty or a limit "
    "is reached",
    Cause.JOURNAL: "the file system's journal: starting a transaction, or waiting for a commit",
    Cause.RECLAIM: "reclaiming memory before pages could be had",
    Cause.SPACE: "allocating space for the file, or looking up its blocks",
    Cause.PAGES: "finding or allocating pages of the page cache",
    Cause.CACHE_MISS: "a page cache miss: readahead or reading pages that were not cached",
    Cause.WRITEBACK: "writing dirty pages back, and waiting for that",
    Cause.DIRECT: "direct I/O, past the page cache",
    Cause.BLOCK: "waiting for the block device",
    Cause.LOCK: "waiting for a lock or an inode that another thread held",
    Cause.NETWORK: "the network: requests to the servers of a file system, or to a peer",
    Cause.FUSE: "a file system in user space (FUSE)",
    Cause.FAULT: "page faults",
    Cause.COPY: "copying data between user memory and the page cache",
    Cause.SYNC: "forcing data to stable storage",
    Cause.OPEN: "opening or closing files",
    Cause.NAMES: "names and attributes of files",
    Cause.WAIT: "waiting",
    Cause.READ: "reading",
    Cause.WRITE: "writing",
    Cause.NONE: "",
}
"""What a cause is, for people: a phrase that follows "is"."""

# Order matters: the first match counts. Names are those of functions and of tracepoints.
_STRONG: tuple[tuple[Cause, str], ...] = (
    # --- passing remarks of the kernel that take no time and say nothing about waiting
    (Cause.NONE, "writeback_dirty_* writeback_mark_inode_dirty writeback_*_enqueue"),
    # --- where calls enter NFS: what is inside says whether they asked the server
    (Cause.NONE, "nfs_file_read nfs_file_write nfs_write_begin nfs_write_end nfs_update_folio"),
    (Cause.NONE, "nfs_updatepage"),
    # --- the writer is held back: dirty limits, cgroup limits (io.max), writeback throttling
    (Cause.THROTTLING, "balance_dirty_pages* *io_throttle* blk_throtl* __blk_throtl* rq_qos_wait*"),
    (Cause.THROTTLING, "wbt_wait* iocg_* ioc_rqos_throttle* mem_cgroup_handle_over_high*"),
    # --- journals: ext4 (jbd2), xfs (the log), btrfs (transactions)
    (Cause.JOURNAL, "jbd2_* __jbd2_* ext4_journal_* __ext4_journal_* start_this_handle"),
    (Cause.JOURNAL, "wait_transaction_locked wait_transaction_switching add_transaction_credits"),
    (Cause.JOURNAL, "ext4_fc_* xlog_* xfs_log_* xfs_trans_* btrfs_*transaction* btrfs_sync_log"),
    (Cause.JOURNAL, "wait_current_trans* ext4_force_commit"),
    # --- memory
    (Cause.RECLAIM, "*try_to_free_*pages* shrink_* *direct_reclaim* __perform_reclaim"),
    (Cause.RECLAIM, "*compact_zone* try_to_compact_pages throttle_direct_reclaim"),
    # --- where data goes on disk: block maps, extents, delayed allocation
    (Cause.SPACE, "*get_block* *_map_blocks* *_map_create_blocks* ext4_mb_* ext4_ext_*"),
    (Cause.SPACE, "ext4_da_reserve* xfs_bmapi_* xfs_bmap_* xfs_alloc_*"),
    (Cause.SPACE, "*allocate_block* *allocate_inode* *fallocate* btrfs_reserve_* find_free_extent"),
    (Cause.SPACE, "btrfs_check_data_free_space btrfs_delalloc_reserve* ext4_*alloc*"),
    # --- reading what is not in the page cache. Adding a folio is what a miss does first.
    (Cause.CACHE_MISS, "page_cache_*ra* *readahead* *read_pages* *readpage* *read_folio*"),
    (Cause.CACHE_MISS, "*do_page_cache_ra* filemap_update_page filemap_create_folio"),
    (Cause.CACHE_MISS, "ra_alloc_folio *readpages* do_async_mmap_readahead"),
    # --- page cache pages: new ones for a write, or for a read that missed
    (Cause.PAGES, "*alloc_folio* *folio_alloc* *alloc_pages* *filemap_add_folio*"),
    (Cause.PAGES, "*add_to_page_cache* get_page_from_freelist"),
    # --- dirty pages on their way out, in the caller's own time
    (Cause.WRITEBACK, "*writepages* write_cache_pages* filemap_fdatawrite* *write_and_wait*"),
    (Cause.WRITEBACK, "filemap_fdatawait* *filemap_fdatawait* *writeback* wb_* *writepage"),
    # --- past the page cache
    (Cause.DIRECT, "*direct_io* *_dio_* iomap_dio* *direct_IO* *direct_write* dio_*"),
    # --- sleeping until a device is done, and handing it work
    (Cause.BLOCK, "io_schedule* *folio_wait_* wait_on_page_* *wait_on_buffer* submit_bio*"),
    (
        Cause.BLOCK,
        "*wait_for_completion_io* blk_* __blk_* block_* bio_* nvme_* scsi_* bit_wait_io*",
    ),
    (Cause.BLOCK, "*submit_bh* *bread* xfs_buf_* dm_* md_*"),
    # --- somebody else has it: inode locks, folio locks, mutexes; also in user space
    (Cause.LOCK, "down_read* down_write* __down_* rwsem_* *mutex_lock* *_lock_slowpath*"),
    (
        Cause.LOCK,
        "nfs_start_io_* xfs_ilock* inode_lock* *folio_lock* __lock_page* lock_page* percpu_down_*",
    ),
    (Cause.LOCK, "*spin_lock* *futex_wait* futex pthread_mutex_* pthread_rwlock_* flock"),
    (Cause.LOCK, "locks_lock_* posix_lock_* *lock_inode* contention_begin *_lock"),
    # --- file systems that ask somebody else
    (Cause.NETWORK, "nfs_* nfs4_* nfs3_* rpc_* __rpc_* xprt_* svc_* ceph_* cifs_* smb2_*"),
    (Cause.NETWORK, "ll_* lov_* osc_* mdc_* ptlrpc_* cl_* lustre_* gpfs* tcp_* sock_*"),
    (Cause.FUSE, "fuse_* __fuse_* request_wait_answer"),
    (Cause.FAULT, "*handle_mm_fault* *do_user_addr_fault* filemap_fault* do_fault* fault_in_*"),
    (Cause.COPY, "*copy_folio_from_iter* *copy_page_* copy_to_iter* copy_from_iter* _copy_*"),
    (Cause.COPY, "copy_user* memcpy memmove"),
)
_BROAD: tuple[tuple[Cause, str], ...] = (
    # what a write does first, whether or not the page and its block are there
    (Cause.PAGES, "*write_begin pagecache_get_page __filemap_get_folio grab_cache_page*"),
    (Cause.SPACE, "*iomap_begin*"),
)
_WEAK: tuple[tuple[Cause, str], ...] = (
    (Cause.SYNC, "*fsync* *fdatasync* sync syncfs sync_file_range msync *_sync_file *sync_fs"),
    (Cause.SYNC, "H5Fflush H5Dflush MPI_File_sync ncmpi_sync nc_sync fflush generic_write_sync"),
    (Cause.OPEN, "*_open *_close H5Fcreate* H5Fopen* H5Fclose* MPI_File_open MPI_File_close"),
)
_TABLES = {Grade.STRONG: _STRONG, Grade.BROAD: _BROAD, Grade.WEAK: _WEAK}
_BY_OP = {
    Op.SYNC: Cause.SYNC,
    Op.OPEN: Cause.OPEN,
    Op.CLOSE: Cause.OPEN,
    Op.STAT: Cause.NAMES,
    Op.NAME: Cause.NAMES,
    Op.WAIT: Cause.WAIT,
    Op.READ: Cause.READ,
    Op.WRITE: Cause.WRITE,
    Op.COPY: Cause.COPY,
}


def meaning(name: str, op: Op) -> Meaning:
    """What the time of the function ``name`` is spent on."""
    name = name.rpartition(":")[2]
    for grade, table in _TABLES.items():
        for cause, pattern in _compiled(table):
            if pattern.fullmatch(name):
                return _graded(cause, grade)
    return _graded(_BY_OP.get(op, Cause.NONE), Grade.WEAK)


def _graded(cause: Cause, grade: Grade) -> Meaning:
    return Meaning(cause, Grade.PLAIN if cause is Cause.NONE else grade)


@cache
def _compiled(table: tuple[tuple[Cause, str], ...]) -> list[tuple[Cause, re.Pattern[str]]]:
    return [
        (cause, re.compile("|".join(fnmatch.translate(glob) for glob in globs.split())))
        for cause, globs in table
    ]
