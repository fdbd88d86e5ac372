"""The signing service as it runs: a root process, a Unix socket, clients that are other users."""

from __future__ import annotations

import json
import os
import platform
import pwd
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from datacrumbs.config import SystemConfig
from datacrumbs.errors import UserError
from datacrumbs.notify import notify
from datacrumbs.probes import model
from datacrumbs.signing import keys
from datacrumbs.signing.client import request_signature
from datacrumbs.signing.envelope import verify
from datacrumbs.signing.protocol import frame
from datacrumbs.signing.service import LANES

User = pwd.struct_passwd
COMMAND = [sys.executable, "-c", "from datacrumbs.cli.sign_probes import main; main()"]
TIMEOUT_S = 1.5

RAW_CLIENT = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
try: connection.sendall(sys.stdin.buffer.read())
except (BrokenPipeError, ConnectionResetError): pass
if "shut" in sys.argv: connection.shutdown(socket.SHUT_WR)
try:
    while data := connection.recv(1 << 16): sys.stdout.buffer.write(data)
except ConnectionResetError: pass  # it closed without reading all we sent
"""

MANY_CLIENTS = """
import sys, threading
from datacrumbs.config import Signing
from datacrumbs.signing.client import request_signature
signing = Signing(socket=sys.argv[1], timeout_s=30)
payload, count = sys.stdin.buffer.read(), int(sys.argv[2])
barrier, envelopes = threading.Barrier(count), []
def ask():
    barrier.wait()
    envelopes.append(request_signature(payload, signing))
threads = [threading.Thread(target=ask) for _ in range(count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(envelopes), len(set(envelopes)))
"""


class Service:
    """A running ``datacrumbs_sign_probes`` with its own keys, socket and log."""

    def __init__(self, directory: Path, **signing: Any) -> None:
        self.directory = directory
        self.socket = directory / "run" / "sign.sock"
        self.log = directory / "log"
        plain = {
            "cluster": "tuxedo",
            "keys": {
                "private": str(directory / "etc/signing/private.pem"),
                "public_dir": str(directory / "etc/keys"),
            },
            "signing": {"socket": str(self.socket), "timeout_s": TIMEOUT_S, **signing},
        }
        self.config = msgspec.convert(plain, SystemConfig)
        self.config_file = directory / "system.yaml"
        self.config_file.write_text(yaml.safe_dump(plain))
        self.config_file.chmod(0o644)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        address = self.directory / "notify"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, self.log.open("a") as log:
            manager.bind(str(address))
            manager.settimeout(20)
            self.process = subprocess.Popen(
                [*COMMAND, "--config", str(self.config_file)],
                stderr=log,
                env=os.environ | {"NOTIFY_SOCKET": str(address)},
            )
            assert manager.recv(4096).startswith(b"READY=1\nSTATUS=signing with key ")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def workers(self) -> list[int]:
        """The pids of its children."""
        assert self.process is not None
        pid = self.process.pid
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def audit(self) -> list[dict[str, Any]]:
        """All audit lines so far."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def verify(self, envelope: bytes) -> tuple[model.ProbeList, str]:
        """What the envelope says, if a key of this service signed it."""
        directory = Path(self.config.keys.public_dir)
        public = keys.load_public_keys(directory)
        payload, keyid = verify(envelope, public, source="test", keys_dir=directory)
        return model.decode(payload), keyid

    def ask(self, user: User, data: bytes, *, shut: bool = False) -> bytes:
        """Send raw bytes as ``user``; everything the service sends until it closes."""
        command = [sys.executable, "-I", "-c", RAW_CLIENT, str(self.socket)]
        result = subprocess.run(
            command + ["shut"] * shut, input=data, stdout=-1, check=True, timeout=30, **_as(user)
        )
        return bytes(result.stdout)

    def reply(self, user: User, payload: bytes) -> dict[str, Any]:
        """Send one request as ``user``; the reply."""
        return _decoded(self.ask(user, frame(payload)))

    def works(self, user: User) -> bool:
        """Whether it signs a plain request of ``user``."""
        return bool(self.reply(user, _payload(user))["ok"])


def _as(user: User) -> dict[str, Any]:
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _decoded(data: bytes) -> dict[str, Any]:
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    reply: dict[str, Any] = json.loads(data[4:])
    return reply


def _payload(asker: User, **changes: Any) -> bytes:
    now = int(time.time())
    probes = model.ProbeList(
        format=model.FORMAT,
        uid=asker.pw_uid,
        user=asker.pw_name,
        created=now,
        expires=now + 3600,
        host="login1",
        cluster="tuxedo",
        machine=platform.machine(),
        layers=[model.SyscallLayer(name="sys", functions=["read", "write"])],
    )
    return model.encode(msgspec.structs.replace(probes, **changes))


def _wait(condition: Callable[[], bool], limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


@pytest.fixture
def make(ordinary_user: User) -> Iterator[Callable[..., Service]]:
    """Makes services in directories that ordinary users reach, and ends them."""
    assert ordinary_user.pw_uid
    made: list[Service] = []

    def _make(**signing: Any) -> Service:
        directory = Path(tempfile.mkdtemp(prefix="dc-sign-"))
        directory.chmod(0o755)
        made.append(Service(directory, **signing))
        return made[-1]

    yield _make
    for service in made:
        if service.process is not None and service.process.poll() is None:
            service.process.kill()
            service.process.wait()
        shutil.rmtree(service.directory)


@pytest.fixture
def service(make: Callable[..., Service]) -> Service:
    """A running service."""
    made = make()
    made.start()
    return made


def test_it_signs_for_who_asks(service: Service, ordinary_user: User) -> None:
    payload = _payload(ordinary_user)
    reply = service.reply(ordinary_user, payload)
    probes, keyid = service.verify(json.dumps(reply["envelope"]).encode())
    assert model.encode(probes) == payload
    (line,) = service.audit()
    assert line.pop("ms") < TIMEOUT_S * 1000
    assert line.pop("pid") > 1
    assert line == {
        "audit": "datacrumbs_sign_probes",
        "decision": "signed",
        "uid": ordinary_user.pw_uid,
        "user": ordinary_user.pw_name,
        "functions": 2,
        "layers": ["sys"],
        "keyid": keyid,
        "reason": "",
    }


def test_what_it_creates_is_guarded(service: Service) -> None:
    private = Path(service.config.keys.private)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert private.stat().st_uid == 0
    assert stat.S_IMODE(service.socket.stat().st_mode) == 0o666
    assert stat.S_IMODE(service.socket.parent.stat().st_mode) == 0o755


def test_it_does_not_sign_for_somebody_else(
    service: Service, ordinary_user: User, other_user: User
) -> None:
    for uid, name in (
        (other_user.pw_uid, other_user.pw_name),
        (0, "root"),
        (other_user.pw_uid, ordinary_user.pw_name),
    ):
        reply = service.reply(ordinary_user, _payload(ordinary_user, uid=uid, user=name))
        assert reply["error"] == (
            f"uid: uid {ordinary_user.pw_uid} ({ordinary_user.pw_name}) asks for uid {uid}"
        )
        assert (reply["ok"], reply["envelope"]) == (False, None)
    reply = service.reply(ordinary_user, _payload(ordinary_user, user=other_user.pw_name))
    assert reply["error"].startswith("user: ")
    assert {line["decision"] for line in service.audit()} == {"refused"}
    assert {line["uid"] for line in service.audit()} == {ordinary_user.pw_uid}


def test_it_does_not_sign_for_root(service: Service) -> None:
    root = pwd.getpwuid(0)
    with pytest.raises(UserError, match=r"signing service: policy\.min_uid: uid 0 \(root\)"):
        request_signature(_payload(root), service.config.signing)


def test_a_key_said_twice_is_signed_as_it_was_checked(
    service: Service, ordinary_user: User
) -> None:
    honest = _payload(ordinary_user)
    twice = honest.replace(b'{"format":1,', b'{"format":1,"uid":0,"user":"root",', 1)
    assert twice != honest
    reply = service.reply(ordinary_user, twice)
    probes, _ = service.verify(json.dumps(reply["envelope"]).encode())
    assert model.encode(probes) == honest


def test_it_survives_garbage(service: Service, ordinary_user: User) -> None:
    good = _payload(ordinary_user)
    limit = service.config.signing.max_request_bytes
    cases = {
        frame(b"\xff\x00garbage"): "the request: not a probe list: ",
        frame(b"[" * 100_000): "the request: not a probe list: ",
        frame(b"{}"): "the request: not a probe list: ",
        frame(good[:-1] + b',"extra":1}'): "the request: not a probe list: Object contains unknown",
        frame(good.replace(b'"format":1', b'"format":9')): "the request: format 9, this version",
        frame(b""): "the request of 0 bytes, at least 1 and",
        b"GET / HTTP/1.1\r\n\r\n": f"the request of {int.from_bytes(b'GET ', 'big')} bytes, at",
        (limit + 1).to_bytes(4, "big") + bytes(1 << 20): f"the request of {limit + 1} bytes",
    }
    for data, error in cases.items():
        reply = _decoded(service.ask(ordinary_user, data))
        assert reply["error"].startswith(error)
        assert not reply["ok"]
    assert [line["decision"] for line in service.audit()] == ["refused"] * len(cases)
    assert service.works(ordinary_user)


def test_half_a_request_is_refused_when_the_client_stops(
    service: Service, ordinary_user: User
) -> None:
    whole = frame(_payload(ordinary_user))
    for size in (0, 1, 3, 4, 5, len(whole) - 1):
        reply = _decoded(service.ask(ordinary_user, whole[:size], shut=True))
        assert reply["error"].startswith("the request is cut off: ")
    assert service.works(ordinary_user)


def test_a_client_that_is_gone_is_recorded(service: Service) -> None:
    for data in (b"", b"\0", frame(b"{}")):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(service.socket))
            connection.sendall(data)
    _wait(lambda: len(service.audit()) == 3)
    assert {line["decision"] for line in service.audit()} == {"refused"}


def test_slow_clients_are_told_and_disturb_nobody(
    make: Callable[..., Service], ordinary_user: User
) -> None:
    limit_s = 4.0
    service = make(timeout_s=limit_s)
    service.start()
    slow = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    began = time.monotonic()
    for connection in slow:
        connection.connect(str(service.socket))
        connection.sendall(b"\0\0")
    assert service.works(ordinary_user)
    assert time.monotonic() - began < limit_s
    for connection in slow:
        reply = _decoded(connection.recv(1 << 16))
        assert reply["error"] == "too slow: not done within signing.timeout_s"
        connection.close()
    assert limit_s * 0.9 < time.monotonic() - began < limit_s + 10
    _wait(lambda: not service.workers())


def test_a_client_that_trickles_is_cut_off(service: Service) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(service.socket))
        connection.sendall((1000).to_bytes(4, "big"))
        began, ready = time.monotonic(), False
        while not ready and time.monotonic() - began < TIMEOUT_S + 10:
            connection.sendall(b"x")
            ready = bool(select.select([connection], [], [], 0.1)[0])
        assert _decoded(connection.recv(1 << 16))["error"].startswith("too slow")


def test_a_client_that_does_not_read_is_killed_off(
    make: Callable[..., Service], ordinary_user: User, tmp_path: Path
) -> None:
    service = make(timeout_s=2)
    service.start()
    functions = [f"f{n}" for n in range(60_000)]  # a reply that no socket buffer holds
    payload = _payload(ordinary_user, layers=[model.SyscallLayer(name="sys", functions=functions)])
    script = (
        "import socket, sys, time\n"
        "connection = socket.socket(socket.AF_UNIX); connection.connect(sys.argv[1])\n"
        "connection.sendall(sys.stdin.buffer.read()); time.sleep(60)\n"
    )
    command = [sys.executable, "-I", "-c", script, str(service.socket)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, **_as(ordinary_user)) as client:
        assert client.stdin is not None
        client.stdin.write(frame(payload))
        client.stdin.close()
        _wait(lambda: [x["decision"] for x in service.audit()] == ["signed", "failed"])
        client.kill()
    assert service.audit()[1]["reason"] == "no answer in time"
    assert service.workers() == []


def test_a_binary_that_takes_for_ever_is_given_up(service: Service, ordinary_user: User) -> None:
    binary = service.directory.resolve() / "endless"
    command = ["gcc", "-x", "c", "-Wl,--build-id=none", "-o", str(binary), "-"]
    subprocess.run(command, input=b"int main(void) { return 0; }", check=True)
    os.truncate(binary, 1 << 42)  # without a build-id all of it would be read
    layer = model.UserLayer(
        name="app",
        binary=str(binary),
        functions=[model.UserFunction(name="main", offset=4096)],
        digest="sha256:" + "0" * 64,
    )
    reply = service.reply(ordinary_user, _payload(ordinary_user, layers=[layer]))
    assert reply["error"] == "too slow: not done within signing.timeout_s"
    assert service.works(ordinary_user)


def test_a_hundred_clients_at_once_are_all_served(
    service: Service, ordinary_user: User, other_user: User
) -> None:
    processes = []
    for user, count in ((ordinary_user, 70), (other_user, 30)):
        command = [sys.executable, "-c", MANY_CLIENTS, str(service.socket), str(count)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **_as(user)
        )
        processes.append((process, _payload(user), count))
    for process, payload, count in processes:
        output, _ = process.communicate(payload, timeout=60)
        assert output.decode().split() == [str(count), "1"]
    assert [line["decision"] for line in service.audit()] == ["signed"] * 100


def test_limits_hold_per_user_and_in_all(
    make: Callable[..., Service], ordinary_user: User, other_user: User
) -> None:
    service = make(max_clients=3, max_clients_per_user=2, timeout_s=10)
    service.start()
    holders = []
    script = (
        "import socket, sys\n"
        "held = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]\n"
        "for one in held: one.connect(sys.argv[1])\n"
        "sys.stdin.read()\n"
    )
    try:
        for user, count in ((ordinary_user, 2), (other_user, 1)):
            if user is other_user:
                assert service.works(other_user)
            command = [sys.executable, "-I", "-c", script, str(service.socket), str(count)]
            holders.append(subprocess.Popen(command, stdin=subprocess.PIPE, **_as(user)))
            before = len(service.workers())
            _wait(lambda now=before + count: len(service.workers()) == now)  # type: ignore[misc]
            if user is ordinary_user:
                reply = service.reply(user, _payload(user))
                assert reply["error"].startswith("busy: 2 requests of yours at once")
        large = _payload(other_user) + b" " * (4 << 20)  # busy comes before it is read
        reply = service.reply(other_user, large)
        assert reply["error"] == "busy: 3 requests at once (signing.max_clients)"
    finally:
        for holder in holders:
            holder.communicate(b"")
    _wait(lambda: not service.workers())
    assert service.works(ordinary_user)
    assert [line["decision"] for line in service.audit()].count("busy") == 2


FLOOD = """
import socket, sys, time
until = time.monotonic() + 2.5
while time.monotonic() < until:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(sys.argv[1])
        one.recv(1 << 16)
"""


def test_a_loop_of_requests_does_not_wash_away_the_audit(
    make: Callable[..., Service], ordinary_user: User, other_user: User
) -> None:
    service = make(max_clients=3, max_clients_per_user=1, timeout_s=10)
    service.start()
    with socket.socket(socket.AF_UNIX) as holder:
        holder.connect(str(service.socket))  # root's only one; what follows is turned away
        command = [sys.executable, "-I", "-c", FLOOD, str(service.socket)]
        _wait(lambda: len(service.workers()) == 1)
        subprocess.run(command, check=True, timeout=30)
        assert service.works(other_user)
    busy = [line for line in service.audit() if line["decision"] == "busy"]
    assert 2 <= len(busy) <= 4
    untold = re.search(r"; (\d+) more before this one", busy[-1]["reason"])
    assert untold and int(untold[1]) > 20
    assert service.works(ordinary_user)


SENDER = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.sendall((2 << 20).to_bytes(4, "big") + bytes(3 << 19))
print("taken", flush=True)
sys.stdin.read()
"""


def test_a_user_cannot_fill_the_memory_with_large_requests(
    make: Callable[..., Service], ordinary_user: User, other_user: User
) -> None:
    service = make(timeout_s=30)
    service.start()
    users = [ordinary_user] * (LANES + 3) + [other_user]
    command = [sys.executable, "-I", "-c", SENDER, str(service.socket)]
    senders = [subprocess.Popen(command, stdin=-1, stdout=-1, **_as(user)) for user in users]
    try:
        _wait(lambda: len(service.workers()) == len(users))
        assert senders[-1].stdout is not None and senders[-1].stdout.readline() == b"taken\n"
        taken = [s for s in senders[:-1] if s.stdout and select.select([s.stdout], [], [], 1)[0]]
        assert len(taken) == LANES  # of the others, no more is read than their size
        assert service.works(ordinary_user)
        for sender in taken:
            sender.kill()
        for sender in senders[:-1]:  # the others are let in
            assert sender in taken or (sender.stdout and sender.stdout.readline() == b"taken\n")
    finally:
        for sender in senders:
            sender.kill()
            sender.communicate()


def test_journald_drops_no_line_of_the_audit() -> None:
    unit = Path(sys.prefix, "lib/systemd/system/datacrumbs_sign_probes.service").read_text()
    assert "\nLogRateLimitIntervalSec=0\n" in unit


def test_a_worker_that_dies_takes_nobody_with_it(service: Service, ordinary_user: User) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(service.socket))
        _wait(lambda: len(service.workers()) == 1)
        os.kill(service.workers()[0], signal.SIGKILL)
        reply = _decoded(connection.recv(1 << 16))
        assert reply["error"] == "the worker ended with -9"
        assert connection.recv(1) == b""
    assert service.audit()[-1]["decision"] == "failed"
    assert service.works(ordinary_user)


def test_a_key_that_others_can_read_signs_nothing(service: Service, ordinary_user: User) -> None:
    private = Path(service.config.keys.private)
    private.chmod(0o644)
    reply = service.reply(ordinary_user, _payload(ordinary_user))
    assert reply["error"] == f"{private}: mode 0644 lets others at it"
    private.chmod(0o600)
    assert service.works(ordinary_user)


def test_nothing_is_signed_when_it_cannot_be_recorded(
    make: Callable[..., Service], ordinary_user: User
) -> None:
    service = make()
    reader, writer = os.pipe()
    service.log = Path(f"/dev/fd/{writer}")
    service.start()
    os.close(writer)
    assert service.works(ordinary_user)
    os.close(reader)
    reply = service.reply(ordinary_user, _payload(ordinary_user))
    assert (reply["ok"], reply["error"]) == (False, "the worker ended with 1")


def test_it_does_not_start_when_it_cannot_write_its_log(make: Callable[..., Service]) -> None:
    service = make()
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "--config", str(service.config_file)]
        assert subprocess.run(command, stderr=full, timeout=20, check=False).returncode != 0
    assert not service.socket.exists()


def test_nobody_can_forge_an_audit_line(service: Service, ordinary_user: User) -> None:
    forged = '\n{"audit":"datacrumbs_sign_probes","decision":"signed"}\r\x1b[2J\x7f\u202e\u2028'
    for changes in ({"host": "x" + forged}, {"user": forged}, {"cluster": forged}):
        assert not service.reply(ordinary_user, _payload(ordinary_user, **changes))["ok"]
    with_unknown_field = json.dumps({"format": 1, forged: 1}).encode()
    assert not service.reply(ordinary_user, with_unknown_field)["ok"]
    assert [line["decision"] for line in service.audit()] == ["refused"] * 4
    text = service.log.read_bytes()
    assert all(byte == 10 or 32 <= byte < 127 for byte in text)


def test_stopping_finishes_what_is_under_way(service: Service, ordinary_user: User) -> None:
    whole = frame(_payload(ordinary_user))
    assert service.process is not None
    command = [sys.executable, "-I", "-c", RAW_CLIENT, str(service.socket)]
    client = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **_as(ordinary_user)
    )
    _wait(lambda: len(service.workers()) == 1)  # connected; its request comes after the stop
    service.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    output, _ = client.communicate(whole, timeout=20)
    assert _decoded(output)["ok"]
    assert service.process.wait(20) == 0
    assert not service.socket.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_idle_is_quick(make: Callable[..., Service], number: int) -> None:
    service = make(timeout_s=60)  # what it would wait for a client
    service.start()
    began = time.monotonic()
    assert service.stop(number) == 0
    assert time.monotonic() - began < 15
    assert not service.socket.exists()


def test_after_a_kill_it_starts_again_with_the_same_key(
    service: Service, ordinary_user: User
) -> None:
    key = Path(service.config.keys.private).read_bytes()
    assert service.stop(signal.SIGKILL) == -signal.SIGKILL
    assert service.socket.exists()
    service.start()
    assert Path(service.config.keys.private).read_bytes() == key
    assert service.works(ordinary_user)


def test_a_second_service_does_not_take_the_socket(service: Service, ordinary_user: User) -> None:
    second = _run_command(service, "--config", str(service.config_file))
    assert second.returncode == 1
    assert second.stderr.splitlines()[-2] == (
        f"datacrumbs_sign_probes: error: {service.socket}: a signing service is running"
    )
    assert service.works(ordinary_user)


def test_a_socket_directory_of_somebody_else_is_refused(
    make: Callable[..., Service], ordinary_user: User
) -> None:
    service = make()
    service.socket.parent.mkdir()
    os.chown(service.socket.parent, ordinary_user.pw_uid, -1)
    result = _run_command(service, "--config", str(service.config_file))
    assert result.returncode == 1
    assert "others could put their own socket there" in result.stderr


def _run_command(
    service: Service, *arguments: str, **settings: Any
) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=20, check=False, **settings
    )


def test_only_root_may_start_it(service: Service, ordinary_user: User) -> None:
    result = _run_command(service, "--config", str(service.config_file), **_as(ordinary_user))
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == "datacrumbs_sign_probes: error: only root can sign"


def test_show_keys_lists_them_and_says_which_signs(service: Service) -> None:
    own = keys.key_id(keys.load_private_key(Path(service.config.keys.private)).public_key())
    public_dir = Path(service.config.keys.public_dir)
    other = keys.create_private_key(service.directory / "other" / "key.pem", public_dir)
    result = _run_command(service, "--config", str(service.config_file), "--show-keys")
    assert result.returncode == 0
    lines = {line.split()[0]: "signs here" in line for line in result.stdout.splitlines()}
    assert lines == {own: True, other: False}


def test_systemd_hands_over_the_socket(make: Callable[..., Service], ordinary_user: User) -> None:
    service = make()
    service.socket.parent.mkdir(mode=0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(service.socket))
        service.socket.chmod(0o666)
        listener.listen()
        # what systemd does between fork and exec
        hand_over = (
            "import os, sys\n"
            f"os.dup2({listener.fileno()}, 3)\n"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
            "os.execv(sys.executable, sys.argv[1:])\n"
        )
        with service.log.open("w") as log:
            service.process = subprocess.Popen(
                [sys.executable, "-c", hand_over, *COMMAND, "--config", str(service.config_file)],
                pass_fds=[listener.fileno()],
                stderr=log,
            )
        assert service.works(ordinary_user)  # waits in the backlog until the service is there
        assert service.stop() == 0
        assert service.socket.exists()  # it is systemd's


@pytest.mark.parametrize("kind", ["datagram", "not listening", "two"])
def test_a_wrong_socket_from_systemd_is_refused(make: Callable[..., Service], kind: str) -> None:
    service = make()
    number = socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, number) as given:
        count = 2 if kind == "two" else 1
        hand_over = (
            "import os, sys\n"
            f"os.dup2({given.fileno()}, 3)\n"
            f"os.environ.update(LISTEN_FDS='{count}', LISTEN_PID=str(os.getpid()))\n"
            "os.execv(sys.executable, sys.argv[1:])\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", hand_over, *COMMAND, "--config", str(service.config_file)],
            pass_fds=[given.fileno()],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert result.returncode == 1
    assert f"LISTEN_FDS={count}: not one listening Unix stream socket" in result.stderr


def test_without_a_service_the_client_says_how_to_start_it(tmp_path: Path) -> None:
    signing = SystemConfig().signing
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead"))
    dead.close()
    for name, why in (("none", "No such file or directory"), ("dead", "Connection refused")):
        path = tmp_path / name
        with pytest.raises(UserError) as caught:
            request_signature(b"{}", msgspec.structs.replace(signing, socket=str(path)))
        assert caught.value.message == f"no signing service at {path}: {why}"
        assert "systemctl start datacrumbs_sign_probes.socket" in caught.value.hint


def test_the_client_refuses_what_the_service_would_not_take() -> None:
    signing = msgspec.structs.replace(SystemConfig().signing, max_request_bytes=10)
    with pytest.raises(UserError, match="has 11 bytes, the signing service takes 10"):
        request_signature(b"x" * 11, signing)


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_reaches_the_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@datacrumbs-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0") if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify("READY=1\nSTATUS=fine")
        assert manager.recv(100) == b"READY=1\nSTATUS=fine"
    assert not notify("STOPPING=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify("STOPPING=1")


def test_the_service_imports_nothing_of_analysis() -> None:
    script = (
        "import sys, datacrumbs.cli.sign_probes, datacrumbs.signing.service\nprint(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    modules = {name.split(".")[0] for name in result.stdout.split()}
    assert not modules & {"numpy", "pyarrow", "duckdb", "polars", "rich", "elftools", "bcc"}
    ours = {name for name in result.stdout.split() if name.startswith("datacrumbs.")}
    assert not [x for x in ours if x.split(".")[1] in {"analysis", "report", "trace", "tracer"}]
