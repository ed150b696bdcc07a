"""Files as a tar, as bytes: the answer to a batch, and an export. Pure.

A member is a header, the content, and zeros up to a multiple of 512; two blocks of zeros end the archive (POSIX.1-2024, pax,
"ustar Interchange Format"). Headers are in PAX format, so that `DES.uid` carries the uid exactly. The member's name is
made for file systems: the item's number, which keeps names apart, and what the uid has of safe characters; in an export, the uid itself where that is a
path that stays below the place it is unpacked to.
"""

from __future__ import annotations

import json
import re
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from des.errors import Status

BLOCK_BYTES = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK_BYTES)
REPORT_NAME = "_des_report.ndjson"
UID_KEYWORD = "DES.uid"
_NAME_CHARACTERS = 100
# What file systems take of one name.
_PART_BYTES = 255
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def member_name(index: int, uid: str) -> str:
    """Return the name of an item's member."""
    return f"{index:06}-{_UNSAFE.sub('_', uid[:_NAME_CHARACTERS])}"


def path_name(index: int, uid: str) -> str:
    """Return the name of a member of an export: the uid where it is a safe relative path, else as of `member_name`."""
    parts = uid.split("/")
    is_safe = all(part not in {"", ".", ".."} and len(part.encode()) <= _PART_BYTES for part in parts)
    return uid if is_safe and "\\" not in uid else member_name(index, uid)


def member_header(name: str, size: int, modified: int, uid: str | None = None) -> bytes:
    """Return the header of a member.

    Args:
        name: its name.
        size: bytes of its content.
        modified: seconds since 1970.
        uid: the uid it stands for, if any.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, modified
    if uid is not None:
        info.pax_headers = {UID_KEYWORD: uid}
    return info.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """Return what follows a content of `size` bytes."""
    return bytes(-size % BLOCK_BYTES)


def report_line(
    index: int, uid: str | int, created_at: str, status: Status, member: str | None, size: int | None, error: str | None
) -> bytes:
    """Return the report's line on an item; `member` and `size` (bytes) are null where it failed, `error` says why."""
    line: dict[str, object] = {
        "index": index,
        "uid": uid,
        "created_at": created_at,
        "status": status,
        "member": member,
        "size": size,
    }
    return _line(line if error is None else {**line, "error": error})


def report_end(items: int) -> bytes:
    """Return the report's last line."""
    return _line({"end": True, "items": items})


def _line(fields: dict[str, object]) -> bytes:
    return json.dumps(fields).encode() + b"\n"
