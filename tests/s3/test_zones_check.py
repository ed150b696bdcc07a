"""`des zones check --probe` against places on S3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.storage.zones_files import written
from tests.test_cli import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["run"]

pytest_plugins = ["tests.servers.fixtures"]


@pytest.mark.usefixtures("s3_addresses")
def test_each_place_says_how_it_is(
    run: Callable[..., Outcome], seaweedfs_bucket: str, prefix: str, tmp_path: Path
) -> None:
    def zones(*places: dict[str, str]) -> Path:
        zone = {"name": "z", "range": {"start": 0, "end": 15}, "s3": places[0], "copies": list(places[1:])}
        return written(tmp_path, {"n_bits": 4, "zones": [zone]})

    def place(name: str, **more: str) -> dict[str, str]:
        return {"bucket": seaweedfs_bucket, "prefix": f"{prefix}/{name}"} | more

    def probes(outcome: Outcome) -> list[dict[str, Any]]:
        return [one["probe"] for one in outcome.json["zones"][0]["places"]]

    assert run("init", f"s3://{seaweedfs_bucket}/{prefix}/made", "--n-bits", "4").status == 0
    good = run("zones", "check", zones(place("made"), place("empty")), "--probe", "--json")
    assert (good.status, good.err) == (0, "")
    made, empty = probes(good)
    assert (made["status"], made["conditional_writes"], len(made["store_id"])) == ("ok", True, 32)
    assert 0 < made["round_trip"] < 30
    assert (empty["status"], empty["conditional_writes"], empty["store_id"]) == ("ok", None, None)
    shown = run("zones", "check", zones(place("made"), place("empty")), "--probe")
    assert [line.split("\t")[6] for line in shown.lines] == ["ok", "empty"]

    nowhere = {"bucket": "des-no-such-bucket"}
    lost = run("zones", "check", zones(place("made"), nowhere), "--probe", "--json")
    assert (lost.status, [one["status"] for one in probes(lost)]) == (3, ["ok", "unavailable"])
    assert "zone z, s3://des-no-such-bucket: there is no bucket" in lost.err

    assert run("init", f"s3://{seaweedfs_bucket}/{prefix}/other", "--n-bits", "4").status == 0
    wrong = run("zones", "check", zones(place("made"), nowhere, place("other")), "--probe", "--json")
    assert (wrong.status, [one["status"] for one in probes(wrong)]) == (2, ["ok", "unavailable", "invalid"])
    assert "it is a place of another store" in wrong.err
