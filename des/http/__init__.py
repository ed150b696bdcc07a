"""The HTTP service: `create_app` for any ASGI server, `des.http.serving` on hypercorn."""

from __future__ import annotations

from des.http.app import create_app

__all__ = ["create_app"]
