from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from des import errors
from des.console import EXIT_INTERRUPTED, EXIT_OUTPUT_CLOSED, status_of, visible, write_bytes, write_line
from des.errors import DESError, NotFoundError, StorageTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

ERRORS = sorted(
    (value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, DESError)),
    key=lambda error: error.__name__,
)


def command(act: Callable[[], Any]) -> click.Command:
    @click.command("try")
    @click.option("--flag", type=int)
    def run(flag: int | None) -> Any:  # noqa: ANN401 - whatever is tried
        del flag
        return act()

    return run


def fails(error: BaseException) -> click.Command:
    def act() -> None:
        raise error

    return command(act)


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_a_command_returns_its_status(returned: int | None, status: int) -> None:
    assert status_of(command(lambda: returned), []) == status


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_one_line_and_its_own_status(error: type[DESError], capfd: pytest.CaptureFixture[str]) -> None:
    assert status_of(fails(error("it is so.")), []) == error.exit_status
    assert capfd.readouterr() == ("", "des: error: it is so.\n")


def test_a_group_of_errors_is_its_first(capfd: pytest.CaptureFixture[str]) -> None:
    group = ExceptionGroup("", [ExceptionGroup("", [StorageTimeoutError("too slow.")]), NotFoundError("no.")])
    assert status_of(fails(group), []) == 3
    assert capfd.readouterr().err == "des: error: too slow.\n"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_is_one_line(interrupt: BaseException, capfd: pytest.CaptureFixture[str]) -> None:
    assert status_of(fails(interrupt), []) == EXIT_INTERRUPTED
    assert capfd.readouterr().err.strip() == "des: interrupted."


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--flag", "x"], "Invalid value for '--flag': 'x' is not a valid integer. See `try --help`."),
        (["--flagg", "1"], "No such option '--flagg'. Did you mean '--flag'? See `try --help`."),
        (["extra"], "Got unexpected extra argument (extra). See `try --help`."),
        (["--flag"], "Option '--flag' requires an argument."),
    ],
)
def test_a_wrong_call_is_one_line_and_two(arguments: list[str], line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert status_of(command(lambda: None), arguments) == 2
    out, err = capfd.readouterr()
    assert not out
    assert re.sub(r"`.* --help`", "`try --help`", err) == f"des: error: {line}\n"


def test_a_bug_is_named_as_one_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert status_of(fails(RuntimeError("odd\nthings")), []) == 1
    _, err = capfd.readouterr()
    assert (
        err == "des: error: this is a bug in DES: RuntimeError: odd\\nthings; set DES_LOG_LEVEL=debug to see where.\n"
    )


def test_a_bug_shows_its_traceback_in_the_debug_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert status_of(fails(RuntimeError("odd")), []) == 1
    assert "Traceback" in caplog.text
    assert "RuntimeError: odd" in caplog.text


def test_what_was_written_before_an_error_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    def act() -> None:
        write_line("a first result")
        raise NotFoundError("no more.")

    assert status_of(command(act), []) == 1
    assert capfd.readouterr() == ("a first result\n", "des: error: no more.\n")


def test_visible_text_stays_and_the_rest_is_escaped() -> None:
    assert visible("naïve 文件 🦉 a b") == "naïve 文件 🦉 a b"
    assert visible("\x1b[31m\n\x9b\u202e\udc80") == "\\x1b[31m\\n\\x9b\\u202e\\udc80"


# ---- stdout that goes away, in processes of their own -----------------------------------------------------------------------

WRITER = """
import sys, click
from des.console import run_command, write_bytes, write_line
@click.command()
def run():
    for _ in range({times}):
        write_bytes(b"x" * {size})
run_command(run, [])
"""


def start(times: int, size: int, **options: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401 - Popen's own
    script = WRITER.format(times=times, size=size)
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize(("times", "size"), [(1_000, 1_000_000), (1, 10)])
def test_a_reader_that_goes_away_is_no_matter(times: int, size: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start(times, size, stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (EXIT_OUTPUT_CLOSED, b"")


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_full_disk_is_storage_trouble(size: int) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(1, size, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert err == b"des: error: cannot write to stdout: No space left on device.\n"


def test_a_closed_stdout_is_named() -> None:
    process = start(1, 10, preexec_fn=lambda: os.close(1))
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (3, b"des: error: cannot write to stdout: it is closed.\n")


def test_a_closed_stdout_that_nothing_is_written_to_is_no_matter() -> None:
    process = start(0, 10, preexec_fn=lambda: os.close(1))
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_a_closed_stderr_is_no_matter() -> None:
    script = WRITER.format(times=1, size=3).replace(
        "write_bytes(", 'say("told to nobody."); sys.stderr.isatty(); write_bytes('
    )
    script = script.replace("import run_command,", "import run_command, say,")
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, script]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (0, b"xxx")


def test_a_group_without_a_verb_shows_its_help(capfd: pytest.CaptureFixture[str]) -> None:
    group = click.Group("try", help="All that can be tried.")
    assert status_of(group, []) == 2
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith("Usage: ")
    assert "\n  All that can be tried.\n" in err


def test_output_is_utf_8_whatever_the_locale() -> None:
    text = "\U0001f989 \xfc"
    script = (
        f"import click, des.console as c\n@click.command()\ndef run(): c.write_line({text!a})\nc.run_command(run, [])"
    )
    environment = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    assert done.stdout == f"{text}\n".encode()


def test_ctrl_c_in_a_process(tmp_path: Path) -> None:
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    script = (
        "import sys, anyio, click, des.console as c\n"
        "async def wait():\n    open(sys.argv[1], 'wb').close()\n    await anyio.sleep_forever()\n"
        "@click.command()\ndef run(): anyio.run(wait)\nc.run_command(run, [])"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(fifo)], stderr=subprocess.PIPE)
    fifo.read_bytes()  # it is in its event loop now
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (EXIT_INTERRUPTED, b"des: interrupted.")


def test_write_bytes_is_exact(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    data = bytes(range(256)) * 3

    def act() -> None:
        write_bytes(data)

    assert status_of(command(act), []) == 0
    assert capfdbinary.readouterr().out == data
