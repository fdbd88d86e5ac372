"""The roles of system calls, held against the kernel's own prototypes (tracefs; needs root)."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from datacrumbs.probes import syscalls
from datacrumbs.probes.syscalls import NO_ROLES, ROLES, USER_NAMES, Roles

pytestmark = pytest.mark.root

Prototypes = dict[str, list[tuple[str, str]]]  # user-visible name -> (type, name) per argument

INTEGER = r"(const )?(unsigned )?(int|long|unsigned|size_t|mqd_t|loff_t|off_t)"
PATH_NAMES = r"(file|path|from_path|to_path|old|new|dir_)name|path|special(file)?|new_root|put_old"
FITS = {
    "fd": (INTEGER, r"\w*(fd|fildes|mqdes)(_in|_out|in|out)?"),
    "fd2": (INTEGER, r"\w*(fd|fildes)(_in|_out|in|out)?"),
    "path": (r"(const )?char \*", PATH_NAMES),
    "path2": (r"(const )?char \*", PATH_NAMES),
    "dirfd": ("int", r"\w*dfd"),
    "dirfd2": ("int", r"\w*dfd"),
    "size": (
        INTEGER,
        r"((new|msg)_)?(count|len|length|size|bufsiz|nbytes)(_in)?",
    ),
    "iov": (r"const struct iovec \*", r"u?(vec|iov)"),
    "iovcnt": (INTEGER, r"vlen|nr_segs"),
    "offset": (r"loff_t|off_t|unsigned long", r"pos|pos_l|off|offset"),
    "offset_ptr": (r"loff_t \*", r"off_in|offset"),
    "offset2_ptr": (r"loff_t \*", r"off_out"),
}
"""What the kernel's type and name of an argument in this role look like."""

ODD_NAMES = {  # (call, role): the kernel's own name for the argument, where it does not tell
    ("acct", "path"): "name",
    ("name_to_handle_at", "path"): "name",
    ("umount2", "path"): "name",
    ("execveat", "dirfd"): "fd",
}

FILE_ARGUMENT = re.compile(
    r"fd|fildes|\w+fd|fd_?(in|out)|mqdes|(file|path|old|new|dir_)name|\w+_pathname|path"
)

NOT_A_ROLE = {  # (call, argument): why it is no role
    ("close_range", "max_fd"): "the end of a range, seldom an open descriptor",
    ("pidfd_getfd", "fd"): "a descriptor of another process",
    ("pipe", "fildes"): "an array that is written at the end",
    ("pipe2", "fildes"): "an array that is written at the end",
    ("symlink", "oldname"): "text that nobody looks up",
    ("symlinkat", "oldname"): "text that nobody looks up",
}


@pytest.fixture(scope="module")
def prototypes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prototypes]:
    place = tmp_path_factory.mktemp("tracefs")
    subprocess.run(["mount", "-t", "tracefs", "tracefs", place], check=True)
    try:
        formats = place.glob("events/syscalls/sys_enter_*/format")
        yield dict(_prototype(path) for path in formats)
    finally:
        subprocess.run(["umount", place], check=True)


def _prototype(path: Path) -> tuple[str, list[tuple[str, str]]]:
    name = path.parent.name.removeprefix("sys_enter_")
    declared = re.findall(r"^\tfield:(.*?) ?(\w+);", path.read_text(), re.MULTILINE)
    hidden = ("common_", "__syscall_nr")
    arguments = [(kind, arg) for kind, arg in declared if not arg.startswith(hidden)]
    return USER_NAMES.get(name, name), arguments


def _indices(roles: Roles) -> dict[str, int]:
    values = {field.name: getattr(roles, field.name) for field in fields(roles)}
    return {
        role: index
        for role, index in values.items()
        if isinstance(index, int) and not isinstance(index, bool) and index >= 0
    }


def test_every_role_fits_the_kernels_argument(prototypes: Prototypes) -> None:
    wrong, checked = [], 0
    for call in ROLES.keys() & prototypes.keys():
        for role, index in _indices(ROLES[call]).items():
            kind, name = prototypes[call][index]
            want_kind, want_name = FITS[role]
            want_name = ODD_NAMES.get((call, role), want_name)
            checked += 1
            if not (re.fullmatch(want_kind, kind) and re.fullmatch(want_name, name)):
                wrong.append(f"{call}: {role} is argument {index}: {kind} {name}")
    assert wrong == []
    assert checked > 250


def test_no_argument_that_names_a_file_is_without_a_role(prototypes: Prototypes) -> None:
    left_out = {
        (call, name)
        for call, arguments in prototypes.items()
        for index, (_, name) in enumerate(arguments)
        if FILE_ARGUMENT.fullmatch(name)
        and index not in _indices(ROLES.get(call, NO_ROLES)).values()
    }
    assert left_out == NOT_A_ROLE.keys()


def test_no_argument_has_two_roles() -> None:
    for call, roles in ROLES.items():
        indices = list(_indices(roles).values())
        assert len(indices) == len(set(indices)), call


def test_calls_of_this_kernel_are_those_it_has_tracepoints_for(prototypes: Prototypes) -> None:
    found = syscalls.available(platform.machine())
    assert found.keys() <= prototypes.keys()
    # the rest has no number that libseccomp or the headers know: too new, or not for programs
    numbers = syscalls._numbers(set(prototypes), platform.machine())
    assert numbers == found


def test_type_information_serves_where_kallsyms_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = syscalls.available(platform.machine())
    monkeypatch.setattr(syscalls, "KALLSYMS", Path("/nonexistent"))
    without = syscalls.available(platform.machine())
    assert found.items() <= without.items()
    assert "sync" in without
