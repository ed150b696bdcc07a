"""One deadline for a whole retrieval, however many requests it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from des.errors import StorageTimeoutError

if TYPE_CHECKING:
    from types import TracebackType


class Deadline:
    """`anyio.fail_after` with the error of the tree.

    Raises:
        StorageTimeoutError: at exit, when the time was up.
    """

    __slots__ = ("_scope", "_seconds")

    def __init__(self, seconds: float) -> None:
        """Allow `seconds` from now on."""
        self._seconds = seconds
        self._scope = anyio.CancelScope(deadline=anyio.current_time() + seconds)

    def __enter__(self) -> None:
        """Begin."""
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the clock."""
        self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught:
            raise StorageTimeoutError(f"the storage did not answer within {self._seconds:g} seconds.")
