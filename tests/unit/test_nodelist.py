"""Node lists: what passes into root's files, and what becomes of it where it is read."""

from __future__ import annotations

import time

import pytest

from datacrumbs.errors import BadInputError
from datacrumbs.nodelist import MAX_BYTES, checked, unfolded


@pytest.mark.parametrize("text", ["n1", "n[1-64,70],login1", "rack[01-02]-n[1-4]", "a.b_c-d"])
def test_what_schedulers_write_passes(text: str) -> None:
    assert checked(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "n1\nX=y", "n 1", "n1;x", "$(x)", "-n", "n'", "@all", "n1\0", "x" * (MAX_BYTES + 1)],
)
def test_what_they_do_not_write_is_dropped(text: str) -> None:
    assert checked(text) == ""


def test_lists_are_unfolded() -> None:
    assert unfolded("n[8-10],login,n8") == ["login", "n8", "n9", "n10"]
    assert unfolded("n[01-03,009]") == ["n01", "n02", "n03", "n009"]
    assert unfolded("r[1-2]n[1-2]") == ["r1n1", "r1n2", "r2n1", "r2n2"]
    assert unfolded("@all") == ["@all"]  # groups are this host's, not the run's


@pytest.mark.parametrize("text", ["n[1-3", "n[x]", "n[3-1]", "a,,[", "\0"])
def test_what_is_no_list_is_one_error(text: str) -> None:
    try:
        names = unfolded(text)
    except BadInputError as error:
        assert "\n" not in error.message
    else:
        assert names == [text]


@pytest.mark.parametrize(
    "text",
    [
        "n[1-99999999]",
        "n[1-300]m[1-300]",
        ",".join(f"{c}[1-9999]" for c in "abcdefg"),
        f"n[1-{'9' * 5000}]",
        "n[0-9]" * 9,
    ],
)
def test_a_short_text_that_names_many_costs_nothing(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(BadInputError, match="more than 65536 nodes"):
        unfolded(text)
    assert time.monotonic() - started < 5
