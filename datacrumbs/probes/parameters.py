"""A parameter of a function, as type information tells it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from datacrumbs.probes.model import ArgumentType


@dataclass(frozen=True, slots=True)
class Parameter:
    """``register`` counts integer argument registers from 0; None: it is in none, and ``why``.

    ``size`` is of a number in bytes; a string or what else a pointer leads to has 0.
    ``pointer`` says that the value itself is an address.
    """

    name: str
    register: int | None
    type: ArgumentType | None
    size: int
    why: str = ""
    pointer: bool = False


def refuse_reshaped(name: str) -> None:
    """Raise `ValueError` for a function whose arguments the compiler may have changed.

    It is called ``foo.isra.0``, ``foo.constprop.0`` or ``foo.part.0``.
    """
    if re.search(r"\.(isra|constprop|part)\b", name):
        raise ValueError("the compiler has changed its arguments (.isra, .constprop, .part)")
