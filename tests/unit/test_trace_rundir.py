"""The run's directory: made as the user, following no stranger's link, mixing no two runs."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from trace_samples import numbers, run_info, sample

from datacrumbs.errors import BadInputError, UserError
from datacrumbs.trace.reader import open_trace
from datacrumbs.trace.rundir import create_run_directory
from datacrumbs.trace.runfile import State, write_run_info
from datacrumbs.trace.writer import TraceWriter


@contextmanager
def acting_as(user: pwd.struct_passwd) -> Iterator[None]:
    """What follows happens with the rights of ``user``."""
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def home(ordinary_user: pwd.struct_passwd, tmp_path: Path) -> Path:
    """A directory of the ordinary user below directories of root that all may pass."""
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    directory = tmp_path / "home"
    directory.mkdir()
    os.chown(directory, ordinary_user.pw_uid, ordinary_user.pw_gid)
    return directory


def _refused(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        create_run_directory(root, "4711", "n1")
    assert "\n" not in caught.value.message
    return caught.value.message


def test_it_is_made_private_and_empty(tmp_path: Path) -> None:
    path = create_run_directory(tmp_path / "a" / "b", "4711", "n1")
    assert path == tmp_path / "a/b/4711/host=n1"
    for made in (path, path.parent, path.parent.parent, path.parent.parent.parent):
        assert (made.stat().st_mode & 0o777, made.stat().st_uid) == (0o700, os.geteuid())
    assert list(path.iterdir()) == []


def test_hosts_of_a_run_share_its_directory(tmp_path: Path) -> None:
    first = create_run_directory(tmp_path, "4711", "n1")
    second = create_run_directory(tmp_path, "4711", "n2")
    assert first.parent == second.parent


def test_an_earlier_run_of_the_same_id_is_kept_apart(tmp_path: Path) -> None:
    for attempt in range(3):
        path = create_run_directory(tmp_path, "4711", "n1")
        writer = TraceWriter(path, segment_events=1024)
        writer.write_events(sample(23, first=100 * attempt))
        writer.close()
        write_run_info(path, run_info(state=State.COMPLETE, boot_id=str(attempt)))
    run = tmp_path / "4711"
    assert sorted(os.listdir(run)) == ["host=n1", "previous-1.host=n1", "previous-2.host=n1"]
    for name, first in (("previous-1.host=n1", 0), ("previous-2.host=n1", 100), ("host=n1", 200)):
        assert sorted(numbers(run / name)) == list(range(first, first + 23))
    assert len(open_trace(run).hosts) == 1


def test_a_living_daemons_directory_is_left_alone(tmp_path: Path) -> None:
    path = create_run_directory(tmp_path, "4711", "n1")
    write_run_info(path, run_info())
    assert _refused(tmp_path) == f"{path}: a running daemon writes there"


def test_an_unreadable_run_json_does_not_stop_the_next_run(tmp_path: Path) -> None:
    path = create_run_directory(tmp_path, "4711", "n1")
    (path / "run.json").write_text("{")
    assert list(create_run_directory(tmp_path, "4711", "n1").iterdir()) == []
    assert (tmp_path / "4711/previous-1.host=n1/run.json").read_text() == "{"


@pytest.mark.parametrize("run_id", ["..", "a/b", "", ".hidden"])
def test_a_run_id_is_no_path(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(BadInputError, match="run id"):
        create_run_directory(tmp_path, run_id, "n1")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "4711").write_text("x")
    assert _refused(tmp_path) == f"{tmp_path}/4711: '4711' is not a directory"


@pytest.mark.root
def test_a_link_of_the_admin_above_the_home_is_followed(
    ordinary_user: pwd.struct_passwd, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("./x/../home")
    (tmp_path / "x").mkdir()
    with acting_as(ordinary_user):
        create_run_directory(tmp_path / "link" / "traces", "4711", "n1")
    made = home / "traces/4711/host=n1"
    assert made.stat().st_uid == ordinary_user.pw_uid


@pytest.mark.root
@pytest.mark.parametrize("place", ["traces", "traces/4711"])
def test_no_link_below_the_home_is_followed(
    ordinary_user: pwd.struct_passwd, home: Path, tmp_path: Path, place: str
) -> None:
    with acting_as(ordinary_user):
        (home / "target").mkdir()
        (home / place).parent.mkdir(exist_ok=True)
        (home / place).symlink_to(home / "target")
        message = _refused(home / "traces")
    assert f"{Path(place).name!r} is a symbolic link" in message
    assert list((home / "target").iterdir()) == []


@pytest.mark.root
def test_a_link_in_place_of_the_hosts_directory_is_moved_aside_not_followed(
    ordinary_user: pwd.struct_passwd, home: Path
) -> None:
    with acting_as(ordinary_user):
        (home / "target").mkdir()
        (home / "4711").mkdir()
        (home / "4711/host=n1").symlink_to(home / "target")
        path = create_run_directory(home, "4711", "n1")
    assert not path.is_symlink()
    assert (home / "4711/previous-1.host=n1").is_symlink()


@pytest.mark.root
def test_a_strangers_link_in_a_shared_directory_is_not_followed(
    ordinary_user: pwd.struct_passwd, other_user: pwd.struct_passwd, home: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "scratch"
    shared.mkdir()
    shared.chmod(0o1777)
    with acting_as(other_user):
        (shared / "mine").symlink_to(home)
    with acting_as(ordinary_user):
        message = _refused(shared / "mine")
    assert f"symbolic link of uid {other_user.pw_uid}" in message
    assert list(home.iterdir()) == []


@pytest.mark.root
def test_another_users_run_directory_is_refused(
    ordinary_user: pwd.struct_passwd, other_user: pwd.struct_passwd, home: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "scratch"
    shared.mkdir()
    shared.chmod(0o1777)
    with acting_as(other_user):
        (shared / "4711").mkdir()
        (shared / "4711").chmod(0o777)
    with acting_as(ordinary_user):
        message = _refused(shared)
    assert f"owned by uid {other_user.pw_uid}, not by uid {ordinary_user.pw_uid}" in message
    assert list((shared / "4711").iterdir()) == []


@pytest.mark.root
def test_a_place_where_the_user_may_not_write(
    ordinary_user: pwd.struct_passwd, home: Path, tmp_path: Path
) -> None:
    with acting_as(ordinary_user):
        message = _refused(tmp_path / "admin")
    assert message == f"{tmp_path}/admin/4711: cannot make 'admin': Permission denied"


@pytest.mark.root
def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "is a symbolic link" in _refused(tmp_path / "a")
