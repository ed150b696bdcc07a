"""`/files` over a socket: the answer, and what it cost in storage requests."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import zstandard

from des.errors import StorageDeniedError, StorageTimeoutError, StorageUnavailableError
from des.shard.codecs import Compression
from des.storage.testing import Fail, Fault, FaultyStorage
from tests.http.live import ZSTD, parse_reply, request, running
from tests.making import DAY, File, make_store

if TYPE_CHECKING:
    from pathlib import Path

    from des.storage.testing import RecordingStorage
    from tests.http.live import Reply, Server
    from tests.making import Maker

TEXT = b"the quick brown fox jumps over the lazy dog\n" * 100
NOISE = random.Random(7).randbytes(4096)
LARGE = b"".join(b"%08d" % number for number in range(200_000)) + NOISE  # 1.6 MB
AT = f"created_at={DAY[:4]}-{DAY[4:6]}-{DAY[6:]}"
FILES = {"text.txt": TEXT, "noise": NOISE, "large.bin": LARGE, "empty": b""}

UIDS = [
    "plain",
    "a/b",
    "a//b",
    "/leading",
    "trailing/",
    "//",
    "../../etc/passwd",
    "a/./../b/..",
    ".",
    "with space",
    "100%",
    "%41",
    "%2F",
    "a+b",
    "a?b=c&d",
    "a#b",
    "a;b,c:d@e",
    "1234567890",
    "-leading-dash",
    "\N{GRINNING FACE}/\N{LATIN SMALL LETTER E WITH ACUTE}",
    "e\N{COMBINING ACUTE ACCENT}",
    "\u202eright to left",
    "\x7f",
    "back\\slash",
    'quo"te',
    "x" * 1024,
]


def at(uid: str) -> str:
    return f"/files/{quote(uid, safe='/')}?{AT}"


async def warm(server: Server, storage: RecordingStorage, uid: str = "noise") -> Reply:
    """Read a file once, and forget what it cost."""
    reply = await server.ask(at(uid))
    storage.calls.clear()
    return reply


def check_problem(reply: Reply, status: int) -> dict[str, object]:
    assert reply.status == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.is_whole
    problem: dict[str, object] = json.loads(reply.body)
    assert set(problem) == {"type", "title", "status", "detail", "instance"}
    assert problem["status"] == status
    assert ("retry-after" in reply.headers) == (status == 503)
    return problem


async def test_every_uid_in_both_spellings(storage: RecordingStorage) -> None:
    contents = {uid: f"content of {uid}".encode() for uid in UIDS}
    await make_store(storage, contents)
    async with running(storage) as server:
        for uid, content in contents.items():
            for target in (
                f"/files/{quote(uid, safe='')}?{AT}",
                f"/files/{quote(uid, safe='/')}?{AT}",
                f"/files?uid={quote(uid, safe='')}&{AT}",
                f"/files?{AT}&uid={quote(uid, safe='/')}",
            ):
                reply = await server.ask(target)
                assert (reply.status, reply.body) == (200, content), target


async def test_paths_that_only_look_alike_are_other_files(storage: RecordingStorage) -> None:
    await make_store(storage, {"a/b": b"1", "a//b": b"2", "/a/b": b"3", "a/b/": b"4", "a%2Fb": b"5", "a/x/../b": b"6"})
    async with running(storage) as server:
        targets = ("a/b", "a//b", "/a/b", "a/b/", "a%252Fb", "a/x/../b")
        assert [(await server.ask(f"/files/{path}?{AT}")).body for path in targets] == [b"%d" % n for n in range(1, 7)]


async def test_the_header_of_a_file(storage: RecordingStorage) -> None:
    maker = await make_store(storage, {"text.txt": TEXT, "given": File(NOISE, "image/x-noise")})
    async with running(storage, http_cache_control="public, max-age=60") as server:
        reply = await server.ask(at("text.txt"))
        assert reply.status == 200
        assert reply.body == TEXT
        etag, modified, date = (reply.headers.pop(name) for name in ("etag", "last-modified", "date"))
        assert etag.startswith('"')
        assert etag.endswith('"')
        assert modified.endswith(" GMT")
        assert date.endswith(" GMT")
        assert reply.headers == {
            "content-type": "text/plain",
            "content-length": str(len(TEXT)),
            "accept-ranges": "bytes",
            "vary": "Accept-Encoding",
            "cache-control": "public, max-age=60",
            "x-content-type-options": "nosniff",
            "content-security-policy": "sandbox",
            "connection": "close",
        }
        assert (await server.ask(at("given"))).headers["content-type"] == "image/x-noise"
        assert maker.files


@pytest.mark.parametrize("uid", FILES)
async def test_head_is_get_without_the_body(storage: RecordingStorage, uid: str) -> None:
    await make_store(storage, FILES)
    async with running(storage) as server:
        got = await server.ask(at(uid))
        storage.calls.clear()
        head = await server.ask(at(uid), method="HEAD")
        assert head.body == b""
        assert head.headers | {"date": ""} == got.headers | {"date": ""}
        assert head.headers["content-length"] == str(len(FILES[uid]))
        assert got.body == FILES[uid]
        assert storage.calls == []


async def test_what_a_read_costs(storage: RecordingStorage) -> None:
    await make_store(storage, {"noise": NOISE, "other": TEXT})
    async with running(storage) as server:
        storage.calls.clear()
        assert (await server.ask(at("noise"))).body == NOISE
        assert storage.count(purpose="payload") == 1
        assert len(storage.calls) <= 4  # the descriptor, the head's tail, a page, the payload
        storage.calls.clear()
        assert (await server.ask(at("noise"))).body == NOISE
        assert [(call.verb, call.purpose, call.size) for call in storage.calls] == [("read_range", "payload", 4096)]


async def test_what_the_index_answers_alone(storage: RecordingStorage) -> None:
    maker = await make_store(storage)
    noise, gone, never = maker.uids_of_one_shard(3)
    await maker.add({noise: NOISE, gone: TEXT})
    await maker.delete([gone])
    async with running(storage, negative_ttl=3600) as server:
        reply = await warm(server, storage, noise)
        etag, modified = reply.headers["etag"], reply.headers["last-modified"]
        for fields, status in [
            ((f"If-None-Match: {etag}",), 304),
            ((f"If-None-Match: W/{etag}",), 304),
            (("If-None-Match: *",), 304),
            ((f"If-Modified-Since: {modified}",), 304),
            (('If-Match: "other"',), 412),
            (("If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT",), 412),
            (("Range: bytes=5000-",), 416),
        ]:
            reply = await server.ask(at(noise), *fields)
            assert reply.status == status, fields
            if status == 304:
                assert reply.body == b""
                assert {name for name in reply.headers if name not in {"date", "connection"}} == {
                    "etag",
                    "last-modified",
                    "vary",
                    "cache-control",
                }
                assert reply.headers["etag"] == etag
            else:
                check_problem(reply, status)
            assert (reply.headers.get("content-range") == "bytes */4096") == (status == 416)
        check_problem(await server.ask(at(gone)), 410)
        check_problem(await server.ask(at(never)), 404)
        assert storage.calls == []


@pytest.mark.parametrize(
    ("fields", "status", "start", "end"),
    [
        ((), 200, 0, None),
        (("Range: bytes=0-0",), 206, 0, 1),
        (("Range: bytes=10-19",), 206, 10, 20),
        (("Range: bytes=-7",), 206, -7, None),
        (("Range: bytes=7-",), 206, 7, None),
        (("Range: bytes=0-999999999999",), 206, 0, None),
        (("Range: bytes=0-1,5-6",), 200, 0, None),
        (("Range: bytes=0-1", "Range: bytes=5-6"), 200, 0, None),
        (("Range: bytes=9-3",), 200, 0, None),
        (("Range: rows=0-1",), 200, 0, None),
        (("Range: rubbish",), 200, 0, None),
        (("Range: bytes=1-2", "If-Range: ETAG"), 206, 1, 3),
        (("Range: bytes=1-2", "If-Range: W/ETAG"), 200, 0, None),
        (("Range: bytes=1-2", 'If-Range: "other"'), 200, 0, None),
        (("Range: bytes=1-2", "If-Range: MODIFIED"), 206, 1, 3),
        (("Range: bytes=1-2", "If-Range: Sun, 06 Nov 1994 08:49:37 GMT"), 200, 0, None),
        (("Range: bytes=99999999-", 'If-Range: "other"'), 200, 0, None),
        (("Range: bytes=1-2", ZSTD), 206, 1, 3),
        (("Range: rubbish", ZSTD), 200, 0, None),
        (("Range: bytes=1-2", "If-None-Match: ETAG"), 304, 0, 0),
        (("Range: bytes=1-2", "If-Match: ETAG"), 206, 1, 3),
    ],
)
@pytest.mark.parametrize("uid", ["text.txt", "large.bin"])
async def test_ranges(
    storage: RecordingStorage, uid: str, fields: tuple[str, ...], status: int, start: int, end: int | None
) -> None:
    await make_store(storage, FILES)
    content = FILES[uid]
    async with running(storage) as server:
        known = (await server.ask(at(uid))).headers
        sent = [f.replace("ETAG", known["etag"]).replace("MODIFIED", known["last-modified"]) for f in fields]
        reply = await server.ask(at(uid), *sent)
        assert reply.status == status
        assert reply.headers["etag"] == known["etag"]
        assert reply.body == content[start:end]
        assert "content-encoding" not in reply.headers
        if status == 206:
            first = start % len(content)
            last = first + len(reply.body) - 1
            assert reply.headers["content-range"] == f"bytes {first}-{last}/{len(content)}"
            assert reply.is_whole
        else:
            assert "content-range" not in reply.headers


async def test_a_range_on_head_is_ignored(storage: RecordingStorage) -> None:
    await make_store(storage, FILES)
    async with running(storage) as server:
        for wanted in ("bytes=0-1", "bytes=99999-", "rubbish"):
            reply = await server.ask(at("noise"), f"Range: {wanted}", method="HEAD")
            assert (reply.status, reply.headers["content-length"]) == (200, "4096")


async def test_ranges_of_an_empty_file(storage: RecordingStorage) -> None:
    await make_store(storage, FILES)
    async with running(storage) as server:
        reply = await server.ask(at("empty"))
        assert (reply.status, reply.body, reply.headers["content-length"]) == (200, b"", "0")
        assert (await server.ask(at("empty"), "Range: bytes=0-")).headers["content-range"] == "bytes */0"
        assert (await server.ask(at("empty"), "Range: bytes=-5")).status == 200


async def test_a_range_of_a_large_file_reads_only_what_it_touches(storage: RecordingStorage) -> None:
    await make_store(storage, {"large": File(LARGE)}, n_bits=1)
    async with running(storage) as server:
        await warm(server, storage, "large")
        reply = await server.ask(at("large"), "Range: bytes=300000-300009")
        assert reply.body == LARGE[300_000:300_010]
        assert storage.count(purpose="index") == 0  # the seek table is known
        assert storage.moved(purpose="payload") <= 256 << 10


async def test_zstd_passes_through_untouched(storage: RecordingStorage) -> None:
    await make_store(storage, FILES)
    async with running(storage) as server:
        plain = await server.ask(at("text.txt"))
        storage.calls.clear()
        coded = await server.ask(at("text.txt"), "Accept-Encoding: gzip, zstd;q=0.5")
        assert coded.headers["content-encoding"] == "zstd"
        assert coded.is_whole
        assert len(coded.body) < len(TEXT) // 4
        assert zstandard.ZstdDecompressor().decompress(coded.body) == TEXT
        assert storage.moved() == len(coded.body)
        assert coded.headers["etag"] != plain.headers["etag"]
        assert coded.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
        head = await server.ask(at("text.txt"), ZSTD, method="HEAD")
        assert head.headers["content-length"] == str(len(coded.body))
        # Each entity tag stands for its own representation.
        for fields, status in [
            ((ZSTD, f"If-None-Match: {coded.headers['etag']}"), 304),
            ((ZSTD, f"If-None-Match: {plain.headers['etag']}"), 200),
            ((f"If-None-Match: {coded.headers['etag']}",), 200),
            ((f"If-None-Match: {plain.headers['etag']}",), 304),
            ((ZSTD, f"If-Match: {plain.headers['etag']}"), 412),
        ]:
            assert (await server.ask(at("text.txt"), *fields)).status == status


async def test_what_is_no_single_plain_frame_is_decoded(storage: RecordingStorage) -> None:
    maker = await make_store(storage, {"noise": NOISE, "large": LARGE, "empty": b""})
    await maker.add({"lz4": TEXT}, compression=Compression("lz4"))
    await maker.add({"dictionary": TEXT}, compression=Compression(dictionary=TEXT[:500]))
    async with running(storage) as server:
        for uid, file in maker.files[DAY].items():
            reply = await server.ask(at(uid), ZSTD)
            assert "content-encoding" not in reply.headers, uid
            assert reply.body == file.content


@pytest.mark.parametrize(
    "query",
    [
        "created_at=2024-01-31T23:59:59Z",
        "created_at=2024-01-31T00:00:00+00:00",
        "created_at=2024-02-01T01:30:00+02:00",
        "created_at=2024-02-01T01:30:00%2B02:00",
        "created_at=2024-02-01+01:30:00+02:00",
        "created_at=2024-01-31&unknown=1",
    ],
)
async def test_any_time_of_the_day_names_the_file(storage: RecordingStorage, query: str) -> None:
    await make_store(storage, {"noise": NOISE})
    async with running(storage) as server:
        assert (await server.ask(f"/files/noise?{query}")).body == NOISE


@pytest.mark.parametrize(
    "target",
    [
        "/files/noise",
        "/files/noise?",
        "/files/noise?created_at=",
        "/files/noise?created_at=yesterday",
        "/files/noise?created_at=2024-01-31T10:00:00",
        "/files/noise?created_at=2024-02-30",
        "/files/noise?created_at=2024-01-31&created_at=2024-01-31",
        f"/files?{AT}",
        f"/files/?{AT}",
        f"/files?uid=&{AT}",
        f"/files?uid=a&uid=b&{AT}",
        f"/files/a?uid=b&{AT}",
        f"/files/%FF?{AT}",
        f"/files/%C3?{AT}",
        f"/files/%zz?{AT}",
        f"/files/a%00b?{AT}",
        f"/files/a%0Ab?{AT}",
        f"/files/{'x' * 1025}?{AT}",
    ],
)
async def test_a_wrong_call_is_400_and_reads_nothing(storage: RecordingStorage, target: str) -> None:
    await make_store(storage, {"noise": NOISE})
    async with running(storage) as server:
        await warm(server, storage)
        check_problem(await server.ask(target), 400)
        assert storage.calls == []


async def test_a_replaced_file_has_no_date_to_compare_with(storage: RecordingStorage) -> None:
    maker = await make_store(storage, {"noise": TEXT})
    await maker.add({"noise": NOISE})
    async with running(storage) as server:
        reply = await server.ask(at("noise"), "If-Modified-Since: Fri, 31 Dec 2100 00:00:00 GMT")
        assert (reply.status, reply.body) == (200, NOISE)
        assert "last-modified" not in reply.headers
        assert (await server.ask(at("noise"), "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT")).status == 200


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StorageDeniedError("bucket secret-bucket refused key AKIA"), 502),
        (StorageUnavailableError("http://secret-host:1 is down"), 503),
        (StorageTimeoutError("http://secret-host:1 is slow"), 504),
        (RuntimeError("a secret went wrong"), 500),
    ],
)
async def test_trouble_with_the_storage_tells_nothing_of_it(
    storage: RecordingStorage, error: Exception, status: int
) -> None:
    await make_store(storage, {"noise": NOISE})
    faulty = FaultyStorage(storage, [Fault(Fail(error), at=None, verb="read_range")])
    async with running(faulty) as server:
        problem = check_problem(await server.ask(at("noise")), status)
        assert "secret" not in json.dumps(problem)
        assert faulty.fired


def damage(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


async def segment_of(maker: Maker, base: Path, uid: str) -> Path:
    identity = maker.identity(uid)
    [info] = [info async for info in maker.storage.list(identity.segment_prefix)]
    return base / info.key


async def test_damage_is_500_before_the_first_byte(storage: RecordingStorage, tmp_path: Path) -> None:
    maker = await make_store(storage, {"noise": NOISE})
    segment = await segment_of(maker, tmp_path / "store", "noise")
    damage(segment, segment.read_bytes().index(NOISE[:16]) + 100)
    async with running(storage) as server:
        problem = check_problem(await server.ask(at("noise")), 500)
        assert str(tmp_path) not in json.dumps(problem)
        assert segment.name not in json.dumps(problem)


async def test_damage_late_in_a_large_file_breaks_the_connection(storage: RecordingStorage, tmp_path: Path) -> None:
    content = random.Random(8).randbytes(3 << 20)
    maker = await make_store(storage, {"large": content})
    segment = await segment_of(maker, tmp_path / "store", "large")
    damage(segment, segment.read_bytes().index(content[-64:]))
    async with running(storage) as server:
        reply = await server.ask(at("large"))
        assert reply.status == 200
        assert reply.headers["content-length"] == str(len(content))
        assert not reply.is_whole
        assert content.startswith(reply.body)
        # A part that is not damaged is served, one that is damaged from the start is a clean error.
        assert (await server.ask(at("large"), "Range: bytes=0-9")).body == content[:10]
        check_problem(await server.ask(at("large"), "Range: bytes=-9"), 500)


async def test_a_segment_that_was_compacted_away_is_found_again(storage: RecordingStorage) -> None:
    maker = await make_store(storage, {"text.txt": TEXT, "large": LARGE})
    async with running(storage) as server:
        for uid in ("text.txt", "large"):
            await server.ask(at(uid))
        await maker.compact(compression=Compression("none"))
        assert (await server.ask(at("large"))).body == LARGE
        reply = await server.ask(at("text.txt"), ZSTD)
        assert (reply.status, reply.body) == (200, TEXT)
        assert "content-encoding" not in reply.headers


async def test_ten_requests_on_one_connection(storage: RecordingStorage) -> None:
    await make_store(storage, FILES)
    async with running(storage) as server:
        one = request(at("noise"), last=False)
        raw = await server.send(one * 9 + request(at("text.txt")))
        replies = raw.split(b"HTTP/1.1 ")[1:]
        assert len(replies) == 10
        assert all(reply.endswith(NOISE) for reply in replies[:-1])
        assert parse_reply(b"HTTP/1.1 " + replies[-1]).body == TEXT


async def test_many_at_once(storage: RecordingStorage) -> None:
    await make_store(storage, FILES)
    async with running(storage) as server:
        uids = [uid for uid in FILES for _ in range(20)]
        replies = await asyncio.gather(*(server.ask(at(uid)) for uid in uids))
        assert [reply.body for reply in replies] == [FILES[uid] for uid in uids]
