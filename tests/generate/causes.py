"""Calls of one function, some of which are slow for a known reason."""

from __future__ import annotations

import random
from collections.abc import Callable

from generate.calls import Call
from generate.runs import BEGIN_NS

FAST_NS = 10_000
BETWEEN_NS = 20_000


def write_stack(start: int, **what: int) -> Call:
    """pwrite64 of 4 KiB down to the copy of the data, `FAST_NS` long."""
    facts = {"file": 1, "offset": 0, "size": 4096, "ret": 4096} | what
    copy = Call(func="copy_folio_from_iter_atomic", start=start + 4_000, dur=1_000)
    ext4 = Call(func="ext4_buffered_write_iter", start=start + 2_000, dur=6_000, inner=[copy])
    vfs = Call(func="vfs_write", start=start + 1_000, dur=8_000, inner=[ext4])
    return Call(func="pwrite64", start=start, dur=FAST_NS, inner=[vfs], **facts)


def read_stack(start: int, **what: int) -> Call:
    """pread64 of 4 KiB that hits the page cache, `FAST_NS` long."""
    facts = {"file": 1, "offset": 0, "size": 4096, "ret": 4096} | what
    ext4 = Call(func="ext4_file_read_iter", start=start + 2_000, dur=6_000)
    vfs = Call(func="vfs_read", start=start + 1_000, dur=8_000, inner=[ext4])
    return Call(func="pread64", start=start, dur=FAST_NS, inner=[vfs], **facts)


def delayed(tree: Call, depth: int, *inner: Call) -> Call:
    """``tree`` with ``inner`` as the last calls of the call ``depth`` levels down.

    ``inner`` come one after the other; all calls around them take longer by their lengths.
    """
    around = [tree]
    for _ in range(depth):
        around.append(around[-1].inner[0])
    at = around[-1].inner[-1].end if around[-1].inner else around[-1].start + 1_000
    for call in inner:
        around[-1].inner.append(call.moved(at - call.start))
        at = call.end
    for call in around:
        call.dur += sum(more.dur for more in inner)
    return tree


def mixed(
    seed: int,
    fast: int,
    slow: int,
    make_fast: Callable[[int], Call],
    make_slow: Callable[[int], Call],
) -> list[Call]:
    """``fast`` and ``slow`` calls of one thread in random order, made for a start each."""
    kinds = [make_fast] * fast + [make_slow] * slow
    random.Random(seed).shuffle(kinds)
    calls, at = [], BEGIN_NS
    for make in kinds:
        calls.append(make(at))
        at = calls[-1].end + BETWEEN_NS
    return calls
