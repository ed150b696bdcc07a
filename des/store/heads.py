"""Reading a head: its tail, in one suffix read or two, to look things up; or all of it, verified, as a base for writing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, overload

from des.errors import CorruptShardError, PreconditionFailedError, StorageUnavailableError
from des.shard.layout import ENTRY_BYTES, HEADER, TAIL_READ_BYTES, Entry, Identity, Kind, decode_header
from des.shard.reading import KEPT_PAGES, Head, PageRef, find_entry, parse_tail, tail_length
from des.store.places import elsewhere, everywhere, first_good

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.shard.tables import HeadTables
    from des.storage.protocol import Storage, Suffix

# A head of 2^22 files with all its tables is smaller than this.
MAX_HEAD_BYTES = 512 << 20
_ATTEMPTS = 5
# What the objects of decoded tables take in memory beside their bytes, about.
_HEAD_BYTES = 2_500
_SEGMENT_BYTES = 600
_NAME_BYTES = 160
_PAGE_BYTES = 400


@dataclass(frozen=True, slots=True)
class LoadedHead:
    """A head at one version.

    Attributes:
        head: its parsed tail.
        version: the version of the object it was read from; its pages are read at no other.
        suffix: the object's last bytes: the tail, and whole pages that came with it.
        is_proof: False where a copy answered that may lag behind: it proves what it has, but neither that something is missing nor that it is deleted.
    """

    head: Head
    version: str
    suffix: memoryview
    is_proof: bool = True
    _checked: dict[PageRef, memoryview] = field(default_factory=dict, init=False, repr=False, compare=False)
    _segment_keys: dict[int, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def weight(self) -> int:
        """Bytes it takes in memory, about."""
        tables = self.head.tables
        objects = _SEGMENT_BYTES * len(tables.segments) + _NAME_BYTES * (
            len(tables.content_types) + len(tables.page_objects) + len(tables.commit_log) + 2 * len(tables.condemned)
        )
        pages = _PAGE_BYTES * min(self.head.directory.count, KEPT_PAGES)
        return _HEAD_BYTES + len(self.suffix) + objects + pages

    def segment_key(self, number: int) -> str:
        """Return the key of a segment by its number, kept once it was made."""
        key = self._segment_keys.get(number)
        if key is None:
            key = self._segment_keys[number] = self.head.identity.segment_key(self.head.tables.segments[number].name)
        return key

    def page_that_came_along(self, ref: PageRef) -> memoryview | None:
        """Return a page that is part of the suffix, checked when it is first asked for; None where it has to be read.

        Raises:
            CorruptShardError: the page is damaged.
        """
        page = self._checked.get(ref)
        if page is None:
            start = ref.offset - (self.head.tail.object_size - len(self.suffix))
            if start < 0 or ref.object_number:
                return None
            page = self.suffix[start : start + ref.length]
            try:
                ref.check(page)
            except CorruptShardError as error:
                raise named(error, self.head.identity.head_key) from error
            self._checked[ref] = page
        return page

    def keep_page(self, ref: PageRef, page: bytes) -> None:
        """Take a good page in place of one that came along damaged."""
        self._checked[ref] = memoryview(page)

    def require_proof(self) -> None:
        """Refuse to take this head's word for what it lacks, or has as deleted.

        Raises:
            StorageUnavailableError: it is a copy's that may lag behind.
        """
        if not self.is_proof:
            raise unproven(self.head.identity)

    def find_page(self, file_id: bytes) -> PageRef | None:
        """Return the only page that can hold a file; None proves that there is no such file.

        Raises:
            CorruptShardError: the directory points outside the object.
        """
        try:
            return self.head.find_page(file_id)
        except CorruptShardError as error:
            raise named(error, self.head.identity.head_key) from error

    def find(self, page: memoryview | bytes, file_id: bytes) -> Entry | None:
        """Find a file in a checked page and check its entry against the tables.

        Raises:
            CorruptShardError: the entry is not acceptable.
        """
        try:
            entry = find_entry(page, file_id)
            if entry is not None:
                self.head.check_entry(entry)
        except CorruptShardError as error:
            raise named(error, self.head.identity.head_key) from error
        return entry


@overload
async def load_head(storage: Storage, identity: Identity) -> LoadedHead: ...
@overload
async def load_head(storage: Storage, identity: Identity, *, unless: str | None) -> LoadedHead | None: ...
async def load_head(storage: Storage, identity: Identity, *, unless: str | None = None) -> LoadedHead | None:
    """Read and check the tail of a shard's head.

    Where it is damaged, the newest that another place has is returned, without proof.

    Args:
        storage: the store's place.
        identity: the shard.
        unless: a version: where the head is still at it, None is returned.

    Raises:
        ObjectNotFoundError: there is no head.
        CorruptShardError: it is damaged, or another shard's.
        StorageError: the storage is unwell.
    """
    try:
        return await _load_head(identity, unless, storage)
    except CorruptShardError as damage:
        heads = await everywhere(storage, identity.head_key, damage, partial(_load_head, identity, None))
        return _newest([head for head in heads if head is not None], damage)


def _newest(heads: Sequence[LoadedHead], damage: CorruptShardError) -> LoadedHead:
    """Return the newest of the heads that copies have, without proof.

    Raises:
        CorruptShardError: `damage`, where they are of several lineages: only the primary could tell which one counts.
    """
    if len({head.head.tables.lineage for head in heads}) != 1:
        raise damage
    return replace(max(heads, key=lambda head: head.head.tables.generation), is_proof=False)


async def _load_head(identity: Identity, unless: str | None, storage: Storage) -> LoadedHead | None:
    key = identity.head_key
    for _ in range(_ATTEMPTS):
        suffix = await storage.read_suffix(key, TAIL_READ_BYTES, unless=unless)
        if suffix is None:
            return None
        data, size = suffix.data, suffix.total_size
        try:
            length = tail_length(data, size)
            if length > len(data):
                rest = await storage.read_range(
                    key, size - length, size - len(data), version=suffix.version, purpose="footer"
                )
                data = rest + data
            return _loaded(Head(parse_tail(data, size), identity), suffix, data)
        except PreconditionFailedError:
            continue  # replaced between the two reads
        except CorruptShardError as error:
            raise named(error, key) from error
    raise StorageUnavailableError(f"{key} is replaced faster than it can be read; try again.")


def unproven(identity: Identity) -> StorageUnavailableError:
    """Return the error that says that a copy's head proves too little."""
    return StorageUnavailableError(
        f"{identity.head_key}: the primary of this shard cannot be asked, and the copy that answered may lag behind; try again later."
    )


def named(error: CorruptShardError, key: str) -> CorruptShardError:
    """Return the same error with the object's key at its front."""
    return type(error)(f"{key}: {error}")


def _loaded(head: Head, suffix: Suffix, data: bytes) -> LoadedHead:
    """Keep the tail and the whole pages that came with it, and let go of the rest."""
    start = head.tail.object_size - len(data)
    keep = head.tail.start
    for index in range(head.directory.count - 1, -1, -1):
        ref = head.directory.ref(index)
        if ref.object_number or ref.offset < start or ref.end != keep:
            break
        keep = ref.offset
    if keep > start:
        # The tail is parsed again, so that nothing refers to the longer buffer.
        data = data[keep - start :]
        head = Head(parse_tail(data, head.tail.object_size), head.identity)
    return LoadedHead(head, suffix.version, memoryview(data).toreadonly(), suffix.is_proof)


async def read_page(storage: Storage, loaded: LoadedHead, ref: PageRef) -> bytes:
    """Read and check a page that did not come with the tail, at another place where it is damaged.

    Raises:
        PreconditionFailedError: the head was replaced meanwhile.
        ObjectNotFoundError: the head, or the object that holds the page, is gone.
        CorruptShardError: the page is damaged.
        StorageError: the storage is unwell.
    """
    return await first_good(storage, _page_key(loaded, ref), partial(_read_page, loaded, ref))


async def page_of(storage: Storage, loaded: LoadedHead, ref: PageRef) -> memoryview | bytes:
    """Return a page, whether it came with the tail or has to be read. Errors as for `read_page`."""
    try:
        page = loaded.page_that_came_along(ref)
    except CorruptShardError as damage:
        return await replace_page(storage, loaded, ref, damage)
    return await read_page(storage, loaded, ref) if page is None else page


async def replace_page(storage: Storage, loaded: LoadedHead, ref: PageRef, damage: CorruptShardError) -> bytes:
    """Read a page at another place that came along damaged, and keep it with the head instead. Errors as for `read_page`."""
    page = await elsewhere(storage, _page_key(loaded, ref), damage, partial(_read_page, loaded, ref))
    loaded.keep_page(ref, page)
    return page


async def _read_page(loaded: LoadedHead, ref: PageRef, storage: Storage) -> bytes:
    key = _page_key(loaded, ref)
    version = None if ref.object_number else loaded.version
    page = await storage.read_range(key, ref.offset, ref.end, version=version, purpose="index")
    try:
        ref.check(page)
    except CorruptShardError as error:
        raise named(error, key) from error
    return page


def _page_key(loaded: LoadedHead, ref: PageRef) -> str:
    return loaded.head.page_key(ref) or loaded.head.identity.head_key


class Placed(NamedTuple):
    """Where a head says a file lies, in terms that hold for every head of the shard: two that are equal mean the same row."""

    segment: bytes
    offset: int
    flags: int
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class WholeHead:
    """A verified head with all its entries: a base for writing.

    Attributes:
        head: its parsed tail.
        entries: all encoded entries, sorted by file_id.
        version: the version of the object.
    """

    head: Head
    entries: memoryview
    version: str

    @property
    def identity(self) -> Identity:
        """The shard."""
        return self.head.identity

    @property
    def tables(self) -> HeadTables:
        """What it says besides its entries."""
        return self.head.tables

    def find(self, file_id: bytes) -> Entry | None:
        """Return the entry of a file, None where it has none."""
        return find_entry(self.entries, file_id)

    def placed(self, file_id: bytes) -> Placed | None:
        """Return where a file lies, None where it has no entry."""
        entry = self.find(file_id)
        if entry is None:
            return None
        return Placed(self.tables.segments[entry.segment].name, entry.offset, entry.flags, entry.content_hash)


async def read_whole_head(storage: Storage, identity: Identity, *, for_writing: bool = True) -> WholeHead:
    """Read a head and verify all of it.

    Args:
        storage: the store's place.
        identity: the shard.
        for_writing: it shall be a base for writing.

    Raises:
        ObjectNotFoundError: there is none.
        ConflictError: nothing may be written to the shard any more, and that is what it is read for.
        CorruptShardError: any part of it is damaged, or it is another shard's. No other place is asked: what counts is what would be replaced.
        UnsupportedFormatError: it uses features this release may not write.
        StorageUnavailableError: only a copy answered that may lag behind: on its word nothing may be skipped, collected or found missing.
        StorageError: the storage is unwell.
    """
    suffix = await storage.read_suffix(identity.head_key, MAX_HEAD_BYTES)
    if suffix is None or len(suffix.data) != suffix.total_size:
        raise CorruptShardError(f"{identity.head_key} is longer than any head.")
    if not suffix.is_proof:
        raise unproven(identity)
    return whole_head(identity, suffix.data, suffix.version, for_writing=for_writing)


def whole_head(identity: Identity, encoded: bytes, version: str, *, for_writing: bool = True) -> WholeHead:
    """Verify all of a head's bytes.

    Raises:
        ConflictError: nothing may be written to the shard any more, and that is what it is read for.
        CorruptShardError: any part of it is damaged, or it is another shard's.
        UnsupportedFormatError: it uses features this release may not write.
    """
    key = identity.head_key
    data = memoryview(encoded)
    try:
        if decode_header(data) != (identity, Kind.HEAD):
            raise CorruptShardError("its header is another shard's.")
        head = Head(parse_tail(data, len(data)), identity)
        head.check_structure()
        if for_writing:
            head.check_writable()
        for ref in head.directory.refs():
            if ref.object_number:
                raise CorruptShardError("its pages lie in other objects, which only a newer release writes.")
            page = data[ref.offset : ref.end]
            ref.check(page)
            if page[:16] != ref.first_key or ref.length != ref.items * ENTRY_BYTES:
                raise CorruptShardError(
                    "a page does not begin with its key, or does not hold as many entries as it says."
                )
    except CorruptShardError as error:
        raise named(error, key) from error
    entries = data[HEADER.size : head.tail.start]
    if len(entries) != (head.tables.files + head.tables.deleted) * ENTRY_BYTES:
        raise CorruptShardError(f"{key}: it does not count its entries right.")
    return WholeHead(head, entries, version)
