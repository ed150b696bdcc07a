"""Zones files to test with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

TWO_ZONES = """\
n_bits: 8
zones:
  - name: zone-a
    range: { start: 0, end: 127 }
    s3: { bucket: des-zone-a, region_name: us-east-1, endpoint_url: "https://s3.example.com", prefix: des-a/ }
  - name: zone-b
    range: { start: 128, end: 255 }
    s3: { bucket: des-zone-b, region_name: us-east-1, endpoint_url: "https://s3.example.com", prefix: des-b/ }
"""


def written(directory: Path, content: str | bytes | dict[str, Any], name: str = "zones.yaml") -> Path:
    """Return a file with this content."""
    text = json.dumps(content, indent="\t") if isinstance(content, dict) else content
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
