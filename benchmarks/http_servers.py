"""The servers beside which the service is measured, each a process of its own:

    python -m benchmarks.http_servers bare  PORT WORKERS            a Starlette route on the service's own worker, bytes from memory
    python -m benchmarks.http_servers boto3 PORT WORKERS PLACES     FastAPI, uvicorn and boto3 in threads

`boto3` answers `/files/UID` by one range-GET of a payload whose place it knows, and `/cold/files/UID` by three: the end of the
head, a page's worth of its index, the payload. PLACES is a JSON file that says where payloads and heads lie.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SIZES = (4096, 65_536)
FILES_PER_SIZE = 32
DAY = "2024-01-31"
TAIL_BYTES = 64 << 10
PAGE_BYTES = 32 << 10
PLACES_VARIABLE = "BENCHMARK_PLACES"


def uids(size: int) -> list[str]:
    return [f"{size}/{number}" for number in range(FILES_PER_SIZE)]


def content_of(uid: str) -> bytes:
    """Return the content that a uid stands for: bytes that no codec shrinks, so that every server sends the same."""
    return random.Random(uid).randbytes(int(uid.partition("/")[0]))


def serve_bare(port: int, workers: int) -> None:
    from starlette.applications import Starlette  # noqa: PLC0415 - each server imports what it needs
    from starlette.responses import Response  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    from des.http.worker import BACKLOG, run_worker  # noqa: PLC0415
    from des.settings import Settings  # noqa: PLC0415

    bodies = {uid: content_of(uid) for size in SIZES for uid in uids(size)}

    async def get(request: Any) -> Response:  # noqa: ANN401 - Starlette's request
        return Response(bodies[request.path_params["uid"]], media_type="application/octet-stream")

    app = Starlette(routes=[Route("/files/{uid:path}", get)])
    app.state.service = SimpleNamespace(draining=False)
    listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    listener.settimeout(0)
    for _ in range(workers - 1):
        if not os.fork():
            break
    run_worker(app, listener, Settings())


def boto3_app() -> Any:  # noqa: ANN401 - FastAPI may be absent
    """Return the application; uvicorn calls this in each worker."""
    import boto3  # noqa: PLC0415 - as above
    from botocore.config import Config  # noqa: PLC0415
    from fastapi import FastAPI, Response  # noqa: PLC0415

    places = json.loads(Path(os.environ[PLACES_VARIABLE]).read_text())
    bucket, files = places["bucket"], places["files"]
    client = boto3.client(
        "s3",
        endpoint_url=places["endpoint"],
        region_name=places["region"],
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, max_pool_connections=64),
    )

    def read(key: str, span: str) -> bytes:
        body: bytes = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={span}")["Body"].read()
        return body

    def payload(uid: str) -> bytes:
        place = files[uid]
        return read(place["segment"], f"{place['start']}-{place['end'] - 1}")

    def warm(uid: str) -> Response:
        return Response(payload(uid), media_type="application/octet-stream")

    def cold(uid: str) -> Response:
        head = files[uid]["head"]
        read(head, f"-{TAIL_BYTES}")
        read(head, f"0-{PAGE_BYTES - 1}")
        return Response(payload(uid), media_type="application/octet-stream")

    app = FastAPI()
    app.add_api_route("/files/{uid:path}", warm, response_class=Response)
    app.add_api_route("/cold/files/{uid:path}", cold, response_class=Response)
    return app


def serve_boto3(port: int, workers: int, places: str) -> None:
    import uvicorn  # noqa: PLC0415 - as above

    os.environ[PLACES_VARIABLE] = places
    name = "benchmarks.http_servers:boto3_app"
    uvicorn.run(name, factory=True, port=port, workers=workers, access_log=False, log_level="warning")


if __name__ == "__main__":
    if sys.argv[1] == "bare":
        serve_bare(int(sys.argv[2]), int(sys.argv[3]))
    else:
        serve_boto3(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
