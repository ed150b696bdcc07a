"""Storages to test with: one that records, one that fails on purpose, one whose calls a seed puts in order.

Each wraps any `Storage`, another wrapper included. What counts as a call is said in `des.storage.wrapper`.

    storage = RecordingStorage(LocalStorage(path))                        # counts what really reached the disk
    faulty = FaultyStorage(storage, [Fault(LoseReply(), verb="put", at=2)])    # the second put applies, then fails
    ...
    assert faulty.fired
    assert storage.count(verb="put") == 3
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

import anyio

from des.errors import StorageTimeoutError
from des.storage.wrapper import Call, StorageWrapper, Tally, Verb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from des.storage.protocol import Purpose, Storage

__all__ = [
    "Call",
    "Delay",
    "Effect",
    "Fail",
    "Fault",
    "FaultyStorage",
    "Hold",
    "Kill",
    "LoseReply",
    "RecordingStorage",
    "ScheduledStorage",
    "Scheduler",
    "StorageWrapper",
    "Tally",
    "Tear",
    "Verb",
]


class RecordingStorage(StorageWrapper):
    """Keeps what was called, failed calls included, in the order in which the calls ended.

    Attributes:
        calls: the record; may be cleared at any time.
    """

    def __init__(self, inner: Storage) -> None:
        """Wrap a storage, with an empty record."""
        super().__init__(inner)
        self.calls: list[Call] = []

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        """Record the call when it has ended."""
        tally = Tally()
        try:
            yield tally
        finally:
            self.calls.append(replace(call, size=tally.size))

    def select(self, *, verb: Verb | None = None, purpose: Purpose | None = None, key: str | None = None) -> list[Call]:
        """Return the recorded calls of a verb, for a purpose, on a key; None stands for any."""
        return [
            call
            for call in self.calls
            if verb in {None, call.verb} and purpose in {None, call.purpose} and key in {None, call.key}
        ]

    def count(self, *, verb: Verb | None = None, purpose: Purpose | None = None, key: str | None = None) -> int:
        """Return how many calls `select` finds."""
        return len(self.select(verb=verb, purpose=purpose, key=key))

    def moved(self, *, verb: Verb | None = None, purpose: Purpose | None = None, key: str | None = None) -> int:
        """Return how many bytes the calls that `select` finds read and wrote together."""
        return sum(call.size for call in self.select(verb=verb, purpose=purpose, key=key))


@dataclass(frozen=True, slots=True)
class Fail:
    """The call does nothing and raises."""

    error: Exception


@dataclass(frozen=True, slots=True)
class LoseReply:
    """The call takes effect, and raises all the same."""

    error: Exception = field(default_factory=lambda: StorageTimeoutError("The reply was lost on purpose."))


@dataclass(frozen=True, slots=True)
class Tear:
    """Only the first bytes pass: a write that is torn, a read that comes back short. The call says nothing of it, or raises.

    Attributes:
        keep: how many bytes pass.
        error: what it raises then; None: nothing, as a disk does that lies.
    """

    keep: int
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Delay:
    """The call waits for so many seconds before it does anything."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hold:
    """The call says that it has come (`reached`), and waits to be let go (`release`)."""

    reached: anyio.Event = field(default_factory=anyio.Event)
    release: anyio.Event = field(default_factory=anyio.Event)


@dataclass(frozen=True, slots=True)
class Kill:
    """The process is killed (SIGKILL), before the call or right after it took effect."""

    after: bool = False


Effect = Fail | LoseReply | Tear | Delay | Hold | Kill


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to which call.

    Attributes:
        effect: what happens.
        at: to which of the calls that match, counted from 1; None for each of them.
        lasting: also to all that match after that one, as where a disk is gone.
        verb: matches calls of this verb, None all.
        key: matches calls on a key that it is true for, None all.
    """

    effect: Effect
    at: int | None = 1
    verb: Verb | None = None
    key: Callable[[str], bool] | None = None
    lasting: bool = False

    def matches(self, call: Call) -> bool:
        """Return whether a call counts for this fault."""
        return self.verb in {None, call.verb} and (self.key is None or self.key(call.key))

    def is_due(self, number: int) -> bool:
        """Return whether it happens to the so-manieth call that counts for it, from 1."""
        if self.at is None or self.at == number:
            return True
        return self.lasting and number > self.at


class FaultyStorage(StorageWrapper):
    """Fails as planned.

    Attributes:
        fired: the calls that met a fault, in order. A test of a fault asserts that it is there.
        seen: how many calls there were in all.
    """

    def __init__(self, inner: Storage, plan: Iterable[Fault]) -> None:
        """Wrap a storage.

        Args:
            inner: the storage that does the work.
            plan: where two faults are due at the same call, the first one has it.
        """
        super().__init__(inner)
        self.fired: list[Call] = []
        self.seen = 0
        self._plan = tuple(plan)
        self._matched: Counter[int] = Counter()

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        """Do what is due before and after the call."""
        effect = self._due(call)
        match effect:
            case Fail():
                raise effect.error
            case Delay():
                await anyio.sleep(effect.seconds)
            case Hold():
                effect.reached.set()
                await effect.release.wait()
            case Kill(after=False):
                os.kill(os.getpid(), signal.SIGKILL)
        yield Tally(keep=effect.keep if isinstance(effect, Tear) else None)
        match effect:
            case LoseReply():
                raise effect.error
            case Tear(error=Exception() as error):
                raise error
            case Kill():
                os.kill(os.getpid(), signal.SIGKILL)

    def _due(self, call: Call) -> Effect | None:
        self.seen += 1
        due: list[Fault] = []
        for index, fault in enumerate(self._plan):
            if fault.matches(call):
                self._matched[index] += 1
                if fault.is_due(self._matched[index]):
                    due.append(fault)
        if not due:
            return None
        self.fired.append(call)
        return due[0].effect


class Scheduler:
    """Interleaves the storage calls of several participants, in an order that a seed decides.

    Every call of a participant on its `ScheduledStorage` parks. Once all that still take part are parked, one call is chosen
    and let go, and nothing else is until it has returned and its caller has parked again, called it a day, or failed. So one call
    runs at a time, and participants that are deterministic themselves repeat their schedule for the same seed.

    Participants meet in the storage only: one that waits for another by other means is never parked, and all wait. A
    participant may make several calls at once; then the moment at which each of them parks is its own affair.

        scheduler = Scheduler(seed)
        first, second = (ScheduledStorage(storage, scheduler, name) for name in ("first", "second"))
        await scheduler.run({"first": lambda: pack(first), "second": lambda: pack(second)})

    Attributes:
        seed: what decides.
        trace: the schedule so far, one line per call.
    """

    def __init__(self, seed: int, persistence: float = 0.0) -> None:
        """Begin an empty schedule.

        Args:
            seed: what decides.
            persistence: how likely, from 0 to 1, whoever went last goes on: long strides find what even ones do not, and the other way round.
        """
        self.seed = seed
        self.trace: list[str] = []
        self._persistence = persistence
        self._last: _Participant | None = None
        self._random = Random(seed)  # noqa: S311 - replayable, not secret
        self._participants: dict[str, _Participant] = {}

    async def run(self, participants: Mapping[str, Callable[[], Awaitable[object]]]) -> None:
        """Run all participants to their end.

        What one of them raises ends the others, as in a task group, and carries seed and schedule as a note. A participant that
        may fail without ending the others keeps its error to itself.

        Args:
            participants: what each does, by the name of its `ScheduledStorage`.

        Raises:
            ExceptionGroup: what participants raised.
        """
        self._participants = {name: _Participant() for name in participants}
        try:
            async with anyio.create_task_group() as tasks:
                for name, act in participants.items():
                    tasks.start_soon(self._take_part, name, act)
        except BaseException as error:
            error.add_note("\n".join([f"Schedule of seed {self.seed}:", *self.trace]))
            raise

    async def _take_part(self, name: str, act: Callable[[], Awaitable[object]]) -> None:
        try:
            await act()
        finally:
            del self._participants[name]
            self._let_one_go()

    @asynccontextmanager
    async def turn(self, name: str, call: Call) -> AsyncIterator[None]:
        """Wait for a participant's turn and keep it; who takes no part need not wait."""
        participant = self._participants.get(name)
        if participant is None:
            yield
            return
        parked = _Parked(f"{name}: {call}")
        participant.parked.append(parked)
        self._let_one_go()
        try:
            await parked.turn.wait()
            yield
        finally:
            if parked in participant.parked:
                participant.parked.remove(parked)
            else:
                participant.running -= 1
            self._let_one_go()

    def _let_one_go(self) -> None:
        if any(participant.running or not participant.parked for participant in self._participants.values()):
            return
        waiting = [
            (participant, parked) for participant in self._participants.values() for parked in participant.parked
        ]
        if waiting:
            again = [one for one in waiting if one[0] is self._last]
            goes_on = bool(self._persistence and again) and self._random.random() < self._persistence
            participant, parked = self._random.choice(again if goes_on else waiting)
            self._last = participant
            participant.parked.remove(parked)
            participant.running += 1
            self.trace.append(parked.line)
            parked.turn.set()


@dataclass(eq=False, slots=True)
class _Parked:
    line: str
    turn: anyio.Event = field(default_factory=anyio.Event)


@dataclass(eq=False, slots=True)
class _Participant:
    parked: list[_Parked] = field(default_factory=list)
    running: int = 0


class ScheduledStorage(StorageWrapper):
    """The storage as one participant of a `Scheduler` sees it."""

    def __init__(self, inner: Storage, scheduler: Scheduler, name: str) -> None:
        """Wrap a storage for the participant of this name."""
        super().__init__(inner)
        self._scheduler = scheduler
        self._name = name

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[Tally]:
        """Wait for the turn."""
        async with self._scheduler.turn(self._name, call):
            yield Tally()
