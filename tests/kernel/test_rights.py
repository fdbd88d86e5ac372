"""Root traces for a user: with that user's rights over files, and that user's programs only."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from kernel.tracing import TracedRun, io_calls, user_layer

from datacrumbs.probes import model

WORK = """
__attribute__((noipa)) int work(void) { return 1; }
int main(void) { return !work(); }
"""


def layer_of(layer: model.UserLayer, name: str, binary: Path) -> model.UserLayer:
    """The same functions, of another file."""
    return model.UserLayer(
        name=name,
        binary=str(binary),
        functions=layer.functions,
        build_id=layer.build_id,
        digest=layer.digest,
    )


def test_binaries_are_opened_with_the_rights_of_the_user(
    traced_run: TracedRun, other_user: pwd.struct_passwd
) -> None:
    """What the user may not look at is not probed, and root does not say whether it is there."""
    program = traced_run.compile(WORK)
    good = user_layer("open", program, "work")
    closed = traced_run.root / "closed"
    closed.mkdir()
    shutil.copy(program, closed / "there")
    shutil.copy(program, traced_run.root / "unreadable")
    (traced_run.root / "unreadable").chmod(0o711)
    os.chown(closed, other_user.pw_uid, other_user.pw_gid)
    closed.chmod(0o700)
    os.mkfifo(traced_run.work / "fifo", 0o666)
    files = {
        "there": closed / "there",
        "missing": closed / "missing",
        "unreadable": traced_run.root / "unreadable",
        "fifo": traced_run.work / "fifo",
    }
    layers = [layer_of(good, name, binary) for name, binary in files.items()]
    with traced_run.daemon(good, *layers, io_calls()):
        traced_run.run(program)
    reasons = {row["layer"]: row["reason"] for row in traced_run.info()["skipped"]}
    assert reasons == {
        "there": f"{files['there']}: Permission denied",
        "missing": f"{files['missing']}: Permission denied",
        "unreadable": f"{files['unreadable']}: Permission denied",
        "fifo": f"{files['fifo']}: not a regular file",
    }
    assert traced_run.trace().calls("ret", "name = 'work'") == [(1,)]
