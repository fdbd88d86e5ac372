"""Virtual machines that see the host's files: a stock kernel boots and runs one command as root.

Plain emulation, which works everywhere; ``DATACRUMBS_VM_ACCEL=kvm`` where that works. The guest
has the host's root file system or, of another architecture, one made for it, read-only, with its
own writes in memory, and one directory that both may write.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vm.kernels import ARM, NATIVE, Kernel, pack

VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
MEMORY_MB = 1536
START_S = 10.0
KERNEL_ARGUMENTS = "quiet panic=-1 oops=panic mitigations=off no_timer_check"
"""A busy host misses ticks of an emulated timer, which old kernels take for broken hardware."""
IN_A_PROGRAM = re.compile(r"(RIP: \S+:|pc : )bpf_prog_")
"""On the console: the kernel died in a BPF program, which emulation is not to blame for."""
TCG = "tcg,thread=multi,tb-size=512"


@dataclass(frozen=True, slots=True)
class Board:
    """The machine that qemu plays, and the Debian package that has it."""

    program: str
    package: str
    kind: str
    cpu: str
    console: str


BOARDS = {
    NATIVE: Board("qemu-system-x86_64", "qemu-system-x86", "q35", "max", "ttyS0"),
    ARM: Board("qemu-system-aarch64", "qemu-system-arm", "virt", "cortex-a72", "ttyAMA0"),
}


class MachineError(Exception):
    """The machine did not do what it was for; the text has its last words."""


class DiedError(MachineError):
    """It ended, or hung, before the command did."""


def run_in(
    kernel: Kernel,
    command: list[str],
    *,
    shared: Path,
    timeout_s: float,
    root: Path = Path("/"),
    arguments: str = "",
) -> str:
    """Boot, run ``command`` in ``shared``, power off; what it wrote. Raises `MachineError`.

    ``root`` is the guest's root file system, ``arguments`` more of the kernel's command line.
    """
    with contextlib.ExitStack() as up:
        work = Path(up.enter_context(tempfile.TemporaryDirectory(prefix="datacrumbs-vm-")))
        _write_initrd(work, kernel, command, shared)
        (work / "root").mkdir()
        up.enter_context(_file_server(work, "root.sock", root, read_only=work / "root"))
        up.enter_context(_file_server(work, "shared.sock", shared))
        code = _boot(work, kernel, timeout_s, arguments)
        output = _text(work / "out")
        answer = _text(work / "rc").strip()
        if answer == "0":
            return output
        console = _text(work / "console")
        what = f"exit code {answer}" if answer else f"it died or hung (qemu: {code})"
        ours = IN_A_PROGRAM.search(console)
        kind = MachineError if answer or ours else DiedError
        lines = [*console.splitlines()[-60:], _text(work / "qemu.log")]
        raise kind("\n".join([f"kernel {kernel.name}: {what}", output, *lines]))


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _write_initrd(work: Path, kernel: Kernel, command: list[str], shared: Path) -> None:
    """The kernel's own archive, followed by one with this run's command."""
    tree = work / "tree"
    tree.mkdir()
    settings = {"SHARED": shared, "MODULES": kernel.modules}
    (tree / "vm.env").write_text(
        "".join(f"{k}={shlex.quote(str(v))}\n" for k, v in settings.items())
    )
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    (tree / "vm.command").write_text(
        f"export PATH={path} HOME=/root LANG=C.UTF-8\ncd {shlex.quote(str(shared))}\n"
        f"exec {shlex.join(command)}\n"
    )
    pack(tree, work / "more.cpio")
    with open(work / "initrd", "wb") as initrd:
        initrd.write(kernel.initrd.read_bytes())
        initrd.write((work / "more.cpio").read_bytes())


@contextlib.contextmanager
def _file_server(
    work: Path, socket: str, source: Path, *, read_only: Path | None = None
) -> Iterator[None]:
    """virtiofsd for a directory. Read-only: through a bind mount in a mount namespace of its own,
    so that nothing of the host can be written and mounts below are not seen."""
    program = next((path for path in VIRTIOFSD if Path(path).exists()), None)
    if not program:
        raise MachineError("no virtiofsd: install qemu-system-common (Debian 12) or virtiofsd")
    cache = "always" if read_only else "auto"
    command = [program, f"--socket-path={work / socket}", "-o", f"source={read_only or source}"]
    command += ["-o", f"cache={cache}", "-o", "sandbox=chroot", "-o", "xattr", "-f"]
    if read_only:
        mount = f"mount --bind {source} {read_only} && mount -o remount,bind,ro {read_only}"
        command = ["unshare", "-m", "--propagation", "private", "sh", "-c",
                   f"{mount} && exec {shlex.join(command)}"]  # fmt: skip
    with open(work / f"{socket}.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while not (work / socket).exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise MachineError(f"virtiofsd: {_text(work / f'{socket}.log')}")
            time.sleep(0.02)
        yield
    finally:
        server.terminate()
        server.wait(timeout=10)


def _boot(work: Path, kernel: Kernel, timeout_s: float, arguments: str) -> int | None:
    """Run the machine to its end; its exit code, None after a timeout."""
    board = BOARDS[kernel.architecture]
    program = shutil.which(board.program)
    if not program:
        raise MachineError(f"no {board.program}: install {board.package}")
    native = kernel.architecture == NATIVE
    accelerator = (native and os.environ.get("DATACRUMBS_VM_ACCEL")) or TCG
    memory = f"memory-backend-memfd,id=mem,size={MEMORY_MB}M,share=on"
    command = [
        *(program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", f"{board.kind},memory-backend=mem", "-object", memory, "-m", f"{MEMORY_MB}M"),
        *("-accel", accelerator, "-cpu", board.cpu, "-smp", "2"),
        *("-kernel", str(kernel.image), "-initrd", str(work / "initrd")),
        *("-append", f"console={board.console} {KERNEL_ARGUMENTS} {arguments}"),
        *("-serial", f"file:{work / 'console'}", "-device", "virtio-serial-pci"),
    ]
    for port in ("out", "rc"):
        command += ["-chardev", f"file,id={port},path={work / port}"]
        command += ["-device", f"virtserialport,chardev={port},name={port}"]
    for tag, socket in (("rootfs", "root.sock"), ("shared", "shared.sock")):
        command += ["-chardev", f"socket,id={tag},path={work / socket}"]
        command += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
    with open(work / "qemu.log", "wb") as log:
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        return machine.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        machine.kill()
        machine.wait()
