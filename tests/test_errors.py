from __future__ import annotations

import copy
import inspect
import pickle
from typing import get_args

import pytest

from des import errors
from des.errors import DESError, Status

# class: (bases, status word, exit status, HTTP status)
TREE: dict[str, tuple[tuple[str, ...], str, int, int]] = {
    "DESError": (("Exception",), "unavailable", 1, 500),
    "NotFoundError": (("DESError", "KeyError"), "not_found", 1, 404),
    "DeletedError": (("NotFoundError",), "deleted", 1, 410),
    "CorruptShardError": (("DESError",), "corrupt", 1, 500),
    "UnsupportedFormatError": (("CorruptShardError",), "corrupt", 2, 500),
    "StorageError": (("DESError",), "unavailable", 3, 503),
    "StorageUnavailableError": (("StorageError",), "unavailable", 3, 503),
    "StorageTimeoutError": (("StorageError",), "timeout", 3, 504),
    "StorageDeniedError": (("StorageError",), "denied", 3, 502),
    "ObjectNotFoundError": (("StorageError",), "unavailable", 3, 503),
    "PreconditionFailedError": (("StorageError",), "unavailable", 3, 503),
    "ConflictError": (("DESError",), "conflict", 1, 409),
    "LostHeadError": (("DESError",), "corrupt", 1, 500),
    "ShardFullError": (("DESError",), "invalid", 1, 409),
    "ManifestError": (("DESError",), "invalid", 2, 400),
    "SettingsError": (("DESError", "ValueError"), "invalid", 2, 503),
    "InvalidRequestError": (("DESError", "ValueError"), "invalid", 2, 400),
}


def classes() -> dict[str, type[DESError]]:
    return {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, DESError)}


def test_the_tree() -> None:
    assert set(classes()) == set(TREE)
    for name, cls in classes().items():
        bases, status, exit_status, http_status = TREE[name]
        assert tuple(base.__name__ for base in cls.__bases__) == bases
        assert (cls.status, cls.exit_status, cls.http_status) == (status, exit_status, http_status)


def test_status_words_are_those_of_the_contract() -> None:
    words = {"ok", "not_found", "deleted", "corrupt", "unavailable", "timeout", "denied", "invalid", "conflict"}
    assert set(get_args(Status)) == words
    assert {cls.status for cls in classes().values()} == words - {"ok"}


def test_only_not_there_becomes_404() -> None:
    assert {name for name, cls in classes().items() if cls.http_status in {404, 410}} == {
        "NotFoundError",
        "DeletedError",
    }


def test_the_docstring_draws_the_tree() -> None:
    drawn = {}
    ancestors = ["DESError"]
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip(" │├└─").split(" ")[0]
        if name in TREE and name != "DESError":
            depth = line.index(name) // 4 - 1
            ancestors[depth:] = [name]
            drawn[name] = ancestors[depth - 1]
    assert drawn == {name: bases[0] for name, (bases, *_) in TREE.items() if name != "DESError"}


@pytest.mark.parametrize("name", TREE)
def test_an_error_is_its_sentence(name: str) -> None:
    error = classes()[name]("the file 'a' is gone.")
    assert str(error) == "the file 'a' is gone."
    assert isinstance(error, DESError)
    assert str(classes()[name]()) == name


@pytest.mark.parametrize("name", TREE)
def test_errors_cross_process_and_copy_borders(name: str) -> None:
    error = classes()[name]("sentence.")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == "sentence."


def test_errors_are_caught_as_what_python_calls_them() -> None:
    with pytest.raises(KeyError):
        raise errors.DeletedError("gone.")
    for error in (errors.SettingsError, errors.InvalidRequestError):
        with pytest.raises(ValueError, match="wrong"):
            raise error("wrong.")
