"""How long `datacrumbs_report --html` takes beside the text report and `datacrumbs_explain`.

What the pictures themselves cost is what the page takes beyond those two, whose work it does.
Traces are those of bench_report.py. CPU seconds, because other programs may run meanwhile.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bench_report import write_trace
from measured import main, measure_ours

SIZES = (1_000_000, 10_000_000, 100_000_000)
LIMIT_BYTES = 4 << 30
LIMIT_PAGE_BYTES = 10_000_000


def run(sizes: tuple[int, ...], files: int) -> list[dict[str, Any]]:
    """One row of numbers for each size."""
    rows = []
    for events in sizes:
        with tempfile.TemporaryDirectory(prefix="datacrumbs-bench-") as directory:
            trace, page = Path(directory, "run"), Path(directory, "page.html")
            write_trace(trace, events, files)
            found = {
                "text": measure_ours("report", trace).numbers(),
                "explain": measure_ours("explain", trace).numbers(),
                "html": measure_ours("report", "--html", page, trace).numbers(),
            }
            page_bytes = page.stat().st_size
        both_s = found["text"]["cpu_s"] + found["explain"]["cpu_s"]
        rows.append(
            {
                "events": events,
                "files": files,
                "page_bytes": page_bytes,
                "pictures_cpu_ns_per_event": (found["html"]["cpu_s"] - both_s) / events * 1e9,
                "limit_bytes": LIMIT_BYTES,
                "limit_page_bytes": LIMIT_PAGE_BYTES,
                **found,
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'datacrumbs_report':<20}{'time':>10}{'CPU':>10}{'peak':>10}{'page':>10}")
    for row in rows:
        print(f"{row['events'] / 1e6:.0f} M events")
        for name, label in (("text", "text"), ("explain", "(explain)"), ("html", "--html")):
            one = row[name]
            page = f"{row['page_bytes'] / 1e6:.1f} MB" if name == "html" else ""
            print(
                f"    {label:<16}{one['s']:>8.1f} s{one['cpu_s']:>8.1f} s"
                f"{one['peak_bytes'] / 2**20:>6.0f} MiB{page:>10}"
            )
        print(f"    beyond text and explain: {row['pictures_cpu_ns_per_event']:.0f} ns an event")
    print(f"to stay within: {LIMIT_BYTES >> 20} MiB, pages of {LIMIT_PAGE_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main(__doc__, SIZES, run, print_table, files=100_000)
