"""The system configuration: what is taken, and how a mistake is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacrumbs.config import SystemConfig, load_system_config
from datacrumbs.errors import BadInputError
from datacrumbs.strict_yaml import load_strict


def load(directory: Path, text: bytes) -> SystemConfig:
    path = directory / "system.yaml"
    path.write_bytes(text)
    return load_system_config(path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, b"") == SystemConfig()


def test_values_are_taken(tmp_path: Path) -> None:
    config = load(tmp_path, b"ring: {total_bytes: 2097152}\ntrace_dir: /scratch/{user}/{run_id}")
    assert config.ring.total_bytes == 2 << 20
    root = config.trace_root(user="ann", home="/home/ann", uid=7, run_id="r", host="n1")
    assert root == Path("/scratch/ann/r")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (b"ring:\n  total_byte: 4", ":2: ring.total_byte: unknown key", "'total_bytes'"),
        (
            b"ring:\n  total_bytes: many",
            ":2: ring.total_bytes: 'many': expected a whole number, not text",
            "",
        ),
        (b"ring: {cpus_per_ring: 0}", "ring.cpus_per_ring: 0: expected a whole number >= 1", ""),
        (b"signing: {timeout_s: no}", "timeout_s: false: expected a number, not true or", ""),
        (b"cluster: 2026-11-30", "cluster: 2026-11-30: expected text, not a date", "'quotes'"),
        (b"cluster:", ":1: cluster: nothing given, expected text", ""),
        (b"cluster: [a]", ":1: cluster: expected text, not a list", ""),
        (b"cluster: " + b"9" * 200, "9...: expected text, not a whole number", "'quotes'"),
        (b"policy: []", ":1: policy: expected a mapping, not a list", "'key: value'"),
        (b"policy:\n  kernel_functions: vfs_*", ":2: policy.kernel_functions: 'vfs_*'", "'- '"),
        (b"run_dir: /x\n1: b", ":2:1: a key that is not text", "'quotes'"),
        (b"run_dir: /x\n? [a]\n: b", ":2:3: a key that is not text", "'quotes'"),
        (b"cluster: @home", ":1:10: found character '@'", "'quotes'"),
        (b"ring:\n\ttotal_bytes: 1", ":2:1: found character '\\t'", "no tabs"),
        (b"ring: {min_ring_bytes: 33554432}", "is more than ring.max_ring_bytes, 16777216", "both"),
        (b"a: [", ":1:5: ", ""),
        (b"run_dir: /x\nrun_dir: /y", ":2: run_dir: given twice", ""),
        (b"run_dir: relative", "run_dir: 'relative'", ""),
        (b"trace_dir: '{users}'", "trace_dir: unknown field {users}", "'user'"),
        (b"trace_dir: here", "trace_dir: 'here' is not absolute", "{home}"),
        (b"trace_dir: '/a{'", "trace_dir: '/a{'", ""),
        (b"- 1", ":1: expected a mapping, not a list", "'key: value'"),
        (b"\xff\x00", "not a text file", ""),
    ],
)
def test_mistakes_name_line_key_and_value(
    tmp_path: Path, text: bytes, message: str, hint: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "system.yaml") in caught.value.message
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert hint in caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"none\.yaml: No such file"):
        load_system_config(tmp_path / "none.yaml")


def test_root_refuses_what_others_can_write(tmp_path: Path) -> None:
    path = tmp_path / "system.yaml"
    path.write_text("")
    path.chmod(0o666)
    if os.geteuid() == 0:
        with pytest.raises(BadInputError, match="root does not trust it"):
            load_system_config(path)
    else:
        assert load_system_config(path) == SystemConfig()


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_otherwise(text: bytes) -> None:
    try:
        load_strict(text, SystemConfig, source="x")
    except BadInputError as error:
        assert error.message.startswith("x")
        assert "\n" not in error.message
