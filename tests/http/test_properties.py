"""Any request for a file against an oracle of RFC 9110, over a socket: the answer, and what was read for it."""

from __future__ import annotations

import hashlib
import random
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from des.shard.codecs import Compression
from des.storage.local import LocalStorage
from des.storage.testing import RecordingStorage
from tests.http.live import ZSTD, Reply, parse_reply, request, running
from tests.http.oracle import GMT_FORMATS, Resource, expect
from tests.making import DAY, make_store, reading

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.http.oracle import Expected

TEXT = b"the quick brown fox jumps over the lazy dog\n" * 100
NOISE = random.Random(5).randbytes(4096)
CHUNK = 256 << 10
KEPT = {  # by uid: what is packed, under which compression
    "text.txt": (TEXT, Compression()),
    "a/../b c\N{SNOWMAN}": (NOISE, Compression()),
    "empty": (b"", Compression()),
    "lz4.json": (TEXT[:2000], Compression("lz4")),
    "dictionary.csv": (TEXT[:3000], Compression(dictionary=TEXT[:500])),
    "large": (random.Random(6).randbytes((1 << 20) + 70_000), Compression()),
    "replaced": (NOISE[:100], Compression()),
}
TYPES = {"text.txt": "text/plain", "lz4.json": "application/json", "dictionary.csv": "text/csv"}
ABSENT = {"gone": 410, "never": 404}


class Client:
    """One connection that is kept open; what comes is read as RFC 9112 section 6.3 says."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port))
        self._received = b""

    def ask(self, target: str, *fields: str, method: str = "GET") -> Reply:
        is_good = False
        try:
            reply = self._ask(target, *fields, method=method)
            is_good = reply.headers.get("connection") != "close"
        finally:
            if not is_good:
                self.close()
                self._connect()
        return reply

    def _ask(self, target: str, *fields: str, method: str) -> Reply:
        self._socket.sendall(request(target, *fields, method=method, last=False))
        while b"\r\n\r\n" not in self._received:
            self._more()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        reply = parse_reply(head + b"\r\n\r\n")
        size = 0 if method == "HEAD" or reply.status == 304 else int(reply.headers["content-length"])
        while len(self._received) < size:
            self._more()
        body, self._received = self._received[:size], self._received[size:]
        assert self._received == b"", "more than was announced"
        return Reply(reply.status, reply.headers, body)

    def _more(self) -> None:
        piece = self._socket.recv(1 << 20)
        assert piece, "the connection was closed"
        self._received += piece

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True, slots=True)
class Served:
    """A running service whose index is known, and the files in it."""

    client: Client
    storage: RecordingStorage
    resources: dict[str, Resource]
    stored: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        resources: dict[str, Resource] = {}
        stored: dict[str, int] = {}
        storage = portal.call(make, tmp_path_factory.mktemp("served") / "store", resources, stored)
        running_server = running(storage, negative_ttl=3600, index_ttl=3600)
        server = stack.enter_context(portal.wrap_async_context_manager(running_server))
        client = Client(server.port)
        stack.callback(client.close)
        for uid in [*KEPT, *ABSENT]:
            client.ask(target_of(uid))
        coded = client.ask(target_of("text.txt"), ZSTD)
        assert coded.headers["content-encoding"] == "zstd"
        plain = resources["text.txt"]
        assert coded.headers["etag"] != plain.etag
        resources["text.txt"] = Resource(
            plain.content,
            etag=plain.etag,
            modified=plain.modified,
            coded=coded.body,
            coded_etag=coded.headers["etag"],
            content_type=plain.content_type,
        )
        yield Served(client, storage, resources, stored)


async def make(base: Path, resources: dict[str, Resource], stored: dict[str, int]) -> RecordingStorage:
    storage = RecordingStorage(LocalStorage(base))
    maker = await make_store(storage, {"replaced": TEXT, "gone": b"gone"})
    await maker.delete(["gone"])
    for uid, (content, compression) in KEPT.items():
        await maker.add({uid: content}, compression=compression)
    async with reading(storage) as store:
        for uid, (content, _) in KEPT.items():
            found = await store.find(uid, WHEN)
            stored[uid] = found.entry.stored_size
            resources[uid] = Resource(
                content,
                etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
                modified=found.committed_second,
                content_type=TYPES.get(uid, "application/octet-stream"),
            )
    for uid, status in ABSENT.items():
        resources[uid] = Resource(None, status)
    assert resources["replaced"].modified is None
    return storage


WHEN = f"{DAY[:4]}-{DAY[4:6]}-{DAY[6:]}"
TIMES = (WHEN, f"{WHEN}T23:59:59.9Z", f"{WHEN}t00:00:00z", "2024-02-01T00:30:00%2B01:00", "2024-02-01T00:30:00+01:00")


def target_of(uid: str, escaped: int = 0, *, in_query: bool = False, at: str = WHEN) -> str:
    """Spell a uid; each bit of `escaped` says whether a byte that needs no escape gets one all the same."""
    spelled = ""
    for number, byte in enumerate(uid.encode()):
        plain = chr(byte) in "-._~/" or (byte < 0x80 and chr(byte).isalnum())
        spelled += chr(byte) if plain and not escaped >> number & 1 else f"%{byte:02{'xX'[number % 2]}}"
    return f"/files?created_at={at}&uid={spelled}" if in_query else f"/files/{spelled}?created_at={at}"


def dates(resource: Resource) -> st.SearchStrategy[str]:
    known = datetime.fromtimestamp(resource.modified or 1_700_000_000, UTC)
    shifts = st.sampled_from([0, 0, 1, -1, 3600, -86_400 * 365, 86_400 * 365])
    written = st.builds(
        lambda shift, form: (known + timedelta(seconds=shift)).strftime(form), shifts, st.sampled_from(GMT_FORMATS)
    )
    broken = st.sampled_from(["", "0", "yesterday", known.isoformat(), known.strftime("%a, %d %b %Y %H:%M:%S UTC")])
    return written | broken


def entity_tags(resource: Resource) -> st.SearchStrategy[str]:
    own = resource.etag or '"none"'
    coded = resource.coded_etag or '"coded"'
    element = st.sampled_from(
        [
            own,
            own,
            f"W/{own}",
            coded,
            f"W/{coded}",
            '"other"',
            'W/"a,b"',
            '""',
            f"w/{own}",
            own.strip('"'),
            f"{own}x",
            "*",
        ]
    )
    separator = st.sampled_from([", ", ",", " ,\t", ",, "])
    listed = st.builds(
        lambda elements, comma: comma.join(elements), st.lists(element, min_size=1, max_size=4), separator
    )
    return st.just("*") | listed


def ranges(resource: Resource) -> st.SearchStrategy[str]:
    size = len(resource.content or b"")
    edges = sorted({0, 1, 99, max(0, size - 1), size, size + 1, CHUNK - 1, CHUNK, 10**19})
    position = st.sampled_from(edges) | st.integers(0, size + 10)
    spec = st.one_of(
        st.builds("{}-{}".format, position, position),
        st.builds("{}-".format, position),
        st.builds("-{}".format, position),
        st.builds("00{}-000{}".format, position, position),
        st.sampled_from(["-", "a-b", "1", "--1", "0-1-2", "+0-1", "0 - 1", ""]),
    )
    within = st.builds(lambda ends: f"bytes={min(ends)}-{max(ends)}", st.tuples(position, position))
    one = st.builds("{}={}".format, st.sampled_from(["bytes", "bytes", "Bytes", "rows", "bytes "]), spec)
    several = st.builds(
        lambda specs, comma: "bytes=" + comma.join(specs),
        st.lists(spec, min_size=2, max_size=3),
        st.sampled_from([",", ", "]),
    )
    return within | within | one | several | st.sampled_from(["bytes", "bytes=", "bytes= 0-1", "=0-1", "0-1"])


def encodings() -> st.SearchStrategy[str]:
    weight = st.sampled_from(
        ["", ";q=1", ";q=0", "; q=0.5", ";Q=0.001", " ;\tq=1.000", ";q=0.", ";q=2", ";level=3", ";q=0.5;x=1"]
    )
    codings = st.permutations(["zstd", "gzip", "identity", "*", "ZSTD2", "br"])
    return st.builds(
        lambda names, weights: ", ".join(map("{}{}".format, names, weights)),
        codings,
        st.lists(weight, max_size=4),
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A generated request."""

    uid: str
    target: str
    method: str
    lines: list[tuple[str, str]]


# Made once: a strategy that is made anew for each example costs more than the example.
UID = st.sampled_from([*KEPT, *KEPT, *KEPT, *ABSENT])
ESCAPED = st.integers(0, 255)
TIME = st.sampled_from(TIMES)
METHOD = st.sampled_from(["GET"] * 6 + ["HEAD"] * 2 + ["DELETE"])
KINDS = (
    "Range",
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "If-Unmodified-Since",
    "If-Range",
    "Accept-Encoding",
)
NAMES = st.builds(
    lambda some, others: [*some, *others],
    st.sampled_from([["Range"], ["Range"], ["Range", "If-Range"], ["Accept-Encoding"], []]),
    st.lists(st.sampled_from(KINDS), max_size=2),
)
CASE = st.sampled_from(["title", "lower", "upper"])


def values(resource: Resource) -> dict[str, st.SearchStrategy[str]]:
    tags, instants = entity_tags(resource), dates(resource)
    return dict(
        zip(KINDS, (ranges(resource), tags, tags, instants, instants, tags | instants, encodings()), strict=True)
    )


@st.composite
def requests(draw: st.DrawFn, values_of: dict[str, dict[str, st.SearchStrategy[str]]]) -> Asked:
    uid = draw(UID)
    target = target_of(uid, draw(ESCAPED), in_query=draw(st.booleans()), at=draw(TIME))
    lines = [(getattr(name, draw(CASE))(), draw(values_of[uid][name])) for name in draw(NAMES)]
    return Asked(uid, target, draw(METHOD), lines)


@pytest.mark.parametrize("examples", [500, pytest.param(10_000, marks=pytest.mark.soak)])
def test_any_request_is_answered_as_the_rfc_says_and_reads_no_more_than_it_needs(served: Served, examples: int) -> None:
    seen: set[int] = set()

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(asked=requests({uid: values(resource) for uid, resource in served.resources.items()}))
    def check(asked: Asked) -> None:
        seen.add(check_one(served, asked))

    check()
    assert {200, 206, 304, 412} <= seen


def check_one(served: Served, asked: Asked) -> int:
    expected = expect(asked.method, asked.lines, served.resources[asked.uid])
    served.storage.calls.clear()
    reply = served.client.ask(asked.target, *(f"{name}: {value}" for name, value in asked.lines), method=asked.method)
    assert reply.status == expected.status
    for name, value in expected.headers.items():
        assert reply.headers.get(name) == value, name
    assert expected.absent.isdisjoint(reply.headers)
    assert "date" in reply.headers
    if expected.body is not None:
        assert reply.body == expected.body
    if reply.status >= 400:
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.headers["cache-control"] == "no-store"
    check_costs(served, asked.uid, expected)
    return reply.status


def check_costs(served: Served, uid: str, expected: Expected) -> None:
    if expected.payload is None:
        assert served.storage.calls == []
        return
    served.client.ask("/health")  # answered after the one before has ended
    [call] = [call for call in served.storage.calls if call.verb != "piece"]  # of a stream that is one request
    assert call.purpose == "payload"
    assert call.start is not None
    assert call.end is not None
    read = call.end - call.start
    size = len(served.resources[uid].content or b"")
    if size <= 1 << 20:
        assert read == served.stored[uid]
    else:
        start, end = expected.payload
        assert read == min(-(-end // CHUNK) * CHUNK, size) - start // CHUNK * CHUNK
