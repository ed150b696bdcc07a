"""What RFC 9110 has a server answer to a GET or HEAD of a file, written from the RFC alone: it shares no code with the service.

Where the RFC leaves a choice, the service's own is stated here:

- several ranges are answered with the whole file (section 14.2 lets a server ignore them);
- a request with a Range is answered without a content coding;
- zstd is sent where it is acceptable and weighs no less than identity;
- of a list that is badly written the well-written elements count, and a badly written date is no date.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime

GMT_FORMATS = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y")


@dataclass(frozen=True, slots=True)
class Resource:
    """A file, and what the server is known to say of it.

    Attributes:
        content: its bytes; None where there is no file.
        absence: the status where there is none.
        etag: of the content itself.
        modified: seconds since 1970, None where no date is sent.
        coded: the stored zstd frame, where the server may send it.
        coded_etag: of that.
        content_type: as it is to be sent.
    """

    content: bytes | None
    absence: int = 404
    etag: str = ""
    modified: int | None = None
    coded: bytes | None = None
    coded_etag: str = ""
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """An answer; `payload` is the half-open part of the content that has to be read for it, None for nothing."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    body: bytes | None = None
    payload: tuple[int, int] | None = None


CONTENT_HEADERS = frozenset({"content-length", "content-type", "content-range", "content-encoding", "accept-ranges"})


def expect(method: str, lines: list[tuple[str, str]], resource: Resource) -> Expected:  # noqa: C901, PLR0911 - the RFC's own cases
    """Say what the answer is to a request with these header lines."""
    if method not in ("GET", "HEAD"):
        return Expected(405, {"allow": "GET, HEAD"})
    content = resource.content
    if content is None:
        return Expected(resource.absence)
    fields = combine(lines)
    ranged = "range" in fields
    coded = resource.coded is not None and not ranged and wants_zstd(fields.get("accept-encoding"))
    etag = resource.coded_etag if coded else resource.etag
    body = resource.coded if coded and resource.coded is not None else content
    failed = precondition(fields, etag, resource.modified)
    if failed == 412:
        return Expected(412, absent=frozenset({"etag", "last-modified"}))
    headers = {"etag": etag, "vary": "Accept-Encoding", "cache-control": "no-cache"}
    absent = set()
    if resource.modified is None:
        absent.add("last-modified")
    else:
        headers["last-modified"] = datetime.fromtimestamp(resource.modified, UTC).strftime(GMT_FORMATS[0])
    if failed == 304:
        return Expected(304, headers, frozenset(absent | CONTENT_HEADERS), b"")
    headers |= {"accept-ranges": "bytes", "content-type": resource.content_type, "x-content-type-options": "nosniff"}
    part = None
    if ranged and method == "GET" and if_range_holds(fields.get("if-range"), etag, resource.modified):
        part = only_range(fields["range"], len(content))
    if part == "unsatisfiable":
        return Expected(416, {"content-range": f"bytes */{len(content)}"})
    if isinstance(part, tuple):
        first, last = part
        headers["content-range"] = f"bytes {first}-{last}/{len(content)}"
        headers["content-length"] = str(last - first + 1)
        absent.add("content-encoding")
        return Expected(206, headers, frozenset(absent), content[first : last + 1], (first, last + 1))
    headers["content-length"] = str(len(body))
    absent.add("content-range")
    if coded:
        headers["content-encoding"] = "zstd"
    else:
        absent.add("content-encoding")
    if method == "HEAD":
        return Expected(200, headers, frozenset(absent), b"")
    return Expected(200, headers, frozenset(absent), body, (0, len(content)) if content else None)


def combine(lines: list[tuple[str, str]]) -> dict[str, str]:
    """Section 5.3: lines of one name are one list."""
    fields: dict[str, str] = {}
    for name, value in lines:
        key = name.lower()
        fields[key] = f"{fields[key]}, {value}" if key in fields else value
    return fields


def precondition(fields: dict[str, str], etag: str, modified: int | None) -> int | None:
    """Section 13.2.2, steps 1 to 4: 412, 304, or None to go on."""
    if "if-match" in fields:  # step 1; section 13.1.1 compares strongly
        if fields["if-match"].strip() != "*" and (False, etag) not in tags(fields["if-match"]):
            return 412
    elif "if-unmodified-since" in fields:  # step 2
        limit = instant(fields["if-unmodified-since"])
        if limit is not None and modified is not None and modified > limit:
            return 412
    if "if-none-match" in fields:  # step 3; section 13.1.2 compares weakly
        value = fields["if-none-match"]
        if value.strip() == "*" or etag in {opaque for _, opaque in tags(value)}:
            return 304
    elif "if-modified-since" in fields:  # step 4
        limit = instant(fields["if-modified-since"])
        if limit is not None and modified is not None and modified <= limit:
            return 304
    return None


def if_range_holds(value: str | None, etag: str, modified: int | None) -> bool:
    """Section 13.1.5: an entity tag compares strongly, a date exactly."""
    if value is None:
        return True
    if '"' in value:
        return value == etag
    return modified is not None and instant(value) == modified


def tags(value: str) -> list[tuple[bool, str]]:
    """Section 8.8.3, as (weak, opaque-tag): commas within quotes separate nothing."""
    elements, current, quoted = [], "", False
    for character in value:
        quoted ^= character == '"'
        if character == "," and not quoted:
            elements.append(current)
            current = ""
        else:
            current += character
    elements.append(current)
    found = []
    for element in (one.strip(" \t") for one in elements):
        weak = element.startswith("W/")
        opaque = element[2:] if weak else element
        inner = opaque[1:-1]
        if len(opaque) >= 2 and opaque[0] == opaque[-1] == '"' and all(c == "!" or c >= "#" for c in inner):
            found.append((weak, opaque))
    return found


def instant(value: str) -> int | None:
    """Section 5.6.7: the three forms of an HTTP-date, written as the grammar has them."""
    for form in GMT_FORMATS:
        try:
            parsed = datetime.strptime(value, form.replace("%e", "%d")).replace(tzinfo=UTC)
        except ValueError:
            continue
        if parsed.strftime(form) == value:
            return int(parsed.timestamp())
    return None


def wants_zstd(value: str | None) -> bool:
    """Section 12.5.3."""
    weights: dict[str, float] = {}
    for element in (value or "").split(","):
        coding, *parameters = [part.strip(" \t") for part in element.split(";")]
        weight = 1.0
        if parameters:
            name, _, number = parameters[0].partition("=")
            well_written = re.fullmatch(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", number)
            if len(parameters) > 1 or name.lower() != "q" or not well_written:
                continue
            weight = float(number)
        if coding:
            weights[coding.lower()] = weight
    rest = weights.get("*", 0.0)
    zstd, identity = weights.get("zstd", rest), weights.get("identity", rest)
    return zstd > 0 and zstd >= identity


def only_range(value: str, size: int) -> tuple[int, int] | str | None:  # noqa: PLR0911 - the same
    """Sections 14.1.2 and 14.2: the one range's first and last position, "unsatisfiable", or None to ignore the field."""
    unit, equals, specs = value.partition("=")
    elements = [one.strip(" \t") for one in specs.split(",")]
    elements = [one for one in elements if one]  # section 5.6.1.2: empty elements do not count
    if unit.lower() != "bytes" or not equals or specs.startswith((" ", "\t")) or len(elements) != 1:
        return None
    first, dash, last = elements[0].partition("-")
    if not dash or not all(c in "0123456789" for c in first + last) or not first + last:
        return None
    if not first:
        length = int(last)
        if length == 0:
            return "unsatisfiable"
        return (max(0, size - length), size - 1) if size else None
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        return "unsatisfiable"
    return int(first), min(int(last), size - 1) if last else size - 1
