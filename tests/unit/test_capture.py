"""Capture configs: what is taken, and that every mistake is named with its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datacrumbs.errors import BadInputError
from datacrumbs.probes.capture import (
    MAX_CONFIG_BYTES,
    ArgumentRule,
    CaptureProbe,
    ProbeKind,
    ProbeType,
    load_capture_config,
    nanoseconds,
    parse_capture_config,
)
from datacrumbs.probes.model import ArgumentType, Mode, Select
from datacrumbs.probes.software import Origin, OriginKind
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


EVERY_KIND = """\
paths: {include: [/scratch/, /home/ann], exclude: [/]}
capture_probes:
  - {name: a, probe: kprobe, type: header, file: linux/pagemap.h}
  - {name: b, probe: kprobe, type: ksym, regex: vfs_.*, min_duration: 10us, max_per_s: 1000}
  - {name: c, probe: usdt, binary_path: /usr/bin/python3.11, provider: python, pairs: {a: b}}
  - {name: d, probe: custom, file: latency.bpf.c, functions: [nvme0n1]}
  - {name: e, probe: uprobe, from: command ./app, file: libhdf5.*, regex: H5.*, mode: profile}
  - name: f
    probe: uprobe
    file: libc.so.6
    regex: read
    include_offsets: true
    arguments:
      - {function: read, index: 2, type: uint, bytes: 8, as: asked}
      - {name: fd}
"""


def test_every_kind_of_probe_has_its_keys() -> None:
    config = parse_capture_config(EVERY_KIND.encode(), source="/home/ann/every.yaml")
    a, b, c, d, e, f = config.probes
    assert [probe.source for probe in config.probes] == list(
        map(ProbeType, ("header", "ksym", "usdt", "custom", "binary", "binary"))
    )
    assert (a.min_duration_ns, b.min_duration_ns, b.max_per_s) == (0, 10_000, 1000)
    assert c.pairs == {"a": "b"}
    assert config.beside(d.file or "") == Path("/home/ann/latency.bpf.c")
    assert (e.mode, e.origin) == (Mode.PROFILE, Origin(OriginKind.COMMAND, "./app"))
    assert f.arguments is not None
    assert [rule.as_ for rule in f.arguments] == ["asked", None]
    assert (config.include, config.exclude) == (["/scratch", "/home/ann"], ["/"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("probe: kprobe, type: ksym", "regex: type 'ksym' needs this key"),
        ("probe: kprobe, type: header", "file: type 'header' needs this key"),
        ("probe: usdt, provider: python", "binary_path: type 'usdt' needs this key"),
        ("probe: usdt, binary_path: /a", "provider: type 'usdt' needs this key"),
        ("probe: custom, file: a.c", "functions: type 'custom' needs this key"),
        ("probe: custom, functions: [a]", "file: type 'custom' needs this key"),
        ("probe: custom, file: a.c, functions: [a, b-c]", "functions[1]: 'b-c': not a name in C"),
        (
            "probe: custom, file: a.c, functions: [a], mode: profile",
            "mode: type 'custom' has no such key",
        ),
        (
            "probe: custom, file: a.c, functions: [a], max_per_s: 4",
            "max_per_s: type 'custom' has no such key",
        ),
        (
            "probe: syscalls, type: set, set: io, arguments: [{index: 0}]",
            "arguments: type 'set' has no such key",
        ),
    ],
)
def test_each_kind_needs_its_keys_and_takes_no_others(entry: str, message: str) -> None:
    text = f"capture_probes: [{{name: a, {entry}}}]"
    with pytest.raises(BadInputError) as caught:
        parse_capture_config(text.encode(), source="c.yaml")
    assert caught.value.message == f"c.yaml:1: capture_probes[0].{message}"


@given(st.integers(1, 3600), st.sampled_from(["ns", "us", "ms", "s"]))
def test_durations_are_what_they_say(number: int, unit: str) -> None:
    factor = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}[unit]
    assert nanoseconds(f"{number}{unit}") == number * factor


@given(st.text(max_size=12))
@example("0us")
@example("10")
@example("us")
@example("\u0661us")
@example("10us\n")
@example("-1us")
@example("1e3us")
def test_no_text_is_half_a_duration(text: str) -> None:
    try:
        value = nanoseconds(text)
    except BadInputError as error:
        assert "\n" not in error.message
    else:
        digits = text.rstrip("numsp")
        assert digits.isascii() and digits.isdecimal() and value % int(digits) == 0


@pytest.mark.parametrize("struct", [CaptureProbe, ArgumentRule])
def test_the_guide_explains_every_key_and_value(struct: type[Any]) -> None:
    guide = (EXAMPLES.parent / "docs/user-guide.md").read_text()
    guide = guide[: guide.index("## 2.")]
    info: Any = msgspec.inspect.type_info(struct)
    words = {field.encode_name for field in info.fields}
    words |= {kind.value for kinds in (ProbeKind, ProbeType, OriginKind) for kind in kinds}
    words |= {kind.value for kinds in (SyscallSet, Mode, Select, ArgumentType) for kind in kinds}
    assert [word for word in sorted(words) if not re.search(rf"`{word}[`: ]", guide)] == []


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
            "c.yaml:13: capture_probes[1].type: 'binary': not a type of kprobe probes",
            "known: header, ksym",
        ),
        (
            "    type: set\n",
            "",
            "c.yaml:4: capture_probes[0].type: needed",
            "known: header, set",
        ),
        (
            "type: binary",
            "type: binaries",
            "c.yaml:13: capture_probes[1].type: 'binaries': not a type of uprobe probes",
            "did you mean 'binary'?",
        ),
        (
            "name: libc",
            "name: posix",
            "c.yaml:11: capture_probes[1].name: 'posix': an earlier entry has this name",
            "",
        ),
        (
            "mode: trace",
            "provider: python",
            "c.yaml:9: capture_probes[0].provider: type 'set' has no such key",
            "",
        ),
        (
            "mode: trace",
            "include_offsets: false",
            "c.yaml:9: capture_probes[0].include_offsets: type 'set' has no such key",
            "",
        ),
        (
            "mode: trace",
            "min_duration: 10",
            "c.yaml:9: capture_probes[0].min_duration: 10: expected text, not a whole number",
            "",
        ),
        (
            "mode: trace",
            "min_duration: 10 us",
            "c.yaml:9: capture_probes[0].min_duration: '10 us': not a length of time up to an",
            "give a number and one of ns, us, ms, s, such as 10us",
        ),
        (
            "mode: trace",
            "min_duration: 3601s",
            "c.yaml:9: capture_probes[0].min_duration: '3601s': not a length of time up to an",
            "give",
        ),
        (
            "mode: trace",
            "max_per_s: 0",
            "c.yaml:9: capture_probes[0].max_per_s: 0: expected a whole number >= 1",
            "",
        ),
        (
            "regex: f(read|write)",
            "regex: read\n    from: proces 12",
            "c.yaml:16: capture_probes[1].from: 'proces 12': did you mean 'process'?",
            "known: modules, spack [SPEC], ldconfig, process PID, command PROGRAM",
        ),
        (
            "file: libc.so.6",
            "from: ldconfig\n    file: libc.(",
            "c.yaml:15: capture_probes[1].file: 'libc.(': missing ), unterminated subpattern",
            "",
        ),
        (
            "regex: f(read|write)",
            "regex: read\n    arguments: [{index: 0, name: fd}]",
            "c.yaml:16: capture_probes[1].arguments[0]: needs one of index and name",
            "",
        ),
        (
            "regex: f(read|write)",
            "regex: read\n    arguments: [{index: 0, type: int, bytes: 3}]",
            "c.yaml:16: capture_probes[1].arguments[0].bytes: 3: not the size of a number",
            "known: 1, 2, 4, 8",
        ),
        (
            "regex: f(read|write)",
            "regex: read\n    arguments: [{index: 0, function: '('}]",
            "c.yaml:16: capture_probes[1].arguments[0].function: '(': missing ), unterminated",
            "",
        ),
        (
            "regex: f(read|write)",
            "regex: read\n    mode: profile\n    arguments: [{index: 0}]",
            "c.yaml:17: capture_probes[1].arguments[0]: mode 'profile' keeps no arguments",
            "use mode: trace, or leave arguments: out",
        ),
        (
            "lifetime: 12h",
            "paths: {include: [/a, scratch]}",
            "c.yaml:2: paths.include[1]: 'scratch': not a plain absolute path",
            "",
        ),
        (
            "lifetime: 12h",
            "paths: {exclude: [/a/../b]}",
            "c.yaml:2: paths.exclude[0]: '/a/../b': not a plain absolute path",
            "",
        ),
        (
            "lifetime: 12h",
            "paths: {exclude: [//a]}",
            "c.yaml:2: paths.exclude[0]: '//a': not a",
            "",
        ),
        (
            "lifetime: 12h",
            "paths: {exclude: [/" + "a" * 255 + "]}",
            "c.yaml:2: paths.exclude[0]: longer than 255 bytes",
            "",
        ),
        (
            "lifetime: 12h",
            "paths: {includes: [/a]}",
            "c.yaml:2: paths.includes: unknown key",
            "did you mean 'include'?",
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
            "c.yaml:4: capture_probes[0].name: 'a layer': expected text matching regex",
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
    [
        *("name", "probe", "type", "file", "regex", "set", "mode", "select", "x"),
        *("from", "min_duration", "binary_path", "provider", "include_offsets", "pairs"),
    ],
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
        "kprobe",
        "ksym",
        "custom",
        "10us",
        "process 1",
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
