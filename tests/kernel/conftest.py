"""Fixtures of the tests that trace."""

from __future__ import annotations

import pwd
from collections.abc import Iterator

import pytest
from kernel.tracing import TracedRun, site_for


@pytest.fixture
def traced_run(ordinary_user: pwd.struct_passwd) -> Iterator[TracedRun]:
    """A site for one run of `ordinary_user`."""
    with site_for(ordinary_user) as run:
        yield run
