"""The target that reads a whole store: a small real shard in memory, lied about with good checksums, through all of the read path."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from contextlib import suppress
from datetime import date
from functools import cache
from typing import TYPE_CHECKING
from unittest.mock import patch

import anyio.lowlevel
import anyio.to_thread
import zstandard

from des.errors import (
    ConflictError,
    CorruptShardError,
    DeletedError,
    DESError,
    LostHeadError,
    NotFoundError,
    SettingsError,
    StorageError,
)
from des.pack.commit import find_shard
from des.routing import file_id, shard_index
from des.settings import Settings
from des.shard.codecs import Compression
from des.shard.layout import ENTRY_BYTES, Flag, Identity, checksum64
from des.shard.tables import HeadTables
from des.storage.descriptor import DESCRIPTOR_KEY, Descriptor, Epoch, IndexRange
from des.storage.protocol import IfAbsent
from des.store import Store
from des.store.verifying import verify
from des.tasks import open_tasks
from tests.fuzz.mutating import Mutator, mutated_container, resealed_payload, row_starts
from tests.fuzz.parts import WrongAnswerError, check
from tests.shard.forging import Parts, changed
from tests.shard.samples import (
    DICTIONARY,
    IDENTITY,
    MIDNIGHT,
    WORDS,
    Sample,
    build_head,
    build_segment,
    lookup,
    open_head,
    segment_name,
)
from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import TypeVar

    from des.shard.layout import Entry
    from des.shard.tables import DictionaryPlace

    Result = TypeVar("Result")

_DAY = date(2024, 1, 31)
SHARD = Identity(IDENTITY.store_id, "20240131", 1, 0)
_KEYS = (
    DESCRIPTOR_KEY,
    SHARD.head_key,
    SHARD.segment_key(segment_name(0)),
    SHARD.segment_key(segment_name(1)),
)
_TYPED = (CorruptShardError, LostHeadError, NotFoundError, SettingsError, StorageError)
_NOISE = hashlib.sha512(b"noise").digest()


def _of_the_shard(stem: str) -> str:
    return next(name for name in (f"{stem}-{n}" for n in range(64)) if shard_index(file_id(name), 1) == 0)


PLAIN, REPLACED, DELETED, NOISE, LARGE, EMPTY, ABSENT = map(
    _of_the_shard, ("plain", "replaced", "deleted", "noise", "large", "ümlaut", "absent")
)


@cache
def contents() -> dict[str, bytes]:
    """Return what is in the store."""
    return {
        PLAIN: WORDS * 3,
        REPLACED: b"the new content " * 9,
        NOISE: _NOISE,
        LARGE: WORDS * 16_000,
        EMPTY: b"",
    }


@cache
def base() -> tuple[bytes, ...]:
    """Return the objects of the store that inputs are mutations of: every codec, a dictionary, a tombstone, a large payload."""
    whole = IndexRange(1, 0, 1)
    descriptor = Descriptor(SHARD.store_id, (Epoch("00010101", 1),), whole).encode("0" * 32)
    right = contents()
    first = build_segment(
        [
            Sample(PLAIN, right[PLAIN], MIDNIGHT + 1, "text/plain", b'{"a":1}'),
            Sample(REPLACED, b"the old content", MIDNIGHT + 2),
            Sample(DELETED, b"what was deleted", MIDNIGHT + 3),
            Sample(NOISE, right[NOISE], MIDNIGHT + 86_399_999_999),
        ],
        compressions=[Compression("zstd", dictionary=DICTIONARY), Compression("lz4")],
        identity=SHARD,
    )
    second = build_segment(
        [
            Sample(LARGE, right[LARGE], MIDNIGHT + 5, "text/plain"),
            Sample(REPLACED, right[REPLACED], MIDNIGHT + 2, "a/b", flags=Flag.REPLACED),
            Sample(EMPTY, b"", metadata='{"é":"日本"}'.encode()),
        ],
        number=1,
        tombstones=[Sample(DELETED, b"what was deleted", MIDNIGHT + 90_000_000)],
        generation=2,
        identity=SHARD,
    )
    return descriptor, build_head([first, second], identity=SHARD), first.data, second.data


# ---- input ---------------------------------------------------------------------------------------------------------------------------


def bundled(objects: tuple[bytes, ...]) -> bytes:
    """Return objects as one input: each behind its length (4 bytes)."""
    return b"".join(struct.pack("<I", len(one)) + one for one in objects)


def unbundled(data: bytes) -> tuple[bytes, ...]:
    """Return the objects of an input, whatever it is."""
    objects = []
    for _ in _KEYS:
        length = int.from_bytes(data[:4], "little")
        objects.append(data[4 : 4 + length])
        data = data[4 + length :]
    return tuple(objects)


def mutated_shard(data: bytes, max_size: int, mutator: Mutator) -> bytes:
    """Return a store of which one object lies, mostly with good checksums, those of payloads included."""
    objects = list(unbundled(data))
    rng = mutator.rng
    which = rng.choices(range(len(objects)), (1, 8, 6, 6))[0]
    room = max_size - sum(map(len, objects)) + len(objects[which]) - 4 * len(objects)
    if room <= 0:
        return bundled(base())
    if which == 0:
        objects[0] = mutator.mutate(objects[0], room)
    elif rng.random() < 0.02:
        objects[which] = b""
    else:
        objects[which] = mutated_container(objects[which], room, mutator)
    if rng.random() < 0.6:
        # What the reader raises by mistake is to be found by reading, not to end the batch here.
        with suppress(Exception):
            _reconcile(objects)
    return bundled(tuple(objects))[:max_size]


def _reconcile(objects: list[bytes]) -> None:
    """Let a head and its segments agree: sizes, and the checksums of payloads and dictionaries in the head and in the catalogs."""
    head = Parts.of(objects[1])
    tables = HeadTables.decode(head.tables)
    known = {segment_name(number): 2 + number for number in range(2)}
    at = 50
    for ref in tables.segments:
        where = known.get(ref.name)
        if where is not None:
            head.tables = changed(head.tables, at + 16, len(objects[where]).to_bytes(8, "little"))
        at += 44
    at += 2
    for ref in tables.segments:
        if ref.dictionary is not None:
            place, where = ref.dictionary, known.get(ref.name)
            if where is not None:
                dictionary = objects[where][place.offset : place.offset + place.length]
                head.tables = changed(head.tables, at + 14, hashlib.sha256(dictionary).digest()[:16])
            at += 30
    _reseal_payloads(head, [known.get(ref.name) for ref in tables.segments], objects)
    objects[1] = head.build()
    for where in known.values():
        with suppress(DESError, struct.error, zstandard.ZstdError):
            objects[where] = _with_resealed_rows(objects[where])


def _reseal_payloads(head: Parts, wheres: list[int | None], objects: list[bytes]) -> None:
    """Make the checksums of a head's payloads good; `wheres` says which object each of its segments is."""
    for index, ref in enumerate(head.directory):
        page = head.page(index)
        for start in range(0, len(page) - ENTRY_BYTES + 1, ENTRY_BYTES):
            number = int.from_bytes(page[start + 36 : start + 38], "little")
            where = wheres[number] if number < len(wheres) else None
            if where is not None:
                entry, objects[where] = resealed_payload(page[start : start + ENTRY_BYTES], objects[where])
                page = changed(page, start, entry)
        if len(page) == ref.length:
            head.set_page(index, page)


def _with_resealed_rows(data: bytes) -> bytes:
    parts = Parts.of(data)
    for index, ref in enumerate(parts.directory):
        raw = zstandard.decompress(parts.page(index), max_output_size=1 << 20)
        for start in row_starts(raw):
            entry, parts.body = resealed_payload(raw[start : start + ENTRY_BYTES], parts.body)
            raw = changed(raw, start, entry)
        stored = zstandard.compress(raw)
        if index + 1 == len(parts.directory):
            parts.body = parts.body[: ref.offset] + stored
            parts.directory[index] = ref._replace(length=len(stored), checksum=checksum64(stored))
        elif len(stored) == ref.length:
            parts.set_page(index, stored)
    return parts.build()


# ---- target --------------------------------------------------------------------------------------------------------------------------

_runner = asyncio.Runner()
_settings = cache(Settings)


def read_shard(data: bytes) -> None:
    """Read every file in every way, list, verify; see `_read_all` for what must hold."""
    # Without threads the same input always takes the same way, which is what coverage guides by.
    with patch.object(anyio.to_thread, "run_sync", _run_at_once):
        _runner.run(_read_all(unbundled(data)))


async def _run_at_once(function: Callable[..., Result], *arguments: object, **_: object) -> Result:
    await anyio.lowlevel.checkpoint()
    return function(*arguments)


async def _attempt(reading_it: Awaitable[Result]) -> Result | DESError:
    try:
        return await reading_it
    except _TYPED as error:
        return error


async def _read_all(objects: tuple[bytes, ...]) -> None:
    storage = MemoryStorage()
    for key, one in zip(_KEYS, objects, strict=True):
        if one:
            await storage.put(key, one, IfAbsent())
    with suppress(ConflictError):  # the lie that the shard is being removed
        await _attempt(find_shard(storage, SHARD))
    async with open_tasks() as tasks:
        store = Store(storage, _settings(), tasks)
        read = {uid: await _attempt(store.get(uid, _DAY)) for uid in (*contents(), DELETED, ABSENT)}
        for uid, content in read.items():
            _check_content(objects, uid, content)
            await _check_other_ways(store, uid, content)
        async for result in store.get_many([(uid, _DAY) for uid in read]):
            content = read[result.uid]
            check(result.error is None or isinstance(result.error, _TYPED), "an error of another kind among many")
            if result.data is not None and isinstance(content, bytes):
                check(result.data == content, "other bytes among many than alone")
        listed = await _attempt(_listed(store))
        report = await _attempt(verify(store))
        if not isinstance(report, DESError) and not report.damage:
            await _check_sound(store, listed, read)


def _check_content(objects: tuple[bytes, ...], uid: str, content: bytes | DESError) -> None:
    """Where the descriptor is whole, "not found" is only what the head says, and what an unchanged entry says is right bytes or an error."""
    if objects[0] != base()[0] or not isinstance(content, bytes | NotFoundError):
        return
    placed = _placed(objects[1], uid) if objects[1] else None
    if isinstance(content, NotFoundError):
        check(placed is None or placed[0].deleted, "a file that is there was not found")
        check(isinstance(content, DeletedError) == (placed is not None), "deleted is not the same as never there")
        return
    check(placed is not None and not placed[0].deleted, "a file that is not there was found")
    if placed == _placed(base()[1], uid):
        check(content == contents()[uid], "wrong bytes")


def _placed(encoded: bytes, uid: str) -> tuple[Entry, bytes, DictionaryPlace | None] | None:
    """Return what a head says of a file, and all that its content depends on."""
    head = open_head(encoded, SHARD)
    entry = lookup(head, encoded, file_id(uid))
    if entry is None:
        return None
    ref = head.tables.segments[entry.segment]
    return entry, ref.name, ref.dictionary


async def _check_other_ways(store: Store, uid: str, content: bytes | DESError) -> None:
    info = await _attempt(store.stat(uid, _DAY))
    await _attempt(store.stat(uid, _DAY, metadata=True))
    if isinstance(content, DESError):
        check(not isinstance(content, NotFoundError) or isinstance(info, DESError), "what is not found has a size")
        await _attempt(_streamed(store, uid, 0, 100))
        return
    check(not isinstance(info, DESError) and info.raw_size == len(content), "a size that is not the content's")
    for start, end in ((0, None), (len(content) // 2, len(content) // 2 + 10)):
        piece = await _attempt(_streamed(store, uid, start, end))
        check(isinstance(piece, DESError) or piece == content[start:end], "a range of other bytes")


async def _streamed(store: Store, uid: str, start: int, end: int | None) -> bytes:
    async with store.stream(uid, _DAY, start=start, end=end) as pieces:
        return b"".join([piece async for piece in pieces])


async def _listed(store: Store) -> list[str]:
    return [info.uid async for info in store.list("20240131")]


async def _check_sound(store: Store, listed: list[str] | DESError, read: dict[str, bytes | DESError]) -> None:
    """What verification finds nothing wrong with can be listed and read, and is what was packed."""
    check(not isinstance(listed, DESError), "a store that was verified cannot be listed")
    for uid in listed if isinstance(listed, list) else ():
        content = read[uid] if uid in read else await _attempt(store.get(uid, _DAY))
        if isinstance(content, DESError):
            raise WrongAnswerError("a file of a verified store cannot be read") from content
        found = await store.find(uid, _DAY)
        packed = hashlib.sha256(content).digest()[:16] == found.entry.content_hash
        check(packed, "a content of a verified store is not what was packed")


def seeds() -> Iterator[bytes]:
    """Yield inputs to begin with."""
    objects = base()
    yield bundled(objects)
    for missing in range(len(objects)):
        yield bundled(tuple(b"" if number == missing else one for number, one in enumerate(objects)))
