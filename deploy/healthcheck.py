"""The image's health check: ends with status 0 where `/health` answers 200.

It asks where the settings say that the probes are, and imports nothing of DES, since it is run every few seconds.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT = 4.0  # seconds; less than the Containerfile allows it, so that the reason is seen
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - asked for there, not bound


def address() -> tuple[str, int]:
    """Return host and port of the probes by the settings of `des.settings`; a port that is no number is not one of them."""
    host = os.environ.get("DES_HTTP_HOST") or "127.0.0.1"
    ports = (os.environ.get(name, "").strip() for name in ("DES_HTTP_ADMIN_PORT", "DES_HTTP_PORT"))
    return LOOPBACK.get(host, host), int(next((port for port in ports if port.isdecimal()), "8000"))


def main() -> None:
    """Ask once; a reason for anything but 200 goes to stderr."""
    host, port = address()
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except OSError as error:
        sys.exit(f"http://{host}:{port}/health does not answer: {error}.")
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        sys.exit(f"http://{host}:{port}/health answers {status}.")


if __name__ == "__main__":
    main()
