"""The verbs of a file's later life on the command line: exit statuses, one sentence on stderr, JSON, certificates, metrics."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from des.storage.local import LocalStorage
from tests.making import DAY, make_store
from tests.test_cli import Outcome, fails, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["run"]

FILES = {f"file-{number}": b"content %d " % number * 40 for number in range(12)}
SECRET, OTHER = "file-3", "file-4"
WHEN = ["--created-at", "2024-01-31"]


async def build(base_dir: Path) -> None:
    maker = await make_store(LocalStorage(base_dir), n_bits=1)
    for start in range(0, 12, 2):
        await maker.add(dict(list(FILES.items())[start : start + 2]))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base_dir = tmp_path_factory.mktemp("built") / "store"
    anyio.run(build, base_dir)
    return base_dir


@pytest.fixture
def store(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of one's own; the proof that locks hold takes two processes and is another test's."""
    monkeypatch.setenv("DES_BASE_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("DES_SINGLE_WRITER", "true")
    return shutil.copytree(built, tmp_path / "store")


def keys(store: Path) -> set[str]:
    return {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file() and ".locks" not in path.parts}


def heads(store: Path) -> list[Path]:
    return sorted((store / DAY).glob("*.des"))


class TestDelete:
    def test_one(self, run: Callable[..., Outcome], store: Path) -> None:
        assert run("delete", SECRET, *WHEN).status == 0
        assert run("get", SECRET, *WHEN).status == 1
        again = run("delete", SECRET, *WHEN, "--json")
        assert (again.status, again.json["outcome"], again.json["uid"], again.json["day"]) == (
            0,
            "already_deleted",
            SECRET,
            DAY,
        )
        fails(run("delete", "never", *WHEN), 1, "there is no file 'never' on 20240131.")

    def test_erased(self, run: Callable[..., Outcome], store: Path) -> None:
        outcome = run("delete", SECRET, *WHEN, "--erase", "--json")
        certificate = outcome.json
        assert (outcome.status, certificate["complete"], certificate["objects_left"]) == (0, True, [])
        assert len(certificate["erased"]) == 1
        assert set(certificate) >= {"store", "began", "ended", "shards", "objects_scanned", "objects_removed"}
        assert certificate["shards"] == 1, "only its shard is rewritten"
        assert certificate["objects_removed"]
        assert not keys(store) & set(certificate["objects_removed"])
        for path in store.rglob("*.des"):
            assert b"content 3 content 3" not in path.read_bytes()
        assert run("get", OTHER, *WHEN).out == FILES[OTHER]

    def test_listed(self, run: Callable[..., Outcome], store: Path, tmp_path: Path) -> None:
        manifest = tmp_path / "going.jsonl"
        rows: list[Any] = [{"uid": uid, "created_at": "2024-01-31"} for uid in (SECRET, OTHER, SECRET, "never")]
        rows += [{"uid": "a"}, 7, {"uid": "a", "created_at": "someday"}]
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        outcome = run("delete", "--input", manifest, "--json")
        assert (outcome.status, outcome.json) == (
            1,
            {"deleted": 3, "already_deleted": 0, "not_found": 1, "failed": 3},
        )
        assert "row 5 (a): the field created_at is missing." in outcome.err
        assert run("get", OTHER, *WHEN).status == 1
        assert run("get", "file-5", *WHEN).status == 0

    def test_listed_in_a_table_and_erased(self, run: Callable[..., Outcome], store: Path, tmp_path: Path) -> None:
        manifest = tmp_path / "going.csv"
        manifest.write_text(f"uid,created_at\n{SECRET},2024-01-31\n{OTHER},2024-01-31T10:00:00Z\n")
        outcome = run("delete", "--input", manifest, "--erase", "--json")
        assert (outcome.status, outcome.json["complete"], len(outcome.json["erased"])) == (0, True, 2)
        manifest.write_text("uid\na\n")
        fails(run("delete", "--input", manifest), 2, "has no column created_at")

    @pytest.mark.parametrize(
        "arguments", [[], ["a"], WHEN, ["a", *WHEN, "--input", "m.json"], ["--input", "m.json", *WHEN]]
    )
    def test_wrong_calls(self, run: Callable[..., Outcome], store: Path, arguments: list[str]) -> None:
        fails(run("delete", *arguments), 2, "give UID with --created-at, or --input")


class TestCompact:
    def test_planned_done_and_done_again(self, run: Callable[..., Outcome], store: Path) -> None:
        before = keys(store)
        stored = sum(path.stat().st_size for path in store.glob("*/*/*.des"))
        planned = run("compact", "--dry-run", "--json", "--small-segments", "2").json
        assert planned["dry_run"]
        assert [one["segments_before"] for one in planned["compacted"]] == [
            one["segments_after"] for one in planned["compacted"]
        ]
        assert keys(store) == before
        done = run("compact", "2024-01-31", "--json", "--small-segments", "2").json
        assert {one["segments_after"] for one in done["compacted"]} == {1}
        assert (done["files"], done["failed"]) == (len(FILES), [])
        assert planned["stored_bytes"] == done["stored_bytes"] == stored > done["garbage_bytes"]
        assert keys(store) > before, "the old ones stay for their grace time"
        again = run("compact", "--json", "--small-segments", "2").json
        assert (again["compacted"], again["files"]) == ([], 0)
        assert "nothing is worth rewriting." in run("compact").err
        assert run("verify").status == 0

    def test_encoded_anew(self, run: Callable[..., Outcome], store: Path) -> None:
        assert run("compact", "--recompress", "lz4", "--level", "9", "--small-segments", "2").status == 0
        assert json.loads(run("stat", SECRET, *WHEN, "--json").out)["codec"] == "lz4"

    def test_erased(self, run: Callable[..., Outcome], store: Path) -> None:
        run("delete", SECRET, *WHEN)
        outcome = run("compact", "--erase")
        assert (outcome.status, outcome.json["complete"], len(outcome.json["erased"])) == (0, True, 1)

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--level", "3"], "--level goes with --recompress"),
            (["--erase", "--dry-run"], "--erase goes with neither"),
            (["--grace", "10s"], "--grace must be more than DES_INDEX_TTL"),
            (["--grace", "soon"], "is no age"),
            (["20240131/Q"], "is no shard of a day with n_bits 1"),
            (["someday"], "is not a day"),
            (["--garbage-share", "0"], "--garbage-share"),
        ],
    )
    def test_wrong_calls(self, run: Callable[..., Outcome], store: Path, arguments: list[str], sentence: str) -> None:
        fails(run("compact", *arguments), 2, sentence)

    def test_one_bad_shard_does_not_stop_the_others(self, run: Callable[..., Outcome], store: Path) -> None:
        heads(store)[0].unlink()
        outcome = run("compact", "--json", "--small-segments", "2")
        assert (outcome.status, len(outcome.json["compacted"])) == (1, 1)
        assert [(one["shard"], one["status"]) for one in outcome.json["failed"]] == [("20240131/0", "corrupt")]
        assert "des repair 20240131/0" in outcome.err

    def test_without_a_store(self, run: Callable[..., Outcome], tmp_path: Path) -> None:
        fails(run("compact", "--store", tmp_path / "nothing"), 2, "there is no store")


class TestGc:
    def test_listed_then_collected(self, run: Callable[..., Outcome], store: Path) -> None:
        run("compact", "--small-segments", "2")
        orphan = store / DAY / "0" / f"{'ab' * 16}.des"
        shutil.copy(next((store / DAY / "0").glob("*.des")), orphan)
        before = keys(store)
        listed = run("gc", "--older-than", "0s", "--json")
        assert (listed.status, listed.json["applied"]) == (0, False)
        assert listed.json["orphans"] == [str(orphan.relative_to(store))]
        assert keys(store) == before
        assert run("gc", "--json").json["young"] == 1
        done = run("gc", "--apply", "--older-than", "0s", "--json")
        assert (done.status, done.json["applied"]) == (0, True)
        assert keys(store) == before - {str(orphan.relative_to(store))}
        assert run("verify").status == 0

    def test_a_lost_head(self, run: Callable[..., Outcome], store: Path) -> None:
        heads(store)[0].unlink()
        before = keys(store)
        outcome = run("gc", "--apply", "--older-than", "0s", "--discard-unknown", "--json")
        assert (outcome.status, outcome.json["lost_heads"]) == (1, ["20240131/0"])
        assert "des repair 20240131/0" in outcome.err
        assert keys(store) == before

    def test_wrong_age(self, run: Callable[..., Outcome], store: Path) -> None:
        fails(run("gc", "--older-than", "-1"), 2, "is no age")


class TestRepair:
    def test_a_lost_head_comes_back(self, run: Callable[..., Outcome], store: Path) -> None:
        for head in heads(store):
            head.unlink()
        outcome = run("repair", DAY, "--json")
        assert outcome.status == 0
        assert [one["outcome"] for one in outcome.json["shards"]] == ["rebuilt", "rebuilt"]
        assert sum(one["files"] for one in outcome.json["shards"]) == len(FILES)
        assert {run("get", uid, *WHEN).out for uid in FILES} == set(FILES.values())
        again = run("repair", f"{DAY}/0")
        assert (again.status, again.lines) == (0, ["20240131/0: its head is good."])

    def test_what_cannot_be_read(self, run: Callable[..., Outcome], store: Path) -> None:
        heads(store)[0].unlink()
        segment = next((store / DAY / "0").glob("*.des"))
        segment.write_bytes(segment.read_bytes()[:-3])
        outcome = run("repair", f"{DAY}/0")
        assert outcome.status == 1
        assert "--give-up-unreadable" in outcome.text
        assert segment.name in outcome.err
        assert not (store / DAY / "0.des").exists()
        given_up = run("repair", f"{DAY}/0", "--give-up-unreadable", "--json")
        assert (given_up.status, given_up.json["shards"][0]["outcome"]) == (1, "rebuilt")

    def test_wrong_calls(self, run: Callable[..., Outcome], store: Path) -> None:
        fails(run("repair"), 2, "Missing argument")
        fails(run("repair", "20240131/7"), 2, "is no shard")
        assert run("repair", "20200101").err == "des: there are no shards to repair.\n"
        outcome = run("repair", "20200101/0")
        assert (outcome.status, outcome.lines) == (0, ["20200101/0: there is no such shard."])


class TestExpire:
    def test_listed_then_removed(self, run: Callable[..., Outcome], store: Path) -> None:
        before = keys(store)
        listed = run("expire", "--older-than", "30d", "--json")
        assert (listed.status, listed.json["applied"], listed.json["days"][0]["files"]) == (0, False, len(FILES))
        assert keys(store) == before
        held = run("expire", "--older-than", "30d", "--hold", "2024-01-31", "--apply", "--json")
        assert (held.status, held.json["days"]) == (0, [])
        assert run("expire", "--older-than", "9999y", "--apply", "--json").json["days"] == []
        (store / "20249999").mkdir()
        assert run("expire", "--older-than", "30d", "--apply").status == 0
        assert keys(store) == {"des.json"}
        fails(run("get", SECRET, *WHEN), 1, "no file")

    def test_wrong_calls(self, run: Callable[..., Outcome], store: Path) -> None:
        fails(run("expire"), 2, "--older-than")
        fails(run("expire", "--older-than", "7 lustra"), 2, "is no age")
        fails(run("expire", "--older-than", "7y", "--hold", "Ash Wednesday"), 2, "is not a day")


class TestMetricsFile:
    def figures(self, path: Path) -> dict[str, float]:
        lines = (line.rsplit(" ", 1) for line in path.read_text().splitlines() if not line.startswith("#"))
        return {name: float(figure) for name, figure in lines}

    def test_every_verb_writes_it(self, run: Callable[..., Outcome], store: Path, tmp_path: Path) -> None:
        path = tmp_path / "des.prom"
        verbs: dict[str, list[str]] = {
            "delete": [SECRET, *WHEN],
            "compact": ["--small-segments", "2"],
            "gc": [],
            "repair": [DAY],
            "expire": ["--older-than", "100y"],
            "verify": [],
        }
        for verb, arguments in verbs.items():
            assert run(verb, *arguments, "--metrics-file", path).status == 0
            figures = self.figures(path)
            assert figures[f'des_maintenance_last_success_timestamp_seconds{{verb="{verb}"}}'] > 1_700_000_000
            assert figures[f'des_maintenance_seconds_total{{verb="{verb}"}}'] > 0
        figures = self.figures(path)
        assert figures['des_maintenance_counts_total{verb="delete",what="deleted"}'] == 1
        assert figures['des_maintenance_counts_total{verb="verify",what="files"}'] == len(FILES) - 1
        assert figures['des_maintenance_counts_total{verb="verify",what="damage"}'] == 0
        garbage, stored = (
            figures[f'des_maintenance_counts_total{{verb="compact",what="{what}_bytes"}}']
            for what in ("garbage", "stored")
        )
        assert 0 < garbage < stored
        assert all(name.startswith("des_maintenance_") for name in figures), "files of several jobs lie side by side"

    def test_a_failure_leaves_the_last_success(self, run: Callable[..., Outcome], store: Path, tmp_path: Path) -> None:
        path = tmp_path / "des.prom"
        name = 'des_maintenance_last_success_timestamp_seconds{verb="verify"}'
        assert run("verify", "--metrics-file", path).status == 0
        first = self.figures(path)[name]
        heads(store)[0].unlink()
        assert run("verify", "--metrics-file", path).status == 1
        figures = self.figures(path)
        assert (figures[name], figures['des_maintenance_counts_total{verb="verify",what="damage"}']) == (first, 1)

    def test_no_directory(self, run: Callable[..., Outcome], store: Path) -> None:
        fails(run("gc", "--metrics-file", "/nowhere/des.prom"), 2, "is no directory")
