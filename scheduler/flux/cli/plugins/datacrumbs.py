"""Flux's options for DataCrumbs: ``--datacrumbs-enable`` and ``--datacrumbs-probe-file``.

A file of <sysconfdir>/flux/cli/plugins, for Flux 0.77 and later. It is loaded by every `flux run`,
`submit`, `batch` and `alloc`, and by the broker's job validator: an exception here would keep every
user of the cluster from submitting any job. So it stands alone, and nothing leaves it but the
`ValueError` that tells a user what to write instead.
"""

import json
import os
import stat
import sys
from pathlib import Path

KEY = "datacrumbs"
EXAMPLE = '{"enable":"yes","probe_file":"/abs/path"}'
INSTEAD = "use --datacrumbs-enable --datacrumbs-probe-file=FILE"
MAX_PATH_BYTES = 4095


def problem_of(value):
    """What is wrong with the attribute ``system.datacrumbs``; None when nothing is.

    These are the rules of `datacrumbs.jobs.metadata`, which the prolog asks.
    """
    if not isinstance(value, dict):
        return "must be an object"
    for name in value:
        if name not in ("enable", "probe_file"):
            return f"unknown key {_shown(name)}"
    for name in ("enable", "probe_file"):
        if name not in value:
            return f'"{name}" is missing'
    if value["enable"] != "yes":
        return '"enable" must be "yes"; leave system.datacrumbs out of a job not to be traced'
    return problem_of_path(value["probe_file"])


def problem_of_path(path):
    """What is wrong with the name of a probe file; None when nothing is."""
    if not isinstance(path, str):
        return '"probe_file" must be a string'
    if not path.startswith("/"):
        return f'"probe_file" must be an absolute path, not {_shown(path)}'
    if not path.isprintable():
        return f'"probe_file" holds unprintable characters: {_shown(path)}'
    if len(path.encode()) > MAX_PATH_BYTES:
        return f'"probe_file" is longer than {MAX_PATH_BYTES} bytes'
    return None


def obstacle_to(path):
    """Why the caller cannot read the file ``path`` here; None when nothing is in the way."""
    try:
        regular = stat.S_ISREG(Path(path).stat().st_mode)
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return error.strerror
    if not regular:
        return "not a regular file"
    return None if os.access(path, os.R_OK) else "Permission denied"


def _shown(text):
    """Part of ``text``, fit for one line of a terminal."""
    text = str(text)
    return json.dumps(text if len(text) <= 80 else f"{text[:77]}...")


def allocation():
    """Whether this Flux instance is itself a job of another: no prolog traces its jobs."""
    try:
        import flux

        return int(flux.Flux().attr_get("instance-level")) > 0
    except Exception:  # no instance (--dry-run), an older Flux: then it is not known
        return False


def say(prog, text):
    """One line for the user who submits."""
    # flushed: flux run goes on as another program
    print(f"flux-{prog}: datacrumbs: {text}", file=sys.stderr, flush=True)


def make_plugin(base):
    """The plugin, a subclass of ``base``, which is `flux.cli.plugin.CLIPlugin`."""

    class DataCrumbsPlugin(base):
        """Trace the I/O of a job with DataCrumbs, on all its nodes.

        Make a probe file with datacrumbs_probe_configurator, then:

            flux run -N2 --datacrumbs-enable --datacrumbs-probe-file=probes.json.gz ./simulate

        When the job has ended, its trace is in the directory named by its job id below
        ~/datacrumbs (your site may have set another): datacrumbs_report ~/datacrumbs/JOBID

        With flux batch and flux alloc the whole allocation is traced. Jobs inside an allocation
        need no option, and cannot be traced on their own.

        A job that cannot be traced runs all the same; a line of `flux job eventlog JOBID`, and
        of what flux run shows, says why.
        """

        def __init__(self, prog, *args, **kwargs):
            super().__init__(prog, prefix=KEY)
            try:
                self.add_option(
                    "--enable",
                    dest="datacrumbs_enable",
                    action="store_true",
                    help="Trace the I/O of the job",
                )
                self.add_option(
                    "--probe-file",
                    dest="datacrumbs_probe_file",
                    metavar="FILE",
                    help="What to trace: made by datacrumbs_probe_configurator",
                )
            except Exception as error:
                self.options = []
                say(self.prog, f"the options are not available: {error!r}")

        def preinit(self, args):
            """Flux 0.88's bulksubmit hands on only what is set on its own object."""
            for name in ("datacrumbs_enable", "datacrumbs_probe_file"):
                try:
                    setattr(args, name, getattr(args, name))
                except Exception:  # then there is nothing to hand on
                    return

        def modify_jobspec(self, args, jobspec):
            """Write what the options say into the jobspec."""
            problem = None
            try:
                problem = self._modify(args, jobspec)
            except Exception as error:  # its user asked, and the job comes first
                say(self.prog, f"not traced: {error!r}")
            if problem:
                raise ValueError(problem)

        def _modify(self, args, jobspec):
            """What the user must correct; None when the jobspec says what was asked."""
            path = getattr(args, "datacrumbs_probe_file", None)
            if not getattr(args, "datacrumbs_enable", False):
                return path and "--datacrumbs-probe-file needs --datacrumbs-enable"
            if not path:
                return "--datacrumbs-enable needs --datacrumbs-probe-file=FILE"
            path = str(Path(path).absolute())
            problem = problem_of_path(path)
            if problem:
                return f"--datacrumbs-probe-file: {problem}"
            if allocation():
                say(
                    self.prog,
                    "this job is inside an allocation and cannot be traced on its own: ask for "
                    "it at flux batch or flux alloc, and all jobs inside are traced",
                )
                return None
            obstacle = obstacle_to(path)
            if obstacle:
                say(self.prog, f"warning: {_shown(path)}: {obstacle} here; the nodes need it")
            jobspec.setattr(f"system.{KEY}", {"enable": "yes", "probe_file": path})
            return None

        def validate(self, jobspec):
            """Called by the broker for every job: refuse what its prolog could not take."""
            problem = None
            try:
                system = jobspec.jobspec["attributes"]["system"]
                problem = problem_of(system[KEY]) if KEY in system else None
            except Exception:  # a jobspec of another shape: it says nothing to us
                return
            if problem:
                raise ValueError(
                    f"attributes.system.{KEY}: {problem}; {INSTEAD}, or set it to {EXAMPLE}"
                )

    return DataCrumbsPlugin


try:
    from flux.cli.plugin import CLIPlugin

    DataCrumbs = make_plugin(CLIPlugin)
    del CLIPlugin
except Exception as failure:  # a Flux that has no such plugins, or others than these
    print(f"datacrumbs: no options for Flux: {failure!r}", file=sys.stderr)
