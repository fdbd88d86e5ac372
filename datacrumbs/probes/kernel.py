"""Functions of the running kernel: which there are, and which of them can be traced.

Everybody may read the names in ``/proc/kallsyms``, whatever ``kptr_restrict`` says: it hides
addresses only, and the names stay in the order of their addresses. What ftrace and kprobes
take is shown to root alone; without it, that is worked out as far as names and order tell,
and the daemon, which is root, leaves out the rest.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from datacrumbs.errors import UserError
from datacrumbs.probes.model import KernelFunction

KALLSYMS = Path("/proc/kallsyms")
TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
BLACKLIST = Path("/sys/kernel/debug/kprobes/blacklist")

NOT_FTRACE = "this kernel cannot trace it (available_filter_functions)"
NOT_KPROBE = "this kernel allows no probe in it (kprobes/blacklist)"
NO_PROBE_SECTION = "in a part of the kernel where no probe may be"
ROOT_KNOWS = (
    "which functions this kernel can trace is shown to root only: the daemon leaves out others"
)
NO_FTRACE = "this kernel does not say which functions it can trace (no available_filter_functions)"
INIT = "runs only while the kernel starts"

_SECTIONS = (
    ("__noinstr_text_start", "__noinstr_text_end", NO_PROBE_SECTION),
    ("__kprobes_text_start", "__kprobes_text_end", NO_PROBE_SECTION),
    ("__entry_text_start", "__entry_text_end", NO_PROBE_SECTION),
    ("__cpuidle_text_start", "__cpuidle_text_end", NO_PROBE_SECTION),
    ("_sinittext", "_einittext", INIT),
)
"""Parts of the kernel by the symbols around them (include/asm-generic/sections.h)."""

_NOT_FUNCTIONS = re.compile(
    r"__(pfx|cfi|SCT|SCK)_\w.*"  # padding, hashes, trampolines of static calls
    r"|__x86_(indirect|return)\w*|srso_\w+|retbleed_\w+|\w+_thunk\w*"
    r"|__(bpf_trace|traceiter|probestub)_\w+"  # bodies of tracepoints, not called by name
    r"|\w+_text_(start|end)|_s?(text|inittext)|_e(text|inittext)"
)
_COLD = re.compile(r".+\.cold(\.\d+)?")
_COMPILER = re.compile(r"\.(isra|constprop|part|llvm|lto_priv|slowpath)\b.*")


@dataclass(frozen=True, slots=True)
class KernelNames:
    """What this kernel has: functions that can be traced, and the reasons why others cannot.

    ``note`` says what could not be found out; "" if nothing.
    """

    functions: frozenset[str]
    refused: dict[str, str]
    note: str


def base_name(name: str) -> str:
    """The name in the source of a function that the compiler made (``foo.isra.0``: ``foo``)."""
    return _COMPILER.sub("", name)


@functools.cache
def kernel_names() -> KernelNames:
    """Read what this kernel says of itself, once. Raises `UserError` if it says nothing."""
    symbols = list(_symbols())
    if not symbols:
        raise UserError(
            f"cannot find this kernel's functions in {KALLSYMS}",
            hint="the kernel needs CONFIG_KALLSYMS",
        )
    refused: dict[str, str] = {}
    names: Counter[str] = Counter()
    for name, reason in _judged(symbols):
        if reason:
            refused.setdefault(name, reason)
        else:
            names[name] += 1
    for name, count in names.items():
        if count > 1:
            refused.setdefault(name, f"{count} functions of this kernel have this name")
    traceable, blacklist = _traceable(), _blacklist()
    for name in names:
        if traceable is not None and name not in traceable:
            refused.setdefault(name, NOT_FTRACE)
        elif name in blacklist:
            refused.setdefault(name, NOT_KPROBE)
    functions = frozenset(names.keys() - refused.keys())
    note = "" if traceable is not None else ROOT_KNOWS if os.geteuid() else NO_FTRACE
    return KernelNames(functions, refused, note)


def select(
    names: KernelNames, pattern: re.Pattern[str], wanted: Collection[str] | None = None
) -> tuple[list[KernelFunction], list[tuple[str, str]]]:
    """Functions that ``pattern`` matches as a whole, and (name, reason) of those left out.

    A function that the compiler made of another is matched by either name. With ``wanted``,
    only functions of these names in the source.
    """

    def matches(name: str) -> bool:
        base = base_name(name)
        if wanted is not None and base not in wanted:
            return False
        return bool(pattern.fullmatch(name) or pattern.fullmatch(base))

    functions = [KernelFunction(name=name) for name in sorted(names.functions) if matches(name)]
    skipped = [(name, why) for name, why in names.refused.items() if matches(name)]
    return functions, sorted(skipped)


_TRACEPOINT = "__traceiter_"  # of each tracepoint's own function (linux/tracepoint.h)
PAIRS = (("_enter", "_exit"), ("_start", "_end"), ("_start", "_done"), ("_begin", "_end"))
"""What the names of two tracepoints end with that one thread passes, one after the other."""

REQUESTS = {
    "block_rq": ("block_rq_issue", "block_rq_complete"),
    "nfs_rq": (
        *("nfs_initiate_read", "nfs_readpage_done"),
        *("nfs_initiate_write", "nfs_writeback_done"),
        *("nfs_initiate_commit", "nfs_commit_done"),
    ),
    "rpc_task": ("rpc_task_begin", "rpc_task_end"),
}
"""What one thread begins and any other ends: first and last tracepoint of each kind."""


@functools.cache
def tracepoints() -> tuple[str, ...]:
    """The running kernel's tracepoints as ``group:name``; a pair of them is one, of calls.

    ``ext4:ext4_sync_file`` stands for ``ext4_sync_file_enter`` and ``..._exit``, ``block:block_rq``
    for a request's way through the device, as in `REQUESTS`. The group is for people: names are
    unique without.
    """
    events = {
        name.removeprefix(_TRACEPOINT) for _, name in _symbols() if name.startswith(_TRACEPOINT)
    }
    calls = {call: points for call, points in REQUESTS.items() if events.issuperset(points)}
    for event in events:
        for first, last in PAIRS:
            call = event.removesuffix(first)
            if call != event and call + last in events:
                calls.setdefault(call, (event, call + last))
    single = events.difference(*calls.values())
    groups = _groups()
    named = [
        (groups.get(first) or _likely_group(first), call) for call, (first, *_) in calls.items()
    ]
    named += [(groups.get(event) or _likely_group(event), event) for event in single]
    return tuple(sorted(f"{group}:{name}" for group, name in named))


def has_tracefs() -> bool:
    """Is it mounted where it belongs? To see inside takes root."""
    return any((place / "events").exists() for place in TRACEFS)


def _groups() -> dict[str, str]:
    """event -> group, as far as we may read it."""
    for place in TRACEFS:
        try:
            text = (place / "available_events").read_text()
        except OSError:
            continue
        pairs = (line.partition(":") for line in text.splitlines())
        return {event: group for group, _, event in pairs}
    return {}


def _likely_group(event: str) -> str:
    return event.removeprefix("mm_").partition("_")[0]


def plain_name(name: str) -> str:
    """What a rule about names is compared with: of a tracepoint, its name without the group."""
    return name.rpartition(":")[2]


def _symbols() -> Iterator[tuple[str, str]]:
    """(type, name) of each symbol, in the order of addresses, modules last."""
    try:
        text = KALLSYMS.read_text()
    except OSError:
        return
    for line in text.splitlines():
        _, kind, name, *_ = line.split(maxsplit=3)
        yield kind, name


def _judged(symbols: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(function, why it cannot be traced: "" if nothing speaks against it)."""
    ends = {end for _, end, _ in _SECTIONS}
    starts = {start: (end, why) for start, end, why in _SECTIONS}
    inside: dict[str, str] = {}  # the end of a part we are in -> its reason
    passed: set[str] = set()  # ends; of an empty part (Linux 7.2: kprobes) it may come first
    for kind, name in symbols:
        if name in starts:
            end, why = starts[name]
            if end not in passed:
                inside[end] = why
        elif name in ends:
            inside.pop(name, None)
            passed.add(name)
        elif kind in "tTwW" and not _NOT_FUNCTIONS.fullmatch(name):
            cold = "a part of another function that is jumped to" if _COLD.fullmatch(name) else ""
            yield name, cold or next(iter(inside.values()), "")


def _traceable() -> frozenset[str] | None:
    """What ftrace takes; None where only root is told, or the kernel has no ftrace."""
    for place in TRACEFS:
        try:
            text = (place / "available_filter_functions").read_text()
        except OSError:
            continue
        return frozenset(line.split(maxsplit=1)[0] for line in text.splitlines())
    return None


def _blacklist() -> frozenset[str]:
    """Functions that kprobes refuse; none where only root is told.

    Lines are ``0xffffffff81000000-0xffffffff81000010<tab>name``.
    """
    try:
        text = BLACKLIST.read_text()
    except OSError:
        return frozenset()
    return frozenset(line.split()[1] for line in text.splitlines() if len(line.split()) > 1)
