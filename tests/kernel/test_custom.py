"""Custom programs: compiled where they run, into the same trace, and only if that is allowed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel.tracing import TracedRun

from datacrumbs.probes import model
from datacrumbs.probes.kernel import TRACEFS, has_tracefs
from datacrumbs.tracer.custom import _first_error

ROOT = Path(__file__).resolve().parents[2]
SYSCALLS = model.SyscallLayer(name="syscall", functions=["fsync"])


@pytest.fixture(scope="session")
def kernel_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of kernel headers: Debian has those of one kernel in two places."""
    common = max(Path("/usr/src").glob("linux-headers-*-common"))
    machine = next(p for p in common.parent.glob(common.name.removesuffix("common") + "*")
                   if p.name != common.name)  # fmt: skip
    tree = tmp_path_factory.mktemp("kernel")
    tree.chmod(0o755)
    for part in ("include", "arch"):
        for source in (common, machine):
            subprocess.run(["cp", "-asf", source / part, tree], check=True)
    return tree


@pytest.fixture
def custom_run(
    traced_run: TracedRun, kernel_source: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TracedRun]:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(kernel_source))
    allow(traced_run)
    return traced_run


@pytest.fixture
def tracefs() -> Iterator[None]:
    """It is mounted, as by systemd: BCC reads there what tracepoints hand over."""
    if has_tracefs():
        yield
        return
    subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACEFS[0]], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", TRACEFS[0]], check=True)


def allow(run: TracedRun) -> None:
    with open(run.root / "system.yaml", "a") as config:
        config.write("policy: {custom: true}\n")


def layer(source: str, *functions: str, name: str = "own") -> model.CustomLayer:
    return model.CustomLayer(name=name, functions=list(functions), source=source)


def reasons(run: TracedRun) -> dict[str, str]:
    return {row["layer"]: row["reason"] for row in run.info()["skipped"]}


def test_a_lack_of_tracefs_is_told() -> None:
    said = ["own.c:3:9: error: incomplete definition of type 'struct tracepoint__a__b'"]
    assert "mount -t tracefs" in _first_error(said, tracefs=False)
    assert _first_error(said, tracefs=True) == said[0]


@pytest.mark.usefixtures("tracefs")
def test_request_latency_by_device(custom_run: TracedRun) -> None:
    names = ("read_request", "write_request", "other_request")
    text = (ROOT / "examples/request_latency.c").read_text()
    image = custom_run.root / "image"
    subprocess.run(["truncate", "-s", "16M", image], check=True)
    device = subprocess.run(
        ["losetup", "--direct-io=on", "--show", "-f", image],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    try:
        with custom_run.daemon(layer(text, *names, name="requests")):
            for how in ("of", "if"):
                other = {"of": "if=/dev/zero", "if": "of=/dev/null"}[how]
                flag = {"of": "oflag=direct", "if": "iflag=direct"}[how]
                subprocess.run(
                    ["dd", f"{how}={device}", other, flag, "bs=64K", "count=23", "status=none"],
                    check=True,
                )
        minor = Path(device).stat().st_rdev & 0xFF
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    trace = custom_run.trace()
    rows = trace.sql(
        'SELECT name, kind, count(*), sum(size)::BIGINT, min(dur) > 0, max("offset") FROM events '
        f"JOIN functions USING (func) WHERE ret = {7 << 20 | minor} AND size = 65536 "
        "GROUP BY ALL ORDER BY 1"
    )
    assert rows == [
        ("read_request", "custom", 23, 23 << 16, True, 22 << 16),
        ("write_request", "custom", 23, 23 << 16, True, 22 << 16),
    ]
    assert custom_run.info()["mechanisms"] == [
        {"layer": "requests", "kind": "custom", "mechanism": "bcc", "functions": 3}
    ]


COUNTS = """
RAW_TRACEPOINT_PROBE(sys_enter) {
    struct dc_event event = {};
    if (!dc_of_user() || ctx->args[1] != 74 /* fsync */)
        return 0;
    dc_begin(&event, DC_FUNCTION(seen));
    event.size = 4711;
    dc_emit(&event);
    return 0;
}
"""


def test_events_of_the_user_next_to_other_layers(custom_run: TracedRun) -> None:
    script = "import os\nfor i in range(23):\n try: os.fsync(99)\n except OSError: pass"
    with custom_run.daemon(SYSCALLS, layer(COUNTS, "seen", "a-b")):
        custom_run.python(script)
    rows = custom_run.trace().sql(
        "SELECT name, count(*), count(DISTINCT pid), count(DISTINCT tid), sum(size)::INT "
        "FROM events JOIN functions USING (func) GROUP BY name ORDER BY name"
    )
    assert rows == [("fsync", 23, 1, 1, -23), ("seen", 23, 1, 1, 23 * 4711)]
    both = custom_run.trace().sql("SELECT count(DISTINCT pid) FROM events")
    assert both == [(1,)]
    assert reasons(custom_run) == {"own": "is no name in C"}


BAD = {
    "typo": (
        "int broken(void *ctx) {\n  return foo;\n}\n",
        "typo.c:2:10: error: use of undeclared",
    ),
    "nothing": ("int alone(void *ctx) { return 0; }", "has no probe that BCC attaches"),
    "secret": ('#include "/etc/shadow"\n', "secret.c:1:10: fatal error: cannot open file"),
    "refused": (
        "RAW_TRACEPOINT_PROBE(sys_enter) { for (;;) dc_of_user(); return 0; }",
        "Failed to load BPF program",
    ),
    # this crashes the compiler of Debian 12
    "crash": (
        "RAW_TRACEPOINT_PROBE(sys_enter) { u64 e[8] = {};\n"
        "dc_ring.ringbuf_output(e, sizeof(e), 0); return 0; }",
        "the compiler ended: -6",
    ),
}


def test_what_does_not_compile_stops_nothing_else(custom_run: TracedRun) -> None:
    bad = [layer(source, "f", name=name) for name, (source, _) in BAD.items()]
    with custom_run.daemon(*bad, SYSCALLS):
        custom_run.python("import os\ntry: os.fsync(99)\nexcept OSError: pass")
    assert custom_run.trace().sql("SELECT count(*) FROM events") == [(1,)]
    found = reasons(custom_run)
    assert found.keys() == BAD.keys()
    for name, (_, reason) in BAD.items():
        assert reason in found[name], found
    assert "root" not in found["secret"]
    (log,) = (custom_run.root / "log").iterdir()
    assert "typo.c:2:10: error" in log.read_text()
    assert "root:" not in log.read_text()


def test_the_host_must_allow_it(traced_run: TracedRun) -> None:
    with traced_run.daemon(SYSCALLS, layer(COUNTS, "seen")):
        pass
    assert "policy.custom" in reasons(traced_run)["own"]
