"""From the rules of ``arguments:`` to what is captured of each function.

What a function's parameters are comes from BTF for the kernel, from DWARF for programs and
libraries, and from the notes for USDT points, where there is any of it. The first six integer
and pointer arguments of a call are in registers (System V AMD64 ABI; eight on aarch64): those
can be captured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from datacrumbs.errors import BadInputError
from datacrumbs.probes import btf, model, usdt
from datacrumbs.probes.capture import ArgumentRule, compile_regex
from datacrumbs.probes.model import Argument, ArgumentType
from datacrumbs.probes.parameters import Parameter, refuse_reshaped

STRING_BYTES = 64
ARGUMENTS_MAX = 6
REGISTERS = 6

Parameters = list[Parameter] | str
"""A function's parameters in order, or why they are not known."""

F = TypeVar("F", bound=model.UserFunction | model.KernelFunction | model.UsdtPoint)


class _NoArgumentError(Exception):
    """Why a rule gives nothing for a function."""


def with_argument(function: F, rule: ArgumentRule, parameters: Parameters) -> F:
    """``function`` with the argument that ``rule`` asks for. Raises `ValueError` saying why not."""
    try:
        argument = _argument(rule, parameters)
    except _NoArgumentError as error:
        raise ValueError(str(error)) from None
    if any(argument.name == other.name for other in function.arguments):
        raise ValueError(f"it has an argument {argument.name!r} already")
    if len(function.arguments) >= ARGUMENTS_MAX:
        raise ValueError(f"it has {ARGUMENTS_MAX} arguments already, which is the most")
    return msgspec.structs.replace(function, arguments=[*function.arguments, argument])


def wants(rule: ArgumentRule, names: list[str]) -> bool:
    """Whether the rule is for a function of these names."""
    pattern = compile_regex(rule.function or ".*")
    return any(pattern.fullmatch(name) for name in names)


def _argument(rule: ArgumentRule, parameters: Parameters) -> Argument:
    parameter = _parameter(rule, parameters)
    register = parameter.register if parameter else rule.index
    if register is None:
        raise _NoArgumentError(parameter.why if parameter else "no such parameter")
    if register >= REGISTERS:
        raise _NoArgumentError(f"parameter {register} is passed on the stack")
    kind, size = _type_and_size(rule, parameter, parameters)
    plain = parameter.name if parameter and parameter.name else f"arg{register}"
    name = rule.as_ or rule.name or plain
    return Argument(name=name, index=register, type=kind, bytes=size)


def _parameter(rule: ArgumentRule, parameters: Parameters) -> Parameter | None:
    if isinstance(parameters, str):
        if rule.name is not None:
            raise _NoArgumentError(parameters)
        return None
    if rule.index is not None:
        if rule.index >= len(parameters):
            raise _NoArgumentError(f"has {len(parameters)} parameters, and the first is 0")
        return parameters[rule.index]
    for parameter in parameters:
        if parameter.name == rule.name:
            return parameter
    names = ", ".join(p.name for p in parameters if p.name) or "none"
    raise _NoArgumentError(f"has no parameter {rule.name!r}; its parameters: {names}")


def _type_and_size(
    rule: ArgumentRule, parameter: Parameter | None, parameters: Parameters
) -> tuple[ArgumentType, int]:
    kind = rule.type or (parameter.type if parameter else None)
    if kind is None:
        why = parameters if isinstance(parameters, str) else parameter.why if parameter else ""
        raise _NoArgumentError(f"give type and bytes: {why or 'its type is not known'}")
    if rule.bytes is not None:
        if kind in (ArgumentType.INT, ArgumentType.UINT) and rule.bytes not in (1, 2, 4, 8):
            raise _NoArgumentError(f"a number has no {rule.bytes} bytes")
        return kind, rule.bytes
    if kind is ArgumentType.STRING:
        return kind, STRING_BYTES
    if kind is ArgumentType.BYTES or parameter is None:
        raise _NoArgumentError("give bytes: how much to capture is not known")
    return kind, parameter.size


def kernel_parameters(function: object) -> Parameters:
    """Parameters of a kernel function, from BTF; `ValueError` if they are not its source's."""
    assert isinstance(function, model.KernelFunction)
    refuse_reshaped(function.name)
    try:
        return btf.kernel_types().parameters(function.name)
    except BadInputError as error:
        return error.message


def usdt_parameters(points: Mapping[str, usdt.Point], function: object) -> Parameters:
    """Arguments of a USDT point, from its note; they are called ``arg0`` and so on."""
    assert isinstance(function, model.UsdtPoint)
    return [
        Parameter(f"arg{at}", None, None, 0, "a floating-point number")
        if argument.is_float
        else Parameter(
            f"arg{at}",
            at,
            ArgumentType.INT if argument.signed else ArgumentType.UINT,
            argument.size,
        )
        for at, argument in enumerate(points[function.name].arguments)
    ]
