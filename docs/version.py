#!/usr/bin/env python3
"""Print the project's version, which is written down in pyproject.toml alone."""

import tomllib
from pathlib import Path

pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
print(tomllib.loads(pyproject.read_text())["project"]["version"])
