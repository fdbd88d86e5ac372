"""The commands, one module each."""

import os
import sys

# A job's PYTHONPATH is for the job's Python: our own environment's packages come first.
_foreign = os.environ.get("PYTHONPATH", "").split(os.pathsep)
sys.path.sort(key=lambda path: path in _foreign)
