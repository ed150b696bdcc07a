"""A store in zones through any trouble of its places, against a model: right bytes or a typed error, never a false "not found", never back in time."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from des.errors import ConflictError, CorruptShardError, DESError, NotFoundError, StorageError
from des.settings import Settings
from des.store import Store
from des.tasks import open_tasks
from tests.making import WHEN, File, Maker, make_store
from tests.storage.zoned import N_BITS, Ground

if TYPE_CHECKING:
    from des.storage.zones import ZonedStorage

UIDS = [f"file-{number}" for number in range(8)]


@dataclass(slots=True)
class Model:
    """What each file was given, in order: `acknowledged` is the latest number whose writer was told that it counts."""

    written: dict[str, int] = field(default_factory=lambda: dict.fromkeys(UIDS, 0))
    acknowledged: dict[str, int] = field(default_factory=lambda: dict.fromkeys(UIDS, 0))


def content(uid: str, number: int) -> bytes:
    return f"{uid} {number} ".encode() * 30


def make_ill(ground: Ground, dice: random.Random) -> None:
    """Let any number of places be ill, in any way; damage nothing that would be the last good one."""
    for zone in ground.ill:
        for place in zone:
            place.heal()
            place.deadline = 0.05
            kind = dice.choice(["well"] * 4 + ["is_down", "is_hung", "flaky"])
            if kind == "flaky":
                place.is_down = True
                place.is_ill_for = lambda _: dice.random() < 0.4
            elif kind != "well":
                setattr(place, kind, True)
                place.is_ill_for = lambda _: True
        if dice.random() < 0.4:
            place = dice.choice(zone)
            keys = [key for key in place.memory.contents() if key != "des.json"]
            good = [key for key in keys if is_good_elsewhere(zone, place, key)]
            if good:
                place.damage(dice.choice(good), dice.choice([50, 70, -1, -30, -70]))


def is_good_elsewhere(zone: object, place: object, key: str) -> bool:
    """Tell whether all other places have the same as this one: then one of them may be damaged."""
    contents = [one.memory.contents().get(key) for one in zone]  # type: ignore[attr-defined]
    del place
    return len(set(contents)) == 1


class Reader:
    """A process that lives long, and remembers what it was told."""

    def __init__(self, storage: ZonedStorage, store: Store) -> None:
        self.storage = storage
        self.store = store
        self.seen = dict.fromkeys(UIDS, 0)

    async def read(self, uid: str, model: Model, told: Counter[str]) -> None:
        floor = self.seen[uid]
        try:
            data = await self.store.get(uid, WHEN)
        except NotFoundError:
            assert not max(floor, model.acknowledged[uid]), "a false 404"
            told["not found"] += 1
        except (StorageError, CorruptShardError) as error:
            told[error.status] += 1
        else:
            number = int(data.split()[1])
            assert data == content(uid, number), "wrong bytes"
            assert floor <= number <= model.written[uid], "back in time"
            self.seen[uid] = number
            told["right"] += 1


async def write(
    ground: Ground, maker: Maker, uid: str, model: Model, told: Counter[str], quorum: int | None = None
) -> None:
    """Write in a process of its own."""
    storage = ground.open(place_timeout=0.01, quorum=quorum)
    maker.storage = storage
    model.written[uid] += 1
    number = model.written[uid]
    try:
        await maker.add({uid: File(content(uid, number))})
        await storage.settle(maker.identity(uid).head_key)
    except (StorageError, ConflictError, CorruptShardError) as error:
        told[f"not written: {error.status}"] += 1
    else:
        model.acknowledged[uid] = number
        told["written"] += 1


@pytest.mark.parametrize(
    ("seed", "rounds"),
    [(0, 4), (1, 4), *(pytest.param(seed, 12, marks=pytest.mark.soak) for seed in range(25))],
)
async def test_any_trouble(seed: int, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("des.pack.commit.MAX_ATTEMPTS", 3)
    monkeypatch.setattr("des.pack.commit._LONGEST_PAUSE", 0.001)
    dice = random.Random(seed)
    ground = Ground.of(zones=2, copies=dice.choice([1, 2]))
    quorum = dice.choice([None, 2, 1])
    maker = await make_store(ground.open(), n_bits=N_BITS)
    model, told = Model(), Counter[str]()
    for uid in UIDS[:-2]:
        await write(ground, maker, uid, model, told, quorum)
    settings = Settings(index_ttl=0, negative_ttl=0, request_timeout=0.3, cache_bytes=dice.choice([0, 1 << 20]))
    async with open_tasks() as tasks:
        readers = []
        for repairs in (False, True):
            storage = ground.open(place_timeout=0.01, quorum=quorum, hedge=0.5, read_repair=repairs)
            readers.append(Reader(storage, Store(storage, settings, tasks)))
        for _ in range(rounds):
            make_ill(ground, dice)
            for _ in range(3):
                with suppress(DESError):
                    await write(ground, maker, dice.choice(UIDS), model, told, quorum)
            storage = ground.open(place_timeout=0.01, quorum=quorum)
            fresh = Reader(storage, Store(storage, settings, tasks))
            for uid in UIDS:
                for reader in (*readers, fresh):
                    await reader.read(uid, model, told)
        for zone in ground.ill:
            for place in zone:
                place.heal()
        assert told["right"] > 50, told
        # Other places may have answered every read in time; then writes, which need more of them, met the trouble.
        assert told.total() > told["right"] + told["not found"] + told["written"], told
        for reader in readers:
            await reader.storage.aclose()
    assert all(place.waiting == 0 for zone in ground.ill for place in zone)
