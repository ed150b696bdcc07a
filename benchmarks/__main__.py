"""`make bench`: runs every benchmark, each in a process of its own, and fails only where one of them cannot run."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("checksums", "page_size", "million", "pack_memory")


def main() -> None:
    chosen = sys.argv[1:] or BENCHMARKS
    failed = [
        name for name in chosen if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
    ]
    if failed:
        sys.exit(f"could not run: {', '.join(failed)}")


if __name__ == "__main__":
    main()
