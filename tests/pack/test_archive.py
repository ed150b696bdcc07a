from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard

from des.errors import ManifestError
from des.pack.archive import Archive
from des.pack.manifest import BadRow, ManifestRow
from des.pack.spool import Spool
from tests.pack.manifests import packed, read

if TYPE_CHECKING:
    from collections.abc import Iterable

MTIME = 1_706_702_400
FILES = {"a": b"", "d/b.txt": b"x" * 512, "./d/./c": b"content", "n" * 200: os.urandom(300_000), "ünï": b"\0" * 1024}


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = kind, len(content), MTIME
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar_of(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def write(tmp_path: Path, data: bytes, name: str = "a.tar") -> Archive:
    path = tmp_path / name
    path.write_bytes(data)
    return Archive(str(path))


def contents_of(archive: Archive) -> dict[str, bytes]:
    with Spool() as spool:
        rows = [value for part in archive.parts() for piece in part.pieces(spool) for value in piece()]
        return {row["uid"]: Path(row["source_path"]).read_bytes() for row in rows if isinstance(row, dict)}


def errors_of(archive: Archive) -> dict[str | None, str]:
    return {row.uid: row.error for row in read(archive) if isinstance(row, BadRow)}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_every_regular_file_is_a_row(tmp_path: Path, packing: str, form: int) -> None:
    members = [member("d", kind=tarfile.DIRTYPE), *(member(name, content) for name, content in FILES.items())]
    for name in (f"a.tar{packing}", "nameless"):
        archive = write(tmp_path, packed(tar_of(members, form), packing), name)
        assert contents_of(archive) == {name.removeprefix("./"): content for name, content in FILES.items()}
    archive = Archive(str(tmp_path / "nameless"))
    row = read(archive)[1]
    assert isinstance(row, ManifestRow)
    assert (row.uid, row.created_at, row.size_bytes) == ("d/b.txt", MTIME * 1_000_000, 512)
    (row, *_) = read(Archive(archive.name, "2024-02-01"))
    assert isinstance(row, ManifestRow)
    assert row.shard >> 16 == 20240201


def test_the_spool_goes_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write(tmp_path, tar_of(member(f"f{at}", b"x") for at in range(2100)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spool"))
    (tmp_path / "spool").mkdir()
    assert len(contents_of(archive)) == 2100
    assert list((tmp_path / "spool").iterdir()) == []


def test_what_is_no_regular_file_or_badly_named_is_refused_by_name(tmp_path: Path) -> None:
    members = [
        member("good", b"good"),
        member("hard", kind=tarfile.LNKTYPE, linkname="good"),
        member("soft", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("char", kind=tarfile.CHRTYPE),
        member("block", kind=tarfile.BLKTYPE),
        member("pipe", kind=tarfile.FIFOTYPE),
        member("/absolute", b"x"),
        member("../up", b"x" * 600),
        member("a/../../up", b"x"),
        member("bad\nname", b"x"),
        member("late", b"x", mtime=1e15),
        member("odd", b"x", pax_headers={"mtime": "inf"}),
        member("last", b"last"),
    ]
    archive = write(tmp_path, tar_of(members))
    assert set(errors_of(archive)) == {info.name for info, _ in members} - {"good", "last"}
    assert errors_of(archive)["../up"] == "its name is absolute, or has .. in it."
    with Spool() as spool:
        rows = [row for piece in archive.pieces(spool) for row in piece()]
        assert [row["uid"] for row in rows if isinstance(row, dict)][0::2] == ["good", "late", "last"]


def test_a_sparse_file_is_refused_however_large_it_says_it_is(tmp_path: Path) -> None:
    data = bytearray(tar_of([member("sparse", b"x" * 512)], tarfile.GNU_FORMAT))
    info = tarfile.TarInfo.frombuf(bytes(data[:512]), "utf-8", "strict")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:398], header[398:410] = b"00000000000\0", b"00000001000\0"
    header[483:495] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    data[:512] = header
    assert errors_of(write(tmp_path, bytes(data))) == {"sparse": "it is not a regular file."}


class TestDamage:
    DATA = tar_of(member(name, content) for name, content in FILES.items())

    @pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
    def test_it_breaks_off(self, tmp_path: Path, packing: str) -> None:
        data = packed(self.DATA, packing)
        # Behind the end of the archive there is padding, and nothing else.
        content = len(self.DATA.rstrip(b"\0")) if not packing else len(data)
        for length in [0, 1, 511, 512, 513, 1024, 2048, content // 2, content - 300, content - 1]:
            with pytest.raises(ManifestError, match=r"a\.tar.* (is damaged|cannot be read)"):
                read(write(tmp_path, data[:length], f"a.tar{packing}"))

    def test_garbage_between_members_is_no_end(self, tmp_path: Path) -> None:
        data = bytearray(self.DATA)
        at = data.index(b"d/b.txt")
        data[at + 148 : at + 156] = b"garbage!"
        with pytest.raises(ManifestError, match=r"no header where one should be, at byte 512\."):
            read(write(tmp_path, bytes(data)))

    def test_several_archives_in_one(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="several archives in one"):
            read(write(tmp_path, self.DATA + self.DATA))

    @pytest.mark.parametrize(
        "data",
        [b"", b"no archive", b"no archive" * 1000, gzip.compress(b"x", mtime=0)],
        ids=["empty", "short", "long", "compressed"],
    )
    def test_what_is_no_archive(self, tmp_path: Path, data: bytes) -> None:
        with pytest.raises(ManifestError, match="damaged"):
            read(write(tmp_path, data))

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="No such file"):
            read(Archive(str(tmp_path / "missing.tar")))


class TestBombs:
    def test_a_file_that_does_not_fit_is_refused_before_it_is_written(self, tmp_path: Path) -> None:
        size = shutil.disk_usage(tmp_path).free + 1
        info, _ = member("large", size=size)
        data = info.tobuf(tarfile.PAX_FORMAT) + zstandard.decompress(zstandard.compress(bytes(1 << 20)))
        with pytest.raises(ManifestError, match=r"does not fit .* TMPDIR"):
            read(write(tmp_path, data))

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
    def test_a_header_of_gigabytes_is_refused(self, tmp_path: Path, kind: bytes) -> None:
        info, _ = member("header", kind=kind, size=3 << 30)
        with pytest.raises(ManifestError, match="header of 3,221,225,472 bytes"):
            read(write(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)))

    def test_a_chain_of_headers_is_refused(self, tmp_path: Path) -> None:
        link = tarfile.TarInfo("x")
        link.type = tarfile.XHDTYPE
        with pytest.raises(ManifestError, match="too many headers"):
            read(write(tmp_path, link.tobuf(tarfile.GNU_FORMAT) * 1500 + self.end()))

    def test_the_map_of_a_sparse_file_is_not_taken_in_whole(self, tmp_path: Path) -> None:
        block = (b"00000000001\0" * 42 + b"\1").ljust(512, b"\0")  # and another one follows
        archive = write(tmp_path, self.sparse() + block * 20_000 + self.end())
        tracemalloc.start()
        try:
            with pytest.raises(ManifestError, match="headers of more than 1,048,576 bytes"):
                read(archive)
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()

    def test_a_negative_size_is_refused(self, tmp_path: Path) -> None:
        data = tar_of([member("odd", b"x" * 600, pax_headers={"size": "-1"})])
        with pytest.raises(ManifestError, match="less than no content"):
            read(write(tmp_path, data))

    @staticmethod
    def sparse() -> bytes:
        header = bytearray(tarfile.TarInfo("sparse").tobuf(tarfile.GNU_FORMAT))
        header[156:157], header[482:483] = tarfile.GNUTYPE_SPARSE, b"\1"
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        return bytes(header)

    @staticmethod
    def end() -> bytes:
        return tarfile.TarInfo("last").tobuf(tarfile.GNU_FORMAT) + bytes(1024)
