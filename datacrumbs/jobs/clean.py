"""``python -I -m datacrumbs.jobs.clean RUN_ID SOURCE``: what a hook's deadline left over, later."""

from __future__ import annotations

import sys

from datacrumbs.config import load_system_config
from datacrumbs.jobs.unit import Source, clean

if __name__ == "__main__":
    clean(sys.argv[1], load_system_config(), Source(sys.argv[2]))
