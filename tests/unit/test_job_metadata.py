"""What a job's comment says about tracing."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacrumbs.errors import BadInputError
from datacrumbs.jobs.metadata import EXAMPLE, MAX_BYTES, merged, parse_comment, parse_value

OURS = '{"datacrumbs":{"enable":"yes","probe_file":"/home/a/p.json.gz"}}'
PATH = "/home/a/p.json.gz"


@pytest.mark.parametrize(
    "comment",
    [
        OURS,
        OURS.encode(),
        f"  {OURS}\n",
        '{ "datacrumbs" :\n {"probe_file": "/home/a/p.json.gz", "enable": "yes"} }',
        f"run 7 of the {{sweep}}: {OURS} (see notes)",
        f'{{"wf":{{"step":3}}}} {OURS}',
        f'{OURS}{{"wf":[1,2,{{"a":"}}"}}]}}',
        '{"wf":1,"datacrumbs":{"enable":"yes","probe_file":"/home/a/p.json.gz"},"z":null}',
        b"\xff\xfe " + OURS.encode() + b" caf\xe9",
        f"it's 5\" wide {{ {OURS}",
        '{"text":"say \\"datacrumbs\\": {"} ' + OURS,
        "{" * 90 + OURS,
        '{"n":' + "9" * 10_000 + "} " + OURS,
    ],
)
def test_ours_is_found_next_to_anything(comment: str | bytes) -> None:
    found = parse_comment(comment)
    assert found and found.probe_file == PATH


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "nightly",
        b"\xff\xfe\x00",
        "rerun of the datacrumbs benchmark",
        'as "datacrumbs" said: {"x":1}',
        '{"note":"{\\"datacrumbs\\":{}}"}',
        '{"other":{"enable":"yes","probe_file":"/p"}}',
        "{" * MAX_BYTES,
        "x" * (10 * MAX_BYTES),
    ],
)
def test_what_is_not_ours_is_left_alone(comment: str | bytes) -> None:
    assert parse_comment(comment) is None


def _with(**members: object) -> str:
    return json.dumps({"datacrumbs": {"enable": "yes", "probe_file": PATH} | members})


@pytest.mark.parametrize(
    ("comment", "what"),
    [
        (_with(composite="x"), "unknown key 'composite'"),
        (_with(probes=["read"]), "unknown key 'probes'"),
        (_with(**{"a\nb\x1b[31m": 1}), r"unknown key 'a\nb\x1b[31m'"),
        (_with(probe_file="p.json.gz"), "absolute path, not 'p.json.gz'"),
        (_with(probe_file="~/p"), "absolute path"),
        (_with(probe_file=""), "absolute path"),
        (_with(probe_file="/a\nPROBE_FILE=/etc/shadow"), "unprintable"),
        (_with(probe_file="/a\0b"), "unprintable"),
        (_with(probe_file="/a\u202eb"), "unprintable"),
        (_with(probe_file="/" + "a" * 5000), "longer than 4095 bytes"),
        (_with(probe_file=7), "must be a string"),
        (_with(probe_file=["/a"]), "must be a string"),
        (_with(probe_file=None), "must be a string"),
        (_with(enable=True), '"enable" must be "yes"'),
        (_with(enable="no"), '"enable" must be "yes"'),
        (_with(enable={"yes": 1}), '"enable" must be "yes"'),
        ('{"datacrumbs":{"enable":"yes"}}', '"probe_file" is missing'),
        ('{"datacrumbs":{"probe_file":"/p"}}', '"enable" is missing'),
        ('{"datacrumbs":"/p"}', "must be an object"),
        ('{"datacrumbs":[]}', "must be an object"),
        (
            '{"datacrumbs":{"enable":"yes","probe_file":"/a","probe_file":"/b"}}',
            "'probe_file' is given twice",
        ),
        (OURS + OURS, '"datacrumbs" is given 2 times'),
        ('{"datacrumbs":1,"datacrumbs":2}', '"datacrumbs" is given 2 times'),
        (OURS[:-1], "not valid JSON"),
        (OURS[:30], "not valid JSON"),
        ("{datacrumbs:{enable:yes,probe_file:/home/a/p}}", "quotes lost in the shell"),
        ("{'datacrumbs':{'enable':'yes'}}", "not valid JSON"),
        (f'{{"wf":{OURS}}}', "outermost level"),
        (OURS + "x" * MAX_BYTES, "longer than 65536 bytes"),
        ('{"a":' * 10_000 + OURS, "nested deeper than 100"),
        ("[" * 30_000 + OURS, "nested deeper than 100"),
        (b'{"datacrumbs":{"enable":"yes","probe_file":"/caf\xe9"}}', "unprintable"),
    ],
)
def test_what_is_meant_for_us_is_taken_strictly(comment: str | bytes, what: str) -> None:
    started = time.monotonic()
    with pytest.raises(BadInputError) as raised:
        parse_comment(comment)
    assert time.monotonic() - started < 1
    assert what in raised.value.message
    assert raised.value.message.isprintable()
    assert raised.value.hint == f"write {EXAMPLE}"


def test_the_hint_is_what_we_take() -> None:
    found = parse_comment(EXAMPLE)
    assert found and found.probe_file == "/abs/path"
    assert parse_value(json.loads(EXAMPLE)["datacrumbs"]) == found


def test_many_broken_objects_cost_little() -> None:
    comment = '{"datacrumbs":{"x":' + '{"a":1,' * 90 + ('{"b":' + '"c" ' * 10) * 900
    started = time.monotonic()
    with pytest.raises(BadInputError):
        parse_comment(comment)
    assert time.monotonic() - started < 1


@given(st.text(max_size=200), st.text(max_size=200))
def test_prose_around_ours_never_hides_it(before: str, after: str) -> None:
    try:
        found = parse_comment(f"{before}{OURS}{after}")
    except BadInputError:
        return  # told, not lost
    # a `{` before may make ours a member of other JSON, but never silently nothing
    assert found and found.probe_file == PATH


@given(st.binary(max_size=300))
def test_any_bytes_are_answered(comment: bytes) -> None:
    assert parse_comment(comment) is None


@pytest.mark.parametrize(
    ("comment", "merged_comment"),
    [
        ("", OURS),
        (" \n", OURS),
        ("nightly", f"nightly {OURS}"),
        ('{"wf":1}', '{"wf":1,' + OURS[1:]),
        (' {"wf":{"a":"}"} } ', '{"wf":{"a":"}"},' + OURS[1:]),
        ("{}", OURS),
        ("{ }", OURS),
        ('{"wf":1} and text', f'{{"wf":1}} and text {OURS}'),
        ("{broken", f"{{broken {OURS}"),
        ('["x"]', f'["x"] {OURS}'),
    ],
)
def test_merging_keeps_what_is_there(comment: str, merged_comment: str) -> None:
    assert merged(comment, PATH) == merged_comment
    found = parse_comment(merged_comment)
    assert found and found.probe_file == PATH


@given(
    st.dictionaries(
        st.text(max_size=5), st.recursive(st.integers() | st.text(max_size=5), st.lists)
    ),
    st.booleans(),
)
def test_merging_into_json_keeps_it_json(value: dict[str, object], ascii_only: bool) -> None:
    value.pop("datacrumbs", None)
    text = merged(json.dumps(value, ensure_ascii=ascii_only), PATH, max_bytes=1 << 20)
    assert json.loads(text) == value | json.loads(OURS)


def test_a_merged_comment_fits_slurm() -> None:
    room = 1024 - len(OURS) - 1
    assert len(merged("x" * room, PATH)) == 1024
    with pytest.raises(BadInputError, match="1025 bytes with the probe file; 1024 are possible"):
        merged("x" * (room + 1), PATH)
    with pytest.raises(BadInputError, match="bytes"):
        merged("ä" * (room // 2 + 1), PATH)


def test_merging_twice_is_refused() -> None:
    with pytest.raises(BadInputError, match='has a "datacrumbs" part already'):
        merged(OURS, "/other")
