from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from des.logs import configure_logging
from des.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Give the log back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(level)


def test_json_has_the_message_or_the_fields(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))
    log = logging.getLogger("des.tests")
    log.info("hello %s", "ü")
    log.warning("GET /", extra={"fields": {"status": 200}})
    one, two = map(json.loads, capfd.readouterr().err.splitlines())
    assert one["message"] == "hello ü"
    assert (one["level"], one["logger"]) == ("info", "des.tests")
    assert one["time"].endswith("+00:00")
    assert two["status"] == 200
    assert "message" not in two


def test_an_exception_is_in_the_json(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("des.tests").exception("it failed")
    entry = json.loads(capfd.readouterr().err)
    assert entry["message"] == "it failed"
    assert entry["exception"].endswith("ValueError: odd")


def test_text_is_for_people_and_json_for_what_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="text"))
    logging.getLogger("des.tests").error("it failed")
    assert capfd.readouterr().err.endswith("ERROR des.tests: it failed\n")
    configure_logging(Settings())
    logging.getLogger("des.tests").error("it failed")
    assert json.loads(capfd.readouterr().err)["message"] == "it failed"


NASTY = "a\nb\r\x1b[2J\x7f\x9b2J\u2028\u202e\ud800\U000e0001z"


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_acts_on_a_terminal_or_begins_a_line(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format=form))
    log = logging.getLogger("des.tests")
    log.info("%s", NASTY)
    log.info("fields", extra={"fields": {"uid": NASTY}})
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        log.exception("it failed")
    written = capfd.readouterr().err
    assert all(line.isprintable() for line in written.split("\n"))
    one, two, *rest = written.splitlines()
    assert rest
    if form == "json":
        assert (json.loads(one)["message"], json.loads(two)["uid"]) == (NASTY, NASTY)
    else:
        assert "a\\nb" in one


def test_the_notes_of_libraries_that_sign_requests_are_in_no_log(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_level="debug"))
    for name in ("botocore.endpoint", "botocore.auth", "aiobotocore.endpoint"):
        logging.getLogger(name).debug("X-Amz-Security-Token: secret")
        logging.getLogger(name).info("secret")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("level", "shown"), [("debug", 3), ("info", 2), ("error", 1)])
def test_the_level_of_the_settings_holds(level: str, shown: int, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_level=level, log_format="json"))
    log = logging.getLogger("des.tests")
    log.debug("a")
    log.info("b")
    log.error("c")
    assert len(capfd.readouterr().err.splitlines()) == shown
