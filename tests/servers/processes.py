"""Server processes for tests: on free ports of 127.0.0.1, and gone when the test session is, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator, Mapping, Sequence

_PR_SET_PDEATHSIG = 1
_START_SECONDS = 60
_STOP_SECONDS = 10


class ServerStartError(RuntimeError):
    pass


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on right now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def server_process(
    command: Sequence[str], ready: re.Pattern[str], environment: Mapping[str, str] | None = None
) -> Iterator[re.Match[str]]:
    """Run a server until the context ends.

    Args:
        command: what to run; it must stay in the foreground.
        ready: what a line of its output says when it serves.
        environment: on top of ours.

    Yields:
        The match of that line.

    Raises:
        ServerStartError: it ended, or said nothing of the kind in time; with the end of its output.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **(environment or {})},
        start_new_session=True,  # an interrupt at the terminal reaches the tests alone, which then end it here
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads of ours run yet that could hold a lock
    )
    output = _Output(process, ready)
    try:
        yield output.wait_until_ready()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.close()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Output:
    """Reads what a server says, so that it never waits for us, and keeps the last lines."""

    def __init__(self, process: subprocess.Popen[str], ready: re.Pattern[str]) -> None:
        self._process = process
        self._ready = ready
        self._lines: list[str] = []
        self._match: re.Match[str] | None = None
        self._decided = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_until_ready(self) -> re.Match[str]:
        self._decided.wait(_START_SECONDS)
        if self._match is None:
            raise ServerStartError("".join(self._lines) or "no output")
        return self._match

    def close(self) -> None:
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines = [*self._lines[-20:], line]
            if self._match is None and (match := self._ready.search(line)):
                self._match = match
                self._decided.set()
        self._decided.set()
