from __future__ import annotations

import posixpath
import random
import threading
from typing import TYPE_CHECKING, Literal

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from des.errors import CorruptShardError, InvalidRequestError
from des.shard.codecs import (
    MAX_WINDOW_BYTES,
    Compression,
    Encoder,
    decode,
    decompress_frame,
    extension_of,
    frame_content_size,
    guess_content_type,
    worth_trying,
)
from des.shard.layout import MAX_DICTIONARY_BYTES, Codec
from tests.shard.samples import DICTIONARY, WORDS

if TYPE_CHECKING:
    from des.shard.codecs import CodecName

TEXT = WORDS * 100
NOISE = random.Random(1).randbytes(4096)
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
# Header, then one raw last block without content (RFC 8878 section 3.1.1).
EMPTY_FRAME = bytes.fromhex("28b52ffd 20 00 01 00 00")


def trained_dictionary() -> bytes:
    samples: list[bytes | bytearray | memoryview] = [
        b'{"id": %d, "name": "sensor %d", "value": %d}' % (n, n % 7, n * n) for n in range(2000)
    ]
    return zstandard.train_dictionary(4096, samples).as_bytes()


@pytest.mark.parametrize(
    ("name", "level"),
    [("zstd", None), ("zstd", 1), ("zstd", 22), ("lz4", None), ("lz4", 1), ("lz4", 3), ("lz4", 12), ("none", None)],
)
@given(st.one_of(st.binary(max_size=2000), st.binary(min_size=1, max_size=8).map(lambda piece: piece * 500)))
def test_round_trip(name: CodecName, level: int | None, raw: bytes) -> None:
    codec, stored = Encoder(Compression(name, level)).encode(raw)
    assert len(stored) <= len(raw)
    assert decode(codec, stored, len(raw)) == raw
    assert decode(codec, memoryview(b"x" + stored)[1:], len(raw)) == raw


@pytest.mark.parametrize(("name", "expected"), [("zstd", Codec.ZSTD), ("lz4", Codec.LZ4), ("none", Codec.NONE)])
def test_codec_a_payload_ends_up_with(name: CodecName, expected: Codec) -> None:
    encoder = Encoder(Compression(name))
    assert encoder.encode(TEXT)[0] is expected
    assert encoder.encode(NOISE) == (Codec.NONE, NOISE)
    assert encoder.encode(b"") == (Codec.NONE, b"")
    assert encoder.encode(b"a") == (Codec.NONE, b"a")


def test_a_payload_that_shrinks_by_less_than_three_percent_is_stored_raw() -> None:
    encoder = Encoder(Compression("zstd"))
    compressible = bytes(400)
    shares = {}
    for noise in range(0, 20_000, 500):
        raw = random.Random(noise).randbytes(noise) + compressible
        codec, stored = encoder.encode(raw)
        packed = len(zstandard.ZstdCompressor(level=3).compress(raw))
        assert (codec is Codec.NONE) == (packed > 0.97 * len(raw))
        shares[codec] = len(stored) / len(raw)
    assert set(shares) == {Codec.NONE, Codec.ZSTD}
    assert shares[Codec.NONE] == 1


@pytest.mark.parametrize("dictionary", [DICTIONARY, trained_dictionary()], ids=["raw content", "trained"])
def test_dictionary_round_trip(dictionary: bytes) -> None:
    encoder = Encoder(Compression("zstd", dictionary=dictionary))
    raw = b'{"id": 77, "name": "sensor 3", "value": 12}' + WORDS
    codec, stored = encoder.encode(raw)
    assert codec is Codec.ZSTD_DICT
    assert len(stored) < len(Encoder(Compression("zstd")).encode(raw)[1])
    assert decode(codec, stored, len(raw), dictionary) == raw
    assert encoder.encode(TEXT, dictionary=False)[0] is Codec.ZSTD


def test_another_dictionary_or_none_never_gives_other_bytes() -> None:
    dictionary = trained_dictionary()
    raw = b'{"id": 77, "name": "sensor 3", "value": 12}'
    _, stored = Encoder(Compression("zstd", dictionary=dictionary)).encode(raw)
    for wrong in (None, DICTIONARY):
        with pytest.raises(CorruptShardError):
            decode(Codec.ZSTD_DICT, stored, len(raw), wrong)


@pytest.mark.parametrize("dictionary", [b"\x37\xa4\x30\xec" + bytes(100), b"\x37\xa4\x30\xec" + b"\xff" * 300])
def test_damaged_dictionary(dictionary: bytes) -> None:
    frame = zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(DICTIONARY)).compress(WORDS)
    with pytest.raises(CorruptShardError):
        decode(Codec.ZSTD_DICT, frame, len(WORDS), dictionary)


def test_threads_have_their_own_contexts() -> None:
    encoder = Encoder(Compression("zstd", dictionary=DICTIONARY))
    stored = [encoder.encode(WORDS + b"%d" % n)[1] for n in range(8)]
    results: dict[int, list[bytes]] = {}

    def work(number: int) -> None:
        raw_size = len(WORDS) + 1
        results[number] = [decode(Codec.ZSTD_DICT, stored[number], raw_size, DICTIONARY) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [WORDS + b"%d" % number] * 50 for number in range(8)}


def test_zstd_payloads_are_single_frames_that_http_clients_take() -> None:
    codec, stored = Encoder(Compression("zstd", 22)).encode(TEXT * 100)
    parameters = zstandard.get_frame_parameters(stored)
    assert codec is Codec.ZSTD
    assert parameters.content_size == len(TEXT) * 100 == frame_content_size(stored)
    assert parameters.window_size <= MAX_WINDOW_BYTES
    assert not parameters.has_checksum


def frames_that_lie() -> dict[str, tuple[bytes, int]]:
    frame = zstandard.compress(TEXT)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    bomb = zstandard.compress(bytes(50 << 20))
    said = bytearray(zstandard.compress(bytes(300)))  # header: magic, descriptor, two bytes that say 300 - 256
    said[5:7] = (0xFFFF).to_bytes(2, "little")
    return {
        "says more than the index": (frame, len(TEXT) - 1),
        "says less than the index": (frame, len(TEXT) + 1),
        "bomb": (bomb, 100),
        "has less than it says": (bytes(said), 0xFFFF + 256),
        "no content size": (unsized, len(TEXT)),
        "trailing frame": (frame + frame, len(TEXT)),
        "trailing frame counted": (frame + frame, 2 * len(TEXT)),
        "trailing empty frame": (frame + EMPTY_FRAME, len(TEXT)),
        "trailing byte": (frame + b"x", len(TEXT)),
        "trailing skippable frame": (frame + SKIPPABLE, len(TEXT)),
        "leading skippable frame": (SKIPPABLE + frame, len(TEXT)),
        "skippable frame only": (SKIPPABLE, 5),
        "huge skippable frame": (SKIPPABLE[:4] + b"\xff\xff\xff\xff", 0xFFFF_FFFF),
        "cut short": (frame[:-1], len(TEXT)),
        "header only": (frame[:6], len(TEXT)),
        "nothing": (b"", len(TEXT)),
        "noise": (NOISE, 4096),
        "other magic": (b"\x1f\x8b" + frame, len(TEXT)),
        "dictionary not there": (
            zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(trained_dictionary())).compress(TEXT),
            len(TEXT),
        ),
    }


@pytest.mark.parametrize(("stored", "raw_size"), frames_that_lie().values(), ids=frames_that_lie().keys())
def test_zstd_frame_that_lies(stored: bytes, raw_size: int) -> None:
    with pytest.raises(CorruptShardError):
        decompress_frame(stored, raw_size)
    with pytest.raises(CorruptShardError):
        decode(Codec.ZSTD, stored, raw_size)


def blocks_that_lie() -> dict[str, tuple[bytes, int]]:
    block = lz4.block.compress(TEXT, store_size=False)
    return {
        "has more than the index says": (block, len(TEXT) - 1),
        "has less than the index says": (block, len(TEXT) + 1),
        "bomb": (lz4.block.compress(bytes(50 << 20), store_size=False), 100),
        "size in front": (lz4.block.compress(TEXT), len(TEXT)),
        "cut short": (block[:-1], len(TEXT)),
        "trailing byte": (block + b"x", len(TEXT)),
        "nothing": (b"", len(TEXT)),
        "nothing for nothing": (b"", 0),
        "noise": (NOISE, 4096),
    }


@pytest.mark.parametrize(("stored", "raw_size"), blocks_that_lie().values(), ids=blocks_that_lie().keys())
def test_lz4_block_that_lies(stored: bytes, raw_size: int) -> None:
    with pytest.raises(CorruptShardError):
        decode(Codec.LZ4, stored, raw_size)


def test_raw_payload_of_another_size() -> None:
    with pytest.raises(CorruptShardError, match="raw size"):
        decode(Codec.NONE, b"abc", 4)


@given(st.sampled_from(Codec), st.binary(max_size=200), st.integers(0, 1 << 20), st.sampled_from([None, DICTIONARY]))
def test_any_bytes_decode_or_are_corrupt(codec: Codec, stored: bytes, raw_size: int, dictionary: bytes | None) -> None:
    try:
        raw = decode(codec, stored, raw_size, dictionary)
    except CorruptShardError:
        return
    assert len(raw) == raw_size


@pytest.mark.parametrize("stored", [b"", b"(\xb5/", b"not a frame", bytes(20)])
def test_content_size_of_what_is_no_frame(stored: bytes) -> None:
    with pytest.raises(CorruptShardError):
        frame_content_size(stored)


@pytest.mark.parametrize(
    ("codec", "level"), [("zstd", 0), ("zstd", 23), ("zstd", -5), ("lz4", 0), ("lz4", 13), ("none", 0)]
)
def test_levels_a_codec_does_not_have(codec: Literal["zstd", "lz4", "none"], level: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"level {level} "):
        Compression(codec, level)


@pytest.mark.parametrize("codec", ["lz4", "none"])
def test_dictionaries_are_for_zstd(codec: Literal["lz4", "none"]) -> None:
    with pytest.raises(InvalidRequestError, match="works with the codec zstd"):
        Compression(codec, dictionary=DICTIONARY)


def test_dictionary_that_no_reader_would_take() -> None:
    assert Compression(dictionary=bytes(MAX_DICTIONARY_BYTES)).dictionary
    with pytest.raises(InvalidRequestError, match="1,048,577 bytes"):
        Compression(dictionary=bytes(MAX_DICTIONARY_BYTES + 1))


@pytest.mark.parametrize(
    ("names", "content_type", "expected"),
    [
        (("a.txt",), None, True),
        (("a.JPG",), None, False),
        (("uid", "source.zst"), None, False),
        (("no extension",), None, True),
        (("a.bin",), "image/jpeg", False),
        (("a.bin",), "IMAGE/JPEG; q=1", False),
        (("a.bin",), "video/anything", False),
        (("a.bin",), "audio/mpeg", False),
        (("a.bin",), "audio/wav", True),
        (("a.bin",), "image/svg+xml", True),
        (("a.bin",), "application/json", True),
        ((), None, True),
    ],
)
def test_what_is_worth_trying(names: tuple[str, ...], content_type: str | None, expected: bool) -> None:
    assert worth_trying(tuple(map(extension_of, names)), content_type) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.html", "text/html"),
        ("a.JSON", "application/json"),
        ("a.parquet", "application/vnd.apache.parquet"),
        ("a.tar.gz", "application/gzip"),
        ("a", None),
        ("a.", None),
        (".html", None),
        ("a.unheard-of", None),
    ],
)
def test_guessed_content_types(name: str, expected: str | None) -> None:
    assert guess_content_type(name) == expected


@pytest.mark.parametrize(
    "compression", [Compression(), Compression("lz4"), Compression("none"), Compression(dictionary=b"some words " * 99)]
)
def test_many_at_once_are_stored_as_each_alone(compression: Compression) -> None:
    chance = random.Random(3)
    raws = [b"", *(b"some words and numbers %d " % n * n for n in range(60)), chance.randbytes(3000), b"", b"x"]
    encoder = Encoder(compression)
    assert encoder.encode_many(raws) == [Encoder(compression).encode(raw) for raw in raws]
    assert encoder.encode_many([b"", b""]) == [(Codec.NONE, b"")] * 2
    assert encoder.encode_many([]) == []


@given(st.text("./aZ", max_size=6))
def test_extensions_are_those_of_the_library(name: str) -> None:
    assert extension_of(name) == posixpath.splitext(name)[1].lower()
