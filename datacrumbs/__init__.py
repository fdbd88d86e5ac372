"""DataCrumbs: where a job's I/O time went, and why.

In Python, `open_trace` is the way in; see `datacrumbs.api`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datacrumbs.api import Run, Table, open_trace

__version__ = "0.1.0"
__all__ = ["Run", "Table", "open_trace"]


def __getattr__(name: str) -> Any:
    """Load the API when it is asked for: the daemon imports this package too, as root."""
    if name in __all__:
        from datacrumbs import api

        return getattr(api, name)
    raise AttributeError(f"module 'datacrumbs' has no attribute {name!r}")
