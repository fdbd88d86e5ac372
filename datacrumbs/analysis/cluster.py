"""The work on each host of a trace, done by the workers of a Dask cluster.

They read the trace themselves, from a file system that they see as we do; what they send back
are sums. A worker that dies is Dask's business: it lets another one do the work again.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from datacrumbs import __version__
from datacrumbs.analysis.on_each import AHEAD, Progress, in_turn
from datacrumbs.errors import BadInputError, UserError
from datacrumbs.trace.reader import HostTrace
from datacrumbs.trace.runfile import RunInfo, read_run_info

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_S = 5.0
WORKERS_S = 20.0
"""How long a scheduler may have no worker at all; those of a batch system come when they come."""

_ADDRESS = re.compile(r"(tcp|tls|wss?|ucxx?)://[^/]+:[0-9]+/?")
_LOOK_S = 1.0
_FETCH_S = 60.0  # what is there, from a worker that may be gone since
_TELL_S = 0.5

T = TypeVar("T")


@contextmanager
def connected(scheduler: str | None) -> Iterator[DaskCluster | None]:
    """The cluster of ``scheduler``: an address, or a scheduler's file. None for none.

    Raises `BadInputError` for what is neither, `UserError` when Dask is not installed, nobody
    answers, no worker is there in time, or other versions are there.
    """
    if scheduler is None:
        yield None
        return
    address = _address(scheduler)
    _check_installed()
    with _quiet(), _client(address) as client:
        cluster = DaskCluster(client, address)
        cluster.check()
        yield cluster


@contextmanager
def _quiet() -> Iterator[None]:
    """What Dask's client logs of a lost connection is told by an exception, in one line."""
    logger = logging.getLogger("distributed.client")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class DaskCluster:
    """A `datacrumbs.analysis.on_each.Cluster` of ``client``'s workers."""

    def __init__(self, client: Client, address: str) -> None:
        self._client = client
        self._address = address
        self._seen_s = time.monotonic()

    def check(self) -> None:
        """There are workers, and they and the scheduler have our versions of what matters."""
        self._wait_for_workers()
        found = self._client.get_versions(packages=["datacrumbs"])
        _check_versions(f"the scheduler {self._address}", found["scheduler"])
        for worker, versions in found["workers"].items():
            _check_versions(f"the worker {worker}", versions)

    def on_each(
        self, hosts: Sequence[HostTrace], works: Iterable[Callable[..., T]], progress: Progress
    ) -> Iterator[T]:
        """What each of ``works`` gives for its host, in order."""
        topic = f"datacrumbs-{uuid.uuid4().hex}"
        self._client.subscribe_topic(topic, lambda event: progress(event[1]))
        futures: list[Future] = []  # those whose result we have not got

        def submit(host: HostTrace, work: Callable[..., T]) -> tuple[str, Future]:
            seen = replace(host, path=host.path.absolute())
            key = f"{topic}-{host.host}"
            future = self._client.submit(_on_worker, seen, work, topic, key=key, pure=False)
            futures.append(future)
            return host.host, future

        try:
            for host, future in in_turn(hosts, works, submit, self._most):
                result = self._result(host, future)
                futures.remove(future)
                yield result
        finally:
            if self._client.status == "running":
                self._client.cancel(futures, force=True)
                self._client.unsubscribe_topic(topic)

    def _most(self) -> int:
        return AHEAD * max(1, sum(self._threads().values()))

    def _threads(self) -> dict[str, int]:
        """How many threads each worker has."""
        try:
            found: dict[str, int] = self._client.nthreads()
        except OSError as error:
            raise self._gone() from error
        return found

    def _wait_for_workers(self) -> None:
        while not self._threads():
            self._check_workers()
            time.sleep(_LOOK_S / 10)

    def _check_workers(self) -> None:
        now = time.monotonic()
        if self._threads():
            self._seen_s = now
        elif now - self._seen_s > WORKERS_S:
            raise UserError(
                f"{self._address}: this Dask scheduler has no workers",
                hint="are they still in a queue? Else start some: "
                f"dask worker --nthreads 1 {self._address}",
            )

    def _result(self, host: str, future: Future) -> Any:
        from distributed import CancelledError
        from distributed.scheduler import KilledWorker

        while True:
            failed = future.status == "error"
            try:
                return future.result(timeout=_FETCH_S if future.done() else _LOOK_S)
            except TimeoutError:
                if failed:
                    raise  # it is the work's own
                self._check_workers()
            except KilledWorker as error:
                raise UserError(
                    f"host {host}: {error.allowed_failures + 1} workers died one after the "
                    f"other while they read it, the last one was {error.last_worker.address}",
                    hint="see that worker's log; has it enough memory?",
                ) from error
            except CancelledError as error:
                raise self._gone() from error

    def _gone(self) -> UserError:
        return UserError(
            f"{self._address}: the Dask scheduler went away",
            hint="see its log; when it is there again, start this command again",
        )


def _address(scheduler: str) -> str:
    """The address that ``scheduler`` is, or that is in the file of that name."""
    if _ADDRESS.fullmatch(scheduler):
        return scheduler
    path = Path(scheduler.removeprefix("file:")).expanduser()
    try:
        address = json.loads(path.read_bytes())["address"]
        if _ADDRESS.fullmatch(address):
            return str(address)
    except OSError as error:
        raise BadInputError(
            f"--scheduler: {scheduler}: neither an address nor a file to read: {error.strerror}",
            hint="give tcp://HOST:PORT, or the file that dask scheduler --scheduler-file wrote",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _no_scheduler_file(path) from error
    raise _no_scheduler_file(path)


def _no_scheduler_file(path: Path) -> BadInputError:
    return BadInputError(
        f"{path}: not a file of a Dask scheduler",
        hint="give the one that dask scheduler --scheduler-file wrote",
    )


def _check_installed() -> None:
    try:
        import distributed  # noqa: F401 (it is a matter of whether it can be)
    except ImportError as error:
        raise UserError(
            "--scheduler needs dask.distributed, which is not installed",
            hint='pip install "datacrumbs[dask]"',
        ) from error


def _client(address: str) -> Client:
    from distributed import Client
    from distributed.versions import VersionMismatchWarning

    try:
        with warnings.catch_warnings():  # `DaskCluster.check` says what matters of them
            warnings.simplefilter("ignore", VersionMismatchWarning)
            return Client(address, timeout=CONNECT_S, set_as_default=False)
    except OSError as error:
        raise UserError(
            f"{address}: no Dask scheduler answers there: {_cause(error)}",
            hint="is it running, on that host and port, and not behind a firewall?",
        ) from error


def _cause(error: BaseException) -> str:
    """The first line of what was at the bottom of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).split("\n", 1)[0] or type(error).__name__


def _check_versions(where: str, versions: dict[str, Any]) -> None:
    import distributed

    ours = {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "datacrumbs": __version__,
        "distributed": distributed.__version__,
    }
    found = versions["packages"]
    theirs = found | {"Python": ".".join(found["python"].split(".")[:2])}
    for name, version in ours.items():
        if theirs[name] != version:
            raise UserError(
                f"{where} has {name} {theirs[name] or '(none)'}, this is {version}",
                hint="start it from the environment that this command is in",
            )


def _on_worker(host: HostTrace, work: Callable[..., T], topic: str) -> T:
    """Do ``work``; tells how far it is, and ends when nobody wants the result any more."""
    _check_trace(host)
    teller = _Teller(topic)
    result = work(host, progress=teller)
    teller.tell()
    return result


def _check_trace(host: HostTrace) -> None:
    """What we see at the host's path is what was seen where the command runs."""
    here = platform.node()
    hint = "the trace must be on a file system that the workers see, under the same path"
    if not host.path.is_dir():
        raise UserError(f"worker on {here}: no directory {host.path}", hint=hint)
    if host.run and _which(read_run_info(host.path)) != _which(host.run):
        raise UserError(f"worker on {here}: another trace at {host.path}", hint=hint)


def _which(run: RunInfo | None) -> tuple[str, int] | None:
    return (run.run_id, run.started_ns) if run else None


class _Teller:
    """A `Progress` on a worker, which may be called often."""

    def __init__(self, topic: str) -> None:
        from distributed import get_worker

        self._worker = get_worker()
        self._task = self._worker.get_current_task()
        self._topic = topic
        self._events = 0
        self._told_s = time.monotonic()

    def __call__(self, events: int) -> None:
        self._events += events
        task = self._worker.state.tasks.get(self._task)
        closing = self._worker.status.name in ("closing", "closed", "failed")
        if closing or task is None or task.state == "cancelled":
            raise _NotWantedError
        if time.monotonic() - self._told_s > _TELL_S:
            self.tell()

    def tell(self) -> None:
        self._worker.log_event(self._topic, self._events)
        self._events = 0
        self._told_s = time.monotonic()


class _NotWantedError(Exception):
    """The client has cancelled the work, or it or the scheduler is gone."""
