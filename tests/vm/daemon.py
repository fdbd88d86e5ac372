"""``daemon.py MECHANISM ARGUMENTS...``: the daemon, as if the kernel had nothing cheaper.

With ``SYSTEM_CALLS=preempted`` or ``safe`` in the environment: as if programs on the tracepoints
of system calls could be preempted, or could not.
"""

from __future__ import annotations

import errno
import os
import sys

from datacrumbs.cli.daemon import main
from datacrumbs.tracer import kernel_functions, libbpf
from datacrumbs.tracer.kernel_functions import Mechanism

first = Mechanism(sys.argv.pop(1))
works = kernel_functions.works


def works_from_first(mechanism: Mechanism) -> int:
    """What is cheaper than ``first`` does not work; the rest is tried for real."""
    kinds = list(Mechanism)
    return errno.ENOSYS if kinds.index(mechanism) < kinds.index(first) else works(mechanism)


kernel_functions.works = works_from_first
if "SYSTEM_CALLS" in os.environ:
    libbpf.syscall_points_preempted = lambda: os.environ["SYSTEM_CALLS"] == "preempted"
main()
