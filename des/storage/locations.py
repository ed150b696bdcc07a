"""What tells places on S3 apart, before anyone speaks to them: two that are one, or one within the other, would overwrite each other's objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_Name = TypeVar("_Name")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Location:
    """Where a place is.

    Attributes:
        endpoint: in one spelling; None for the default one.
        bucket: name of the bucket.
        prefix: without slashes at its ends.
    """

    endpoint: tuple[str, str, int | None, str] | None
    bucket: str
    prefix: str

    @classmethod
    def of(cls, endpoint_url: str | None, bucket: str, prefix: str) -> Location:
        """Return where a place is; `endpoint_url` is one that `is_endpoint_url` takes, or None."""
        if endpoint_url is None:
            return cls(None, bucket, prefix)
        url = urlsplit(endpoint_url)
        port = url.port or _PORTS[url.scheme]
        return cls((url.scheme, url.hostname or "", port, url.path.rstrip("/")), bucket, prefix)

    def around(self) -> Iterator[Location]:
        """Yield the place itself, and all that it would lie in."""
        prefix = self.prefix
        while True:
            yield Location(self.endpoint, self.bucket, prefix)
            if not prefix:
                return
            prefix = prefix.rpartition("/")[0]


def collisions(places: Sequence[tuple[_Name, Location]]) -> Iterator[tuple[_Name, _Name]]:
    """Yield each place that is another one or lies in it, with that one."""
    first: dict[Location, int] = {}
    for number, (_, location) in enumerate(places):
        first.setdefault(location, number)
    for number, (name, location) in enumerate(places):
        other = next((first[one] for one in location.around() if first.get(one, number) != number), None)
        if other is not None:
            yield name, places[other][0]
