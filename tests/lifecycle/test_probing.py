from __future__ import annotations

from dataclasses import replace

import pytest

from des.errors import SettingsError, StorageUnavailableError
from des.lifecycle.probing import Probed, of_one_store, probe_place
from des.storage.descriptor import DESCRIPTOR_KEY, Descriptor, Epoch, IndexRange
from des.storage.protocol import IfAbsent
from des.storage.testing import RecordingStorage
from tests.storage.memory import MemoryStorage

ASKED = Probed("a", "memory", None, is_primary=True)
HELD = IndexRange(8, 0, 127)
OURS = replace(Descriptor.new(8), index_range=HELD)


async def place(descriptor: Descriptor | None = OURS) -> RecordingStorage:
    storage = RecordingStorage(MemoryStorage())
    if descriptor is not None:
        await storage.put(DESCRIPTOR_KEY, descriptor.encode(), IfAbsent())
    return storage


async def test_a_place_as_it_should_be() -> None:
    found = await probe_place(ASKED, await place(), HELD)
    assert found.round_trip is not None
    assert found.round_trip >= 0
    expected = replace(ASKED, store_id=OURS.store_id.hex(), conditional_writes=True, round_trip=found.round_trip)
    assert found == expected


async def test_a_place_that_was_never_written_to() -> None:
    found = await probe_place(ASKED, await place(None), HELD)
    assert (found.status, found.store_id, found.conditional_writes, found.error) == ("ok", None, None, None)


@pytest.mark.parametrize(
    ("is_primary", "cure"),
    [
        (True, "restore it with `des init --zones FILE --adopt`."),
        (False, "bring it up to the end with `des zones sync`."),
    ],
)
async def test_a_place_with_shards_and_no_descriptor(is_primary: bool, cure: str) -> None:
    storage = await place(None)
    await storage.put("20240131/C1.des", b"a head", IfAbsent())
    found = await probe_place(replace(ASKED, is_primary=is_primary), storage, HELD)
    assert found.status == "invalid"
    assert found.error == f"it has shards (of 20240131, for instance) but no des.json; {cure}"


@pytest.mark.parametrize(
    ("descriptor", "error"),
    [
        (Descriptor.new(8), "it holds 0 to 255 (des.json), the file says 0 to 127;"),
        (replace(Descriptor.new(6), index_range=IndexRange(8, 0, 127)), "its n_bits is 6 (des.json), the file's is 8;"),
        (replace(OURS, epochs=(Epoch("00010101", 8), Epoch("20250101", 9))), "it is a store with several n_bits"),
    ],
)
async def test_a_place_that_does_not_fit_the_file(descriptor: Descriptor, error: str) -> None:
    found = await probe_place(ASKED, await place(descriptor), HELD)
    assert found.status == "invalid"
    assert found.error is not None
    assert found.error.startswith(error)
    assert found.conditional_writes is None


async def test_a_place_with_a_damaged_descriptor() -> None:
    storage = await place(None)
    await storage.put(DESCRIPTOR_KEY, b"{", IfAbsent())
    found = await probe_place(ASKED, storage, HELD)
    assert (found.status, found.conditional_writes) == ("invalid", None)
    assert "des.json is damaged" in str(found.error)


class Careless(MemoryStorage):
    async def check_conditional_writes(self, key: str) -> None:
        raise SettingsError("let pass a PUT.")


class Unwell(MemoryStorage):
    async def check_conditional_writes(self, key: str) -> None:
        raise StorageUnavailableError("is gone.")


@pytest.mark.parametrize(
    ("storage", "shares", "status", "conditional_writes", "error"),
    [
        (Careless(), True, "invalid", False, "let pass a PUT."),
        (Unwell(), True, "unavailable", None, "is gone."),
        (Careless(), False, "ok", None, None),  # there is one writer only
    ],
)
async def test_conditional_writes(
    storage: MemoryStorage, shares: bool, status: str, conditional_writes: bool | None, error: str | None
) -> None:
    await storage.put(DESCRIPTOR_KEY, OURS.encode(), IfAbsent())
    found = await probe_place(ASKED, storage, HELD, shares=shares)
    assert (found.status, found.conditional_writes, found.error) == (status, conditional_writes, error)


def test_all_places_belong_to_one_store() -> None:
    empty = Probed("a", "s3://one", None, is_primary=True)
    first = replace(empty, place="s3://two", store_id="11")
    same = replace(empty, place="s3://three", store_id="11")
    other = replace(empty, place="s3://four", store_id="22")
    down = replace(empty, place="s3://five", status="unavailable", error="is gone.")
    assert of_one_store([empty, down]) == [empty, down]
    found = of_one_store([empty, down, first, same, other])
    assert found[:4] == [empty, down, first, same]
    assert (found[4].status, found[4].error) == (
        "invalid",
        "its store id is 22, that of s3://two is 11: it is a place of another store; mend the file.",
    )
