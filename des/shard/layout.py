r"""Container format v1: the byte layout, and the vocabulary that writer and reader share.

One container for both kinds of object. All numbers are little-endian and unsigned unless said otherwise; nothing is aligned or
padded. `xxh3` is XXH3-64 with seed 0 (https://github.com/Cyan4973/xxHash, specification 0.2); `xxh3/32` its low 32 bits;
`hash16` the first 16 bytes of SHA-256. Times are signed 64-bit microseconds since 1970-01-01T00:00Z.

    segment:  header · data (dictionary?, payloads back to back) · catalog chunks · tail
    head:     header · pages · tail
    tail:     header again · tables · directory · footer

Keys are file_ids, compared as bytes; all of a list are distinct. The file_id of a uid is the hash16 of its UTF-8.

**Finding a file.** Under the root of a store, `des.json` gives the store id and n_bits by date: in force is the last item whose `from` is not
after the UTC day. The shard index is the first n_bits bits of the file_id (its first two bytes as a big-endian number, shifted right by
16 - n_bits), written in upper case hex of ceil(n_bits / 4) digits. The head is `YYYYMMDD/HH.des`; a segment is `YYYYMMDD/HH/<name>.des`, its name in
lower case hex. In the head's directory the last item whose first file_id is not above the wanted one names the only page that can hold it; in
that page a binary search finds the entry; the entry names the segment and the place in it. A file that has no head or no entry does not exist.

No byte is uncovered: header and tail carry their own checksums, each page and catalog chunk has one in the directory, each payload
one in its entry, the dictionary its hash16 in the tables. Parts follow each other without a gap.

**Header**, 42 bytes. Its second copy opens the tail, so that one suffix read also tells whose tail it is.

    0   8   magic 89 44 45 53 0D 0A 1A 0A ("\x89DES\r\n\x1a\n")
    8   2   version = 1
    10  1   kind: 1 segment, 2 head
    11  1   n_bits of the day, 1 to 16
    12  2   shard index, below 2**n_bits
    14  4   date as the number YYYYMMDD
    18  16  store id
    34  8   xxh3 of bytes 0 to 33

**Footer**, the last 64 bytes of the object. The last 32 are frozen for all versions: a reader of any version can find, check and name
an object of any other.

    0   4   incompat feature flags: a reader that does not know one refuses
    4   4   ro_compat feature flags: a writer that does not know one refuses. 1 closed: the shard is being removed, its head is empty, and
            nothing may be added to it any more
    8   4   directory count
    12  4   length of the tables
    16  16  stamp: id of the last commit (head), zero (segment); it makes the last 64 bytes of a head differ at every commit
    32  4   length of the tail, this footer included
    36  8   length of the object
    44  2   version = 1
    46  2   kind, as in the header
    48  8   xxh3 of the tail up to here
    56  8   magic 0A 1A 0A 0D 53 45 44 89 (the header's, backwards)

**Directory**: 40 bytes a page or chunk, in order of their keys.

    0   16  first file_id
    16  8   xxh3 of the stored bytes
    24  8   offset in its object
    32  4   length in bytes
    36  2   number of entries or rows
    38  2   object: 0 this object; n > 0 the n-th of the head's page objects (v1 writers: always 0)

**Page**: entries of 64 bytes sorted by file_id, cut by count. A page of object n > 0 lies in an object that has the n-th name of the page
objects and is keyed like a segment. **Entry**:

    0   16  file_id = hash16 of the uid
    16  16  content hash = hash16 of the raw bytes
    32  4   xxh3/32 of the stored bytes; of the seek table for a large payload
    36  2   segment: index in the head's segment table
    38  2   content type: 0 none, else 1 + index in the content type table
    40  1   codec: 0 none, 1 zstd, 2 lz4 (block format), 3 zstd with the segment's dictionary
    41  1   flags: 1 deleted (a tombstone: offset and stored size are 0), 2 replaced (it took the place of other content)
    42  6   offset of the stored bytes in the segment
    48  6   stored size
    54  6   raw size
    60  4   second of the UTC day, below 86,400

**Payload**: exactly the codec's output; zstd (RFC 8878) is one frame with its content size, lz4 a block without a size in front. A dictionary is
zstd's own format, or raw content. Above 1 MiB raw a payload is *large*: independent chunks
of 256 KiB raw (the last one shorter), each compressed on its own and without dictionary, then the seek table: per chunk its stored length (4) and
the xxh3/32 of its stored bytes (4). A chunk whose stored length equals its raw length is stored raw. The table's length is 8 * ceil(raw / 256 KiB)
and counts as part of the stored size.

**Catalog chunk**: one zstd frame over rows sorted by file_id. A catalog says what was added; what is there now, only the head says. **Row**:

    0   64  entry, with segment and content type 0
    64  8   generation of the head the row was made on
    72  8   created_at (time)
    80  2   content type: 0 none, else 1 + index in the segment's content type table
    82  2   length of the uid
    84  4   length of the metadata
    88      uid (UTF-8; may be empty in a tombstone), metadata (UTF-8 JSON object, or empty)

**Tables of a head**, one after another; a list is a count and its items:

    8   generation                16  lineage
    4   live files                4   tombstones
    8   raw bytes, live           8   stored bytes, live
    2 + n * 44   segments: name (16), size (8), commit time (8), entries pointing into it (4), their stored bytes (8)
    2 + n * 30   dictionaries: segment (2), offset (8), length (4), hash16 (16), by segment
    2 + …        content types: length (1), UTF-8
    2 + n * 16   page objects: name
    1 + n * 16   commit log: the last 64 commit ids, newest last
    2 + n * 24   condemned segments: name (16), since (8)

**Tables of a segment**:

    8   generation of the head it was made on
    4   rows                      4   tombstones among them
    8   end of the data = start of the catalog
    1 + (28)     has a dictionary, then offset (8), length (4), hash16 (16)
    2 + …        content types, as above
    2 + n * 16   superseded segments: name
"""

from __future__ import annotations

import struct
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum, IntFlag
from typing import NamedTuple

import xxhash

from des.errors import CorruptShardError, UnsupportedFormatError
from des.routing import MAX_N_BITS, MIN_N_BITS, ShardLocation, head_key, segment_key, segment_prefix, shard_hex

Buffer = bytes | bytearray | memoryview

VERSION = 1
HEADER_MAGIC = b"\x89DES\r\n\x1a\n"
FOOTER_MAGIC = HEADER_MAGIC[::-1]

MAX_FILES = 1 << 22
MAX_SEGMENTS = 2_000
MAX_CONTENT_TYPES = 4_096
MAX_CONTENT_TYPE_BYTES = 255
MAX_METADATA_BYTES = 8_192
MAX_FILE_BYTES = 1 << 40
MAX_DICTIONARY_BYTES = 1 << 20
MAX_TAIL_BYTES = 16 << 20
MAX_LIST_ITEMS = 0xFFFF  # what a count of two bytes can say
MAX_CHUNK_ROWS = 1_024
MAX_CHUNK_RAW_BYTES = 1 << 20
COMMIT_LOG_LENGTH = 64
NAME_BYTES = 16
SECONDS_A_DAY = 86_400
MAX_U48 = (1 << 48) - 1

RO_COMPAT_CLOSED = 1

# One suffix read of this length is the whole tail of a shard of up to a million files.
TAIL_READ_BYTES = 64 << 10

HEADER = struct.Struct("<8sHBBHI16sQ")
FOOTER = struct.Struct("<IIII16sIQHHQ8s")
FROZEN = struct.Struct("<IQHHQ8s")
DIRECTORY_ITEM = struct.Struct("<16sQQIHH")
KEY = struct.Struct("<16s")
ENTRY = struct.Struct("<16s16sIHHBB6s6s6sI")
ROW = struct.Struct("<64sQqHHI")
CHECKSUM_AT_END = 16  # the footer's checksum begins this many bytes before the object's end

ENTRY_BYTES = ENTRY.size

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Kind(IntEnum):
    """What a container holds."""

    SEGMENT = 1
    HEAD = 2


class Codec(IntEnum):
    """How a payload is stored."""

    NONE = 0
    ZSTD = 1
    LZ4 = 2
    ZSTD_DICT = 3

    @property
    def wire_name(self) -> str:
        """The codec's name in `FileInfo` and JSON."""
        return _CODEC_NAMES[self]


_CODEC_NAMES = {Codec.NONE: "none", Codec.ZSTD: "zstd", Codec.LZ4: "lz4", Codec.ZSTD_DICT: "zstd-dict"}


class Flag(IntFlag):
    """Flags of an entry."""

    DELETED = 1
    REPLACED = 2


_CODECS = {int(codec): codec for codec in Codec}
# Plain numbers: the operators of IntFlag take longer than decoding a whole entry.
_DELETED, _REPLACED = int(Flag.DELETED), int(Flag.REPLACED)
_KNOWN_FLAGS = _DELETED | _REPLACED


class Entry(NamedTuple):
    """One file in a head. A named tuple because it is made on every read, and a frozen dataclass takes four times as long.

    Sizes and offsets are bytes; `content_hash` is SHA-256[:16] of the raw bytes; `second` is of the UTC day.
    """

    file_id: bytes
    content_hash: bytes
    checksum: int
    segment: int
    content_type: int
    codec: Codec
    flags: int
    offset: int
    stored_size: int
    raw_size: int
    second: int

    @property
    def deleted(self) -> bool:
        """Whether the entry is a tombstone."""
        return self.flags & _DELETED != 0

    @property
    def replaced(self) -> bool:
        """Whether the entry took the place of other content."""
        return self.flags & _REPLACED != 0

    def encode(self) -> bytes:
        """Return the 64 bytes of the entry."""
        return ENTRY.pack(
            self.file_id,
            self.content_hash,
            self.checksum,
            self.segment,
            self.content_type,
            self.codec,
            self.flags,
            self.offset.to_bytes(6, "little"),
            self.stored_size.to_bytes(6, "little"),
            self.raw_size.to_bytes(6, "little"),
            self.second,
        )


def decode_entry(data: Buffer, position: int = 0) -> Entry:
    """Decode the entry at a byte position and check what can be checked without the head.

    Raises:
        UnsupportedFormatError: an unknown codec or flag.
        CorruptShardError: sizes that contradict each other.
    """
    identifier, content, checksum, segment, content_type, codec, flags, offset, stored, raw, second = ENTRY.unpack_from(
        data, position
    )
    known_codec = _CODECS.get(codec)
    if known_codec is None:
        raise UnsupportedFormatError(f"an entry has the codec {codec}, which this release does not know; upgrade DES.")
    if flags & ~_KNOWN_FLAGS:
        raise UnsupportedFormatError(
            f"an entry has the flags {flags:#x}, which this release does not know; upgrade DES."
        )
    entry = Entry(
        identifier,
        content,
        checksum,
        segment,
        content_type,
        known_codec,
        flags,
        int.from_bytes(offset, "little"),
        int.from_bytes(stored, "little"),
        int.from_bytes(raw, "little"),
        second,
    )
    if second >= SECONDS_A_DAY or entry.raw_size > MAX_FILE_BYTES:
        raise CorruptShardError("an entry has an impossible time or size.")
    return entry


class Identity(NamedTuple):
    """Whose container it is: the fields of the header, less its kind. A named tuple for its hash: every read looks its shard up.

    Attributes:
        store_id: 16 bytes.
        date: YYYYMMDD.
        n_bits: bits of routing on that day.
        shard_index: below 2**n_bits.
    """

    store_id: bytes
    date: str
    n_bits: int
    shard_index: int

    @property
    def shard_hex(self) -> str:
        """The shard index as in keys."""
        return shard_hex(self.shard_index, self.n_bits)

    @property
    def head_key(self) -> str:
        """Key of the shard's head."""
        return head_key(self.date, self.shard_hex)

    @property
    def shard_name(self) -> str:
        """`YYYYMMDD/HH`, as people and commands name a shard."""
        return f"{self.date}/{self.shard_hex}"

    @property
    def segment_prefix(self) -> str:
        """Prefix of the shard's segments."""
        return segment_prefix(self.date, self.shard_hex)

    def segment_key(self, name: bytes) -> str:
        """Key of one of the shard's segments."""
        return segment_key(self.date, self.shard_hex, name)

    @classmethod
    def of(cls, location: ShardLocation, store_id: bytes, n_bits: int) -> Identity:
        """Return the identity of the shard at a location."""
        return cls(store_id, location.date_dir, n_bits, location.shard_index)

    def encode(self, kind: Kind) -> bytes:
        """Return the 42 bytes of the header."""
        fields = (HEADER_MAGIC, VERSION, kind, self.n_bits, self.shard_index, int(self.date), self.store_id)
        unsigned = HEADER.pack(*fields, 0)[:-8]
        return unsigned + checksum64(unsigned).to_bytes(8, "little")


def decode_header(data: Buffer) -> tuple[Identity, Kind]:
    """Decode and check a header.

    Raises:
        CorruptShardError: it is no header, or damaged, or says impossible things.
        UnsupportedFormatError: it is a header of another version or kind.
    """
    view = memoryview(data)
    if len(view) < HEADER.size or view[:8] != HEADER_MAGIC:
        raise CorruptShardError("the object does not begin with a DES header.")
    _, version, kind, n_bits, index, day, store_id, checksum = HEADER.unpack_from(view)
    if checksum64(view[: HEADER.size - 8]) != checksum:
        raise CorruptShardError("the header's checksum is wrong.")
    check_version(version)
    if kind not in (Kind.SEGMENT, Kind.HEAD):
        raise UnsupportedFormatError(f"the object is of kind {kind}, which this release does not know; upgrade DES.")
    if not MIN_N_BITS <= n_bits <= MAX_N_BITS or index >> n_bits or not _is_day(day):
        raise CorruptShardError("the header names an impossible shard.")
    return Identity(store_id, f"{day:08}", n_bits, index), Kind(kind)


def _is_day(number: int) -> bool:
    try:
        date(number // 10_000, number // 100 % 100, number % 100)
    except ValueError:
        return False
    return True


def check_version(version: int) -> None:
    """Refuse other versions.

    Raises:
        UnsupportedFormatError: the version is not this release's.
    """
    if version != VERSION:
        raise UnsupportedFormatError(
            f"the object is of format version {version}; this release reads {VERSION}: upgrade DES."
        )


def checksum64(data: Buffer) -> int:
    """XXH3-64: covers headers, tails, pages and catalog chunks."""
    return xxhash.xxh3_64_intdigest(data)


def checksum32(data: Buffer) -> int:
    """Low half of XXH3-64: covers payloads and their chunks."""
    return xxhash.xxh3_64_intdigest(data) & 0xFFFF_FFFF


def to_microseconds(instant: datetime) -> int:
    """Return an aware instant as microseconds since 1970, exactly."""
    since = instant - _EPOCH
    return (since.days * SECONDS_A_DAY + since.seconds) * 1_000_000 + since.microseconds


def second_of_day(microseconds: int) -> int:
    """Return the second of the UTC day of a time."""
    return microseconds // 1_000_000 % SECONDS_A_DAY


def from_microseconds(microseconds: int) -> datetime:
    """Return a time as an aware instant in UTC.

    Raises:
        CorruptShardError: it is outside the calendar.
    """
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError as error:
        raise CorruptShardError("a time is outside the calendar.") from error
