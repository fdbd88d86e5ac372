"""Findings of `datacrumbs.analysis.explanation` as sentences with their numbers."""

from __future__ import annotations

from collections.abc import Callable

from datacrumbs.analysis.causes import MEANING, Cause
from datacrumbs.analysis.explanation import Explained, Finding, Group, Variation
from datacrumbs.units import human_bytes, human_count, human_ns, human_share

_EVER = 0.999


def sentence(finding: Finding) -> str:
    """``finding`` as one or two sentences for people."""
    return _BY_KIND[finding.kind](finding)


def split_sentence(explained: Explained, variation: Variation) -> str:
    """Which calls are called fast and slow, and what the slow ones cost."""
    fast, slow = variation.fast, variation.slow
    how = {"groups": "Two groups", "tenths": "No two groups; the slowest against the faster half"}
    return (
        f"{how[variation.split]}: {human_count(slow.count)} slow calls of {_lengths(slow)} and "
        f"{human_count(fast.count)} fast ones of {_lengths(fast)}. Were the slow as fast, "
        f"{explained.name} would take "
        f"{human_ns(max(0, variation.excess_ns))} less, "
        f"{human_share(max(0.0, variation.excess_share))} of its time."
    )


_TRAITS = {
    "unaligned": "Offset or size is no multiple of 4 KiB",
    "aligned": "Offset and size are multiples of 4 KiB",
    "failed": "The call returned an error",
    "returned": "The call did not fail",
    "short": "Less was moved than asked for",
    "full": "All that was asked for was moved",
    "first touch": "The first call of the run on that part of the file",
    "touched": "Not the first call of the run on that part of the file",
    "shared file": "Other calls on the same file were under way when it began",
    "alone on the file": "No other call on the same file was under way",
    "busy host": "Other calls were under way on the host when it began",
    "alone on the host": "No other call was under way on the host",
}
_PLACES = {"file": "On file", "process": "By process", "host": "On host"}


def _inside(finding: Finding) -> str:
    meaning = MEANING[Cause(finding.cause)]
    what = f"{finding.name} ({finding.layer})"
    way = f", called in {' > '.join(finding.via)}" if finding.via else ""
    start = f"{_of_the_difference(finding)} is "
    start += f"{meaning}. {what}" if meaning else f"time in {what}"
    text = f"{start}{way}: {_times(finding)}"
    if finding.slow_share >= _EVER and finding.fast_share >= _EVER:
        return f"{text}{_counts(finding)}."
    return f"{text}; it occurs in {_occurrence(finding)}{_counts(finding)}."


def _mark(finding: Finding) -> str:
    meaning = MEANING[Cause(finding.cause)]
    way = f", in {' > '.join(finding.via)}" if finding.via else ""
    return (
        f"Slow calls show {meaning}. {finding.name} ({finding.layer}){way} occurs in "
        f"{_occurrence(finding)}{_counts(finding)}."
    )


def _of_the_difference(finding: Finding) -> str:
    return f"{human_share(min(finding.share, 1.0))} of the difference"


def _times(finding: Finding) -> str:
    fast = human_ns(finding.fast_ns) if finding.fast_ns else "no time"
    return f"{human_ns(finding.slow_ns)} in a slow call, {fast} in a fast one"


def _occurrence(finding: Finding) -> str:
    return f"{_calls(finding.slow_share)} slow and {_calls(finding.fast_share)} fast calls"


def _calls(share: float) -> str:
    if share >= _EVER:
        return "all"
    return f"{human_share(share)} of the" if share > 0 else "none of the"


def _counts(finding: Finding) -> str:
    if max(finding.slow_count, finding.fast_count) < 2:
        return ""
    return f"; {finding.slow_count:.3g} times a call, {finding.fast_count:.3g} in the fast ones"


def _both(finding: Finding) -> str:
    return (
        f"{human_share(finding.slow_share)} of the slow calls, "
        f"{human_share(finding.fast_share)} of the fast"
    )


def _lengths(group: Group) -> str:
    ends = [human_ns(group.from_ns), human_ns(group.to_ns)]
    return ends[0] if ends[0] == ends[1] else f"{' to '.join(ends)}, mean {human_ns(group.mean_ns)}"


def _own(finding: Finding) -> str:
    return (
        f"{_of_the_difference(finding)} is time in {finding.name} itself, in none of the calls "
        f"traced inside it: {_times(finding)}. Tracing the layers below it would tell more."
    )


def _later(finding: Finding) -> str:
    return (
        f"Meanwhile the kernel worked on the same file: {finding.name} ({finding.layer}) went on "
        f"for {human_ns(finding.slow_ns)} of a slow call and {human_ns(finding.fast_ns)} of a "
        f"fast one, beside {_occurrence(finding)}."
    )


def _size(finding: Finding) -> str:
    return (
        f"Slow calls are {finding.name}: {human_bytes(finding.slow_bytes)} or more in the middle "
        f"one, against {human_bytes(finding.fast_bytes)} of the fast ones."
    )


def _trait(finding: Finding) -> str:
    return f"{_TRAITS[finding.name]}: {_both(finding)}."


def _place(finding: Finding) -> str:
    return f"{_PLACES[finding.kind]} {finding.name}: {_both(finding)}."


_BY_KIND: dict[str, Callable[[Finding], str]] = {
    "inside": _inside,
    "mark": _mark,
    "own": _own,
    "later": _later,
    "size": _size,
    "trait": _trait,
    **dict.fromkeys(_PLACES, _place),
}
