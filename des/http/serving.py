"""`des serve`: the listening socket, and the processes that answer on it.

One worker runs in this process. Several are processes of their own that share the socket and count into one place, so that
a scrape of any sees all; one that dies is replaced, unless it was never ready. Told to end, they drain (see `worker`).
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import socket
import sys
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from des import metrics
from des.console import say
from des.errors import DESError, SettingsError, StorageUnavailableError
from des.http.app import create_app
from des.http.keys import KeysFile
from des.http.worker import BACKLOG, run_worker
from des.logs import configure_logging

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import SpawnProcess
    from multiprocessing.synchronize import Event
    from types import FrameType

    from des.settings import Settings

_log = logging.getLogger(__name__)
_SPAWN = multiprocessing.get_context("spawn")


def serve(settings: Settings) -> None:
    """Serve a store over HTTP until SIGTERM or SIGINT.

    Says on stderr where it serves, once it listens: port 0 means any free port.

    Args:
        settings: all of it.

    Raises:
        SettingsError: a setting is wrong, or the address cannot be listened on.
        StorageError: the storage cannot be opened, or the workers die as they start.
    """
    configure_logging(settings)
    app = create_app(settings)
    access = _access(settings)
    with ExitStack() as stack:
        listener = stack.enter_context(_listening_socket(settings.http_host, settings.http_port))
        say(f"serving {_place(settings)} on {_url(listener)}")
        say(access)
        admin_listener = None
        if settings.http_admin_port is not None:
            admin_listener = stack.enter_context(_listening_socket(settings.http_host, settings.http_admin_port))
            say(f"probes and metrics are on {_url(admin_listener)}")
        if settings.http_workers == 1:
            run_worker(app, listener, settings, admin_listener=admin_listener)
        else:
            stack.enter_context(metrics.shared_between_processes())
            _Workers(settings, listener, admin_listener).run()


def _access(settings: Settings) -> str:
    if settings.http_api_keys_file is None:
        return "access control is off: whoever reaches this address can read every file."
    KeysFile(settings.http_api_keys_file).load()  # so that a bad file is one sentence, and not each worker's
    return f"access control is on, by {settings.http_api_keys_file}."


class _Workers:
    """The worker processes, and this process over them."""

    def __init__(self, settings: Settings, listener: socket.socket, admin_listener: socket.socket | None) -> None:
        self._settings, self._listener, self._admin_listener = settings, listener, admin_listener
        self._workers: dict[SpawnProcess, Event] = {}
        self._ending = False

    def run(self) -> None:
        for _ in range(self._settings.http_workers):
            self._start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        while self._workers:
            wait([process.sentinel for process in self._workers])
            for process in [process for process in self._workers if process.exitcode is not None]:
                self._replace(process, ready=self._workers.pop(process).is_set())

    def _start(self) -> None:
        ready = _SPAWN.Event()
        process = _SPAWN.Process(target=_worker, args=(self._settings, self._listener, self._admin_listener, ready))
        # A worker being born must not die of the Ctrl-C that is meant for all; later it has a handler.
        with _ignored(signal.SIGINT):
            process.start()
        self._workers[process] = ready

    def _replace(self, process: SpawnProcess, *, ready: bool) -> None:
        process.join()
        metrics.process_ended(process.pid or 0)
        if self._ending:
            return
        if not ready:
            self._end(signal.SIGTERM, None)
            raise StorageUnavailableError("a worker died before it was ready; the log says why.")
        _log.error("worker %d ended with status %s: another one takes its place.", process.pid, process.exitcode)
        self._start()

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._ending = True
        if self._admin_listener:
            self._admin_listener.close()
        self._listener.close()  # else the system would go on accepting for nobody
        for process in self._workers:
            process.terminate()


def _worker(settings: Settings, listener: socket.socket, admin_listener: socket.socket | None, ready: Event) -> None:
    configure_logging(settings)

    def be_ready() -> None:
        _log.info("worker %d is ready.", os.getpid())
        ready.set()

    try:
        run_worker(create_app(settings), listener, settings, be_ready, admin_listener)
    except DESError as error:
        _log.error("%s", error)  # a sentence for the operator, no traceback
        sys.exit(error.exit_status)


@contextmanager
def _listening_socket(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingsError(f"DES_HTTP_HOST is {host!r}, which is no address: {error.strerror}.") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            raise SettingsError(_why_not(error, host, port)) from error
        listener.settimeout(0)
        yield listener


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another with --port or DES_HTTP_PORT, or 0 for any free one."
    if error.errno == errno.EACCES:
        return f"port {port} may not be used by this user; choose one above 1023 with --port or DES_HTTP_PORT."
    return f"cannot listen on port {port} of {host}: {os.strerror(error.errno or 0)}."


@contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def _place(settings: Settings) -> str:
    if settings.backend == "local":
        return str(settings.base_dir)
    if settings.backend == "s3":
        return f"s3://{settings.s3_bucket}/{settings.s3_prefix}".rstrip("/")
    return str(settings.zones_config)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
