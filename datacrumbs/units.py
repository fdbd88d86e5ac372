"""Numbers as people read them. Only reporters use this: everything else keeps ns and bytes."""

from __future__ import annotations

_BYTE_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_COUNT_UNITS = ("k", "M", "G", "T", "P", "E")
_SHORT_TIMES = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"))


def _three_digits(value: float) -> str:
    """``9.87``, ``98.7``, ``987``."""
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _scaled(value: float, step: int, units: tuple[str, ...], separator: str) -> str:
    at = -1
    while value >= step - 0.5 and at < len(units) - 1:
        value /= step
        at += 1
    return f"{_three_digits(value)}{separator}{units[at]}"


def human_bytes(size_bytes: float) -> str:
    """``512 B``, ``1.50 KiB``, ``3.20 GiB``: powers of 1024, three digits."""
    if size_bytes < 1023.5:
        return f"{size_bytes:.0f} B"
    return _scaled(size_bytes, 1024, _BYTE_UNITS, " ")


def human_count(count: int) -> str:
    """Up to six digits as they are (``123456``), then ``1.23M``: powers of 1000."""
    return str(count) if count < 1_000_000 else _scaled(count, 1000, _COUNT_UNITS, "")


def human_rate(bytes_per_s: float) -> str:
    """``1.50 GiB/s``."""
    return f"{human_bytes(bytes_per_s)}/s"


def human_ns(time_ns: float) -> str:
    """``850 ns``, ``1.20 us``, ``3.40 s``, ``2 min 05 s``, ``3 h 07 min``, ``2 d 03 h``."""
    if time_ns < 999.5:
        return f"{time_ns:.0f} ns"
    seconds = round(time_ns / 1e9)
    if time_ns >= 99.95e9:
        return _long_time(seconds)
    for unit_ns, unit in _SHORT_TIMES:
        if time_ns >= 0.9995 * unit_ns:
            return f"{_three_digits(time_ns / unit_ns)} {unit}"
    raise AssertionError(time_ns)


def short_ns(time_ns: float) -> str:
    """At most six characters for a column: ``850ns``, ``1.20us``, ``9999s``, ``2.78h``, ``11d``."""
    if time_ns < 99.95e9:
        return human_ns(time_ns).replace(" ", "")
    seconds = time_ns / 1e9
    if seconds < 9999.5:
        return f"{seconds:.0f}s"
    hours = seconds / 3600
    return f"{_three_digits(hours)}h" if hours < 99.95 else f"{hours / 24:.0f}d"


def _long_time(seconds: int) -> str:
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02d} h"
    return f"{hours} h {minute:02d} min" if hours else f"{minutes} min {second:02d} s"


def human_share(share: float) -> str:
    """A share of one as per cent: ``0 %``, ``< 0.1 %``, ``3.4 %``, ``34 %``."""
    per_cent = 100 * share
    if 0 < per_cent < 0.1:
        return "< 0.1 %"
    if 0 < per_cent < 9.95:
        return f"{per_cent:.1f} %"
    return "> 99 %" if 99.5 <= per_cent < 100 else f"{per_cent:.0f} %"


def human_power(size_bytes: int) -> str:
    """A power of two exactly: ``512 B``, ``4 KiB``, ``1 MiB``."""
    at = min((size_bytes.bit_length() - 1) // 10, len(_BYTE_UNITS))
    return f"{size_bytes >> 10 * at} {('B', *_BYTE_UNITS)[at]}"
