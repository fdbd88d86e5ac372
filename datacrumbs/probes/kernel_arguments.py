"""Which arguments of kernel functions show nothing of the kernel's memory: plain numbers.

Checked where a probe file is signed and again where it is used: the same function may have other
parameters in another kernel.
"""

from __future__ import annotations

import msgspec

from datacrumbs.errors import BadInputError
from datacrumbs.probes import btf
from datacrumbs.probes.model import ArgumentType, KernelFunction, KernelLayer, ProbeList

_NUMBERS = (ArgumentType.INT, ArgumentType.UINT)


def not_a_number(function: KernelFunction) -> str:
    """What an argument of ``function`` shows besides a number, by this kernel's types; "" if none.

    A pointer, as an address or by what it leads to; more bytes than the number has; or something
    that the types of this kernel do not tell.
    """
    if not function.arguments:
        return ""
    try:
        parameters = {p.register: p for p in btf.kernel_types().parameters(function.name)}
    except BadInputError as error:
        return error.message
    for argument in function.arguments:
        known = parameters.get(argument.index)
        plain = argument.type in _NUMBERS and known is not None and not known.pointer
        if known is None or not plain or argument.bytes > known.size:
            return f"argument {argument.name!r} is not a number of at most its own size"
    return ""


def numbers_only(probes: ProbeList) -> tuple[ProbeList, list[tuple[str, str, str]]]:
    """``probes`` without the arguments of kernel functions that are more than numbers here.

    And (layer, function, reason) of each function that has lost its arguments.
    """
    lost: list[tuple[str, str, str]] = []
    layers = [
        _layer(layer, lost) if isinstance(layer, KernelLayer) else layer for layer in probes.layers
    ]
    return (msgspec.structs.replace(probes, layers=layers), lost) if lost else (probes, [])


def _layer(layer: KernelLayer, lost: list[tuple[str, str, str]]) -> KernelLayer:
    functions = []
    for function in layer.functions:
        if reason := not_a_number(function):
            lost.append((layer.name, function.name, reason))
            functions.append(msgspec.structs.replace(function, arguments=[]))
        else:
            functions.append(function)
    return msgspec.structs.replace(layer, functions=functions)
