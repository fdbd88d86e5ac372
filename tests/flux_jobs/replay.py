"""A ``flux`` that replays what a real one said: see ``recorded.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("recorded.json").read_text())
JOBS: dict[str, dict[str, Any]] = RECORDED["jobs"]
ERRORS: dict[str, dict[str, Any]] = RECORDED["errors"]

ANSWER = """#!/bin/sh
# replays; arguments as flux-job has them, or as flux has them
cd "${0%/*}" || exit 9
[ "$1" != job ] || shift
printf '%s\\n' "$*" >>asked
case "$1 $3" in
"info jobspec") name=jobspec ;;
"info eventlog") name=eventlog ;;
"info R") name=R ;;
"id "*) name=id ;;
"getattr "*) name=rank ;;
*) name=$1 ;;
esac
[ ! -e "$name.hangs" ] || exec sleep 60
[ ! -e "$name" ] || cat "$name"
[ ! -e "$name.stderr" ] || cat "$name.stderr" >&2
exit "$(cat "$name.rc" 2>/dev/null || echo 0)"
"""


@dataclass(frozen=True)
class Replay:
    """Below ``directory``: ``flux``, ``flux-job`` (in ``exec``) and what they answer."""

    directory: Path

    def __post_init__(self) -> None:
        (self.directory / "exec").mkdir(parents=True, exist_ok=True)
        direct = '#!/bin/sh\nexec "${0%/*}/../flux" "$@"\n'
        for name, text in (("flux", ANSWER), ("exec/flux-job", direct)):
            path = self.directory / name
            path.write_text(text)
            path.chmod(0o755)

    def answer(self, question: str, text: str = "", *, stderr: str = "", rc: int = 0) -> None:
        """What ``flux job question`` says from now on."""
        for name, content in ((question, text), (f"{question}.stderr", stderr)):
            (self.directory / name).write_text(content)
        (self.directory / f"{question}.rc").write_text(f"{rc}\n")

    def job(self, name: str) -> dict[str, str]:
        """Answer as for the recorded job ``name``; its prolog's environment."""
        job = JOBS[name]
        self.answer("jobspec", job["jobspec"], stderr=job["stderr"], rc=job["rc"])
        self.answer("eventlog", "")
        self.answer("R", job.get("R", ""))
        self.answer("id", job["ids"]["f58plain"] + "\n")
        self.answer("rank", job["env"]["FLUX_JOB_RANKS"].split("-")[0] + "\n")
        environ: dict[str, str] = job["env"] | {"FLUX_EXEC_PATH": str(self.directory / "exec")}
        return environ

    def asked(self) -> list[str]:
        """What it was asked so far, cleared by asking."""
        path = self.directory / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines
