"""Run ids: what may name files and units, and where they come from."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datacrumbs.errors import BadInputError
from datacrumbs.run import check_run_id, default_run_id, program_run_id


@given(st.text(max_size=80))
def test_a_checked_run_id_is_one_plain_file_name(text: str) -> None:
    try:
        assert check_run_id(text) == text
    except BadInputError as error:
        assert "\n" not in error.message
    else:
        assert re.fullmatch(r"(?!\.)[A-Za-z0-9._-]{1,63}", text, re.ASCII)


def test_the_default_comes_from_the_named_variable() -> None:
    assert default_run_id({"DATACRUMBS_JOB_ID_VAR": "JOB", "JOB": "77"}) == "77"
    with pytest.raises(BadInputError, match="names 'JOB', which is not set"):
        default_run_id({"DATACRUMBS_JOB_ID_VAR": "JOB"})
    with pytest.raises(BadInputError, match=r"JOB: '\.\./x' is not a run id"):
        default_run_id({"DATACRUMBS_JOB_ID_VAR": "JOB", "JOB": "../x"})
    assert re.fullmatch(r"\d{8}-\d{6}-\d+", default_run_id({}))


def test_a_program_asks_the_variables_in_order() -> None:
    everything = {"SLURM_JOB_ID": "3", "FLUX_JOB_ID": "2", "DATACRUMBS_RUN_ID": "1"}
    assert program_run_id(everything) == ("1", "DATACRUMBS_RUN_ID")
    del everything["DATACRUMBS_RUN_ID"]
    assert program_run_id(everything) == ("2", "FLUX_JOB_ID")
    assert program_run_id({"SLURM_JOB_ID": "3", "FLUX_JOB_ID": ""}) == ("3", "SLURM_JOB_ID")
    assert program_run_id({}) is None
