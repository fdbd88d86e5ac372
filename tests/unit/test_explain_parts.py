"""The parts of explain by themselves, against slow and obvious versions of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datacrumbs.analysis import traits
from datacrumbs.analysis.ahead import ahead
from datacrumbs.analysis.causes import MEANING, Cause, Grade, meaning
from datacrumbs.analysis.later import Spans, overlaps
from datacrumbs.analysis.quantiles import LENGTHS, bucket_of_length
from datacrumbs.analysis.ranks import natural
from datacrumbs.analysis.traits import in_flight
from datacrumbs.analysis.variation import split_by_length, variance_share
from datacrumbs.trace.schema import Op

spans = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40), st.integers(0, 15)), max_size=25)


def as_spans(rows: list[tuple[int, int, int]]) -> Spans:
    rows = sorted(rows, key=lambda row: row[1])
    file, start, dur = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    zeros = np.zeros(len(rows), np.intp)
    return Spans(file.astype(np.uint64) << np.uint64(61), start, start + dur, zeros, zeros)


@settings(max_examples=300)
@given(spans, spans)
def test_overlaps_count_each_nanosecond_once(
    targets: list[tuple[int, int, int]], work: list[tuple[int, int, int]]
) -> None:
    a, b = as_spans(targets), as_spans(work)
    which, _, time_ns = overlaps(a, b)
    found = dict(zip(which.tolist(), time_ns.tolist(), strict=True))
    for at in range(len(a.start)):
        mine = set(range(int(a.start[at]), int(a.end[at])))
        theirs = {
            ns
            for i in range(len(b.start))
            if b.file[i] == a.file[at]
            for ns in range(int(b.start[i]), int(b.end[i]))
        }
        assert found.get(at, 0) == len(mine & theirs)


def test_overlaps_of_files_that_do_not_fit_one_line() -> None:
    """Years of work on each of 4 files."""
    year = 1 << 55
    files = np.arange(1, 201, dtype=np.uint64)
    zeros = np.zeros(200, np.intp)
    start = np.zeros(200, np.int64)
    targets = Spans(files, start + 5, start + 2 * year, zeros, zeros)
    work = Spans(files, start, start + year, zeros, zeros)
    which, pieces, time_ns = overlaps(targets, work)
    assert sorted(which.tolist()) == list(range(200))
    assert set(pieces.tolist()) == {1}
    assert set(time_ns.tolist()) == {year - 5}


@settings(max_examples=300)
@given(spans, st.lists(st.tuples(st.integers(1, 3), st.integers(0, 60)), max_size=5), st.booleans())
def test_calls_in_flight(
    rows: list[tuple[int, int, int]], older: list[tuple[int, int]], narrow: bool
) -> None:
    """Of the same series; calls that start at the same instant may count for each other or not."""
    rows = sorted({row[:2]: row for row in rows if row[2]}.values(), key=lambda row: row[1])
    columns = [np.array([row[i] for row in rows], np.int64) for i in range(3)]
    series, start, end = columns[0], columns[1], columns[1] + columns[2]
    old = [np.array([o[i] for o in older], np.int64) for i in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        if narrow:  # as if times did not fit
            patch.setattr(traits, "_ROOM", 1)
        found = in_flight(series, start, end, old[0], old[1])
    for at, (mine, begin, _) in enumerate(rows):
        others = [(s, b, b + d) for s, b, d in rows[:at]] + [(s, 0, e) for s, e in older]
        assert found[at] == sum(s == mine and e > begin for s, _, e in others)


def lengths(*groups: tuple[int, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Buckets of calls, for groups of (count, mean, spread of the logarithm)."""
    rng = np.random.default_rng(3)
    dur = np.concatenate(
        [np.exp(rng.normal(np.log(mean), spread, count)) for count, mean, spread in groups]
    ).astype(np.int64)
    count, time_ns = np.zeros((2, LENGTHS), np.int64)
    np.add.at(count, bucket_of_length(dur), 1)
    np.add.at(time_ns, bucket_of_length(dur), dur)
    return count, time_ns


@pytest.mark.parametrize(
    ("slow", "mean"),
    [(30_000, 50_000), (200_000, 50_000), (1_000, 150_000), (30, 10**7), (1, 10**9)],
)
def test_two_groups_are_told_apart_where_they_part(slow: int, mean: int) -> None:
    """Also when slow calls are the most, or one in 30,000 that takes longer than all others."""
    count, time_ns = lengths((30_000, 5_000, 0.2), (slow, mean, 0.1))
    split = split_by_length(count, time_ns)
    assert split is not None
    assert split.how == "groups"
    assert (count[split.fast].sum(), count[split.slow].sum()) == (30_000, slow)


def test_one_broad_group_is_split_by_tenths() -> None:
    count, time_ns = lengths((10_000, 50_000, 0.6))
    split = split_by_length(count, time_ns)
    assert split is not None
    assert split.how == "tenths"
    assert 0.5 <= count[split.fast].sum() / 10_000 < 0.6
    assert 0.1 <= count[split.slow].sum() / 10_000 < 0.2


def test_calls_much_alike_are_not_split() -> None:
    assert split_by_length(*lengths((10_000, 50_000, 0.02))) is None
    assert split_by_length(*lengths((19, 50_000, 2.0))) is None


def test_variance_share() -> None:
    assert variance_share([(50, 0), (0, 50)]) == 1
    assert variance_share([(50, 50), (50, 50)]) == 0
    assert variance_share([(1, 0)] * 500 + [(0, 1)] * 500) == 0  # each its own: by chance
    assert 0 < variance_share([(90, 10), (10, 90)]) < 1
    assert variance_share([(10, 0), (5, 0)]) == 0


NAMES = {
    Cause.THROTTLING: "balance_dirty_pages balance_dirty_pages_ratelimited_flags wbt_wait",
    Cause.JOURNAL: "jbd2_log_wait_commit jbd2_handle_start start_this_handle xfs_log_force_seq "
    "ext4_fc_commit btrfs_commit_transaction xlog_wait_on_iclog",
    Cause.RECLAIM: "try_to_free_pages try_to_free_mem_cgroup_pages shrink_node",
    Cause.SPACE: "ext4_da_get_block_prep ext4_map_blocks xfs_bmapi_write ext4_mb_new_blocks "
    "xfs_buffered_write_iomap_begin ext4_fallocate ext4_ext_map_blocks",
    Cause.PAGES: "filemap_add_folio mm_filemap_add_to_page_cache __alloc_pages "
    "filemap_alloc_folio ext4_da_write_begin __filemap_get_folio",
    Cause.CACHE_MISS: "page_cache_ra_unbounded page_cache_sync_ra page_cache_async_readahead "
    "ext4_mpage_readpages filemap_read_folio iomap_readahead",
    Cause.WRITEBACK: "ext4_writepages do_writepages file_write_and_wait_range "
    "__filemap_fdatawait_range writeback_single_inode",
    Cause.DIRECT: "iomap_dio_rw ext4_dio_write_iter xfs_file_dio_write_aligned __iomap_dio_rw",
    Cause.BLOCK: "io_schedule folio_wait_bit_common submit_bio blk_mq_submit_bio "
    "__wait_on_buffer block_rq_issue submit_bio_wait",
    Cause.LOCK: "down_write down_read_killable rwsem_down_write_slowpath mutex_lock xfs_ilock "
    "__mutex_lock_slowpath pthread_mutex_lock futex_wait contention_begin "
    "nfs_start_io_write",
    Cause.NETWORK: "nfs_initiate_pgio nfs_commit_inode nfs_getattr rpc_run_task rpc_execute "
    "ll_file_write ptlrpc_queue_wait osc_enter_cache",
    Cause.FUSE: "fuse_file_write_iter fuse_simple_request",
    Cause.COPY: "copy_folio_from_iter_atomic copy_page_from_iter _copy_to_iter",
    Cause.SYNC: "fsync fdatasync ext4_sync_file vfs_fsync_range H5Fflush MPI_File_sync sync",
}


@pytest.mark.parametrize("cause", NAMES)
def test_functions_have_their_causes(cause: Cause) -> None:
    for name in NAMES[cause].split():
        assert meaning(name, Op.OTHER).cause is cause, name


@pytest.mark.parametrize(
    "name",
    [
        *("vfs_write", "ext4_file_write_iter", "new_sync_write", "H5Dwrite", "solve", "main"),
        *("fwrite", "nfs_file_read", "nfs_file_write", "nfs_write_begin"),
    ],
)
def test_functions_that_only_pass_on_have_no_strong_cause(name: str) -> None:
    assert meaning(name, Op.WRITE).grade <= Grade.WEAK


def test_every_cause_can_be_said() -> None:
    assert set(MEANING) == set(Cause)
    assert meaning("openat", Op.OPEN) == (Cause.OPEN, Grade.WEAK)
    assert meaning("solve", Op.OTHER) == (Cause.NONE, Grade.PLAIN)
    assert meaning("jbd2:jbd2_commit", Op.OTHER) == (Cause.JOURNAL, Grade.STRONG)
    assert meaning("writeback:writeback_dirty_folio", Op.OTHER) == (Cause.NONE, Grade.PLAIN)


def test_hosts_sort_by_the_numbers_in_their_names() -> None:
    names = ["n10", "n9", "a2b10", "a2b9", "n", "2"]
    assert sorted(names, key=natural) == ["2", "a2b9", "a2b10", "n", "n9", "n10"]


def test_working_ahead_gives_the_same_items_and_errors() -> None:
    assert list(ahead(range(100))) == list(range(100))

    def fails() -> Iterator[int]:
        yield 1
        raise ValueError("two")

    items = ahead(fails())
    assert next(items) == 1
    with pytest.raises(ValueError, match="two"):
        next(items)


def test_working_ahead_stops_with_its_reader() -> None:
    before = threading.active_count()
    items = ahead(iter(range(1_000_000)))
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
