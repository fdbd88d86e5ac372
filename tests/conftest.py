"""What all tests share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)  # a busy machine may take long for one
settings.load_profile("no-deadline")

ALLOWED_SKIP = "Flux"
"""A skip whose reason has this word is no failure: Flux is in no package registry."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--no-skips``: what `make test` and CI use, so that a skip cannot hide."""
    parser.addoption(
        "--no-skips",
        action="store_true",
        help=f"a skipped test fails, unless its reason names {ALLOWED_SKIP}",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test into a failure."""
    report = yield
    if item.config.getoption("--no-skips"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole file into a failure."""
    report = yield
    if collector.config.getoption("--no-skips"):
        _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if ALLOWED_SKIP not in reason:
        report.outcome = "failed"
        report.longrepr = f"skipped, and --no-skips allows that for {ALLOWED_SKIP} only: {reason}"


@pytest.fixture(scope="session")
def ordinary_user() -> Iterator[pwd.struct_passwd]:
    """A user of this host with a home directory below /home, for as long as the tests run."""
    yield from _user("dc-test-a")


@pytest.fixture(scope="session")
def other_user() -> Iterator[pwd.struct_passwd]:
    """Somebody else than `ordinary_user`."""
    yield from _user("dc-test-b")


def _user(name: str) -> Iterator[pwd.struct_passwd]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make users: run the tests as root")
    with _shared(name) as lock:
        yield pwd.getpwnam(name)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        # fails if a test left a process of that user running
        subprocess.run(["userdel", "-r", name], check=True, capture_output=True)
        Path(lock.name).unlink()


def _shared(name: str) -> TextIO:
    """The shared lock of user ``name``, who exists.

    Test sessions that run at once share the user; the last one to leave, which is the one
    that gets the lock for itself, removes user and lock file.
    """
    path = Path(tempfile.gettempdir(), f"{name}.lock")
    while True:
        lock = open(path, "a")  # noqa: SIM115 (the caller closes it)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _user_exists(name):
                subprocess.run(["useradd", "-m", "-s", "/bin/sh", name], check=True)
        fcntl.flock(lock, fcntl.LOCK_SH)
        current = path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())
        if current and _user_exists(name):
            return lock
        lock.close()  # a session that was leaving removed them meanwhile


def _user_exists(name: str) -> bool:
    return name in [entry.pw_name for entry in pwd.getpwall()]
