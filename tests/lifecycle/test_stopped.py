"""A writer that is stopped between upload and swap while others collect what it uploaded: its swap points at nothing that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from des.storage.protocol import Overwrite
from tests.lifecycle.acting import BOTH, REPLACING, VICTIM, Actions, Told, build, check_told, found_in
from tests.pack.forking import CHECKOUT
from tests.pack.grounds import open_at
from tests.pack.packing import Sources
from tests.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.lifecycle.stopped_writer", *arguments], cwd=CHECKOUT)


def wait_until_stopped(writer: subprocess.Popen[bytes]) -> None:
    _, status = os.waitpid(writer.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)


def let_go_on(writer: subprocess.Popen[bytes]) -> None:
    os.kill(writer.pid, signal.SIGCONT)
    assert writer.wait() == 0


FEW = [("replace", "gc"), ("delete", "gc"), ("compact", "erase")]
ALL = [(action, other) for action in ("replace", "delete", "compact") for other in ("gc", "erase", "compact gc")]


@pytest.mark.parametrize(
    ("action", "meanwhile"), [*FEW, *(pytest.param(*one, marks=pytest.mark.soak) for one in ALL if one not in FEW)]
)
async def test_stopped_between_upload_and_swap(tmp_path: Path, action: str, meanwhile: str) -> None:
    memory, address = MemoryStorage(), str(tmp_path / "store")
    identity = await build(memory)
    local = await open_at(address)
    for key, data in memory.contents().items():
        await local.put(key, data, Overwrite())
    before = {info.key async for info in local.list("")}
    writer = start(address, action, str(tmp_path / "sources"))
    try:
        wait_until_stopped(writer)
        uploaded = {info.key async for info in local.list("")} - before
        assert uploaded
        actions = Actions(identity, Sources(tmp_path / "others"))
        for name in meanwhile.split():
            await actions.all()[name](local, Told())
        if "gc" in meanwhile:
            assert not uploaded & {info.key async for info in local.list("")}, "what it uploaded is collected"
        let_go_on(writer)
    finally:
        writer.kill()
        writer.wait()
    told = Told(packed=dict(REPLACING) if action == "replace" else {})
    told.deleted = {VICTIM, BOTH} if action == "delete" else set()
    check_told(await found_in(local), told)
    await local.aclose()
