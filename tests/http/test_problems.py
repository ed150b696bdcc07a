from __future__ import annotations

import json
from http import HTTPStatus

import pytest

from des import errors
from des.errors import DESError, InvalidRequestError, SettingsError
from des.http.problems import Problem, describe, encode, method_not_allowed, overloaded, unsatisfiable

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
ERRORS = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, DESError)]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_has_its_status_and_tells_nothing_of_the_inside(kind: type[DESError]) -> None:
    problem = describe(kind("s3://bucket/prefix/20240131/0A.des: the key AKIA was refused"))
    assert problem.status == kind.http_status
    assert problem.detail[0].isupper()
    if not issubclass(kind, InvalidRequestError):
        assert "bucket" not in problem.detail
    assert (b"retry-after" in dict(problem.headers)) == (kind.http_status == 503)


def test_only_not_there_is_404_or_410() -> None:
    there = {kind for kind in ERRORS if describe(kind("x")).status in {404, 410}}
    assert there == {errors.NotFoundError, errors.DeletedError}


def test_a_wrong_call_is_told_what_is_wrong() -> None:
    assert describe(InvalidRequestError("the uid has / twice.")).detail == "The uid has / twice."
    assert describe(InvalidRequestError("created_at is missing.")).detail == "created_at is missing."


def test_a_store_that_contradicts_its_settings_is_named_without_its_place() -> None:
    detail = describe(SettingsError("there is no store at /srv/x (no des.json); run `des init`.")).detail
    assert detail == "The store cannot be served: there is no store at … (no des.json); run `des init`."


def test_what_nobody_expected_is_500_without_a_word() -> None:
    assert describe(KeyError("secret")) == Problem(500, "The service failed on this request.")


@pytest.mark.parametrize(
    ("problem", "title", "header"),
    [
        (overloaded("Later.").problem, "Service Unavailable", (b"retry-after", b"1")),
        (method_not_allowed(["GET", "HEAD"]).problem, "Method Not Allowed", (b"allow", b"GET, HEAD")),
        (unsatisfiable(7), "Range Not Satisfiable", (b"content-range", b"bytes */7")),
        (Problem(413, "Too much."), "Content Too Large", (b"cache-control", b"no-store")),
    ],
)
def test_the_body_follows_rfc_9457(problem: Problem, title: str, header: tuple[bytes, bytes]) -> None:
    headers, body = encode(problem, ID)
    assert header in headers
    assert (b"content-type", b"application/problem+json") in headers
    assert (b"content-length", b"%d" % len(body)) in headers
    assert json.loads(body) == {
        "type": "about:blank",
        "title": title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": "urn:uuid:4bf92f35-77b3-4da6-a3ce-929d0e0e4736",
    }


def test_text_that_is_no_unicode_does_not_break_the_answer() -> None:
    _, body = encode(Problem(HTTPStatus.BAD_REQUEST, "odd \udcff"), ID)
    assert json.loads(body)["detail"] == "odd ?"
