"""`POST /batch` over a socket: the tar, its report, and what it cost."""

from __future__ import annotations

import asyncio
import io
import json
import random
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from des.errors import InvalidRequestError, StorageDeniedError
from des.http.batch_items import parse_batch
from des.shard.codecs import Compression
from des.storage.testing import Fail, Fault, FaultyStorage, Hold
from tests.http.live import close, listening, parse_reply, read_to_end, request, running
from tests.making import DAY, File, make_store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from des.storage.testing import RecordingStorage
    from tests.http.live import Reply, Server

AT = f"{DAY[:4]}-{DAY[4:6]}-{DAY[6:]}"
NOISE = random.Random(11).randbytes(3000)
LARGE = random.Random(12).randbytes(3 << 20)
REPORT = "_des_report.ndjson"


def item(uid: str | int, created_at: str = AT) -> dict[str, object]:
    return {"uid": uid, "created_at": created_at}


async def post(server: Server, batch: object, *fields: str) -> Reply:
    content = batch if isinstance(batch, bytes) else json.dumps(batch).encode()
    head = request("/batch", f"Content-Length: {len(content)}", *fields, method="POST")
    return dechunked(await server.send(head + content))


def dechunked(raw: bytes) -> Reply:
    """Take an answer apart whose body comes in chunks; one that breaks off keeps the field that says so."""
    reply = parse_reply(raw)
    if reply.headers.get("transfer-encoding") != "chunked":
        return reply
    body, rest = bytearray(), reply.body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            assert rest == b"\r\n"
            headers = {**reply.headers, "content-length": str(len(body))}
            return type(reply)(reply.status, headers, bytes(body))
        body += rest[:length]
        rest = rest[length + 2 :]
    return type(reply)(reply.status, {**reply.headers, "content-length": "-1"}, bytes(body))


class Unpacked:
    """A tar as Python's own reader sees it."""

    def __init__(self, reply: Reply) -> None:
        assert reply.status == 200
        assert reply.is_whole
        assert reply.headers["content-type"] == "application/x-tar"
        assert reply.headers["cache-control"] == "no-store"
        with tarfile.open(fileobj=io.BytesIO(reply.body), mode="r:") as tar:
            self.members = tar.getmembers()
            contents = [tar.extractfile(member) for member in self.members]
            self.contents = [content.read() for content in contents if content]
        assert self.members[-1].name == REPORT
        *self.report, end = [json.loads(line) for line in self.contents[-1].splitlines()]
        assert end == {"end": True, "items": len(self.report)}
        assert [line["index"] for line in self.report] == list(range(len(self.report)))
        named = [(line["member"], line["size"], line["uid"]) for line in self.report if line["status"] == "ok"]
        there = [(m.name, m.size, m.pax_headers["DES.uid"]) for m in self.members[:-1]]
        assert [(name, size, str(uid)) for name, size, uid in named] == there
        for line in self.report:
            assert set(line) - {"error"} == {"index", "uid", "created_at", "status", "member", "size"}
            assert ("error" in line) == (line["status"] != "ok") == (line["member"] is None)

    @property
    def statuses(self) -> list[str]:
        return [line["status"] for line in self.report]


async def test_a_batch_comes_in_order_whatever_it_is_made_of(storage: RecordingStorage, tmp_path: Path) -> None:
    odd = 'a/../b "ü"\\\U0001f600' + "x" * 200
    maker = await make_store(storage, n_bits=2)
    files: dict[str, bytes | File] = {f"file-{n}": b"%d" % n * n for n in range(300)}
    await maker.add(files | {odd: b"odd", "17": b"seventeen", "empty": b"", "large": LARGE})
    await maker.add({"lz4": NOISE * 3}, compression=Compression("lz4"))
    await maker.add({"dictionary": NOISE * 2}, compression=Compression(dictionary=NOISE))
    await maker.add({"gone": b"gone"})
    await maker.delete(["gone"])
    batch = [
        item("large"),
        item("file-299"),
        *(item(f"file-{n}") for n in range(299)),
        item("never"),
        item("gone"),
        item(odd, f"{AT}T23:59:59Z"),
        item(17),
        item("17"),
        item("large"),
        item("dictionary"),
        item("lz4"),
        item("empty"),
        item("file-3", f"{AT}T01:00:00+01:00"),
        item("bad\nuid"),
        item("file-3", f"{AT}T01:00:00"),
        item("\ud800"),
        item("file-3", "2024-02-01"),
    ]
    expected = [
        *(b"".join(read(maker.files[DAY], one)) for one in batch[:301]),
        *(b"odd", b"seventeen", b"seventeen", LARGE, NOISE * 2, NOISE * 3, b"", b"333"),
    ]
    async with running(storage) as server:
        reply = await post(server, batch)
        tar = Unpacked(reply)
    bad = ["not_found", "deleted"]
    assert tar.statuses == [*["ok"] * 301, *bad, *["ok"] * 8, "invalid", "invalid", "invalid", "not_found"]
    assert tar.contents[:-1] == expected
    assert tar.members[0].name == "000000-large"
    assert tar.report[303]["member"] == "000303-a_.._b______" + "x" * 88
    assert tar.members[0].mtime == 1706659200
    assert [line["uid"] for line in tar.report] == [one["uid"] for one in batch]
    assert "zone" in tar.report[-3]["error"]
    # GNU tar reads it too, and puts out the same bytes.
    path = tmp_path / "batch.tar"
    path.write_bytes(reply.body)
    listed = await asyncio.to_thread(gnu_tar, "-tf", path)
    assert listed.decode().splitlines() == [member.name for member in tar.members]
    assert await asyncio.to_thread(gnu_tar, "-xOf", path) == b"".join(tar.contents)


def gnu_tar(option: str, path: Path) -> bytes:
    return subprocess.run(["tar", option, path], capture_output=True, check=True, timeout=60).stdout


def read(files: dict[str, File], one: dict[str, object]) -> Sequence[bytes]:
    file = files.get(str(one["uid"]))
    return [file.content] if file else []


async def test_a_batch_costs_little(storage: RecordingStorage) -> None:
    maker = await make_store(storage)
    uids = maker.uids_of_one_shard(1000)
    await maker.add({uid: b"%07d" % number for number, uid in enumerate(uids)}, compression=Compression("none"))
    random.Random(1).shuffle(uids)
    async with running(storage) as server:
        storage.calls.clear()
        tar = Unpacked(await post(server, [item(uid) for uid in uids]))
        assert tar.statuses == ["ok"] * 1000
        assert [m.pax_headers["DES.uid"] for m in tar.members[:-1]] == uids
        assert tar.contents[:-1] == [maker.files[DAY][uid].content for uid in uids]
        assert storage.count(purpose="payload") <= 8  # neighbours in one request, a stretch of 256 at a time
        assert len(storage.calls) <= 8 + 6  # the descriptor, the head's tail, its pages


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "no JSON"),
        (b"{", 400, "line 1, column 2"),
        (b"\xff", 400, "no JSON"),
        (b"[" + b"[]," * 13_000 + b"[]]", 413, "160 values"),
        (b"[" * 40_000, 413, "160 values"),
        (b'{"uid": "a"}', 400, "array"),
        (b"null", 400, "array"),
        (b'[{"uid": "a", "created_at": "2024-01-31"}, {"uid": "b"}]', 400, "Item 1 has no created_at"),
        (b'[{"created_at": "2024-01-31"}]', 400, "Item 0 has no uid"),
        (b'["a"]', 400, "Item 0 is no object"),
        (b'[{"uid": true, "created_at": "2024-01-31"}]', 400, "item 0"),
        (b'[{"uid": 1.5, "created_at": "2024-01-31"}]', 400, "item 0"),
        (b'[{"uid": "a", "created_at": 20240131}]', 400, "item 0"),
        (b'[{"uid": ' + b"1" * 5000 + b', "created_at": "2024-01-31"}]', 400, "number"),
        (json.dumps([item("a")] * 11).encode(), 413, "11 items"),
        (b" " * 41_000, 413, "40960 bytes"),
    ],
)
async def test_a_bad_request_is_refused_as_a_whole(
    storage: RecordingStorage, content: bytes, status: int, words: str
) -> None:
    await make_store(storage, {"a": b"content"})
    async with running(storage, http_batch_items=10) as server:
        storage.calls.clear()
        for reply in (await post(server, content), await post_chunked(server, content)):
            assert reply.status == status
            assert reply.headers["content-type"] == "application/problem+json"
            assert words in json.loads(reply.body)["detail"]
        assert storage.calls == []
        assert Unpacked(await post(server, [])).statuses == []
        assert Unpacked(await post(server, [item("a")] * 10)).statuses == ["ok"] * 10


async def post_chunked(server: Server, content: bytes) -> Reply:
    pieces = [content[at : at + 9000] for at in range(0, len(content), 9000)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return dechunked(await server.send(request("/batch", "Transfer-Encoding: chunked", method="POST") + body))


async def test_other_methods_are_405(storage: RecordingStorage) -> None:
    async with running(storage) as server:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            reply = await server.ask("/batch", method=method)
            assert (reply.status, reply.headers["allow"]) == (405, "POST")


async def test_without_a_store_it_is_503(storage: RecordingStorage) -> None:
    async with running(storage) as server:
        assert (await post(server, [item("a")])).status == 503


async def test_trouble_is_each_items_own(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content", "large": LARGE})
    faults = [Fault(Fail(StorageDeniedError("a secret")), at=None, verb="read_range")]
    async with running(FaultyStorage(storage, faults)) as server:
        tar = Unpacked(await post(server, [item("small"), item("large"), item("never")]))
        assert tar.statuses == ["denied", "denied", "not_found"]
        assert "secret" not in tar.contents[-1].decode()


async def test_a_storage_that_hangs_is_not_waited_for_again_and_again(storage: RecordingStorage) -> None:
    maker = await make_store(storage, {f"large-{n}": LARGE for n in range(3)} | {"small": NOISE})
    hold = Hold()
    async with running(
        FaultyStorage(storage, [Fault(hold, at=None, verb="read_range")]), request_timeout=0.3
    ) as server:
        batch = [item("small"), *(item(uid) for uid in maker.files[DAY])]
        tar = Unpacked(await post(server, batch))
        assert tar.statuses == ["timeout"] * 5


async def test_damage_in_the_middle_of_a_large_file_breaks_the_connection(
    storage: RecordingStorage, tmp_path: Path
) -> None:
    await make_store(storage, {"large": LARGE, "damaged": LARGE[::-1], "small": NOISE})
    for path in (tmp_path / "store").rglob("*/*/*.des"):
        data = bytearray(path.read_bytes())
        at = data.find(LARGE[::-1][2_000_000:2_000_100])
        if at >= 0:
            data[at] ^= 1
            path.write_bytes(data)
    async with running(storage) as server:
        reply = await post(server, [item("small"), item("large"), item("damaged"), item("small")])
        assert (reply.status, reply.is_whole) == (200, False)
        with tarfile.open(fileobj=io.BytesIO(reply.body), mode="r|") as tar:
            members = iter(tar)
            names = [next(members).name for _ in range(3)]
        assert names == ["000000-small", "000001-large", "000002-damaged"]
        assert REPORT.encode() not in reply.body
        tar_of_rest = Unpacked(await post(server, [item("small"), item("large")]))
        assert tar_of_rest.contents[:2] == [NOISE, LARGE]


async def test_damage_that_shows_at_once_is_reported(storage: RecordingStorage, tmp_path: Path) -> None:
    await make_store(storage, {"large": LARGE, "small": NOISE, "other": b"content"}, n_bits=1)
    for path in (tmp_path / "store").rglob("*/*/*.des"):
        data = bytearray(path.read_bytes())
        for piece in (LARGE[:100], NOISE[:100]):
            if (at := data.find(piece)) >= 0:
                data[at] ^= 1
        path.write_bytes(data)
    async with running(storage) as server:
        tar = Unpacked(await post(server, [item("large"), item("other"), item("small")]))
        assert tar.statuses == ["corrupt", "ok", "corrupt"]


async def test_what_was_compacted_away_is_found_again(storage: RecordingStorage) -> None:
    maker = await make_store(storage, {"large": LARGE, "small": NOISE})
    async with running(storage) as server:
        await post(server, [item("large"), item("small")])
        await maker.compact()
        assert Unpacked(await post(server, [item("large"), item("small")])).contents[:2] == [LARGE, NOISE]


async def test_a_large_file_that_is_replaced_before_its_turn_comes_in_its_new_state(storage: RecordingStorage) -> None:
    maker = await make_store(storage, {"large": LARGE, "small": NOISE})
    hold = Hold()
    faulty = FaultyStorage(storage, [Fault(hold, verb="read_range")])
    async with running(faulty) as server:
        asking = asyncio.create_task(post(server, [item("small"), item("large")]))
        await hold.reached.wait()
        await maker.add({"large": b"another"})
        await maker.compact()
        hold.release.set()
        assert Unpacked(await asking).contents[:2] == [NOISE, b"another"]


async def test_bytes_in_flight_are_counted_in_and_out(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": NOISE})
    hold = Hold()
    faulty = FaultyStorage(storage, [Fault(hold, verb="read_range")])
    async with running(faulty, http_max_bytes=1) as server:
        asking = asyncio.create_task(post(server, [item("small")]))
        await hold.reached.wait()
        assert (await post(server, [item("small")])).status == 503
        hold.release.set()
        assert Unpacked(await asking).statuses == ["ok"]
        assert Unpacked(await post(server, [item("small")])).statuses == ["ok"]
        assert (await post(server, b"rubbish")).status == 400
        assert Unpacked(await post(server, [item("small")])).statuses == ["ok"]


async def test_content_that_does_not_come_is_408_and_one_that_leaves_is_let_go(storage: RecordingStorage) -> None:
    async with running(storage, request_timeout=0.2) as server:
        reply = parse_reply(await server.send(request("/batch", "Content-Length: 9", method="POST") + b"[1"))
        assert (reply.status, reply.headers["connection"]) == (408, "close")
        with listening("des.http.access") as heard:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request("/batch", "Content-Length: 9", method="POST") + b"[")
            await close(writer)
            assert await heard.trouble() == "the client left"


async def test_a_batch_on_a_connection_that_goes_on(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content"})
    content = json.dumps([item("small")]).encode()
    one = request("/batch", f"Content-Length: {len(content)}", method="POST", last=False) + content
    async with running(storage) as server:
        raw = await server.send(one + one + request(f"/files/small?created_at={AT}"))
        assert raw.count(b"HTTP/1.1 200") == 3
        assert raw.endswith(b"content")
        assert raw.count(b'"end": true') == 2


async def test_a_client_of_http_1_0_reads_to_the_end_of_the_connection(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content"})
    content = json.dumps([item("small")]).encode()
    asking = request("/batch", f"Content-Length: {len(content)}", method="POST").replace(b"HTTP/1.1", b"HTTP/1.0")
    async with running(storage) as server:
        reply = parse_reply(await server.send(asking + content))
    assert "transfer-encoding" not in reply.headers
    with tarfile.open(fileobj=io.BytesIO(reply.body), mode="r:") as tar:
        assert tar.getnames() == ["000000-small", REPORT]


async def test_a_client_that_leaves_ends_the_batch(storage: RecordingStorage) -> None:
    await make_store(storage, {"large": LARGE * 8})
    content = json.dumps([item("large")] * 20).encode()
    async with running(storage) as server:
        with listening("des.http.access") as heard:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request("/batch", f"Content-Length: {len(content)}", method="POST") + content)
            await reader.readexactly(1000)
            writer.transport.abort()
            assert await heard.trouble() == "the client left"
        assert (await server.ask("/health")).status == 200


async def test_each_item_is_counted_as_a_retrieval(storage: RecordingStorage) -> None:
    await make_store(storage, {"small": b"content", "large": LARGE})
    async with running(storage) as server:
        before = await counted(server)
        await post(server, [item("small"), item("small"), item("large"), item("never"), item("bad\n")])
        after = await counted(server)
        grown = {status: after[status] - before.get(status, 0) for status in after}
        assert (grown["ok"], grown["not_found"], grown["invalid"]) == (3, 1, 1)


async def counted(server: Server) -> dict[str, float]:
    lines = (await server.ask("/metrics")).body.decode().splitlines()
    found = [line for line in lines if line.startswith("des_retrievals_total{")]
    return {line.split('status="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in found}


async def test_memory_stays_bounded_while_nobody_reads(storage: RecordingStorage) -> None:
    """What is read ahead is two stretches, however much is asked for: shown by what was read from the storage."""
    maker = await make_store(storage, n_bits=1)
    uids = maker.uids_of_one_shard(64)
    noise = random.Random(3)
    await maker.add({uid: noise.randbytes(1 << 20) for uid in uids})
    content = json.dumps([item(uid) for uid in uids]).encode()
    async with running(storage, http_send_timeout=1) as server:
        storage.calls.clear()
        with listening("des.http.access") as heard:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 12)
            writer.write(request("/batch", f"Content-Length: {len(content)}", method="POST") + content)
            assert await heard.trouble() == "the client takes nothing"
        sent: Any = heard.records[0].__dict__["fields"]["bytes"]
        assert storage.moved(purpose="payload") <= sent + (2 * 4 << 20) + (2 << 20)
        await read_to_end(reader)
        await close(writer)


def test_what_is_nested_as_deep_as_a_large_batch_may_have_values_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="nested"):
        parse_batch(b"[" * 16_000, 1000)
