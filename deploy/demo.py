"""`make demo`: packs the running interpreter's standard library, gets one file back by CLI and by HTTP, and compares the bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.parse
import urllib.request
from pathlib import Path

STORE = Path("data/demo/store")
MANIFEST = Path("data/demo/manifest.json")
WANTED = "json/decoder.py"
DAY = "2024-01-31"
PORT = "8000"


def write_manifest() -> Path:
    """Write one row for each regular file of the standard library; return the library's folder."""
    root = Path(sysconfig.get_path("stdlib"))
    sources = (path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink())
    rows = [
        {
            "uid": path.relative_to(root).as_posix(),
            "created_at": f"{DAY}T12:00:00Z",
            "size_bytes": path.stat().st_size,
            "source_path": str(path),
        }
        for path in sources
        if "site-packages" not in path.parts and os.access(path, os.R_OK)
    ]
    MANIFEST.parent.mkdir(parents=True, exist_ok=True)
    MANIFEST.write_text(json.dumps(rows))
    return root


def run(*command: str) -> bytes:
    """Show a command and run it; its output is returned, its progress seen."""
    print("$", " ".join(command), flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def get_by_http(des: str) -> bytes:
    """Start a server on a free port, get the file, stop the server."""
    command = [des, "--store", str(STORE), "serve", "--port", "0"]
    print("$", " ".join(command), "&", flush=True)
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in server.stderr or ():
            lines.append(line)
            address = re.search(r"http://[0-9.]+:\d+", line)
            if address:
                break
        else:
            sys.exit("the server did not start:\n" + "".join(lines))
        url = f"{address.group()}/files/{urllib.parse.quote(WANTED)}?created_at={DAY}"
        print("$ curl", f"'{url}'", flush=True)
        with urllib.request.urlopen(url, timeout=30) as answer:
            return bytes(answer.read())
    finally:
        server.terminate()
        server.wait(timeout=30)


def main() -> None:
    """Run the demo."""
    folder = Path(sys.executable).parent
    pack, des = str(folder / "des-pack"), str(folder / "des")
    shutil.rmtree(STORE, ignore_errors=True)
    root = write_manifest()
    run(pack, "--input-json", str(MANIFEST), "--output-dir", str(STORE))
    original = (root / WANTED).read_bytes()
    by_cli = run(des, "--store", str(STORE), "get", WANTED, "--created-at", DAY)
    by_http = get_by_http(des)
    if not original == by_cli == by_http:
        sys.exit(f"{WANTED} came back different")
    print(f"\n{WANTED}: {len(original):,} bytes, the same on disk, by CLI and by HTTP.\n\nGo on by hand:")
    shown = os.path.relpath(des)
    for command in (
        f"{shown} --store {STORE} ls {DAY}",
        f"{shown} --store {STORE} stat {WANTED} --created-at {DAY}",
        f"{shown} --store {STORE} verify",
        f"{shown} --store {STORE} serve --port {PORT}",
        f"curl 'http://127.0.0.1:{PORT}/files/{WANTED}?created_at={DAY}'",
    ):
        print("  " + command)


if __name__ == "__main__":
    main()
