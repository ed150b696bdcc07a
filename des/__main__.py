"""`des` and `python -m des`."""

from __future__ import annotations

from des.cli import des
from des.console import run_command


def main() -> None:
    """Entry point of `des`."""
    run_command(des)


if __name__ == "__main__":
    main()
