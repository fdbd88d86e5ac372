"""Becoming the run's user for good."""

from __future__ import annotations

import ctypes
import os
import pwd
import signal

from datacrumbs.errors import UserError

_PR_SET_PDEATHSIG = 1


def account(uid: int, name: str) -> pwd.struct_passwd:
    """The password entry of the run's user, which must have the name that was signed."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise UserError(
            f"uid {uid} ({name}) is not known on this host", hint="check the host's user database"
        ) from None
    if entry.pw_name != name:
        raise UserError(
            f"uid {uid} is {entry.pw_name} on this host, but the probe file says {name}"
        )
    return entry


def become(entry: pwd.struct_passwd) -> None:
    """Give up root: groups, gids, uids (real, effective, saved), with no way back.

    Then ask for SIGTERM when the parent dies; a change of uid would clear that.
    """
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    if os.getresuid() != (entry.pw_uid,) * 3 or os.getresgid() != (entry.pw_gid,) * 3:
        raise UserError(f"cannot become {entry.pw_name}")
    os.umask(0o077)
    os.chdir("/")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
