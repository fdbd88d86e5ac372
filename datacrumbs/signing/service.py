"""The signing service: one process that accepts, one short-lived child per request.

The parent touches nothing a client sends. A child reads one request, checks it against the
policy, only then reads the private key, signs, writes the audit line, answers and exits. It
has ``signing.timeout_s`` for all of that and is killed soon after; a child that dies takes
no other request with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import selectors
import signal
import socket
import stat
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from datacrumbs.config import SystemConfig
from datacrumbs.errors import UserError
from datacrumbs.notify import notify
from datacrumbs.printable import printable
from datacrumbs.probes import model
from datacrumbs.probes.file import decode_payload
from datacrumbs.signing import envelope, keys, policy
from datacrumbs.signing.policy import Peer
from datacrumbs.signing.protocol import Reply, frame, receive_frame, refusal

GRACE_S = 1.0
"""What a child gets beyond its limit to say that it was late, before it is killed."""

BUSY_EVERY_S = 1.0
"""How often the audit says of one user that we are busy: a loop must not wash it away."""

LARGE_BYTES = 1 << 20
LANES = 4
"""How many of one user's requests that may take much memory are worked on at once.

These are the larger ones and all with binaries: up to 0.6 GB each. The others of that user wait,
so that nobody fills what the unit may have (MemoryMax=), with `max_clients_per_user` or without.
"""

SD_LISTEN_FDS_START = 3
BACKLOG = 1024
AUDIT_LAYERS = 16


@dataclass(slots=True)
class Audit:
    """One request, as its audit line says it."""

    pid: int
    uid: int
    started: float = field(default_factory=time.monotonic)
    user: str = ""
    functions: int = 0
    layers: tuple[str, ...] = ()
    keyid: str = ""

    def write(self, decision: str, reason: str) -> None:
        """One line of JSON to standard error, in one write.

        Only printable ASCII, so that no client can forge a line or play with a terminal. When
        the line cannot be written the error is passed on: without a record no signature.
        """
        line = {
            "audit": "datacrumbs_sign_probes",
            "decision": decision,
            "uid": self.uid,
            "user": self.user,
            "pid": self.pid,
            "functions": self.functions,
            "layers": self.layers[:AUDIT_LAYERS],
            "keyid": self.keyid,
            "ms": round((time.monotonic() - self.started) * 1000, 1),
            "reason": reason[:1000],
        }
        text = json.dumps(line, ensure_ascii=True).replace("\x7f", "\\u007f")
        os.write(sys.stderr.fileno(), text.encode("ascii") + b"\n")


@dataclass(slots=True)
class Worker:
    """A child at work. The parent keeps the connection to answer if the child cannot."""

    audit: Audit
    connection: socket.socket
    kill_at: float
    late: bool = False


def serve(config: SystemConfig) -> None:
    """Run the service until SIGTERM or SIGINT; requests under way are finished first.

    Listens on the socket systemd hands over, else creates ``signing.socket``. Creates the
    private key when there is none. Raises `UserError` when it cannot start.
    """
    keyid = keys.ensure_private_key(Path(config.keys.private), Path(config.keys.public_dir))
    with _listening(Path(config.signing.socket)) as listener:
        Service(config, listener).run(f"signing with key {keyid}")


class Service:
    """The parent: accepts, counts, forks, reaps."""

    def __init__(self, config: SystemConfig, listener: socket.socket) -> None:
        self.config = config
        self.listener = listener
        self.workers: dict[int, Worker] = {}
        self.stopping = False
        self.quiet_until: dict[int, float] = {}  # by uid
        self.untold: Counter[int] = Counter()
        self.lanes = os.memfd_create("lanes")

    def run(self, status: str) -> None:
        """Serve until told to stop; tells systemd when ready, with ``status``."""
        with _wakeups() as wakeup, selectors.DefaultSelector() as selector:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._stop)
            selector.register(wakeup, selectors.EVENT_READ)
            selector.register(self.listener, selectors.EVENT_READ)
            # first, so that a service that cannot write its log never says that it is ready
            print(f"datacrumbs_sign_probes: {status}", file=sys.stderr, flush=True)
            notify(f"READY=1\nSTATUS={status}")
            while not self.stopping:
                self._step(selector, wakeup)
            notify("STOPPING=1")
            selector.unregister(self.listener)
            self.listener.close()
            give_up = time.monotonic() + self.config.signing.timeout_s + 2 * GRACE_S
            while self.workers and time.monotonic() < give_up:
                self._step(selector, wakeup)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.stopping = True

    def _step(self, selector: selectors.BaseSelector, wakeup: socket.socket) -> None:
        ready = [key.fileobj for key, _ in selector.select(self._until_next_kill())]
        if wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                wakeup.recv(4096)
        self._reap()
        self._kill_late()
        if self.listener in ready and not self.stopping:
            self._accept_all()

    def _until_next_kill(self) -> float | None:
        times = [worker.kill_at for worker in self.workers.values()]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _kill_late(self) -> None:
        for pid, worker in self.workers.items():
            if worker.kill_at <= time.monotonic():
                os.kill(pid, signal.SIGKILL)  # ours until it is reaped
                # one that hangs in a dead file system does not die: do not spin meanwhile
                worker.late, worker.kill_at = True, worker.kill_at + GRACE_S

    def _reap(self) -> None:
        while self.workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            worker = self.workers.pop(pid, None)
            if worker is not None:
                self._bury(worker, os.waitstatus_to_exitcode(status))

    def _bury(self, worker: Worker, code: int) -> None:
        if code != 0:
            reason = "no answer in time" if worker.late else f"the worker ended with {code}"
            with contextlib.suppress(OSError):
                worker.audit.write("failed", reason)
            _send_now(worker.connection, refusal(reason, "try again, or tell an administrator"))
        worker.connection.close()

    def _accept_all(self) -> None:
        for _ in range(BACKLOG):
            try:
                connection, _ = self.listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors or memory: let some children finish
                with contextlib.suppress(OSError):
                    print(f"datacrumbs_sign_probes: accept: {error}", file=sys.stderr, flush=True)
                time.sleep(0.1)
                return
            self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        """Start a child for ``connection``, or say that we are busy."""
        pid, uid, _ = _peer_credentials(connection)
        audit = Audit(pid=pid, uid=uid)
        reason = self._busy(uid)
        if not reason:
            try:
                self._fork(connection, audit)
                return
            except OSError as error:
                reason = f"cannot start a worker: {error.strerror}"
        self._tell_busy(audit, reason)
        _send_now(connection, refusal(reason, "try again in a few seconds"))
        connection.close()

    def _tell_busy(self, audit: Audit, reason: str) -> None:
        """One line, or, for a user who has just had one, a number in the next."""
        if audit.started < self.quiet_until.get(audit.uid, 0):
            self.untold[audit.uid] += 1
            return
        self.quiet_until[audit.uid] = audit.started + BUSY_EVERY_S
        before = self.untold.pop(audit.uid, 0)
        with contextlib.suppress(OSError):
            audit.write("busy", reason + (f"; {before} more before this one" if before else ""))

    def _busy(self, uid: int) -> str:
        signing = self.config.signing
        if len(self.workers) >= signing.max_clients:
            return f"busy: {signing.max_clients} requests at once (signing.max_clients)"
        same = sum(worker.audit.uid == uid for worker in self.workers.values())
        if same >= signing.max_clients_per_user:
            return f"busy: {same} requests of yours at once (signing.max_clients_per_user)"
        return ""

    def _fork(self, connection: socket.socket, audit: Audit) -> None:
        kill_at = time.monotonic() + self.config.signing.timeout_s + GRACE_S
        child = os.fork()
        if child == 0:
            self._be_child(connection, audit)
        self.workers[child] = Worker(audit, connection, kill_at)

    def _be_child(self, connection: socket.socket, audit: Audit) -> NoReturn:
        """Never returns, whatever happens, into the parent's loop."""
        code = 1
        try:
            _reset_signals()
            self.listener.close()
            for other in self.workers.values():
                other.connection.close()
            # when memory is short the kernel takes a child, not the parent
            Path("/proc/self/oom_score_adj").write_text("1000")
            handle(connection, audit, self.config, self.lanes)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


def handle(connection: socket.socket, audit: Audit, config: SystemConfig, lanes: int) -> None:
    """Answer the one request of ``connection``, in a process of its own.

    ``lanes`` is the descriptor of a file that all these have, for `_take_lane`.
    Arms SIGALRM for the whole of it, so that a client or a file system that dawdles ends in
    a refusal, wherever we wait.
    """
    signal.signal(signal.SIGALRM, _too_late)
    signal.setitimer(signal.ITIMER_REAL, config.signing.timeout_s)
    try:
        reply, decision = _signed(connection, audit, config, lanes), "signed"
        signal.setitimer(signal.ITIMER_REAL, 0)
    except (UserError, MemoryError, ConnectionError) as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply, decision = refusal(*_words(error)), "refused"
    audit.write(decision, reply.error)
    # a client that does not read is killed off by the parent
    with contextlib.suppress(ConnectionError):
        connection.sendall(frame(msgspec.json.encode(reply)))


def _words(error: UserError | MemoryError | ConnectionError) -> tuple[str, str]:
    if isinstance(error, UserError):
        return printable(error.message), printable(error.hint)
    if isinstance(error, MemoryError):
        return "the request needs too much memory", "capture fewer functions"
    return f"the client went away: {error.strerror}", ""


def _too_late(_signal: int, _frame: FrameType | None) -> None:
    raise UserError("too slow: not done within signing.timeout_s")


def _signed(connection: socket.socket, audit: Audit, config: SystemConfig, lanes: int) -> Reply:
    peer = _peer(audit)
    audit.user = peer.name
    request = receive_frame(
        connection,
        max_bytes=config.signing.max_request_bytes,
        what="the request",
        before=lambda size: _take_lane(lanes, peer.uid) if size > LARGE_BYTES else None,
    )
    probes = decode_payload(request, source="the request")
    if len(request) <= LARGE_BYTES and any(_has_binary(layer) for layer in probes.layers):
        _take_lane(lanes, peer.uid)
    audit.functions = probes.probe_count()
    audit.layers = tuple(layer.name for layer in probes.layers)
    policy.check(probes, peer, config.policy, cluster=config.cluster, now=time.time())
    key = keys.load_private_key(Path(config.keys.private))
    audit.keyid = keys.key_id(key.public_key())
    # our own encoding of what was checked, not the client's bytes: JSON can say a thing twice
    return Reply(ok=True, envelope=msgspec.Raw(envelope.sign(model.encode(probes), key)))


def _has_binary(layer: model.Layer) -> bool:
    return isinstance(layer, model.UserLayer | model.UsdtLayer)


def _take_lane(lanes: int, uid: int) -> None:
    """Wait for one of the user's `LANES`; it is ours until this process ends."""
    first = uid * LANES
    for lane in range(LANES):
        with contextlib.suppress(BlockingIOError):
            fcntl.lockf(lanes, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, first + lane)
            return
    fcntl.lockf(lanes, fcntl.LOCK_EX, 1, first + os.getpid() % LANES)


def _peer(audit: Audit) -> Peer:
    # here and not in the parent: a name service may take its time
    try:
        entry = pwd.getpwuid(audit.uid)
    except KeyError as error:
        raise UserError(f"uid: {audit.uid} is not a user of this host") from error
    return Peer(pid=audit.pid, uid=audit.uid, gid=entry.pw_gid, name=entry.pw_name)


def _peer_credentials(connection: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the process that connected, as the kernel recorded them."""
    layout = struct.Struct("iII")  # struct ucred
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    pid, uid, gid = layout.unpack(data)
    return pid, uid, gid


def _send_now(connection: socket.socket, reply: Reply) -> None:
    """Send what the socket's buffer takes, without waiting for the client."""
    with contextlib.suppress(OSError):
        connection.send(frame(msgspec.json.encode(reply)), socket.MSG_DONTWAIT)


@contextlib.contextmanager
def _wakeups() -> Iterator[socket.socket]:
    """A socket that becomes readable when a signal arrives (a child ended, or stop)."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, before)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # a stop is for the parent, which waits for us; Ctrl-C reaches the whole group
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    handed = _from_systemd()
    if handed is not None:
        with handed:
            yield handed
        return
    with _directory_lock(path), _bound(path) as listener:
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _from_systemd() -> socket.socket | None:
    """The listening socket of sd_listen_fds(3); None when we were started by hand."""
    count = os.environ.pop("LISTEN_FDS", "")
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return None
    listener = socket.socket(fileno=SD_LISTEN_FDS_START) if count == "1" else None
    if (
        listener is None
        or (listener.family, listener.type) != (socket.AF_UNIX, socket.SOCK_STREAM)
        or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        raise UserError(
            f"LISTEN_FDS={count}: not one listening Unix stream socket",
            hint="see datacrumbs_sign_probes.socket: one ListenStream=, Accept=no",
        )
    listener.set_inheritable(False)
    listener.setblocking(False)
    return listener


def _bound(path: Path) -> socket.socket:
    """A new socket that everybody may connect to, in place of a dead one's."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if path.is_socket():
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UserError(f"{path}: {error.strerror or error}") from error
    return listener


@contextlib.contextmanager
def _directory_lock(path: Path) -> Iterator[None]:
    """Hold the socket's directory, so that a second service does not take the socket away.

    It is made if missing, and only root may write it: whoever can, can be the service.
    """
    directory = path.parent
    try:
        if not directory.is_dir():
            directory.mkdir()
            directory.chmod(0o755)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}") from error
    try:
        _check_socket_directory(directory, os.fstat(fd))
        _lock(fd, path)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{path}: a signing service is running",
            hint="stop it first: systemctl stop datacrumbs_sign_probes.socket "
            "datacrumbs_sign_probes",
        ) from error


def _check_socket_directory(directory: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UserError(
            f"{directory}: owned by uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}: "
            "others could put their own socket there",
            hint=f"chown root {directory} && chmod 755 {directory}",
        )
