"""Trees of calls, and the breakdown that follows from them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from datacrumbs.trace.schema import EventFlag

STACK: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("app", "user", {"run_step": "other", "save_state": "other"}),
    ("hdf5", "user", {"H5Dwrite": "write", "H5Dread": "read", "H5Fflush": "sync"}),
    ("libc", "user", {"fwrite": "write", "fread": "read", "fflush": "sync"}),
    (
        "syscall",
        "syscall",
        {
            "write": "write",
            "pwrite64": "write",
            "read": "read",
            "pread64": "read",
            "openat": "open",
            "close": "close",
            "fsync": "sync",
            "epoll_wait": "wait",
            "futex": "other",
        },
    ),
    (
        "vfs",
        "kernel",
        {"vfs_write": "write", "vfs_read": "read", "vfs_fsync_range": "sync"},
    ),
    (
        "fs",
        "kernel",
        {
            "ext4_buffered_write_iter": "write",
            "ext4_file_read_iter": "read",
            "ext4_sync_file": "sync",
            "iomap_dio_rw": "other",
            "filemap_fdatawait": "wait",
            "ext4_da_get_block_prep": "other",
            "jbd2_log_wait_commit": "wait",
            "balance_dirty_pages": "wait",
            "down_write": "other",
            "page_cache_ra_unbounded": "read",
            "filemap_add_folio": "other",
            "copy_folio_from_iter_atomic": "other",
        },
    ),
    ("block", "kernel", {"io_schedule": "wait", "submit_bio": "other", "block_rq": "write"}),
)
"""Layer, kind, and the ops of its functions; outermost layer first."""

LAYER_OF = {name: layer for layer, _, functions in STACK for name in functions}
KIND_OF = {name: kind for _, kind, functions in STACK for name in functions}
OP_OF = {name: op for _, _, functions in STACK for name, op in functions.items()}


@dataclass(slots=True, kw_only=True)
class Call:
    """One call and the calls made inside it, which lie within it and do not overlap.

    ``start`` is on the common clock of all hosts, nanoseconds.
    """

    func: str
    start: int
    dur: int
    inner: list[Call] = field(default_factory=list)
    file: int = 0
    offset: int = -1
    size: int = -1
    ret: int = 0
    flags: int = 0

    @property
    def end(self) -> int:
        return self.start + self.dur

    @property
    def self_ns(self) -> int:
        return self.dur - sum(call.dur for call in self.inner)

    def walk(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Call]]:
        """This call and all inside it, each with the functions from the outermost to its own."""
        path = (*path, self.func)
        yield path, self
        for call in self.inner:
            yield from call.walk(path)

    def moved(self, by_ns: int) -> Call:
        """The same later."""
        self.start += by_ns
        for call in self.inner:
            call.moved(by_ns)
        return self


@dataclass(slots=True)
class Sums:
    """What calls in one place add up to."""

    count: int = 0
    time_ns: int = 0
    self_ns: int = 0


def breakdown(trees: Iterable[Call]) -> dict[tuple[str, ...], Sums]:
    """The known answer: sums by the functions from the outermost call to the call itself."""
    found: dict[tuple[str, ...], Sums] = {}
    for tree in trees:
        for path, call in tree.walk():
            sums = found.setdefault(path, Sums())
            sums.count += 1
            sums.time_ns += call.dur
            sums.self_ns += call.self_ns
    return found


def stack_of(*calls: Call, own_ns: int = 100) -> Call:
    """Calls of which each gets the next one inside it, ``own_ns`` longer on either side.

    The first is the outermost; only the innermost needs ``start`` and ``dur``.
    """
    inner = calls[-1]
    for outer in reversed(calls[:-1]):
        outer.start, outer.dur = inner.start - own_ns, inner.dur + 2 * own_ns
        outer.inner = [inner]
        inner = outer
    return inner


def random_tree(rng: random.Random, layer: int, start: int, *, length: int = 2_000) -> Call:
    """A call of ``layer`` of `STACK` or one further in, with calls of further layers inside.

    All boundaries within a tree are different instants, except where lengths are 0.
    """
    layer = rng.randrange(layer, len(STACK))
    func = rng.choice(sorted(STACK[layer][2]))
    call = Call(func=func, start=start, dur=0, ret=rng.choice((0, 4096, 4097)))
    if OP_OF[func] in ("read", "write", "sync"):
        call.file, call.offset = 1 + rng.randrange(5), 4096 * rng.randrange(99)
        call.size = max(call.ret, 1)
    at = start + 1 + rng.randrange(length)
    for _ in range(rng.choice((0, 0, 1, 2, 5)) if layer + 1 < len(STACK) else 0):
        inner = random_tree(rng, layer + 1, at, length=max(2, length // 3))
        call.inner.append(inner)
        at = inner.end + 1 + rng.randrange(length)
    call.dur = at - start
    return call


def random_thread(rng: random.Random, calls: int, start: int) -> list[Call]:
    """``calls`` trees one after the other."""
    trees = []
    for _ in range(calls):
        trees.append(random_tree(rng, rng.choice((0, 1, 3)), start))
        start = trees[-1].end + rng.randrange(5_000)
    return trees


def counted(trees: Iterable[Call]) -> Counter[str]:
    """How many calls of each function."""
    return Counter(call.func for tree in trees for _, call in tree.walk())


def unfinished(call: Call) -> Call:
    """The call marked as one that had not returned."""
    call.flags |= EventFlag.UNFINISHED
    return call
