from __future__ import annotations

import pytest

from des.errors import ObjectNotFoundError, PreconditionFailedError, StorageUnavailableError
from des.storage.breaker import Breaker
from des.storage.place import Place, content_version
from des.storage.protocol import IfAbsent, IfVersion, Overwrite
from des.storage.testing import Fail, Fault, FaultyStorage, RecordingStorage
from tests.storage.contract import StorageContract
from tests.storage.memory import MemoryStorage

KEY = "20240131/0A.des"


@pytest.mark.soak
class TestContract(StorageContract):
    LISTED = 60

    @pytest.fixture
    async def storage(self) -> Place:
        return Place(MemoryStorage(), "a", is_primary=True)


async def test_a_version_means_the_same_at_every_place() -> None:
    places = [Place(MemoryStorage(_writes=start), "a", is_primary=False) for start in (0, 7)]
    versions = {await place.put(KEY, b"x" * 100, IfAbsent()) for place in places}
    assert versions == {content_version(b"x" * 64, 100)}
    (version,) = versions
    for place in places:
        forgetful = Place(place.inner, "a", is_primary=False)
        assert await forgetful.read_range(KEY, 0, 3, version=version) == b"xxx"
        assert await forgetful.put(KEY, b"y", IfVersion(version)) == content_version(b"y", 1)
        with pytest.raises(PreconditionFailedError):
            await place.read_range(KEY, 0, 3, version=version)


async def test_the_same_content_written_again_is_at_its_version_still() -> None:
    memory = MemoryStorage()
    place = Place(memory, "a", is_primary=False)
    version = await place.put(KEY, b"x" * 100, IfAbsent())
    await memory.put(KEY, b"x" * 100, Overwrite())
    assert await place.read_range(KEY, 0, 3, version=version) == b"xxx"


async def test_what_is_remembered_costs_no_look() -> None:
    recording = RecordingStorage(MemoryStorage())
    place = Place(recording, "a", is_primary=False)
    version = await place.put(KEY, b"x" * 100, IfAbsent())
    recording.calls.clear()
    await place.read_range(KEY, 0, 3, version=version)
    assert await place.read_suffix(KEY, 10, unless=version) is None
    assert [call.verb for call in recording.calls] == ["read_range", "read_suffix"]


async def test_answers_and_failures_reach_the_breaker() -> None:
    trouble = StorageUnavailableError("down on purpose.")
    faulty = FaultyStorage(MemoryStorage(), [Fault(Fail(trouble), at=None, verb="read_range")])
    place = Place(faulty, "a", is_primary=True, breaker=Breaker(in_a_row=3))
    for _ in range(10):
        with pytest.raises(ObjectNotFoundError):
            await place.probe(KEY)
    states = []
    for _ in range(3):
        states.append(place.state.is_well)
        with pytest.raises(StorageUnavailableError):
            await place.read_range(KEY, 0, 1)
    assert [*states, place.state.is_well] == [True, True, True, False]
    assert len(faulty.fired) == 3
