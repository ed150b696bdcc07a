"""`/files`: one file by its uid and day, as a raw ASGI endpoint.

Rules:

1. HEAD, 304, 404, 410, 412 and 416 are answered from the index; no payload is read for them.
2. A file up to 1 MiB is read whole and verified before the first byte goes out. A larger one, or a part of it, streams piece
   by piece, each verified; the header goes out when the first piece is there, and damage later breaks the connection.
3. Bodies go out in slices of 64 KiB: what a client that stalls can hold in a server's buffers is a multiple of the slice.
   Between slices the event loop gets its turn, since a `send` that does not block does not yield either.
4. A file that is replaced between finding and reading is found again and answered anew.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from time import perf_counter
from typing import TYPE_CHECKING

from des.errors import CorruptShardError, DESError
from des.http.addressing import parse_file_address, path_below_files, raw_path
from des.http.answer import OK, PARTIAL, UNSATISFIABLE, Answer, answer_headers, plan_answer
from des.http.conditions import Verdict
from des.http.exchange import SCOPE_KEY
from des.http.problems import Problem, RefusedError, unsatisfiable
from des.store import ContentChangedError
