"""The run whose trace is explained: all layers from HDF5 to the block device, and its programs."""

from __future__ import annotations

import pwd
import subprocess
from pathlib import Path

from kernel.tracing import TracedRun, library_layer, make_site

from datacrumbs.probes import model

HERE = Path(__file__).parent
NAME = "explain"
"""Of the site; guest.sh knows it."""

HDF5 = r"H5(Fcreate|Fclose|Dcreate2|Dclose|Dwrite)"
LIBC = r"pwrite(64)?"
SYSCALLS = ["write", "pwrite64", "fsync"]

KERNEL = {
    "vfs": ("vfs_write", "vfs_fsync_range"),
    "pagecache": (
        *("generic_perform_write", "iomap_file_buffered_write", "iomap_write_begin"),
        *("filemap_add_folio", "balance_dirty_pages"),
        *("file_write_and_wait_range", "do_writepages", "folio_wait_writeback"),
        *("iomap_dio_rw", "iomap_dio_bio_iter"),
    ),
    "fs": (
        *("ext4_file_write_iter", "ext4_buffered_write_iter", "ext4_da_write_begin"),
        *("ext4_da_get_block_prep", "ext4_iomap_begin"),
        *("ext4_sync_file", "ext4_writepages", "ext4_mb_new_blocks"),
        *("jbd2__journal_start", "jbd2_complete_transaction", "jbd2_log_wait_commit"),
        *("xfs_file_write_iter", "xfs_file_buffered_write", "xfs_file_dio_write_aligned"),
        *("xfs_buffered_write_iomap_begin", "xfs_direct_write_iomap_begin"),
        *("xfs_bmapi_reserve_delalloc", "xfs_file_fsync", "xfs_vm_writepages", "xfs_map_blocks"),
        *("xfs_log_force_seq", "xlog_cil_force_seq", "xlog_wait_on_iclog"),
    ),
    "block": (
        *("submit_bio", "submit_bio_wait", "blk_mq_submit_bio", "blkdev_issue_flush"),
        *("blk_io_schedule", "io_schedule"),
    ),
}
"""Functions of 6.12 by layer."""


def prepare(shared: Path) -> TracedRun:
    """The site and the programs, for the guest."""
    root = shared / NAME
    root.mkdir()
    run = make_site(root, pwd.getpwnam("nobody"))
    run.sign(
        library_layer("libhdf5_openmpi.so.103", HDF5, "hdf5"),
        library_layer("libc.so.6", LIBC, "libc"),
        model.SyscallLayer(name="syscall", functions=SYSCALLS),
        *(
            model.KernelLayer(
                name=layer, functions=[model.KernelFunction(name=name) for name in names]
            )
            for layer, names in KERNEL.items()
        ),
    )
    for compiler, name in ((["cc"], "explained"), (["h5pcc", "-shlib"], "explained_hdf5")):
        command = [*compiler, "-O1", "-o", shared / name, HERE / f"{name}.c"]
        subprocess.run(command, check=True, cwd=shared, capture_output=True)
    return run
