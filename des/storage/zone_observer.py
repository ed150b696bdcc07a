"""Who is told what zones do beside answering: counted by whoever composes."""

from __future__ import annotations

from typing import Literal, Protocol

HedgeOutcome = Literal["won", "lost"]
MendStatus = Literal["mended", "good", "failed"]


class ZoneObserver(Protocol):
    """Counts."""

    def hedged(self, place: str, outcome: HedgeOutcome) -> None:
        """A second request was sent to a place although the first was not lost; tell whether it was the faster one."""

    def failed_over(self, place: str) -> None:
        """A place answered because one before it did not, or could not help."""

    def mended(self, place: str, status: MendStatus) -> None:
        """An object at a place was looked at because it was found damaged in one of the places."""

    def place_up(self, place: str, *, is_up: bool) -> None:
        """A place is asked from now on, or left alone after failures."""


class NobodyObserves:
    """Counts nothing."""

    def hedged(self, place: str, outcome: HedgeOutcome) -> None:
        """See `ZoneObserver`."""

    def failed_over(self, place: str) -> None:
        """See `ZoneObserver`."""

    def mended(self, place: str, status: MendStatus) -> None:
        """See `ZoneObserver`."""

    def place_up(self, place: str, *, is_up: bool) -> None:
        """See `ZoneObserver`."""
