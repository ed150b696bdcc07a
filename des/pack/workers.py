"""Worker processes that parse manifests and pack shards: threads of one interpreter would wait for its lock, and so would the event loop.

Rules:

1. They are forked before there is an event loop or a second thread: a fork copies the calling thread alone, with all locks as they stand. Where that
   is over, there are none, and the work is done in threads of this process.
2. A worker knows nothing of the run. It is sent a function with its arguments, and sends back what the function returned or raised. While it works it
   may ask: the thread that waits for it answers, or tells it to stop.
3. It ends with the process that made it, however that ends. What signals mean is that process' business alone.
4. One that dies is not replaced: whatever it was sent can be done again here.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast

from des import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

    # Asks the process that forked this one, in any one thread at a time. Raises StoppedError: stop working.
    Ask: TypeAlias = Callable[[Any], Any]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)
_PICKLE = 5
_PR_SET_PDEATHSIG = 1


class StoppedError(Exception):
    """Raised in a worker that asked: nobody wants the rest of its work."""


class WorkerDiedError(Exception):
    """A worker died before its work was done."""


class _Call(NamedTuple):
    work: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    may_ask: bool


class _Question(NamedTuple):
    question: Any


class _Answer(NamedTuple):
    """What is answered; `goes_on` is whether the work is still wanted."""

    answer: Any
    goes_on: bool


class _Outcome(NamedTuple):
    error: Exception | None
    result: Any


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
        try:
            return cast("Result", self._done(_Call(work, args, kwargs, may_ask=False), _nothing_asked))
        except WorkerDiedError:
            return work(*args, **kwargs)

    def attend(
        self,
        answer: Callable[[Any], Any],
        work: Callable[Concatenate[Ask, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Let a worker do something, and answer what it asks until it is done. For at most `count` threads at a time.

        Args:
            answer: answers a question. Where it raises, the worker is told to stop; what it asks until it has stopped is still answered.
            work: a function of a module, called with what it asks with, and the following.
            args: these, what it returns and what it asks can be pickled.
            kwargs: the same.

        Raises:
            WorkerDiedError: the worker died.
            Exception: what `answer` raised first, or else the function.
        """
        return cast("Result", self._done(_Call(work, args, kwargs, may_ask=True), answer))

    def _done(self, call: _Call, answer: Callable[[Any], Any]) -> object:
        sent = pickle.dumps(call, _PICKLE)
        refused: list[BaseException] = []

        def answered(question: object) -> _Answer:
            try:
                return _Answer(answer(question), goes_on=True)
            except BaseException as error:  # noqa: BLE001 - raised once the worker has stopped
                refused.append(error)
                return _Answer(None, goes_on=False)

        pipe = self._idle.get()
        for _ in range(self.count):
            if pipe is None:  # of one that died; another may live
                self._idle.put(pipe)
                pipe = self._idle.get()
        try:
            outcome = _outcome_of(pipe, sent, answered)
        except (EOFError, OSError):
            _log.warning("a worker process died; the run goes on without it.")
            if pipe is not None:
                pipe.close()
            pipe = None
            outcome = _Outcome(WorkerDiedError(), None)
        finally:
            self._idle.put(pipe)
        if refused:
            raise refused[0]
        if outcome.error is not None:
            raise outcome.error
        return outcome.result


def _nothing_asked(question: object) -> object:
    raise TypeError(f"{question!r} was asked by what may not ask")


def _outcome_of(pipe: Connection | None, call: bytes, answered: Callable[[Any], _Answer]) -> _Outcome:
    """Send a call, and answer what is asked until it is done. Raises EOFError or OSError: the worker died."""
    if pipe is None:
        return _Outcome(WorkerDiedError(), None)
    pipe.send_bytes(call)
    while True:
        told: _Question | _Outcome = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from a fork of this process
        if isinstance(told, _Outcome):
            return told
        pipe.send_bytes(pickle.dumps(answered(told.question), _PICKLE))


@contextmanager
def forked_workers(count: int) -> Iterator[Workers | None]:
    """Fork workers, which end with the context.

    Args:
        count: how many.

    Yields:
        The workers; None where this process cannot be forked any more, or is no Linux: elsewhere they could outlive it.
    """
    if threading.active_count() > 1 or sys.platform != "linux":
        yield None
        return
    fork = multiprocessing.get_context("fork")
    pipes: list[Connection] = []
    processes = []
    try:
        for _ in range(count):
            ours, theirs = fork.Pipe()
            pipes.append(ours)
            process = fork.Process(target=_serve, args=(theirs, pipes, os.getpid()), daemon=True)
            process.start()
            processes.append(process)
            theirs.close()
        yield Workers(pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()
            if metrics.is_active():
                metrics.process_ended(process.pid or 0)


def _serve(pipe: Connection, inherited: Sequence[Connection], parent: int) -> None:
    """Work until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with(parent)
    for other in inherited:  # else nobody would see the end of these pipes
        other.close()

    def ask(question: object) -> object:
        pipe.send_bytes(pickle.dumps(_Question(question), _PICKLE))
        reply: _Answer = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from the process that forked this one
        if not reply.goes_on:
            raise StoppedError
        return reply.answer

    try:
        while True:
            call: _Call = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from the process that forked this one
            outcome = pickle.dumps(_outcome(call, ask), _PICKLE)
            del call  # megabytes, which nobody needs while the outcome is on its way
            pipe.send_bytes(outcome)
    except (EOFError, OSError):
        return


def _outcome(call: _Call, ask: Ask) -> _Outcome:
    args = (ask, *call.args) if call.may_ask else call.args
    try:
        return _Outcome(None, call.work(*args, **call.kwargs))
    except Exception as raised:  # noqa: BLE001 - raised where it was called
        raised.add_note("".join(traceback.format_exception(raised)))
        return _Outcome(_portable(raised), None)


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent: itself, or the nearest kind of it that can."""
    for kind in type(error).__mro__[:-2]:  # less BaseException and object
        try:
            candidate: Exception = error if kind is type(error) else kind(str(error))
            pickle.loads(pickle.dumps(candidate))  # noqa: S301 - just made
        except Exception:  # noqa: BLE001, S112 - whatever an error's own constructor does
            continue
        return candidate
    return RuntimeError(repr(error))


def _end_with(parent: int) -> None:
    """End when the parent does, at once: a write that outlives the process that was killed might meet one of its successor."""
    import ctypes  # noqa: PLC0415 - for workers alone

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before this could be asked for
        os._exit(1)
