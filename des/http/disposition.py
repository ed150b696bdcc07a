"""Content-Disposition: RFC 6266, with the extended notation of RFC 8187. Pure.

`attachment; filename="…"; filename*=UTF-8''…`: the first for clients that know nothing else, the second exact and only where
the first is not. Nothing of the client's text reaches the field unquoted or unescaped, so that none can end it. What a file
system would take for a path (RFC 6266 section 4.3) or what is no character to see becomes `_` in both.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from des.errors import InvalidRequestError

MAX_NAME_BYTES = 255  # what common file systems take
# Besides control characters and slashes, what turns the order of writing around (UAX #9), so that a name shows another ending than it has.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f/\\\\\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# Besides what a quoted-string has to escape, `%`: some clients decode it (RFC 6266 appendix D).
_NOT_PLAIN = re.compile(r'[^\x20-\x7e]|["%]')
_ATTR_CHAR = "!#$&+-.^_`|~"  # RFC 8187 section 3.2.1, besides letters and digits


def attachment(name: str) -> bytes:
    """Return the field's value that has a client save the content under a name; an empty one leaves the name to the client.

    Raises:
        InvalidRequestError: the name is longer than file systems take.
    """
    if not name:
        return b"attachment"
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidRequestError(f"the name to download is longer than {MAX_NAME_BYTES} bytes of UTF-8.")
    safe = _UNSAFE.sub("_", name)
    plain = _NOT_PLAIN.sub("_", safe)
    value = f'attachment; filename="{plain}"'
    if plain != safe:
        value += f"; filename*=UTF-8''{quote(safe, safe=_ATTR_CHAR)}"
    return value.encode("ascii")
