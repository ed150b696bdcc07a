"""The descriptor: `des.json` at the root of a store, the one small fact that routing needs besides `(uid, created_at)`.

    {"format": "des", "version": 1, "store_id": "<32 hex>",
     "n_bits": [{"from": "00010101", "n_bits": 8}],
     "index_range": {"n_bits": 8, "start": 0, "end": 255},
     "revision": "<32 hex>"}

`n_bits` says by date how many bits of the file_id select the shard, so that a growing store can use more shards from some future day
on without touching history. `index_range` says which shard indices this place holds, both ends included: all of them for a whole store, a
part of them for a zone. `revision` is random and stands last, so that the last bytes differ at every change: local storage tells versions apart by them.

It is created if-absent and read back, so that two first writers agree; where it is missing although shards exist, writing is refused: a
new store id would orphan them.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from des.errors import ObjectNotFoundError, SettingsError, StorageDeniedError, StorageError, StorageUnavailableError
from des.routing import MAX_N_BITS, MIN_N_BITS, is_day
from des.storage.protocol import IfAbsent

if TYPE_CHECKING:
    from des.storage.protocol import Storage

DESCRIPTOR_KEY = "des.json"
DEFAULT_N_BITS = 8
_VERSION = 1
_MAX_BYTES = 1 << 20
_FIRST_DAY = "00010101"
_STORE_ID_BYTES = 16


class NewerDescriptorError(SettingsError):
    """The descriptor is of a newer format: not damaged, and nothing to be restored."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """From this day (YYYYMMDD) on, `n_bits` bits select the shard."""

    first_day: str
    n_bits: int


@dataclass(frozen=True, slots=True)
class IndexRange:
    """The shard indices `start` to `end`, both included, at `n_bits`."""

    n_bits: int
    start: int
    end: int

    def owns(self, shard_index: int, n_bits: int) -> bool:
        """Tell whether a shard lies in the range; at another n_bits the same share of the file_ids is meant."""
        shift = MAX_N_BITS - n_bits
        lowest, highest = shard_index << shift, ((shard_index + 1) << shift) - 1
        own = MAX_N_BITS - self.n_bits
        return self.start << own <= lowest and highest < (self.end + 1) << own


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a store says of itself.

    Attributes:
        store_id: 16 random bytes; every object of the store carries them.
        epochs: n_bits by date, first day first.
        index_range: the shard indices this place holds.
    """

    store_id: bytes
    epochs: tuple[Epoch, ...]
    index_range: IndexRange

    @classmethod
    def new(cls, n_bits: int) -> Descriptor:
        """Return the descriptor of a new whole store."""
        whole = IndexRange(n_bits, 0, (1 << n_bits) - 1)
        return cls(secrets.token_bytes(_STORE_ID_BYTES), (Epoch(_FIRST_DAY, n_bits),), whole)

    def n_bits_on(self, day: str) -> int:
        """Return how many bits select the shard of a day (YYYYMMDD)."""
        return next(epoch.n_bits for epoch in reversed(self.epochs) if epoch.first_day <= day)

    def check_n_bits(self, configured: int | None) -> None:
        """Refuse a configured n_bits that differs from the one in force for the newest days.

        Raises:
            SettingsError: it differs.
        """
        ours = self.epochs[-1].n_bits
        if configured is not None and configured != ours:
            raise SettingsError(
                f"n_bits is configured as {configured}, but the store has {ours}; leave it unset, or set DES_N_BITS={ours}."
            )

    def check_owned(self, shard_index: int, n_bits: int) -> None:
        """Refuse a shard that this place does not hold.

        Raises:
            SettingsError: the shard lies in another zone.
        """
        if not self.index_range.owns(shard_index, n_bits):
            held = self.index_range
            raise SettingsError(
                f"shard index {shard_index} (n_bits {n_bits}) is not in this place, a zone that holds {held.start} to {held.end}"
                f" (n_bits {held.n_bits}); open the store through its zones file."
            )

    def encode(self, revision: str | None = None) -> bytes:
        """Return the JSON of the descriptor, with a revision of its own at every call where none is given."""
        held = self.index_range
        value = {
            "format": "des",
            "version": _VERSION,
            "store_id": self.store_id.hex(),
            "n_bits": [{"from": epoch.first_day, "n_bits": epoch.n_bits} for epoch in self.epochs],
            "index_range": {"n_bits": held.n_bits, "start": held.start, "end": held.end},
            "revision": revision or secrets.token_hex(16),
        }
        return json.dumps(value, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Descriptor:
        """Parse a descriptor.

        Raises:
            SettingsError: it is damaged, of a newer format, or says impossible things.
        """
        try:
            value: dict[str, Any] = json.loads(data)
            if value["format"] != "des":
                raise SettingsError(f"{DESCRIPTOR_KEY} is not the descriptor of a DES store.")
            if value["version"] != _VERSION:
                raise NewerDescriptorError(
                    f"the store is of format version {value['version']}; this release knows {_VERSION}: upgrade DES."
                )
            held = value["index_range"]
            descriptor = cls(
                bytes.fromhex(value["store_id"]),
                tuple(Epoch(str(item["from"]), int(item["n_bits"])) for item in value["n_bits"]),
                IndexRange(int(held["n_bits"]), int(held["start"]), int(held["end"])),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            if isinstance(error, SettingsError):
                raise
            raise SettingsError(f"{DESCRIPTOR_KEY} is damaged; restore it with `des init STORE --adopt`.") from error
        descriptor._check()
        return descriptor

    def _check(self) -> None:
        days = [epoch.first_day for epoch in self.epochs]
        held = self.index_range
        bits = [*(epoch.n_bits for epoch in self.epochs), held.n_bits]
        sound = (
            len(self.store_id) == _STORE_ID_BYTES
            and days[:1] == [_FIRST_DAY]
            and days == sorted(set(days))
            and all(is_day(day) for day in days)
            and all(MIN_N_BITS <= n_bits <= MAX_N_BITS for n_bits in bits)
            and 0 <= held.start <= held.end < 1 << held.n_bits
        )
        if not sound:
            raise SettingsError(f"{DESCRIPTOR_KEY} says impossible things; restore it with `des init STORE --adopt`.")


async def read_descriptor(storage: Storage) -> Descriptor | None:
    """Read the descriptor of a store; None where there is none.

    Raises:
        SettingsError: it is damaged or of a newer format.
        StorageError: the storage is unwell.
    """
    try:
        suffix = await storage.read_suffix(DESCRIPTOR_KEY, _MAX_BYTES)
    except ObjectNotFoundError:
        return None
    return Descriptor.decode(suffix.data) if suffix else None


async def require_descriptor(storage: Storage) -> Descriptor:
    """Read the descriptor of a store that must have one.

    Raises:
        SettingsError: there is none; the sentence names the cure.
        StorageError: the storage is unwell.
    """
    descriptor = await read_descriptor(storage)
    if descriptor is None:
        raise SettingsError(
            f"there is no store at {storage.address} (no {DESCRIPTOR_KEY}); make one with `des init` or by packing into it, or, if it"
            " has shards, restore the descriptor with `des init STORE --adopt`."
        )
    return descriptor


async def ensure_descriptor(storage: Storage, n_bits: int | None) -> Descriptor:
    """Read the descriptor, or make the store a new one.

    Args:
        storage: the store's place.
        n_bits: configured; None means the descriptor's, 8 for a new store.

    Raises:
        SettingsError: n_bits differs from the store's, or shards exist without a descriptor.
        StorageError: the storage is unwell.
    """
    descriptor = await read_descriptor(storage) or await _make_descriptor(storage, n_bits)
    descriptor.check_n_bits(n_bits)
    return descriptor


def _named(storage: Storage) -> str:
    """Return how a command line names a store."""
    return f"--zones {storage.address}" if storage.backend == "multi_s3" else storage.address


async def _make_descriptor(storage: Storage, n_bits: int | None) -> Descriptor:
    fresh = Descriptor.new(DEFAULT_N_BITS if n_bits is None else n_bits)
    lost = (
        f"{storage.address} has shards but no {DESCRIPTOR_KEY}; restore it with `des init {_named(storage)} --adopt`."
    )
    return await create_descriptor(storage, fresh, lost=lost)


async def create_descriptor(storage: Storage, fresh: Descriptor, *, lost: str | None) -> Descriptor:
    """Put a descriptor where there is none, and return the one that is there then: another writer may be first.

    Args:
        storage: the store's place.
        fresh: what to put.
        lost: what to say where there are shards without a descriptor; None: there may be.

    Raises:
        SettingsError: there are shards without a descriptor.
        StorageError: the storage is unwell.
    """
    if lost is not None and await has_shards(storage):
        # Looked for once more: another writer may just have made it, and its first shards.
        found = await read_descriptor(storage)
        if found is None:
            raise SettingsError(lost)
        return found
    try:
        await storage.put(DESCRIPTOR_KEY, fresh.encode(), IfAbsent())
    except StorageDeniedError:
        raise
    except StorageError:
        # Another writer was first, or the outcome is unknown: what is there now decides.
        found = await read_descriptor(storage)
        if found is None:
            raise
        return found
    found = await read_descriptor(storage)
    if found is None:
        raise StorageUnavailableError(f"{storage.address} does not keep its {DESCRIPTOR_KEY}.")
    return found


async def has_shards(storage: Storage) -> bool:
    """Tell whether a storage has a day with anything in it."""
    return any(is_day(prefix.rstrip("/")) for prefix in (await storage.list_level("")).prefixes)
