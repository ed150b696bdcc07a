"""Lying containers with good checksums: take one apart, change what it says, and seal it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from des.shard.layout import (
    CHECKSUM_AT_END,
    DIRECTORY_ITEM,
    FOOTER,
    FROZEN,
    HEADER,
    checksum64,
)
from tests.shard.samples import read_tail

if TYPE_CHECKING:
    from des.shard.reading import PageRef

_FOOTER_FIELDS = (
    "incompat", "ro_compat", "count", "tables_length", "stamp", "length", "size", "version", "kind", "checksum", "magic",
)  # fmt: skip
_HEADER_FIELDS = ("magic", "version", "kind", "n_bits", "shard_index", "date", "store_id", "checksum")


def signed(data: bytes) -> bytes:
    """Return an object with a good tail checksum, wherever its footer says that the tail begins."""
    length = FROZEN.unpack(data[-FROZEN.size :])[0]
    tail = data[-length:] if length else b""
    checksum = checksum64(tail[:-CHECKSUM_AT_END]).to_bytes(8, "little")
    return data[:-CHECKSUM_AT_END] + checksum + data[-8:]


def forged_footer(data: bytes, **changes: int | bytes) -> bytes:
    """Return an object whose footer says something else, with a good checksum."""
    fields = dict(zip(_FOOTER_FIELDS, FOOTER.unpack(data[-FOOTER.size :]), strict=True)) | changes
    return signed(data[: -FOOTER.size] + FOOTER.pack(*fields.values()))


def forged_header(data: bytes, **changes: int | bytes) -> bytes:
    """Return a header that says something else, with a good checksum."""
    fields = dict(zip(_HEADER_FIELDS, HEADER.unpack(data[: HEADER.size]), strict=True)) | changes
    unsigned = HEADER.pack(*fields.values())[:-8]
    return unsigned + checksum64(unsigned).to_bytes(8, "little")


@dataclass(slots=True)
class Parts:
    """An object taken apart. `build` puts it together again with lengths that add up and good checksums; nothing else is mended."""

    body: bytes
    header: bytes
    tables: bytes
    directory: list[PageRef]
    footer: dict[str, int | bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes) -> Parts:
        tail = read_tail(data)
        footer = dict(zip(_FOOTER_FIELDS, FOOTER.unpack(data[-FOOTER.size :]), strict=True))
        header = data[tail.start : tail.start + HEADER.size]
        return cls(data[: tail.start], header, bytes(tail.tables), tail.directory.refs(), footer)

    def page(self, index: int) -> bytes:
        ref = self.directory[index]
        return self.body[ref.offset : ref.end]

    def set_page(self, index: int, page: bytes) -> None:
        """Put other bytes of the same length in the place of a page or chunk, with a good checksum."""
        ref = self.directory[index]
        self.body = self.body[: ref.offset] + page + self.body[ref.end :]
        self.directory[index] = ref._replace(checksum=checksum64(page))

    def build(self, **footer: int | bytes) -> bytes:
        directory = b"".join(DIRECTORY_ITEM.pack(*ref) for ref in self.directory)
        tail = self.header + self.tables + directory
        length = len(tail) + FOOTER.size
        true = {
            "count": len(self.directory),
            "tables_length": len(self.tables),
            "length": length,
            "size": len(self.body) + length,
        }
        fields = self.footer | true | footer
        return signed(self.body + tail + FOOTER.pack(*fields.values()))


def changed(data: bytes, at: int, new: bytes) -> bytes:
    """Return bytes with some of them changed."""
    return data[:at] + new + data[at + len(new) :]
