"""Worker processes that parse manifests and encode batches: threads of one interpreter would wait for its lock, and so would the event loop.

Rules:

1. They are forked before there is an event loop or a second thread: a fork copies the calling thread alone, with all locks as they stand. Where that
   is over, there are none, and the work is done in threads of this process.
2. A worker knows nothing of the run. It is sent a function with its arguments, and sends back what the function returned or raised.
3. It lives as long as its pipe: it ends with the process that made it, however that ends. What signals mean is that process' business alone.
4. One that dies is not replaced: what it was doing is done again here, for work has no effect but its result.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import queue
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)
_PICKLE = 5


class Workers:
    """Processes that work for the threads of this one, each for one thread at a time."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        """Take over the pipes to the workers."""
        self.count = len(pipes)
        self._idle: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
        for pipe in pipes:
            self._idle.put(pipe)

    def call(self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Let a worker do something, and wait for it. For at most `count` threads at a time.

        Args:
            work: a function of a module, without effects.
            args: what to call it with; this and what it returns can be pickled.
            kwargs: the same.

        Raises:
            Exception: what the function raises.
        """
        call, answer = pickle.dumps((work, args, kwargs), _PICKLE), None
        pipe = self._idle.get()
        if pipe is not None:
            try:
                pipe.send_bytes(call)
                answer = pipe.recv_bytes()
            except (EOFError, OSError):
                _log.warning("a worker process died; the run goes on without it.")
                pipe.close()
                pipe = None
        self._idle.put(pipe)
        if answer is None:
            return work(*args, **kwargs)
        error, result = pickle.loads(answer)  # noqa: S301 - from a fork of this process
        if error is not None:
            raise error
        return cast("Result", result)


@contextmanager
def forked_workers(count: int) -> Iterator[Workers | None]:
    """Fork workers, which end with the context.

    Args:
        count: how many.

    Yields:
        The workers; None where this process cannot be forked any more.
    """
    if threading.active_count() > 1 or "fork" not in multiprocessing.get_all_start_methods():
        yield None
        return
    fork = multiprocessing.get_context("fork")
    pipes: list[Connection] = []
    processes = []
    try:
        for _ in range(count):
            ours, theirs = fork.Pipe()
            pipes.append(ours)
            process = fork.Process(target=_serve, args=(theirs, pipes), daemon=True)
            process.start()
            processes.append(process)
            theirs.close()
        yield Workers(pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def _serve(pipe: Connection, inherited: Sequence[Connection]) -> None:
    """Work until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for other in inherited:  # else nobody would see the end of these pipes
        other.close()
    try:
        while True:
            work, args, kwargs = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from the process that forked this one
            error = result = None
            try:
                result = work(*args, **kwargs)
            except Exception as raised:  # noqa: BLE001 - raised where it was called
                error = raised
            answer = pickle.dumps((error, result), _PICKLE)
            del work, args, kwargs, error, result  # megabytes, which nobody needs while the answer is on its way
            pipe.send_bytes(answer)
    except (EOFError, OSError):
        return
