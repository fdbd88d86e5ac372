"""The paths of a host's files by their keys, as columns: there may be millions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datacrumbs.analysis.keys import Index

if TYPE_CHECKING:
    import pyarrow as pa

Files = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Paths:
    """``path[row[i]]`` is that of the file ``key[i]``; keys are sorted."""

    key: Files
    row: Index
    path: Any  # pa.ChunkedArray

    @classmethod
    def of(cls, files: pa.Table) -> Paths:
        """From the table ``files``; of a file with two rows, the later counts."""
        key = files["file"].to_numpy()
        row = np.argsort(key, kind="stable")
        return cls(key[row], row, files["path"])

    def names(self, files: Files) -> list[str]:
        """The path of each file, or a word for one that the table does not name."""
        at = np.searchsorted(self.key, files, side="right") - 1
        known = at >= 0
        known[known] = self.key[at[known]] == files[known]
        found = iter(self.path.take(self.row[at[known]]).to_pylist())
        pairs = zip(files.tolist(), known.tolist(), strict=True)
        return [next(found) if there else f"<file {file:x}>" for file, there in pairs]

    def only(self, files: Iterable[int]) -> Paths:
        """Those of ``files`` alone, without what holds the others."""
        import pyarrow as pa

        keys = np.array(sorted(files), np.uint64)
        known = keys[np.isin(keys, self.key)]
        return Paths(known, np.arange(len(known)), pa.array(self.names(known), pa.string()))
