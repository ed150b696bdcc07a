"""Two packers on one shard, and a way to S3 that loses the replies of their commits.

What is lost is decided by a seed, as is the order of their storage calls. Whatever is lost, the union is readable, no
file fails that need not, and each swap that took effect is one generation: nothing is done twice.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from des.storage.s3 import open_s3
from tests.pack.conftest import no_pauses
from tests.pack.grounds import S3Ground
from tests.pack.test_interleavings import CASES, Stage
from tests.servers.fault_proxy import LoseReply

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.fault_proxy import FaultProxy, Request
    from tests.servers.s3_servers import S3Server

__all__ = ["no_pauses"]

pytest_plugins = ["tests.servers.fixtures"]
pytestmark = pytest.mark.usefixtures("no_pauses")

MODES = ("disjoint, after earlier ones", "the same", "other content, error", "other content, replace")
SEEDS = 20
SOAK_SEEDS = 500


def commits(request: Request) -> bool:
    """Tell whether a request makes or swaps a head or the descriptor."""
    return bool({"if-match", "if-none-match"} & request.headers.keys())


@pytest.mark.parametrize(
    "seeds",
    [
        range(SEEDS),
        *(pytest.param(range(first, first + 50), marks=pytest.mark.soak) for first in range(SEEDS, SOAK_SEEDS, 50)),
    ],
    ids=str,
)
async def test_lost_commits(
    tmp_path: Path,
    seaweedfs: S3Server,
    fault_proxy: FaultProxy,
    seaweedfs_bucket: str,
    prefix: str,
    s3_addresses: None,
    monkeypatch: pytest.MonkeyPatch,
    seeds: range,
) -> None:
    monkeypatch.setenv("DES_S3_ENDPOINT_URL", fault_proxy.endpoint)
    keeper = await open_s3(fault_proxy.config(seaweedfs_bucket))  # opening the endpoint takes longer than most packs
    stages = []
    for number, name in enumerate(MODES):
        ground = S3Ground(seaweedfs, seaweedfs_bucket, f"{prefix}/{number}")
        stages.append(Stage(tmp_path / str(number), ground, CASES[name]))
        await stages[-1].prepare()
    lost = 0
    for seed in seeds:
        stage = stages[seed % len(stages)]
        chance = random.Random(seed)

        def is_lost(request: Request, chance: random.Random = chance) -> bool:
            return commits(request) and chance.random() < 0.6

        with fault_proxy.fault(LoseReply(), method="PUT", when=is_lost, times=None) as fault:
            await stage.run(stage.fresh(f"store-{seed}"), seed)
        lost += fault.fired
    await keeper.aclose()
    assert lost > len(seeds)
