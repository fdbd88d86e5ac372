"""Explain on traces of a stock kernel, all layers down to the block device: it names the cause."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import pytest
from kernel.tracing import TracedRun, explain
from vm.conftest import EXPLAINED, Boot
from vm.explained import KERNEL

pytestmark = [pytest.mark.root, pytest.mark.timeout(700)]

BOTH = pytest.mark.parametrize("fs", ["ext4", "xfs"])
PAIRS, BLOCKS, PLAIN, CONVERTED = 12, 24, 64, 16
ALLOCATION = {
    "ext4": {"ext4_da_get_block_prep": "block allocation", "filemap_add_folio": "page allocation"},
    "xfs": {"filemap_add_folio": "page allocation"},
}
"""What writes do only for pages that were not there."""

FORCING = {
    "ext4": ("ext4_sync_file", "jbd2_complete_transaction", "jbd2_log_wait_commit"),
    "xfs": ("xfs_file_fsync", "xfs_log_force_seq", "xlog_cil_force_seq"),
}
DIRECT = {
    "ext4": ("ext4_file_write_iter", "iomap_dio_rw", "iomap_dio_bio_iter", "submit_bio"),
    "xfs": ("xfs_file_write_iter", "xfs_file_dio_write_aligned", "iomap_dio_rw", "submit_bio"),
}
CHAIN = (
    *("H5Dwrite", "pwrite", "pwrite64", "vfs_write", "ext4_file_write_iter"),
    *("ext4_buffered_write_iter", "generic_perform_write", "ext4_da_write_begin"),
)


@pytest.fixture(scope="module")
def run(boot: Boot) -> TracedRun:
    """The run that is explained, without a loss."""
    explained = boot(EXPLAINED).explained
    assert explained is not None
    assert explained.info()["skipped"] == []
    explained.trace()
    return explained


def one(run: TracedRun, *options: str) -> Any:
    """What is said of the one function that is asked for; its self times must add up."""
    (found,) = explain(run, *options)["explained"]
    whole = found["inside"][0]["time_ns"]
    for parts in ("inside", "layers", "causes"):
        assert sum(part["self_ns"] for part in found[parts]) == whole == found["time_ns"]
    return found


def shares(parts: list[Any]) -> dict[str, float]:
    return {part["name"]: part["share"] for part in parts}


def assert_nested(inside: list[Any], chain: tuple[str, ...]) -> list[Any]:
    """The contexts of ``chain``, of which each is inside the one before; not always directly."""
    found: list[Any] = []
    for name in chain:
        at = next((n for n, inner in enumerate(inside) if inner["name"] == name), None)
        assert at is not None, f"no {name} in {[inner['name'] for inner in inside]}"
        outer = inside[at]
        assert not found or outer["time_ns"] <= found[-1]["time_ns"]
        found.append(outer)
        inside = _inside(outer, inside[at + 1 :])
    return found


def _inside(outer: Any, after: list[Any]) -> list[Any]:
    return list(takewhile(lambda inner: inner["depth"] > outer["depth"], after))


@BOTH
def test_the_same_write_takes_longer_where_it_allocates(run: TracedRun, fs: str) -> None:
    """Writes of one size; each second one finds all pages there.

    On xfs those are large folios, so that the others also take longer to copy, page by page.
    """
    files = [f"/mnt/{fs}/half-{number}" for number in (1, 2, 3)]
    found = min((one(run, "--call", "write", "--file", file) for file in files), key=_time_ns)
    assert (found["layer"], found["count"]) == ("syscall", 2 * PAIRS)
    did = [f for f in found["variation"]["findings"] if f["kind"] in ("inside", "mark")]
    by_name = {finding["name"]: finding for finding in did}
    for name, cause in ALLOCATION[fs].items():
        finding = by_name[name]
        assert finding["cause"] == cause
        # on a busy host a write that allocates nothing may be among the slow ones
        assert finding["slow_share"] > max(0.6, 2 * finding["fast_share"]), finding
        assert f"{name} (" in finding["sentence"]
    allocating = [f["share"] for f in did if f["cause"].endswith("allocation")]
    others = [f["share"] for f in did if not f["cause"].endswith("allocation")]
    assert sum(allocating) > (0.3 if fs == "xfs" else max(0.4, *others, 0.0)), did
    first = by_name["iomap_write_begin"] if fs == "xfs" else did[0]
    assert first["cause"] == "page allocation"
    assert "allocating pages of the page cache" in first["sentence"]


def _time_ns(found: Any) -> int:
    return int(found["time_ns"])


@BOTH
def test_an_fsync_waits_for_the_journal_and_the_device(run: TracedRun, fs: str) -> None:
    found = one(run, "--call", "fsync", "--file", f"/mnt/{fs}/forced")
    assert found["count"] == BLOCKS
    assert_nested(found["inside"], ("fsync", "vfs_fsync_range", *FORCING[fs]))
    assert_nested(found["inside"], (FORCING[fs][0], "file_write_and_wait_range", "do_writepages"))
    causes = shares(found["causes"])
    assert causes["journal"] > 0.2, causes
    assert causes["writeback"] > 0.02, causes
    assert causes["journal"] + causes["writeback"] > 0.7, causes
    first = found["variation"]["findings"][0]
    assert first["cause"] in ("journal", "writeback"), first
    assert "the file system's journal" in first["sentence"] or "dirty pages" in first["sentence"]


@BOTH
def test_a_direct_write_waits_for_the_device_and_a_buffered_one_does_not(
    run: TracedRun, fs: str
) -> None:
    """The same data, in writes of the same size."""
    kinds = ("direct", "forced")
    direct, buffered = (
        one(run, "--call", "pwrite64", "--layer", "syscall", "--file", f"/mnt/{fs}/{kind}")
        for kind in kinds
    )
    assert direct["count"] == buffered["count"] == BLOCKS
    assert direct["bytes"] == buffered["bytes"]
    assert_nested(direct["inside"], ("pwrite64", "vfs_write", *DIRECT[fs]))
    assert_nested(direct["inside"], ("iomap_dio_rw", "blk_io_schedule"))
    assert shares(direct["causes"])["direct I/O"] > 0.6
    at_device = [shares(found["layers"]).get("block", 0.0) for found in (direct, buffered)]
    assert at_device[0] > max(0.05, 2 * at_device[1]), at_device
    assert "direct I/O" not in shares(buffered["causes"])
    # emulation makes some code dearer than other, and a busy host more so: 0.18 to 0.38 were seen
    assert shares(buffered["causes"])["page allocation"] > 0.1
    assert "iomap_dio_rw" not in {inner["name"] for inner in buffered["inside"]}


def test_an_h5dwrite_is_followed_down_to_the_file_system(run: TracedRun) -> None:
    found = one(run, "--call", "H5Dwrite", "--file", "/mnt/ext4/plain.h5")
    chain = assert_nested(found["inside"], CHAIN)
    assert [inner["count"] for inner in chain[:-1]] == [PLAIN] * (len(chain) - 1)
    assert [inner["depth"] for inner in chain] == list(range(len(chain)))
    layers = shares(found["layers"])
    assert {"hdf5", "libc", "syscall", "vfs", "fs", "pagecache"} <= set(layers)
    assert sum(layers.get(layer, 0.0) for layer in KERNEL) > 0.5, layers


def test_an_h5dwrite_that_converts_spends_its_time_in_hdf5(run: TracedRun) -> None:
    """As many bytes of each write, but as numbers of another type."""
    found = one(run, "--call", "H5Dwrite", "--file", "/mnt/ext4/converted.h5")
    chain = assert_nested(found["inside"], CHAIN)
    assert [inner["count"] for inner in chain[:-1]] == [CONVERTED] * (len(chain) - 1)
    assert found["layers"][0]["name"] == "hdf5"
    assert found["layers"][0]["share"] > 0.7
