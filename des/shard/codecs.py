"""Codecs: one payload in, its stored form out, and back, bounded by the declared size.

Rules:

- A payload that shrinks by less than 3 % is stored raw. What is known to be compressed already is not even tried.
- zstd payloads are single frames with their content size and no checksum of their own (the entry has one). The window never
  exceeds the content, so it stays far below the 8 MiB that RFC 9659 section 3 allows for HTTP.
- Contexts are reused and belong to one thread each: a new context costs more than a 4 KiB payload.
"""

from __future__ import annotations

import mimetypes
import posixpath
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import lz4.block
import zstandard

from des.errors import CorruptShardError, InvalidRequestError
from des.shard.layout import MAX_DICTIONARY_BYTES, Buffer, Codec

if TYPE_CHECKING:
    from collections.abc import Sequence

CodecName = Literal["zstd", "lz4", "none"]
DEFAULT_ZSTD_LEVEL = 3
MAX_WINDOW_BYTES = 8 << 20
_LZ4_HIGH_COMPRESSION_FROM = 3
_KEPT_SHARE = 0.97

_COMPRESSED_EXTENSIONS = frozenset(
    [
        ".7z",
        ".aac",
        ".apk",
        ".arrow",
        ".avif",
        ".br",
        ".bz2",
        ".crx",
        ".docx",
        ".epub",
        ".flac",
        ".gif",
        ".gz",
        ".heic",
        ".heif",
        ".jar",
        ".jpeg",
        ".jpg",
        ".jp2",
        ".jxl",
        ".lz",
        ".lz4",
        ".lzma",
        ".m4a",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp3",
        ".mp4",
        ".mpg",
        ".mpeg",
        ".odp",
        ".ods",
        ".odt",
        ".ogg",
        ".opus",
        ".parquet",
        ".png",
        ".pptx",
        ".rar",
        ".tbz2",
        ".tgz",
        ".txz",
        ".webm",
        ".webp",
        ".whl",
        ".woff",
        ".woff2",
        ".xlsx",
        ".xz",
        ".zip",
        ".zst",
    ]
)
_COMPRESSED_TYPES = frozenset(
    [
        "application/gzip",
        "application/java-archive",
        "application/vnd.rar",
        "application/x-7z-compressed",
        "application/x-bzip2",
        "application/x-xz",
        "application/zip",
        "application/zstd",
        "font/woff",
        "font/woff2",
        "image/avif",
        "image/gif",
        "image/heic",
        "image/heif",
        "image/jp2",
        "image/jpeg",
        "image/jxl",
        "image/png",
        "image/webp",
    ]
)
_COMPRESSED_FAMILIES = ("audio/", "video/")
_UNCOMPRESSED_MEDIA = frozenset(
    {"audio/wav", "audio/x-wav", "audio/vnd.wave", "audio/midi", "audio/basic", "audio/x-aiff"}
)

_FURTHER_TYPES = {
    ".7z": "application/x-7z-compressed",
    ".bz2": "application/x-bzip2",
    ".eml": "message/rfc822",
    ".gz": "application/gzip",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".ndjson": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
    ".webp": "image/webp",
    ".xz": "application/x-xz",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zst": "application/zstd",
}
# Only the interpreter's own table: what the machine's files say would differ from machine to machine.
_TYPES = mimetypes.MimeTypes(filenames=()).types_map[True] | _FURTHER_TYPES


def extension_of(name: str) -> str:
    """Return the extension of a name in lower case, with its dot; "" where it has none. As `posixpath.splitext`, in a third of its time."""
    dot = name.rfind(".")
    if dot <= 0 or name.find("/", dot) >= 0:
        return ""
    return posixpath.splitext(name)[1].lower() if name[dot - 1] in "/." else name[dot:].lower()


def guess_content_type(name: str) -> str | None:
    """Guess a media type from a name's extension; None where the extension says nothing."""
    return type_of_extension(extension_of(name))


def type_of_extension(extension: str) -> str | None:
    """Return the media type of an extension as of `extension_of`; None where it says nothing."""
    return _TYPES.get(extension)


def worth_trying(extensions: tuple[str, ...], content_type: str | None) -> bool:
    """Tell whether compressing is worth an attempt, going by extensions as of `extension_of` and by the media type."""
    if not _COMPRESSED_EXTENSIONS.isdisjoint(extensions):
        return False
    if content_type is None:
        return True
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in _COMPRESSED_TYPES:
        return False
    return not media_type.startswith(_COMPRESSED_FAMILIES) or media_type in _UNCOMPRESSED_MEDIA


@dataclass(frozen=True, slots=True)
class Compression:
    """How a run compresses.

    Attributes:
        codec: `zstd`, `lz4` or `none`.
        level: zstd 1 to 22, default 3; lz4 1 and 2 are the fast mode (the default), 3 to 12 the high-compression mode.
        dictionary: a zstd dictionary for payloads up to 1 MiB, with codec `zstd` only.

    Raises:
        InvalidRequestError: a level the codec does not have, or a dictionary that is too long or with another codec.
    """

    codec: CodecName = "zstd"
    level: int | None = None
    dictionary: bytes | None = None

    def __post_init__(self) -> None:
        """Check the level and the dictionary."""
        highest = {"zstd": 22, "lz4": 12, "none": 22}[self.codec]
        if self.level is not None and not 1 <= self.level <= highest:
            raise InvalidRequestError(f"level {self.level} is outside 1 to {highest}, the levels of {self.codec}.")
        if self.dictionary is not None and self.codec != "zstd":
            raise InvalidRequestError(f"a dictionary works with the codec zstd, not with {self.codec}.")
        if self.dictionary is not None and len(self.dictionary) > MAX_DICTIONARY_BYTES:
            raise InvalidRequestError(
                f"the dictionary has {len(self.dictionary):,} bytes, but at most {MAX_DICTIONARY_BYTES:,} are kept."
            )


class Encoder:
    """Compresses payloads one after another; one thread at a time."""

    def __init__(self, compression: Compression) -> None:
        """Prepare the contexts of a compression."""
        self._codec = compression.codec
        self._plain: zstandard.ZstdCompressor | None = None
        self._with_dictionary: zstandard.ZstdCompressor | None = None
        level = compression.level
        if self._codec == "zstd":
            level = DEFAULT_ZSTD_LEVEL if level is None else level
            self._plain = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
            if compression.dictionary is not None:
                self._with_dictionary = zstandard.ZstdCompressor(
                    level=level,
                    dict_data=zstandard.ZstdCompressionDict(compression.dictionary),
                    write_content_size=True,
                    write_checksum=False,
                )
        self._lz4_mode, self._lz4_level = "fast", 0
        if level is not None and level >= _LZ4_HIGH_COMPRESSION_FROM:
            self._lz4_mode, self._lz4_level = "high_compression", level

    def encode(self, raw: bytes, *, dictionary: bool = True) -> tuple[Codec, bytes]:
        """Compress one payload or chunk.

        Args:
            raw: the content.
            dictionary: whether the run's dictionary, if it has one, may be used.

        Returns:
            The codec it ended up with, and the stored bytes: `raw` itself with `Codec.NONE` where it would shrink by less than 3 %.
        """
        if self._codec == "none" or not raw:
            return Codec.NONE, raw
        if self._plain is None:
            codec = Codec.LZ4
            stored = lz4.block.compress(raw, mode=self._lz4_mode, compression=self._lz4_level, store_size=False)
        elif dictionary and self._with_dictionary is not None:
            codec, stored = Codec.ZSTD_DICT, self._with_dictionary.compress(raw)
        else:
            codec, stored = Codec.ZSTD, self._plain.compress(raw)
        return (codec, stored) if len(stored) <= len(raw) * _KEPT_SHARE else (Codec.NONE, raw)

    def encode_many(self, raws: Sequence[bytes]) -> list[tuple[Codec, bytes]]:
        """Compress several small payloads, each as `encode` does: with zstd in one go, which spares the way in and out for each."""
        compressor = self._with_dictionary or self._plain
        wanted: list[bytes | bytearray | memoryview] = [raw for raw in raws if raw]
        if compressor is None or not wanted:
            return [self.encode(raw) for raw in raws]
        codec = Codec.ZSTD if self._with_dictionary is None else Codec.ZSTD_DICT
        frames = iter(compressor.multi_compress_to_buffer(wanted))
        return [self._kept(codec, next(frames), raw) if raw else (Codec.NONE, raw) for raw in raws]

    @staticmethod
    def _kept(codec: Codec, frame: zstandard.BufferSegment, raw: bytes) -> tuple[Codec, bytes]:
        return (codec, frame.tobytes()) if len(frame) <= len(raw) * _KEPT_SHARE else (Codec.NONE, raw)


class _Contexts(threading.local):
    def __init__(self) -> None:
        self.plain = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        self.dictionary: bytes | None = None
        self.with_dictionary: zstandard.ZstdDecompressor | None = None


_contexts = _Contexts()


def _decompressor(dictionary: bytes | None) -> zstandard.ZstdDecompressor:
    if dictionary is None:
        return _contexts.plain
    if _contexts.with_dictionary is None or _contexts.dictionary is not dictionary:
        _contexts.with_dictionary = zstandard.ZstdDecompressor(
            dict_data=zstandard.ZstdCompressionDict(dictionary), max_window_size=MAX_WINDOW_BYTES
        )
        _contexts.dictionary = dictionary
    return _contexts.with_dictionary


def decode(codec: Codec, stored: Buffer, raw_size: int, dictionary: bytes | None = None) -> bytes:
    """Decompress one payload or chunk whose checksum was found good.

    Args:
        codec: how it is stored.
        stored: the stored bytes.
        raw_size: bytes of content it must yield; no more is ever allocated.
        dictionary: the segment's, for `Codec.ZSTD_DICT`.

    Raises:
        CorruptShardError: it does not decode, or not to `raw_size` bytes.
    """
    if codec is Codec.NONE:
        if len(stored) != raw_size:
            raise CorruptShardError("a payload stored raw does not have its raw size.")
        return bytes(stored)
    try:
        if codec is Codec.LZ4:
            raw = bytes(lz4.block.decompress(stored, uncompressed_size=raw_size))
        else:
            raw = decompress_frame(stored, raw_size, dictionary if codec is Codec.ZSTD_DICT else None)
    except lz4.block.LZ4BlockError as error:
        raise CorruptShardError("a payload does not decompress.") from error
    if len(raw) != raw_size:
        raise CorruptShardError("a payload does not decompress to its raw size.")
    return raw


def decompress_frame(stored: Buffer, raw_size: int, dictionary: bytes | None = None) -> bytes:
    """Decompress exactly one zstd frame (RFC 8878 section 3.1.1) of a known content size.

    The size is compared with the frame's own before anything is allocated: the library allocates what the frame says.

    Raises:
        CorruptShardError: no frame, another size, trailing bytes, or bad data.
    """
    try:
        if zstandard.get_frame_parameters(stored).content_size != raw_size:
            raise CorruptShardError("a zstd frame does not have the size its index says.")
        return _decompressor(dictionary).decompress(stored, max_output_size=raw_size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptShardError("a zstd frame does not decompress.") from error


def frame_content_size(stored: Buffer) -> int:
    """Return the content size a zstd frame declares (RFC 8878 section 3.1.1.1.4).

    Raises:
        CorruptShardError: it is no frame.
    """
    try:
        return zstandard.get_frame_parameters(stored).content_size
    except zstandard.ZstdError as error:
        raise CorruptShardError("a zstd frame cannot be read.") from error
