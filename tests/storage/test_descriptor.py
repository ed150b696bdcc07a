from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from des.errors import SettingsError, StorageDeniedError, StorageUnavailableError
from des.storage.descriptor import (
    DESCRIPTOR_KEY,
    Descriptor,
    Epoch,
    IndexRange,
    ensure_descriptor,
    read_descriptor,
    require_descriptor,
)
from des.storage.local import LocalStorage
from des.storage.protocol import IfAbsent, Overwrite
from des.storage.testing import (
    Fail,
    Fault,
    FaultyStorage,
    RecordingStorage,
    ScheduledStorage,
    Scheduler,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WHOLE = Descriptor(bytes(range(16)), (Epoch("00010101", 8),), IndexRange(8, 0, 255))
GROWN = replace(WHOLE, epochs=(Epoch("00010101", 8), Epoch("20240201", 10), Epoch("20250101", 12)))


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[LocalStorage]:
    storage = LocalStorage(tmp_path / "store")
    yield storage
    await storage.aclose()


class TestJson:
    def test_the_bytes(self) -> None:
        value = json.loads(GROWN.encode())
        assert list(value)[-1] == "revision"
        assert len(value.pop("revision")) == 32
        assert value == {
            "format": "des",
            "version": 1,
            "store_id": "000102030405060708090a0b0c0d0e0f",
            "n_bits": [
                {"from": "00010101", "n_bits": 8},
                {"from": "20240201", "n_bits": 10},
                {"from": "20250101", "n_bits": 12},
            ],
            "index_range": {"n_bits": 8, "start": 0, "end": 255},
        }

    def test_the_last_bytes_differ_at_every_change(self) -> None:
        assert GROWN.encode()[-64:] != GROWN.encode()[-64:]

    @pytest.mark.parametrize("descriptor", [WHOLE, GROWN, replace(WHOLE, index_range=IndexRange(4, 3, 9))])
    def test_there_and_back(self, descriptor: Descriptor) -> None:
        assert Descriptor.decode(descriptor.encode()) == descriptor

    def test_unknown_fields_are_of_a_later_release_and_do_no_harm(self) -> None:
        value = json.loads(WHOLE.encode()) | {"comment": "made by hand"}
        assert Descriptor.decode(json.dumps(value).encode()) == WHOLE

    @given(st.integers(0, len(WHOLE.encode())))
    def test_cut_short_it_is_damaged(self, length: int) -> None:
        data = WHOLE.encode()[:length]
        if json_or_none(data) is None:
            with pytest.raises(SettingsError, match="is damaged; restore it with `des init STORE --adopt`"):
                Descriptor.decode(data)
        else:
            assert Descriptor.decode(data) == WHOLE

    @given(st.binary(max_size=60))
    def test_anything_else_is_a_settings_error(self, data: bytes) -> None:
        with pytest.raises(SettingsError):
            Descriptor.decode(data)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("format", "zip", "is not the descriptor of a DES store"),
            ("version", 2, "of format version 2; this release knows 1: upgrade DES"),
            ("store_id", "00", "says impossible things"),
            ("store_id", "x" * 32, "is damaged"),
            ("store_id", None, "is damaged"),
            ("n_bits", [], "says impossible things"),
            ("n_bits", 8, "is damaged"),
            ("n_bits", [{"from": "20240101", "n_bits": 8}], "says impossible things"),
            ("n_bits", [{"from": "00010101", "n_bits": 0}], "says impossible things"),
            ("n_bits", [{"from": "00010101", "n_bits": 17}], "says impossible things"),
            ("n_bits", [{"from": "00010101"}], "is damaged"),
            (
                "n_bits",
                [{"from": "00010101", "n_bits": 8}, {"from": "20240230", "n_bits": 9}],
                "says impossible things",
            ),
            (
                "n_bits",
                [{"from": "00010101", "n_bits": 8}, {"from": "tomorrow", "n_bits": 9}],
                "says impossible things",
            ),
            ("n_bits", [{"from": "00010101", "n_bits": 8}] * 2, "says impossible things"),
            (
                "n_bits",
                [{"from": day, "n_bits": 8} for day in ("00010101", "20240202", "20240201")],
                "says impossible things",
            ),
            ("index_range", {"n_bits": 8, "start": 0, "end": 256}, "says impossible things"),
            ("index_range", {"n_bits": 8, "start": 9, "end": 8}, "says impossible things"),
            ("index_range", {"n_bits": 8, "start": -1, "end": 8}, "says impossible things"),
            ("index_range", {"n_bits": 17, "start": 0, "end": 8}, "says impossible things"),
            ("index_range", None, "is damaged"),
        ],
    )
    def test_what_it_cannot_say(self, field: str, value: Any, message: str) -> None:  # noqa: ANN401 - any JSON
        data = json.loads(WHOLE.encode()) | {field: value}
        with pytest.raises(SettingsError, match=message):
            Descriptor.decode(json.dumps(data).encode())

    @pytest.mark.parametrize("field", ["format", "version", "store_id", "n_bits", "index_range"])
    def test_what_it_must_say(self, field: str) -> None:
        data = json.loads(WHOLE.encode())
        del data[field]
        with pytest.raises(SettingsError, match="is damaged"):
            Descriptor.decode(json.dumps(data).encode())


def json_or_none(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


class TestMeaning:
    @pytest.mark.parametrize(
        ("day", "n_bits"),
        [
            ("00010101", 8),
            ("20240131", 8),
            ("20240201", 10),
            ("20241231", 10),
            ("20250101", 12),
            ("99991231", 12),
        ],
    )
    def test_n_bits_by_day(self, day: str, n_bits: int) -> None:
        assert GROWN.n_bits_on(day) == n_bits

    def test_a_configured_n_bits_is_compared_with_the_newest(self) -> None:
        GROWN.check_n_bits(None)
        GROWN.check_n_bits(12)
        with pytest.raises(
            SettingsError, match="configured as 8, but the store has 12; leave it unset, or set DES_N_BITS=12"
        ):
            GROWN.check_n_bits(8)

    @pytest.mark.parametrize(
        ("n_bits", "owned"),
        [(4, range(3, 10)), (8, range(0x30, 0xA0)), (3, range(2, 5)), (2, range(1, 2)), (1, range(0))],
    )
    def test_what_a_zone_owns(self, n_bits: int, owned: range) -> None:
        """3 to 9 of 16; at other bits, what lies in it as a whole."""
        zone = replace(WHOLE, index_range=IndexRange(4, 3, 9))
        for shard in range(1 << n_bits):
            if shard in owned:
                zone.check_owned(shard, n_bits)
            else:
                with pytest.raises(
                    SettingsError, match=rf"index {shard} \(n_bits {n_bits}\) is not in this place, a zone that holds"
                ):
                    zone.check_owned(shard, n_bits)

    @given(st.integers(1, 16).flatmap(lambda n_bits: st.tuples(st.just(n_bits), st.integers(0, (1 << n_bits) - 1))))
    def test_a_whole_store_owns_everything(self, shard: tuple[int, int]) -> None:
        n_bits, index = shard
        WHOLE.check_owned(index, n_bits)

    @given(st.integers(1, 16), st.integers(1, 16), st.data())
    def test_a_shard_is_owned_iff_all_its_file_ids_are(self, range_bits: int, n_bits: int, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, (1 << range_bits) - 1))
        end = data.draw(st.integers(start, (1 << range_bits) - 1))
        index = data.draw(st.integers(0, (1 << n_bits) - 1))
        prefixes = {index << (16 - n_bits), ((index + 1) << (16 - n_bits)) - 1}
        expected = all(start <= prefix >> (16 - range_bits) <= end for prefix in prefixes)
        assert IndexRange(range_bits, start, end).owns(index, n_bits) is expected

    def test_new_stores_differ(self) -> None:
        assert Descriptor.new(8) != Descriptor.new(8)
        assert Descriptor.new(3).index_range == IndexRange(3, 0, 7)


class TestReading:
    async def test_none(self, storage: LocalStorage) -> None:
        assert await read_descriptor(storage) is None
        with pytest.raises(SettingsError, match=rf"there is no store at {storage.address} \(no des\.json\)"):
            await require_descriptor(storage)

    async def test_one(self, storage: LocalStorage) -> None:
        await storage.put(DESCRIPTOR_KEY, GROWN.encode(), IfAbsent())
        recording = RecordingStorage(storage)
        assert await read_descriptor(recording) == await require_descriptor(recording) == GROWN
        assert [call.verb for call in recording.calls] == ["read_suffix"] * 2

    @pytest.mark.parametrize("error", [StorageUnavailableError("down"), StorageDeniedError("denied")], ids=repr)
    async def test_trouble_is_not_absence(self, storage: LocalStorage, error: Exception) -> None:
        await storage.put(DESCRIPTOR_KEY, GROWN.encode(), IfAbsent())
        for act in (read_descriptor, require_descriptor, lambda faulty: ensure_descriptor(faulty, None)):
            faulty = FaultyStorage(storage, [Fault(Fail(error))])
            with pytest.raises(type(error), match=str(error)):
                await act(faulty)
            assert faulty.fired

    async def test_an_endless_one_is_damaged(self, storage: LocalStorage) -> None:
        await storage.put(DESCRIPTOR_KEY, WHOLE.encode() + b" " * (2 << 20), IfAbsent())
        with pytest.raises(SettingsError, match="is damaged"):
            await read_descriptor(storage)


class TestEnsuring:
    @pytest.mark.parametrize(("n_bits", "made"), [(None, 8), (5, 5), (16, 16)])
    async def test_a_new_store(self, storage: LocalStorage, n_bits: int | None, made: int) -> None:
        descriptor = await ensure_descriptor(storage, n_bits)
        assert descriptor.n_bits_on("20240131") == made
        assert await read_descriptor(storage) == descriptor
        assert await ensure_descriptor(storage, None) == descriptor

    async def test_another_n_bits_than_the_stores(self, storage: LocalStorage) -> None:
        await ensure_descriptor(storage, 5)
        with pytest.raises(SettingsError, match="configured as 8, but the store has 5"):
            await ensure_descriptor(storage, 8)

    async def test_shards_without_a_descriptor_get_no_new_store_id(self, storage: LocalStorage) -> None:
        await storage.put("20240131/0A.des", b"", Overwrite())
        with pytest.raises(SettingsError, match=r"has shards but no des\.json; restore it with `des init .* --adopt`"):
            await ensure_descriptor(storage, None)
        assert await read_descriptor(storage) is None

    async def test_other_things_in_the_directory_are_no_shards(self, storage: LocalStorage) -> None:
        await storage.put("notes/README.txt", b"", Overwrite())
        await storage.put("20241331/x", b"", Overwrite())
        descriptor = await ensure_descriptor(storage, None)
        assert await read_descriptor(storage) == descriptor

    @pytest.mark.parametrize("seed", range(10))
    async def test_first_writers_agree_whatever_the_interleaving(self, storage: LocalStorage, seed: int) -> None:
        scheduler = Scheduler(seed)
        made: list[Descriptor] = []

        async def ensure(name: str) -> None:
            made.append(await ensure_descriptor(ScheduledStorage(storage, scheduler, name), None))

        await scheduler.run({name: lambda name=name: ensure(name) for name in "abc"})  # type: ignore[misc]  # bound at once
        assert made == [await read_descriptor(storage)] * 3

    async def test_first_writers_of_different_n_bits_do_not_both_win(self, storage: LocalStorage) -> None:
        outcomes: list[object] = []

        async def ensure(n_bits: int) -> None:
            try:
                outcomes.append((await ensure_descriptor(storage, n_bits)).n_bits_on("20240131"))
            except SettingsError:
                outcomes.append(SettingsError)

        async with anyio.create_task_group() as tasks:
            for n_bits in (3, 4, 5):
                tasks.start_soon(ensure, n_bits)
        descriptor = await require_descriptor(storage)
        assert sorted(map(str, outcomes)) == sorted(
            [str(descriptor.n_bits_on("20240131")), str(SettingsError), str(SettingsError)]
        )
