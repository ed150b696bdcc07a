"""`des serve`: the HTTP service."""

from __future__ import annotations

import click

from des.cli.options import settings_for, store_option


@click.command("serve", short_help="Serve a store over HTTP.")
@click.option("--host", help="Address to listen on. Default: DES_HTTP_HOST, else 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Default: DES_HTTP_PORT, else 8000; 0: any free one.")
@click.option("--workers", type=click.IntRange(1), help="Processes. Default: DES_HTTP_WORKERS, else 1.")
@store_option
def serve(host: str | None, port: int | None, workers: int | None, store: str | None) -> None:
    """Serve a store over HTTP until SIGTERM or Ctrl-C."""
    settings = settings_for(store, http_host=host, http_port=port, http_workers=workers)
    from des.http.serving import serve as serve_http  # noqa: PLC0415 - the web framework, for this verb alone

    serve_http(settings)
