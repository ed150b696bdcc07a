from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import anyio
import pytest

from des.errors import (
    ConflictError,
    CorruptShardError,
    LostHeadError,
    ObjectNotFoundError,
    PreconditionFailedError,
    SettingsError,
    StorageDeniedError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from des.pack.commit import MAX_ATTEMPTS, MAX_TROUBLES, Change, new_name, open_shard, swap
from des.shard.layout import COMMIT_LOG_LENGTH, Identity
from des.shard.writing import encode_head
from des.storage.descriptor import DESCRIPTOR_KEY, Epoch
from des.storage.local import LocalStorage
from des.storage.protocol import IfVersion, Overwrite
from des.storage.testing import Fail, Fault, FaultyStorage, Hold, LoseReply, RecordingStorage
from des.store.heads import WholeHead, read_whole_head
from tests.making import Maker, make_store
from tests.pack.packing import objects_under

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from des.storage.wrapper import Verb

FAILURES = [
    PreconditionFailedError("412, or 409"),
    StorageTimeoutError("no answer"),
    StorageUnavailableError("5xx, or the connection broke"),
    StorageError("something else"),
]


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


@pytest.fixture
async def maker(local: LocalStorage) -> Maker:
    return await make_store(local)


async def no_pause(_: float) -> None:
    await anyio.lowlevel.checkpoint()


async def unchanged(head: WholeHead) -> Change:
    """The smallest change: a commit of nothing."""
    return head.tables, bytes(head.entries)


@dataclass(slots=True)
class Others:
    """Other writers, who commit while a swap pauses."""

    storage: LocalStorage
    identity: Identity
    commits: int
    pauses: int = 0
    lengths: list[float] = field(default_factory=list)

    async def __call__(self, length: float) -> None:
        self.pauses += 1
        self.lengths.append(length)
        for _ in range(self.commits):
            await commit(self.storage, self.identity)


async def commit(storage: LocalStorage, identity: Identity) -> None:
    await swap(storage, await read_whole_head(storage, identity), unchanged)


class TestOpening:
    async def test_an_absent_head_is_made_and_the_descriptor_read_again(
        self, local: LocalStorage, maker: Maker
    ) -> None:
        identity = maker.identity("file")
        storage = RecordingStorage(local)
        head = await open_shard(storage, identity)
        assert (head.tables.generation, head.tables.files, head.tables.segments) == (1, 0, ())
        again = await open_shard(local, identity)
        assert (again.version, again.tables, again.entries) == (head.version, head.tables, head.entries)
        assert [(call.verb, call.key) for call in storage.calls] == [
            ("read_suffix", identity.head_key),
            ("list_level", identity.segment_prefix),
            ("put", identity.head_key),
            ("read_suffix", DESCRIPTOR_KEY),
        ]
        other = await open_shard(local, identity._replace(shard_index=1 - identity.shard_index))
        assert other.tables.lineage != head.tables.lineage

    async def test_a_head_that_is_there_costs_one_read(self, local: LocalStorage, maker: Maker) -> None:
        await maker.add({"file": b"content"})
        storage = RecordingStorage(local)
        head = await open_shard(storage, maker.identity("file"))
        assert head.tables.files == 1
        assert [call.verb for call in storage.calls] == ["read_suffix"]

    async def test_a_lost_head_is_named_and_nothing_written(self, tmp_path: Path, local: LocalStorage) -> None:
        maker = await make_store(local, {"file": b"content"})
        identity = maker.identity("file")
        await local.delete(identity.head_key)
        before = objects_under(tmp_path / "store")
        with pytest.raises(LostHeadError, match=f"des repair {identity.date}/{identity.shard_hex}"):
            await open_shard(local, identity)
        assert objects_under(tmp_path / "store") == before

    @pytest.mark.parametrize(
        "verb", [pytest.param("list_level", id="looking for segments"), pytest.param("put", id="making the first head")]
    )
    async def test_a_head_that_another_made_meanwhile_is_taken(
        self, local: LocalStorage, maker: Maker, verb: Verb
    ) -> None:
        hold = Hold()
        storage = FaultyStorage(local, [Fault(hold, verb=verb)])
        heads: list[WholeHead] = []

        async def look() -> None:
            heads.append(await open_shard(storage, maker.identity("file")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            await hold.reached.wait()
            await maker.add({"file": b"content"})
            hold.release.set()
        assert heads[0].tables.files == 1
        assert heads[0].tables.generation == 2

    @pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
    async def test_a_head_made_with_a_lost_reply_is_taken(
        self, local: LocalStorage, maker: Maker, failure: StorageError
    ) -> None:
        storage = FaultyStorage(local, [Fault(LoseReply(failure), verb="put")])
        head = await open_shard(storage, maker.identity("file"))
        assert storage.fired
        assert head.tables == (await read_whole_head(local, maker.identity("file"))).tables

    @pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
    async def test_a_head_that_cannot_be_made_says_why(
        self, local: LocalStorage, maker: Maker, failure: StorageError
    ) -> None:
        with pytest.raises(type(failure)) as caught:
            await open_shard(FaultyStorage(local, [Fault(Fail(failure), verb="put")]), maker.identity("file"))
        assert caught.value is failure

    async def test_a_denial_is_no_riddle(self, local: LocalStorage, maker: Maker) -> None:
        storage = FaultyStorage(local, [Fault(Fail(StorageDeniedError("no")), verb="put")])
        with pytest.raises(StorageDeniedError):
            await open_shard(storage, maker.identity("file"))
        assert storage.seen == 3

    async def test_n_bits_that_changed_before_the_head_was_there(self, local: LocalStorage, maker: Maker) -> None:
        hold = Hold()
        storage = FaultyStorage(local, [Fault(hold, verb="put")])
        identity = maker.identity("file")

        async def make() -> None:
            with pytest.raises(SettingsError, match="n_bits of 20240131 has just been changed; run again"):
                await open_shard(storage, identity)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(make)
            await hold.reached.wait()
            grown = replace(maker.descriptor, epochs=(*maker.descriptor.epochs, Epoch("20240101", 8)))
            await local.put(DESCRIPTOR_KEY, grown.encode(), Overwrite())
            hold.release.set()


class TestBase:
    """A damaged head is never a base for writing."""

    async def test_any_flipped_byte(self, tmp_path: Path, local: LocalStorage) -> None:
        maker = await make_store(local, {"file": b"content"})
        identity = maker.identity("file")
        path = tmp_path / "store" / identity.head_key
        sound = path.read_bytes()
        for position in range(len(sound)):
            damaged = bytearray(sound)
            damaged[position] ^= 0x10
            path.write_bytes(damaged)
            with pytest.raises(CorruptShardError, match=identity.head_key):
                await open_shard(local, identity)
        path.write_bytes(sound)
        assert (await open_shard(local, identity)).tables.files == 1

    @pytest.mark.parametrize("share", range(4))
    async def test_any_page_of_a_longer_one(self, tmp_path: Path, local: LocalStorage, share: int) -> None:
        maker = await make_store(local, n_bits=1)
        uids = maker.uids_of_one_shard(1600)
        await maker.add(dict.fromkeys(uids, b"x"))
        identity = maker.identity(uids[0])
        head = await open_shard(local, identity)
        assert head.head.directory.count == 4
        ref = head.head.directory.ref(share)
        path = tmp_path / "store" / identity.head_key
        damaged = bytearray(path.read_bytes())
        damaged[ref.offset + ref.length // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CorruptShardError):
            await open_shard(local, identity)

    async def test_another_shards_head_in_its_place(self, tmp_path: Path, local: LocalStorage) -> None:
        maker = await make_store(local, {"file": b"content"})
        identity = maker.identity("file")
        other = identity._replace(date="20240201")
        target = tmp_path / "store" / other.head_key
        target.parent.mkdir()
        target.write_bytes((tmp_path / "store" / identity.head_key).read_bytes())
        with pytest.raises(CorruptShardError):
            await open_shard(local, other)


@pytest.fixture
async def base(local: LocalStorage) -> WholeHead:
    maker = await make_store(local, {"file": b"content"})
    return await open_shard(local, maker.identity("file"))


async def head_now(storage: LocalStorage, base: WholeHead) -> WholeHead:
    return await read_whole_head(storage, base.identity)


class TestSwap:
    async def test_one_commit(self, local: LocalStorage, base: WholeHead) -> None:
        storage = RecordingStorage(local)
        swapped = await swap(storage, base, unchanged)
        assert [call.verb for call in storage.calls] == ["put"]
        head = await head_now(local, base)
        assert swapped.written
        assert swapped.tables == head.tables
        assert head.tables.generation == base.tables.generation + 1
        assert head.tables.lineage == base.tables.lineage
        assert head.tables.commit_log[:-1] == base.tables.commit_log
        assert head.version != base.version

    async def test_no_change_is_no_commit(self, local: LocalStorage, base: WholeHead) -> None:
        async def none(_: WholeHead) -> None:
            return None

        storage = RecordingStorage(local)
        swapped = await swap(storage, base, none)
        assert not swapped.written
        assert swapped.tables == base.tables
        assert not storage.calls

    async def test_a_change_that_raises_writes_nothing(self, local: LocalStorage, base: WholeHead) -> None:
        async def refuse(_: WholeHead) -> None:
            raise LookupError

        storage = RecordingStorage(local)
        with pytest.raises(LookupError):
            await swap(storage, base, refuse)
        assert not storage.calls

    async def test_the_change_is_decided_anew_on_the_head_of_another(
        self, local: LocalStorage, base: WholeHead
    ) -> None:
        await commit(local, base.identity)
        between = await head_now(local, base)
        seen: list[str] = []

        async def change(head: WholeHead) -> Change:
            seen.append(head.version)
            return await unchanged(head)

        swapped = await swap(local, base, change, pause=no_pause)
        assert seen == [base.version, between.version]
        assert swapped.tables.generation == base.tables.generation + 2
        assert swapped.tables.commit_log[:-1] == between.tables.commit_log

    async def test_what_another_brought_meanwhile_need_not_be_written(
        self, local: LocalStorage, base: WholeHead
    ) -> None:
        await commit(local, base.identity)

        async def once(head: WholeHead) -> Change | None:
            return await unchanged(head) if head.version == base.version else None

        swapped = await swap(local, base, once, pause=no_pause)
        assert not swapped.written
        assert swapped.tables == (await head_now(local, base)).tables
        assert swapped.tables.generation == base.tables.generation + 1

    @pytest.mark.parametrize("is_applied", [True, False], ids=["applied", "not applied"])
    @pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
    async def test_any_failure_means_unknown(
        self, local: LocalStorage, base: WholeHead, failure: StorageError, is_applied: bool
    ) -> None:
        effect = LoseReply(failure) if is_applied else Fail(failure)
        recording = RecordingStorage(local)
        storage = FaultyStorage(recording, [Fault(effect, verb="put")])
        swapped = await swap(storage, base, unchanged, pause=no_pause)
        assert storage.fired
        assert swapped.written
        assert recording.count(verb="put") == 1
        head = await head_now(local, base)
        assert swapped.tables == head.tables
        assert head.tables.generation == base.tables.generation + 1

    @pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
    async def test_several_lost_replies_among_other_commits(
        self, local: LocalStorage, base: WholeHead, failure: StorageError
    ) -> None:
        others = Others(local, base.identity, 2)
        storage = FaultyStorage(local, [Fault(Fail(failure), verb="put", at=at) for at in (1, 2)])
        storage = FaultyStorage(storage, [Fault(LoseReply(failure), verb="put", at=3)])
        swapped = await swap(storage, base, unchanged, pause=others)
        assert others.pauses == 3
        head = await head_now(local, base)
        assert swapped.tables == head.tables
        assert head.tables.generation == base.tables.generation + 3 * 2 + 1

    async def test_an_early_commit_is_found_after_a_later_attempt(self, local: LocalStorage, base: WholeHead) -> None:
        """A put may be applied after its reply was given up: the attempt after it fails, and its own id counts."""
        applied: list[bytes] = []

        class Late(FaultyStorage):
            async def put(self, key: str, data: bytes, mode: object) -> str:
                if not applied:
                    applied.append(data)
                    raise StorageTimeoutError("no answer")
                await local.put(key, applied[0], IfVersion(base.version))
                return await local.put(key, data, mode)  # type: ignore[arg-type]  # what the caller gave

        swapped = await swap(Late(local, []), base, unchanged, pause=no_pause)
        head = await head_now(local, base)
        assert swapped.tables == head.tables
        assert head.tables.generation == base.tables.generation + 1

    @pytest.mark.parametrize(("later", "is_known"), [(COMMIT_LOG_LENGTH - 1, True), (COMMIT_LOG_LENGTH, False)])
    async def test_an_applied_commit_is_known_as_long_as_the_log_tells(
        self, local: LocalStorage, base: WholeHead, later: int, is_known: bool
    ) -> None:
        storage = FaultyStorage(local, [Fault(LoseReply(), verb="put")])
        others = Others(local, base.identity, later)
        if is_known:
            await swap(storage, base, unchanged, pause=others)
        else:
            with pytest.raises(ConflictError, match=r"moved on too far.*run again\.$"):
                await swap(storage, base, unchanged, pause=others)
        head = await head_now(local, base)
        assert head.tables.generation == base.tables.generation + 1 + later

    @pytest.mark.parametrize(("between", "is_known"), [(COMMIT_LOG_LENGTH, True), (COMMIT_LOG_LENGTH + 1, False)])
    async def test_a_commit_that_was_not_applied_is_known_as_long_as_the_log_tells(
        self, local: LocalStorage, base: WholeHead, between: int, is_known: bool
    ) -> None:
        storage = FaultyStorage(local, [Fault(Fail(StorageTimeoutError("no answer")), verb="put")])
        others = Others(local, base.identity, between)
        if is_known:
            await swap(storage, base, unchanged, pause=others)
        else:
            with pytest.raises(ConflictError, match=r"moved on too far.*run again\.$"):
                await swap(storage, base, unchanged, pause=others)
        head = await head_now(local, base)
        assert head.tables.generation == base.tables.generation + between + is_known

    @pytest.mark.parametrize("effect", [LoseReply(), Fail(StorageTimeoutError("no answer"))])
    async def test_another_lineage(self, local: LocalStorage, base: WholeHead, effect: LoseReply | Fail) -> None:
        async def repair(_: float) -> None:
            tables = replace(base.tables, lineage=new_name(), commit_log=())
            await local.put(base.identity.head_key, encode_head(base.identity, tables, base.entries), Overwrite())

        storage = FaultyStorage(local, [Fault(effect, verb="put")])
        with pytest.raises(ConflictError, match=r"repaired or made anew meanwhile; run again\.$"):
            await swap(storage, base, unchanged, pause=repair)
        assert (await head_now(local, base)).tables.generation == base.tables.generation

    @pytest.mark.parametrize("effect", [LoseReply(), Fail(StorageTimeoutError("no answer"))])
    async def test_a_head_that_is_gone(self, local: LocalStorage, base: WholeHead, effect: LoseReply | Fail) -> None:
        async def lose(_: float) -> None:
            await local.delete(base.identity.head_key)

        with pytest.raises(LostHeadError, match="des repair"):
            await swap(FaultyStorage(local, [Fault(effect, verb="put")]), base, unchanged, pause=lose)
        with pytest.raises(ObjectNotFoundError):
            await head_now(local, base)

    async def test_a_head_that_was_damaged(self, tmp_path: Path, local: LocalStorage, base: WholeHead) -> None:
        path = tmp_path / "store" / base.identity.head_key
        damaged = path.read_bytes()[:-70] + b"x" + path.read_bytes()[-69:]

        async def damage(_: float) -> None:
            await local.put(base.identity.head_key, damaged, Overwrite())

        storage = FaultyStorage(local, [Fault(Fail(StorageTimeoutError("no answer")), verb="put")])
        with pytest.raises(CorruptShardError):
            await swap(storage, base, unchanged, pause=damage)
        assert path.read_bytes() == damaged

    async def test_who_always_loses_gives_up(self, local: LocalStorage, base: WholeHead) -> None:
        recording = RecordingStorage(local)

        class Crowded(FaultyStorage):
            async def put(self, key: str, data: bytes, mode: object) -> str:
                await commit(local, base.identity)
                return await super().put(key, data, mode)  # type: ignore[arg-type]  # what the caller gave

        others = Others(local, base.identity, 0)
        with pytest.raises(ConflictError, match=rf"by others {MAX_ATTEMPTS} times in a row; run again\.$"):
            await swap(Crowded(recording, []), base, unchanged, pause=others)
        assert recording.count(verb="put") == MAX_ATTEMPTS
        assert (await head_now(local, base)).tables.generation == base.tables.generation + MAX_ATTEMPTS
        assert max(others.lengths) <= 2
        assert len(set(others.lengths)) == MAX_ATTEMPTS

    async def test_the_last_attempt_may_win_unnoticed(self, local: LocalStorage, base: WholeHead) -> None:
        failure = PreconditionFailedError("412")
        storage = FaultyStorage(local, [Fault(Fail(failure), verb="put", at=at) for at in range(1, MAX_ATTEMPTS)])
        storage = FaultyStorage(storage, [Fault(LoseReply(failure), verb="put", at=MAX_ATTEMPTS)])
        swapped = await swap(storage, base, unchanged, pause=no_pause)
        assert storage.fired
        assert swapped.tables == (await head_now(local, base)).tables

    @pytest.mark.parametrize("failure", FAILURES[1:], ids=lambda failure: type(failure).__name__)
    async def test_lasting_trouble_comes_out_as_itself(
        self, local: LocalStorage, base: WholeHead, failure: StorageError
    ) -> None:
        storage = FaultyStorage(local, [Fault(Fail(failure), verb="put", at=None)])
        with pytest.raises(type(failure)) as caught:
            await swap(storage, base, unchanged, pause=no_pause)
        assert caught.value is failure
        assert len(storage.fired) == MAX_TROUBLES
        assert (await head_now(local, base)).version == base.version

    async def test_lasting_trouble_that_ended_well(self, local: LocalStorage, base: WholeHead) -> None:
        failure = StorageUnavailableError("5xx")
        storage = FaultyStorage(local, [Fault(Fail(failure), verb="put", at=at) for at in range(1, MAX_TROUBLES)])
        storage = FaultyStorage(storage, [Fault(LoseReply(failure), verb="put", at=MAX_TROUBLES)])
        await swap(storage, base, unchanged, pause=no_pause)
        assert storage.fired
        assert (await head_now(local, base)).tables.generation == base.tables.generation + 1

    async def test_a_denial_is_no_riddle(self, local: LocalStorage, base: WholeHead) -> None:
        storage = FaultyStorage(local, [Fault(Fail(StorageDeniedError("no")), verb="put")])
        with pytest.raises(StorageDeniedError):
            await swap(storage, base, unchanged, pause=no_pause)
        assert storage.seen == 1


@pytest.mark.parametrize("act", ["open", "swap"])
async def test_unreadable_heads_come_out_as_they_are(local: LocalStorage, base: WholeHead, act: str) -> None:
    failure = StorageUnavailableError("5xx")
    storage = FaultyStorage(local, [Fault(Fail(failure), verb="read_suffix"), Fault(LoseReply(), verb="put")])
    acts: dict[str, Callable[[], Awaitable[object]]] = {
        "open": lambda: open_shard(storage, base.identity),
        "swap": lambda: swap(storage, base, unchanged, pause=no_pause),
    }
    with pytest.raises(StorageUnavailableError) as caught:
        await acts[act]()
    assert caught.value is failure
