"""A second reader of stores, written from the docstring of `des/shard/layout.py` alone: it imports nothing of DES."""

import hashlib
import json
import struct
from datetime import UTC, datetime
from pathlib import Path

import lz4.block
import xxhash
import zstandard

MAGIC, CHUNK, LARGE = b"\x89DES\r\n\x1a\n", 256 << 10, 1 << 20
Ref = tuple[bytes, int, int, int, int, int]  # first key, xxh3, offset, length, count, object
Container = tuple[bytes, list[Ref], bytes]  # tables, directory, the whole object
Listed = tuple[int, str, bytes]  # created_at in microseconds, content type or "", metadata
xxh3 = xxhash.xxh3_64_intdigest


def check(good: bool, what: str) -> None:
    if not good:
        raise ValueError(what)


def open_container(path: Path, kind: int, owner: tuple[bytes, int, int, int]) -> Container:
    data = path.read_bytes()
    length, size, version, footer_kind, checksum, magic = struct.unpack("<IQHHQ8s", data[-32:])
    tail = data[-length:]
    check(magic == MAGIC[::-1] and size == len(data) and xxh3(tail[:-16]) == checksum, f"{path}: bad tail")
    incompat, _, count, tables_length = struct.unpack("<IIII", tail[-64:-48])
    check((version, footer_kind, incompat) == (1, kind, 0), f"{path}: newer format, or another kind")
    head_magic, _, _, n_bits, index, day, store_id, header_sum = struct.unpack("<8sHBBHI16sQ", tail[:42])
    check(head_magic == MAGIC and data[:42] == tail[:42] and xxh3(data[:34]) == header_sum, f"{path}: bad header")
    check((store_id, day, n_bits, index) == owner, f"{path}: another shard's")
    refs = list(struct.iter_unpack("<16sQQIHH", tail[42 + tables_length : -64]))
    check(len(refs) == count, f"{path}: bad directory")
    return tail[42 : 42 + tables_length], refs, data


def part(container: Container, ref: Ref) -> bytes:
    data = container[2][ref[2] : ref[2] + ref[3]]
    check(ref[5] == 0 and len(data) == ref[3] and xxh3(data) == ref[1], "a page or chunk is damaged")
    return data


def decode(codec: int, stored: bytes, size: int, dictionary: bytes | None = None) -> bytes:
    if codec == 2:
        return bytes(lz4.block.decompress(stored, uncompressed_size=size))
    known = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    return stored if codec == 0 else zstandard.ZstdDecompressor(dict_data=known).decompress(stored)


class Shard:
    def __init__(self, base: Path, day: str, file_id: bytes = b"", digits: str = "") -> None:
        descriptor = json.loads((base / "des.json").read_text())
        n_bits = next(item["n_bits"] for item in reversed(descriptor["n_bits"]) if item["from"] <= day)
        index = int(digits, 16) if digits else int.from_bytes(file_id[:2], "big") >> (16 - n_bits)
        self.owner = (bytes.fromhex(descriptor["store_id"]), int(day), n_bits, index)
        self.place = base / day / f"{index:0{-(-n_bits // 4)}X}"
        head = open_container(self.place.with_suffix(".des"), 2, self.owner)
        count, position = int.from_bytes(head[0][48:50], "little"), 50
        self.names = [head[0][position + 44 * n :][:16].hex() for n in range(count)]
        position += 44 * count
        count = int.from_bytes(head[0][position : position + 2], "little")
        places = struct.iter_unpack("<HQI16s", head[0][position + 2 :][: 30 * count])
        self.dictionaries = {segment: place for segment, *place in places}
        pages = b"".join(part(head, ref) for ref in head[1])
        starts = (at for at in range(0, len(pages), 64) if not pages[at + 41] & 1)  # less the deleted ones
        self.entries = {pages[at : at + 16]: pages[at : at + 64] for at in starts}

    def segment(self, number: int) -> Container:
        return open_container(self.place / f"{self.names[number]}.des", 1, self.owner)

    def content(self, file_id: bytes) -> bytes:
        entry = self.entries[file_id]
        content_hash, checksum, number, _, codec, flags = struct.unpack("<16sIHHBB", entry[16:42])
        offset, stored_size, raw_size = (int.from_bytes(entry[at : at + 6], "little") for at in (42, 48, 54))
        check(codec <= 3 and flags <= 3, "an entry of a newer format")
        data, large, end = self.segment(number)[2], raw_size > LARGE, offset + stored_size
        at, size, digest = self.dictionaries.get(number, (0, 0, b""))
        dictionary = data[at : at + size] if codec == 3 else None
        check(not dictionary or hashlib.sha256(dictionary).digest()[:16] == digest, "a dictionary is damaged")
        sizes = [min(CHUNK, raw_size - n) for n in range(0, raw_size, CHUNK)] if large else [raw_size]
        table = data[end - 8 * len(sizes) : end] if large else struct.pack("<II", stored_size, checksum)
        check(not large or xxh3(table) & 0xFFFFFFFF == checksum, "a seek table is damaged")
        raw = b""
        for size, (length, chunk_sum) in zip(sizes, struct.iter_unpack("<II", table), strict=True):
            stored, offset = data[offset : offset + length], offset + length
            check(len(stored) == length and xxh3(stored) & 0xFFFFFFFF == chunk_sum, "a payload is damaged")
            raw += decode(0 if large and length == size else codec, stored, size, dictionary)
        check(hashlib.sha256(raw).digest()[:16] == content_hash and len(raw) == raw_size, "a content is damaged")
        return raw

    def rows(self, number: int) -> dict[str, Listed]:
        segment, found, types = self.segment(number), dict[str, Listed](), [""]
        position = 53 if segment[0][24] else 25
        for _ in range(int.from_bytes(segment[0][position : position + 2], "little")):
            length = segment[0][position + 2]
            types, position = [*types, segment[0][position + 3 : position + 3 + length].decode()], position + 1 + length
        for raw in (decode(1, part(segment, ref), 0) for ref in segment[1]):
            at = 0
            while at < len(raw):
                entry, _, created_at, kind, uid_length, metadata_length = struct.unpack_from("<64sQqHHI", raw, at)
                uid, at = raw[at + 88 : at + 88 + uid_length], at + 88 + uid_length + metadata_length
                live = self.entries.get(entry[:16])
                if live and int.from_bytes(live[36:38], "little") == number:
                    found[uid.decode()] = (created_at, types[kind], raw[at - metadata_length : at])
        return found


def read_file(base_dir: Path, uid: str, created_at: datetime) -> bytes:
    """Return a file's content; KeyError or FileNotFoundError where there is none, ValueError where something is damaged."""
    file_id, day = hashlib.sha256(uid.encode()).digest()[:16], created_at.astimezone(UTC).strftime("%Y%m%d")
    return Shard(base_dir, day, file_id=file_id).content(file_id)


def list_day(base_dir: Path, day: str) -> dict[str, Listed]:
    """Return the live files of a day (YYYYMMDD) by uid."""
    shards = [Shard(base_dir, day, digits=path.stem) for path in (base_dir / day).glob("*.des")]
    return {uid: row for shard in shards for n in range(len(shard.names)) for uid, row in shard.rows(n).items()}
