"""Small files as real stores hold them, made from real text: the interpreter's standard library.

Four kinds are text (JSON, HTML, plain text, source), a fifth cannot be compressed. Sizes are log-normal with a median of 4 KiB, as measured on
collections of documents; the same seed gives the same files.
"""

from __future__ import annotations

import html
import json
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

DAY = "2024-01-31"
MEDIAN_BYTES = 4096
SIGMA = 0.9
MAX_BYTES = 512 << 10
FILES_A_DIRECTORY = 1000
KINDS = ("json", "html", "txt", "py", "bin")
INCOMPRESSIBLE = "bin"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files under a directory, the manifest that names them, and one of those that can be compressed."""

    directory: Path
    manifest: Path
    compressible: Path
    files: int
    size: int
    compressible_files: int
    compressible_size: int


class Texts:
    """Slices of real source, and what is made of them."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        self._text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
        self._lines = [line for line in self._text.splitlines() if line.strip()]

    def of(self, kind: str, size: int) -> bytes:
        """Return about `size` bytes of a kind."""
        if kind == INCOMPRESSIBLE:
            return self._chance.randbytes(size)
        if kind == "py":
            return self._slice(size)
        lines = self._some_lines(size)
        if kind == "txt":
            return "\n".join(" ".join(line.split()) for line in lines).encode()[:size]
        if kind == "html":
            body = "".join(f'<li class="entry" id="n{at}">{html.escape(line)}</li>\n' for at, line in enumerate(lines))
            return f"<!doctype html>\n<html><head><title>{size}</title></head><body><ul>\n{body}".encode()[:size]
        rows = [{"id": self._chance.randrange(10**9), "text": line.strip(), "depth": line.count(" ")} for line in lines]
        return json.dumps({"count": size, "rows": rows}).encode()[:size]

    def _slice(self, size: int) -> bytes:
        start = self._chance.randrange(max(1, len(self._text) - size))
        return self._text[start : start + size].encode()[:size]

    def _some_lines(self, size: int) -> list[str]:
        start = self._chance.randrange(len(self._lines))
        return self._lines[start : start + size // 24 + 2]


def make_corpus(directory: Path, files: int, seed: int = 1) -> Corpus:
    """Write files and a JSON manifest of them, which says nothing of their sizes."""
    chance = random.Random(seed)
    texts = Texts(chance)
    rows = []
    total = compressible_total = 0
    for number in range(files):
        folder = directory / "files" / f"{number // FILES_A_DIRECTORY:04}"
        if number % FILES_A_DIRECTORY == 0:
            folder.mkdir(parents=True)
        kind = chance.choice(KINDS)
        size = min(MAX_BYTES, int(chance.lognormvariate(0, SIGMA) * MEDIAN_BYTES) + 1)
        content = texts.of(kind, size)
        path = folder / f"{number:07}.{kind}"
        path.write_bytes(content)
        total += len(content)
        compressible_total += 0 if kind == INCOMPRESSIBLE else len(content)
        clock = f"{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}"
        rows.append({"uid": f"{kind}/{number:07}.{kind}", "created_at": f"{DAY}T{clock}Z", "source_path": str(path)})
    manifest = directory / "manifest.json"
    manifest.write_text(json.dumps(rows), encoding="utf-8")
    compressible = directory / "compressible.json"
    texts_only = [row for row in rows if not row["uid"].startswith(INCOMPRESSIBLE)]
    compressible.write_text(json.dumps(texts_only), encoding="utf-8")
    return Corpus(directory / "files", manifest, compressible, files, total, len(texts_only), compressible_total)
