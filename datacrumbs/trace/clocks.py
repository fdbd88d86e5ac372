"""From the monotonic clock that events carry to the time of day, so that nodes line up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TRIES = 5

Nanoseconds = Annotated[int, Meta(ge=0, lt=1 << 62)]
"""On either clock, up to the year 2116: what a damaged file has beyond is refused."""


class ClockPair(Struct, frozen=True):
    """One instant on both clocks, nanoseconds (CLOCK_MONOTONIC, CLOCK_REALTIME)."""

    mono_ns: Nanoseconds
    real_ns: Nanoseconds


def take_pair() -> ClockPair:
    """Both clocks now: of `TRIES` readings the one whose two monotonic ends are closest."""
    return min((_reading() for _ in range(TRIES)), key=lambda reading: reading[0])[1]


def _reading() -> tuple[int, ClockPair]:
    before = time.monotonic_ns()
    real = time.time_ns()
    width = time.monotonic_ns() - before
    return width, ClockPair(before + width // 2, real)


class RealtimeClock:
    """Converts ``ts`` to CLOCK_REALTIME by straight lines between a run's clock pairs.

    Before the first and after the last pair the nearest offset holds. Offsets are kept
    relative to the first pair: nanoseconds since 1970 do not fit a float.
    """

    def __init__(self, pairs: Sequence[ClockPair]) -> None:
        if not pairs:
            raise ValueError("no clock pair")
        ordered = sorted(pairs, key=lambda pair: pair.mono_ns)
        self._mono_ns = ordered[0].mono_ns
        self._offset_ns = ordered[0].real_ns - ordered[0].mono_ns
        self._at = [float(pair.mono_ns - self._mono_ns) for pair in ordered]
        self._drift = [float(pair.real_ns - pair.mono_ns - self._offset_ns) for pair in ordered]

    def to_real_ns(self, ts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Nanoseconds since 1970 for monotonic nanoseconds."""
        import numpy as np

        drift = np.interp((ts - self._mono_ns).astype(np.float64), self._at, self._drift)
        return ts + self._offset_ns + np.rint(drift).astype(np.int64)

    def residual_ns(self) -> int:
        """How far a pair lies from the line between its neighbours, at most.

        What to expect of the error of `to_real_ns`; 0 for fewer than three pairs. Large after
        somebody set the clock during the run.
        """
        import numpy as np

        at, drift = self._at, self._drift
        left_out = (
            abs(drift[i] - np.interp(at[i], at[i - 1 : i + 2 : 2], drift[i - 1 : i + 2 : 2]))
            for i in range(1, len(at) - 1)
        )
        return round(float(max(left_out, default=0.0)))
