"""What every test stands on: a clean environment, and an event loop that nothing of ours may block."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
from blockbuster import BlockBuster, BlockBusterFunction

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.register_assert_rewrite("tests.storage.contract")

# What blocks as well, beyond what blockbuster watches by itself.
_BLOCKING = ("builtins.open", "fcntl.flock", "io.open", "os.fdatasync", "os.fsync", "os.open", "os.pread")

# What may open files in the loop: tracebacks, and the starting of processes.
_MAY_OPEN = {
    "linecache.py": ("updatecache",),
    "subprocess.py": ("_get_devnull",),
    "tokenize.py": ("open",),
}


def pytest_collection_finish() -> None:
    """Spare the tests that collect garbage the walk over all that was loaded: it takes longer than they do."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_blocking_in_the_loop() -> Iterator[BlockBuster]:
    """Fail a test where code of `des`, or what it calls, blocks the event loop. Tests themselves may."""
    blockbuster = BlockBuster("des")
    for name in _BLOCKING:
        blockbuster.functions[name] = BlockBusterFunction(None, name, scanned_modules="des")
        for filename, functions in _MAY_OPEN.items():
            blockbuster.functions[name].can_block_in(filename, functions)
    blockbuster.activate()
    yield blockbuster
    blockbuster.deactivate()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide this machine's settings of DES and AWS."""
    for name in os.environ:
        if name.startswith(("AWS_", "DES_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
