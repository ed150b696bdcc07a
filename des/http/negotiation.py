"""Content coding: RFC 9110 section 12.5.3. Pure.

A file stored as one zstd frame can be sent as it lies, where the client takes zstd. Identity is always acceptable here:
refusing to answer helps nobody, so 406 is never sent. A member of the list that is badly written is ignored, which leads
to identity. Without the field the RFC leaves the choice to the server: identity.
"""

from __future__ import annotations

import re

# codings [ OWS ";" OWS "q=" qvalue ]; qvalue: RFC 9110 section 12.4.2
_MEMBER = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]*;[ \t]*[Qq]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?", re.ASCII
)


def prefers_zstd(accept_encoding: bytes | None) -> bool:
    """Tell whether zstd is acceptable and at least as welcome as identity.

    Args:
        accept_encoding: the field's value, repeated ones joined by commas; None where it is absent.
    """
    if not accept_encoding:
        return False
    weights: dict[bytes, float] = {}
    for member in accept_encoding.split(b","):
        match = _MEMBER.fullmatch(member.strip(b" \t"))
        if match:
            weights[match[1].lower()] = 1.0 if match[2] is None else float(match[2])
    any_other = weights.get(b"*", 0.0)
    zstd = weights.get(b"zstd", any_other)
    return zstd > 0 and zstd >= weights.get(b"identity", any_other)
