"""Capture configs: what is taken, and that every mistake is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datacrumbs.errors import BadInputError
from datacrumbs.probes.capture import (
    MAX_CONFIG_BYTES,
    ProbeKind,
    load_capture_config,
    parse_capture_config,
)
from datacrumbs.probes.model import Mode, Select
from datacrumbs.probes.syscalls import SyscallSet

EXAMPLES = Path(__file__).parents[2] / "examples"

GOOD = """\
description: all keys
lifetime: 12h
capture_probes:
  - name: posix
    probe: syscalls
    type: set
    set: io
    regex: .*read.*
    mode: trace
    select: job
  - name: libc
    probe: uprobe
    type: binary
    file: libc.so.6
    regex: f(read|write)
"""


def test_a_good_config_says_what_it_says() -> None:
    config = parse_capture_config(GOOD.encode(), source="good.yaml")
    posix, libc = config.probes
    assert (posix.name, posix.probe, posix.set) == ("posix", ProbeKind.SYSCALLS, SyscallSet.IO)
    assert (posix.select, posix.mode, posix.regex) == (Select.JOB, Mode.TRACE, ".*read.*")
    assert (libc.file, libc.regex, libc.select) == ("libc.so.6", "f(read|write)", Select.PROCESS)
    assert config.lifetime_s == 12 * 3600
    assert config.where(1, "regex") == "good.yaml:15: capture_probes[1].regex"


def test_lifetime_is_thirty_days_unless_said() -> None:
    text = GOOD.replace("lifetime: 12h\n", "")
    assert parse_capture_config(text.encode(), source="x").lifetime_s == 30 * 24 * 3600


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_the_examples_are_good(path: Path) -> None:
    assert load_capture_config(path).probes


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        (
            "f(read|write)",
            "f(read|write))",
            "c.yaml:15: capture_probes[1].regex: 'f(read|write))': "
            "unbalanced parenthesis at column 14",
            "",
        ),
        (
            "f(read|write)",
            "a{9999999999999}",
            "c.yaml:15: capture_probes[1].regex: 'a{9999999999999}': "
            "the repetition number is too large",
            "",
        ),
        (
            "probe: uprobe",
            "probe: uprob",
            "c.yaml:12: capture_probes[1].probe: 'uprob': not a valid value",
            "did you mean 'uprobe'?",
        ),
        (
            "probe: uprobe",
            "probe: kprobe",
            "c.yaml:12: capture_probes[1].probe: not yet: "
            "this version cannot capture 'kprobe' probes",
            "it captures: syscalls, uprobe",
        ),
        (
            "probe: uprobe",
            "provider: python\n    probe: usdt",
            "c.yaml:13: capture_probes[1].probe: not yet: this version cannot capture 'usdt'",
            "it captures: syscalls, uprobe",
        ),
        (
            "mode: trace",
            "mode: profile",
            "c.yaml:9: capture_probes[0].mode: not yet: this version has no profile mode",
            "use mode: trace, or leave the key out",
        ),
        (
            "select: job",
            "select: jobs",
            "c.yaml:10: capture_probes[0].select: 'jobs': not a valid value",
            "did you mean 'job'?",
        ),
        (
            "set: io",
            "set: meta",
            "c.yaml:7: capture_probes[0].set: 'meta': not a valid value",
            "did you mean 'metadata'?",
        ),
        (
            "type: binary",
            "type: header",
            "c.yaml:13: capture_probes[1].type: 'header': not a type of uprobe probes",
            "known: binary",
        ),
        (
            "regex: f(",
            "regexp: f(",
            "c.yaml:15: capture_probes[1].regexp: unknown key",
            "did you mean 'regex'?",
        ),
        (
            "probe: uprobe",
            "prob: uprobe",
            "c.yaml:12: capture_probes[1].prob: unknown key",
            "did you mean 'probe'?",
        ),
        (
            "lifetime",
            "lifetimes",
            "c.yaml:2: lifetimes: unknown key",
            "did you mean 'lifetime'?",
        ),
        (
            "    file: libc.so.6\n",
            "",
            "c.yaml:11: capture_probes[1].file: type 'binary' needs this key",
            "",
        ),
        (
            "    set: io\n",
            "    set: io\n    file: x.h\n",
            "c.yaml:8: capture_probes[0].file: type 'set' has no such key",
            "",
        ),
        (
            "name: posix",
            "name: a layer",
            "c.yaml:4: capture_probes[0].name: 'a layer': expected `str` matching regex",
            "",
        ),
        (
            "lifetime: 12h",
            "lifetime: 12 hours",
            "c.yaml:2: lifetime: '12 hours': not a length of time up to ten years",
            "give a number and one of s, m, h, d, w, such as 12h or 30d",
        ),
        ("lifetime: 12h", "lifetime: 0d", "c.yaml:2: lifetime: '0d': not a length", "give a"),
        ("lifetime: 12h", "lifetime: 9999w", "c.yaml:2: lifetime: '9999w': not a", "give a"),
        ("set: io", "set: io\n    set: data", "c.yaml:8: capture_probes[0].set: given twice", ""),
        ("  - name: posix", "\t- name: posix", "c.yaml:4:1: found character", ""),
    ],
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, message: str, hint: str) -> None:
    assert old in GOOD
    with pytest.raises(BadInputError) as caught:
        parse_capture_config(GOOD.replace(old, new, 1).encode(), source="c.yaml")
    assert caught.value.message.startswith(message)
    assert caught.value.hint.startswith(hint)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", [b"", b"capture_probes: []", b"capture_probes:", b"- a", b"\xff"])
def test_a_config_without_probes_is_refused(text: bytes) -> None:
    with pytest.raises(BadInputError, match=r"c\.yaml"):
        parse_capture_config(text, source="c.yaml")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"none\.yaml: No such file"):
        load_capture_config(tmp_path / "none.yaml")
    with pytest.raises(BadInputError, match="Is a directory"):
        load_capture_config(tmp_path)
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(BadInputError, match="larger than 1048576 bytes"):
        load_capture_config(big)


@given(st.binary() | st.text().map(str.encode))
@example(b"a: &a [*a]")
@example(b"capture_probes: [{name: a, probe: [uprobe], type: {}}]")
@example(b"? [a, b]\n: 1\n")
@example(b"!!python/object:os.system x")
@example(b"2001-99-99")
@example(b"!!bool maybe")
@example(b"!!timestamp x")
@example(b"!!int ''")
def test_no_bytes_lead_to_anything_but_one_line(text: bytes) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_capture_config(text, source="c.yaml")
    assert "\n" not in caught.value.message


KEYS = st.sampled_from(
    ["name", "probe", "type", "file", "regex", "set", "mode", "select", "x"],
)
VALUES = st.sampled_from(
    [
        "libc",
        "syscalls",
        "uprobe",
        "usdt",
        "set",
        "header",
        "binary",
        "io",
        "trace",
        "job",
        "(",
        ".*",
    ]
)


@given(st.lists(st.dictionaries(KEYS, VALUES), min_size=1, max_size=3))
def test_any_entries_are_taken_or_refused_in_one_line(entries: list[dict[str, str]]) -> None:
    lines = ["capture_probes:"]
    for entry in entries:
        pairs = ", ".join(f"{key}: '{value}'" for key, value in entry.items())
        lines.append(f"  - {{{pairs}}}")
    try:
        config = parse_capture_config("\n".join(lines).encode(), source="c.yaml")
    except BadInputError as error:
        assert error.message.startswith("c.yaml:")
        assert "\n" not in error.message
    else:
        assert len(config.probes) == len(entries)
