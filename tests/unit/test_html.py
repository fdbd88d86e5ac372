"""``datacrumbs_report --html``: the page in a real browser, without network."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browser
from generate.calls import Call
from generate.runs import BEGIN_NS, Host, write_run
from report_traces import Call as FlatCall
from report_traces import File, Interval
from report_traces import write_host as write_flat_host
from selenium.webdriver.common.keys import Keys

from datacrumbs.trace.runfile import Counts, LostBy, Skipped, State

RANKS, STEPS = 4, 23
MS = 1_000_000
CHARTS = ("ranks", "timeline", "layers", "sizes", "latency")


def report(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "datacrumbs.cli.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def page_of(trace: Path, out: Path) -> Path:
    done = report("--html", out, trace)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return out


def data_of(page: Path) -> Any:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def step(rank: int, number: int) -> Call:
    """23 of these make a rank: 4097 bytes each, every fifth waits 8 ms for the journal.

    Half of them write, in the first 230 ms; the others read, after a pause.
    """
    writes = number < 12
    start = BEGIN_NS + number * 20 * MS + rank * MS + (0 if writes else 500 * MS)
    wait = 8 * MS if number % 5 == 4 else 0
    inner = [Call(func="copy_folio_from_iter_atomic", start=start + 3_000, dur=5_000)]
    if wait:
        inner.append(Call(func="jbd2_log_wait_commit", start=start + 9_000, dur=wait))
    names = ("vfs_write", "pwrite64", "H5Dwrite") if writes else ("vfs_read", "pread64", "H5Dread")
    vfs = Call(func=names[0], start=start + 2_000, dur=8_000 + wait, inner=inner)
    moved = {"file": 1 + rank, "offset": 4097 * number, "size": 4097, "ret": 4097}
    call = Call(func=names[1], start=start + 1_000, dur=10_000 + wait, inner=[vfs], **moved)
    return Call(func=names[2], start=start, dur=12_000 + wait, inner=[call])


def hosts(ranks: int = RANKS) -> list[Host]:
    return [
        Host(
            name=f"n{number}",
            threads={
                (100 + rank, 100 + rank): [step(rank, n) for n in range(STEPS)]
                for rank in range(number * ranks // 2, (number + 1) * ranks // 2)
            },
            files={1 + rank: f"/scratch/run/out-{rank}.h5" for rank in range(ranks)},
        )
        for number in range(2)
    ]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("trace") / "4711", hosts())


@pytest.fixture(scope="module")
def html(trace: Path) -> Path:
    return page_of(trace, trace.parent / "page.html")


@pytest.fixture
def page(chromium: Page, html: Path) -> Iterator[Page]:
    """The page of the known trace, which nobody has touched; no test may leave an error."""
    chromium.open(html)
    yield chromium
    assert chromium.errors() == []


def test_every_picture_is_drawn_and_says_how_to_read_it(page: Page) -> None:
    assert len(page.all("#ranks .bar")) == RANKS
    assert int(page.run("return document.querySelector('#timeline canvas').dataset.drawn")) > 50
    assert page.colours() > 2
    frames = page.all("#layers g[data-frame]")
    assert len(frames) == 1 + 2 * 5
    assert len([b for b in page.all("#sizes .read, #sizes .write") if b.size["height"] > 5]) == 2
    assert len([b for b in page.all("#latency .bar") if b.size["height"] > 1]) >= 2
    for section in page.all("main > section")[1:]:
        (how,) = section.find_elements("css selector", ".how")
        assert len(how.text) > 40, section.text[:80]
        assert how.text.endswith(".")
    for chart in CHARTS:
        assert page.one(f"#{chart} :is(svg, canvas)[aria-label]").get_attribute("aria-label")


def test_nothing_is_fetched(page: Page, html: Path) -> None:
    assert page.run("return performance.getEntriesByType('resource').map((e) => e.name)") == []
    links = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\'\s>)]+)', html.read_text())
    assert set(links) == {"#main"}
    policy = page.run("return document.querySelector('meta[http-equiv]').content")
    assert "default-src 'none'" in policy
    assert "unsafe-inline'; script" not in policy


def test_the_numbers_are_those_of_the_json(page: Page, trace: Path) -> None:
    numbers = json.loads(report("--format", "json", trace).stdout)
    tiles = dict(zip(page.texts("#tiles dt"), page.texts("#tiles dd strong"), strict=True))
    assert numbers["bytes_written"] == RANKS * 12 * 4097
    assert (tiles["Written"], tiles["Read"]) == ("192 KiB", "176 KiB")
    assert tiles["Processes"] == "4"
    assert numbers["unoverlapped_ns"] == 0.0 + sum(h["unoverlapped_ns"] for h in numbers["hosts"])
    # 12 000 ns a step and 8 ms for four of the 23 steps, of each rank
    io_ns = RANKS * (STEPS * 12_000 + 4 * 8 * MS)
    assert numbers["io_ns"] == io_ns
    assert tiles["In I/O, all threads"] == "129 ms"
    assert "all I/O 129 ms" in page.texts("#layers text")
    assert "none lost" in page.text("#honesty")
    rows = {row[0]: row for row in table_rows(page, "functions")}
    assert rows["pwrite64"][1:5] == ["syscall", "48", "-", "64.5 ms"]
    assert rows["pwrite64"][9:] == ["192 KiB", "2.91 MiB/s"]
    assert table_rows(page, "mounts") == [
        ["ext4", "0:1", "/scratch/run", "4", "-", "44", "48", "176 KiB", "192 KiB", "129 ms"]
    ]
    assert {row[3] for row in table_rows(page, "processes")} == {"0", "1", "2", "3"}
    assert [p["rank"] for p in numbers["processes"]] == sorted({0, 1, 2, 3})


def table_rows(page: Page, name: str) -> list[list[str]]:
    script = """return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)]
        .map((row) => [...row.cells].map((cell) => cell.textContent))"""
    rows: list[list[str]] = page.run(script, name)
    return rows


def test_slow_calls_are_explained(page: Page) -> None:
    text = page.text("#slow")
    assert "jbd2_log_wait_commit" in text
    assert "the file system's journal" in text
    assert re.search(r"8\.01 ms: .* on n[01], rank \d", text)


def test_tables_sort_and_filter(page: Page) -> None:
    def paths() -> list[str]:
        return [row[0] for row in table_rows(page, "files")]

    assert sorted(paths()) == [f"/scratch/run/out-{n}.h5" for n in range(RANKS)]
    page.one("#files th button").click()
    assert paths() == [f"/scratch/run/out-{n}.h5" for n in range(RANKS)]
    assert page.one("#files th").get_attribute("aria-sort") == "ascending"
    page.keys("#files th button", Keys.ENTER)
    assert paths() == [f"/scratch/run/out-{n}.h5" for n in reversed(range(RANKS))]
    assert page.one("#files th").get_attribute("aria-sort") == "descending"
    page.one("#functions input").send_keys("VFS")
    assert {row[1] for row in table_rows(page, "functions")} == {"vfs"}
    assert "2 of 2 functions that match" in page.text("#functions .note")
    page.one("#functions input").send_keys(" nothing")
    assert table_rows(page, "functions") == []


def span(page: Page) -> tuple[int, int]:
    home = page.one("#timeline")
    return int(home.get_attribute("data-from") or 0), int(home.get_attribute("data-to") or 0)


def test_the_timeline_zooms_by_keyboard_and_mouse(page: Page) -> None:
    whole, shown = span(page), page.pixels()
    page.keys("#timeline canvas", Keys.ARROW_RIGHT, "+", "+")
    near = span(page)
    assert near[1] - near[0] == pytest.approx((whole[1] - whole[0]) / 4, rel=0.02)
    assert page.pixels() != shown
    assert "Showing" in page.text("#live")
    page.keys("#timeline canvas", "0")
    assert (span(page), page.pixels()) == (whole, shown)
    page.drag("#timeline canvas", (0.25, 0.1), (0.5, 0.1))
    first, last = span(page)
    assert first / whole[1] == pytest.approx(0.25, abs=0.01)
    assert last / whole[1] == pytest.approx(0.5, abs=0.01)
    page.one("#timeline-all").click()
    assert span(page) == whole


def test_a_cell_says_what_is_in_it(page: Page) -> None:
    page.keys("#timeline canvas", Keys.ARROW_RIGHT)
    told = page.text("#live")
    assert told.startswith("rank 0 (app 100 on n0)")
    assert "(1 call)" in told
    assert page.run("return document.getElementById('tip').textContent") == told


def test_bandwidth_and_operations_are_two_pictures(page: Page, html: Path) -> None:
    seen = {}
    for button in page.all("#timeline-controls .group:first-child button"):
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        seen[button.text] = page.pixels()
    assert list(seen) == ["Bandwidth", "Read", "Written", "Operations"]
    assert seen["Read"] != seen["Written"]
    assert seen["Bandwidth"] not in (seen["Read"], seen["Written"])
    assert page.text("#timeline-legend").endswith("/s")
    timeline = data_of(html)["timeline"]
    sums = page.run(
        """return arguments[0].map((text) => {
            const raw = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            return new Float32Array(raw.buffer).reduce((a, b) => a + b, 0);
        })""",
        [timeline[name] for name in ("operations", "bytes_read", "bytes_written")],
    )
    assert sums == [RANKS * STEPS, RANKS * 11 * 4097, RANKS * 12 * 4097]


def test_layers_zoom_by_click_and_keyboard(page: Page) -> None:
    def root() -> str | None:
        return page.one("#layers svg").get_attribute("data-root")

    assert page.one("#layers-up").get_property("disabled")
    page.all("#layers g[data-frame='0'] rect")[0].click()
    assert root() == "0"
    assert "Zoomed to H5D" in page.text("#live")
    (frame,) = page.all("#layers g[data-frame='0'] rect")
    (whole,) = page.all("#layers g[data-frame='-1'] rect")
    assert frame.size["width"] == pytest.approx(whole.size["width"], abs=1)
    page.one("#layers-up").click()
    assert root() == "-1"
    page.keys("#layers svg", Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER)
    assert root() == "1"
    assert page.run("return document.activeElement.dataset.key") == "layers"
    page.keys("#layers svg", Keys.ESCAPE, Keys.ESCAPE)
    assert root() == "-1"


@pytest.mark.parametrize(
    ("chart", "first", "last"),
    [
        ("ranks", "rank 0 (app 100 on n0)", "rank 3 (app 103 on n1)"),
        ("sizes", "4 KiB up to 8 KiB\n44 reads, 176 KiB\n48 writes, 192 KiB", "4 KiB up to"),
        ("latency", "10.2 us up to 12.3 us\n40 calls, 83 %", "7.34 ms up to 8.39 ms\n8 calls"),
    ],
)
def test_bars_are_told_by_keyboard(page: Page, chart: str, first: str, last: str) -> None:
    page.keys(f"#{chart} svg", Keys.ARROW_RIGHT)
    assert page.text("#live").startswith(first)
    page.keys(f"#{chart} svg", Keys.END)
    assert page.text("#live").startswith(last)
    assert page.text("#tip") == page.text("#live")


def test_all_that_can_be_done_is_reached_by_tab(page: Page) -> None:
    script = """
        const all = "button, input, select, summary, svg[data-key], canvas[data-key]";
        return [...document.querySelectorAll(all)].map((e) => e.tabIndex)"""
    stops = page.run(script)
    assert len(stops) > 40
    assert set(stops) == {0}
    unnamed = """return [...document.querySelectorAll("button, input, select")].filter((e) =>
        !e.textContent && !e.ariaLabel && !(e.labels && e.labels.length)).length"""
    assert page.run(unnamed) == 0


def test_dark_mode_and_paper(page: Page) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    light, pixels = page.run(colour), page.pixels()
    page.media(dark=True)
    assert page.run("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert page.run(colour) != light
    assert page.pixels() != pixels
    page.media("print", dark=True)
    assert page.run(colour) == light  # no black paper
    assert not page.one("#timeline-all").is_displayed()
    assert page.one("#layers svg").is_displayed()
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000


def test_narrow(chromium: Page, html: Path) -> None:
    chromium.open(html, width=360)
    assert chromium.run("return document.documentElement.scrollWidth") <= 360
    assert chromium.colours() > 2


HOSTILE = (
    "/tmp/</script><script>document.title='bad'</script>",
    "/tmp/<img src=x onerror=\"document.title='bad'\">",
    "/tmp/<!--<script>",
    "/tmp/]]>&amp;{{data}}{{script}}",
    "/tmp/\x1b[31m\x00\x07\u202egnp.exe\u2028",
    "/tmp/" + "\u8a9e" * 60,
)


def test_names_that_mean_harm_are_text(tmp_path: Path, chromium: Page) -> None:
    raw = b"/tmp/\xff\xfe"
    files = [File(file=n, path=path) for n, path in enumerate(HOSTILE, 1)]
    files.append(File(file=99, path="/tmp/\\xff\\xfe", path_raw=raw))
    calls = [FlatCall(func="write", ts=1000 * f.file, dur=99, ret=7, file=f.file) for f in files]
    write_flat_host(
        tmp_path / "run",
        calls,
        files=files,
        processes=[(0, 100, "start", "<b>\x1b[2J</script>")],
        user="</script><script>document.title='bad'</script>",
        skipped=[Skipped(layer="l", name="<i>f</i>", reason="</script>\x1b[0m")],
    )
    out = page_of(tmp_path / "run", tmp_path / "page.html")
    chromium.open(out)
    assert chromium.errors() == []
    assert chromium.run("return document.title") == "4711: DataCrumbs report"
    assert chromium.run("return document.querySelectorAll('img, #files i, #files b').length") == 0
    shown = {row[0] for row in table_rows(chromium, "files")}
    assert set(HOSTILE[:4]) | {"/tmp/\\xff\\xfe"} < shown
    assert "/tmp/\\x1b[31m\\x00\\x07\\u202egnp.exe\\u2028" in shown
    assert HOSTILE[5] in shown
    assert out.read_bytes().isascii()
    assert "<i>f</i>" in chromium.text("#honesty ul")


def test_what_was_lost_is_said_first(tmp_path: Path, chromium: Page) -> None:
    write_flat_host(
        tmp_path / "run",
        [FlatCall(func="write", ts=n, dur=1, ret=1, file=1) for n in range(5)],
        files=[File(file=1, path="/f")],
        counts=Counts(events=5, lost=1234, filtered=17),
        lost_by=LostBy(ring=1200, disk=34),
    )
    chromium.open(page_of(tmp_path / "run", tmp_path / "page.html"))
    said = chromium.text("#honesty")
    assert "5 events kept, 1234 LOST, 17 filtered" in said
    assert "1200 in a full ring, 34 to a full disk" in said
    assert chromium.one("#honesty").get_attribute("class") == "bad"
    assert chromium.errors() == []


def test_a_profile_says_what_it_cannot_show(tmp_path: Path, chromium: Page) -> None:
    profiled = Interval(func="write", ts=1000, dur=1_000_000, durations=(100, 200, 400), bytes=777)
    write_flat_host(tmp_path / "run", [], intervals=[profiled])
    chromium.open(page_of(tmp_path / "run", tmp_path / "page.html"))
    assert chromium.errors() == []
    assert "3 calls profiled" in chromium.text("#honesty")
    for section in ("timeline", "layers", "slow", "files"):
        assert "profile mode" in chromium.text(f"#{section}"), section
    assert [row[:3] for row in table_rows(chromium, "functions")] == [["write", "syscalls", "3"]]
    assert len(chromium.all("#latency .bar")) > 0


@pytest.mark.parametrize("run_file", [True, False])
def test_running_and_cut_off(tmp_path: Path, chromium: Page, run_file: bool) -> None:
    calls = [FlatCall(func="write", ts=1000 * n, dur=99, ret=1, file=1) for n in range(23)]
    write_flat_host(tmp_path / "run", calls, files=[File(file=1, path="/f")], state=State.RUNNING)
    if not run_file:
        (tmp_path / "run" / "host=n1" / "run.json").unlink()
    chromium.open(page_of(tmp_path / "run", tmp_path / "page.html"))
    assert chromium.errors() == []
    said = chromium.text("#honesty")
    assert said.startswith("Still running" if run_file else "Cut off")
    assert "23 events kept" in said
    assert chromium.one("#honesty").get_attribute("class") == "warn"
    assert chromium.colours() > 1


def test_an_empty_trace(tmp_path: Path, chromium: Page) -> None:
    write_flat_host(tmp_path / "run", [], processes=())
    chromium.open(page_of(tmp_path / "run", tmp_path / "page.html"))
    assert chromium.errors() == []
    assert "No process joined the run" in chromium.text("#honesty")
    assert "no events in this trace" in chromium.text("#timeline")


def test_one_process_and_one_call(tmp_path: Path, chromium: Page) -> None:
    write_flat_host(
        tmp_path / "run",
        [FlatCall(func="write", ts=5, dur=0, ret=1, file=1)],
        files=[File(file=1, path="/f")],
    )
    chromium.open(page_of(tmp_path / "run", tmp_path / "page.html"))
    assert chromium.errors() == []
    assert table_rows(chromium, "files")[0][0] == "/f"
    (row,) = table_rows(chromium, "processes")
    assert row[:4] == ["app", "n1", "100", ""]  # one process is no rank
    assert "rank" not in chromium.text("#how-ranks")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 ranks and 100,000 files with long names."""
    home = tmp_path_factory.mktemp("large")
    ranks, each = 1000, 100
    files = [
        File(file=n, path=f"/scratch/{'project-directory/' * 6}rank-{n % ranks}/part-{n:07}.dat")
        for n in range(1, ranks * each + 1)
    ]
    calls = [
        FlatCall(
            func="write" if n % 2 else "pread64",
            ts=1_000_000 + n // ranks * 50_000_000 + n % ranks * 40_000,
            dur=1_000 + n % 977 * 1_000,
            ret=4097 + n % 7,
            file=n + 1,
            pid=1000 + n % ranks,
            tid=1000 + n % ranks,
        )
        for n in range(ranks * each)
    ]
    processes = [(0, 1000 + n, "start", "app") for n in range(ranks)]
    write_flat_host(home / "run", calls, files=files, processes=processes, segment_events=100_000)
    return page_of(home / "run", home / "page.html")


def test_1000_ranks_and_100_000_files(large: Path, chromium: Page) -> None:
    assert large.stat().st_size <= 10_000_000
    chromium.open(large)
    assert chromium.errors() == []
    assert len(chromium.all("#ranks .bar")) == 1000
    assert int(chromium.one("#timeline canvas").get_attribute("data-drawn") or 0) > 10_000
    note = chromium.text("#files .note")
    assert re.search(r"of all 100000 are in this page: those with most time", note), note
    chromium.one("#files input").send_keys("rank-977/")
    rows = table_rows(chromium, "files")
    assert rows
    assert all("rank-977/" in row[0] for row in rows)


def test_the_file_is_whole_or_not_there(tmp_path: Path, trace: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("before")

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = report("--html", out, trace, preexec_fn=small_files)
    assert done.returncode == 1
    assert done.stderr == f"datacrumbs_report: error: {out}: cannot write it: File too large\n"
    assert out.read_text() == "before"
    assert list(tmp_path.iterdir()) == [out]


def test_errors_are_one_line(tmp_path: Path, trace: Path) -> None:
    for out, said in (
        (tmp_path, "not a regular file"),
        (tmp_path / "none" / "page.html", "cannot write it: No such file or directory"),
        (Path("/dev/null"), "not a regular file"),
    ):
        done = report("--html", out, trace)
        assert done.returncode in (1, 2)
        assert said in done.stderr.splitlines()[0]
        assert "Traceback" not in done.stderr
    done = report("--html", tmp_path / "page.html", "--format", "json", trace)
    assert (done.returncode, "one or the other" in done.stderr) == (2, True)
    done = report("--html", tmp_path / "page.html", tmp_path / "no-trace")
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_to_standard_output(trace: Path) -> None:
    done = report("--html", "-", trace)
    assert done.stdout.startswith("<!doctype html>")
    assert done.stdout.endswith("</html>\n")
