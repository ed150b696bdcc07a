"""`--state`: a plan that outlives its run, so that a run that was killed goes on where it stopped, without reading its manifests again.

The file is the plan itself, an SQLite database. Rules:

1. It is filled in one transaction. Who is killed before its end leaves nothing, and the manifests are read again; after it, never.
2. It belongs to one store, and to the manifests and options it was made with, which are known again by name, size and time of change (objects on S3 by
   their version). Anything else is refused, for its rows would be packed where they do not belong.
3. What it says of shards is a hint. A shard is done if the head proves it: of the same lineage, not older than then, and listing the segments that were
   written; else it is packed again, which skips what is there. Only a shard all of whose rows are in the store is marked.
4. It is for one run at a time: the database is locked while it is open, and the lock ends with the process.
5. Standard input and archives cannot be found again after a crash, so they do not go with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from des.errors import CorruptShardError, ObjectNotFoundError, SettingsError, StorageUnavailableError
from des.pack.commit import NotSettledError, settle
from des.pack.plan import PAGE_BYTES, PLAN_VERSION, Done, Plan
from des.pack.report import DictionaryUse
from des.store.heads import load_head

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from des.pack.inputs import Input
    from des.shard.layout import Identity
    from des.storage.descriptor import Descriptor
    from des.storage.protocol import Storage

# "DESq": what SQLite keeps of whose database it is (sqlite.org/fileformat.html, section 1.2.15).
_APPLICATION_ID = 0x44455371
_DIGEST, _STORE, _ADDRESS = "digest", "store", "address"
_DICTIONARY, _DICTIONARY_USE = "dictionary", "dictionary use"


@dataclass(frozen=True, slots=True)
class Binding:
    """What a state belongs to.

    Attributes:
        digest: of the inputs and of the options that decide what is packed where.
        store_id: of the store; None where there is none yet.
        address: of the store.
    """

    digest: str
    store_id: bytes | None
    address: str


def digest_of(inputs: Iterable[Input], descriptor: Descriptor, options: Iterable[object]) -> str:
    """Return a digest of what decides which rows a plan has. For a worker thread.

    Args:
        inputs: of the run.
        descriptor: how the store routes.
        options: others that matter; the current directory, where relative paths start, is one of them anyway.

    Raises:
        ManifestError: an input is not there, or cannot be found again.
    """
    digest = hashlib.sha256(repr((os.getcwd(), PLAN_VERSION, descriptor.epochs, descriptor.index_range)).encode())  # noqa: PTH109 - text
    for option in options:
        digest.update(f"\n{option!r}".encode())
    for part in (part for one in inputs for part in one.parts()):
        digest.update(f"\n{part.identity()}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def open_state(path: Path) -> Plan:
    """Open a state file, or make an empty one.

    Raises:
        SettingsError: it cannot be made, is something else, or is in use.
    """
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=0, check_same_thread=False, isolation_level=None)
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN EXCLUSIVE")
        is_new = not connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        known = connection.execute("PRAGMA application_id").fetchone()[0]
        if is_new:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        elif known != _APPLICATION_ID:
            raise SettingsError(f"--state {path} is a database of something else; give another name.")
        connection.execute("COMMIT")
        return Plan(connection)
    except (sqlite3.Error, SettingsError) as error:
        if connection is not None:
            connection.close()
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"--state {path} {_trouble(error)}") from error


def _trouble(error: sqlite3.Error) -> str:
    if error.sqlite_errorcode in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return "is in use by another run."
    if error.sqlite_errorcode in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return "is no state file, or damaged; give another name, or remove it: what is packed will be skipped."
    return f"cannot be used: {error}."


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate the trouble of writing to a state file.

    Raises:
        StorageUnavailableError: it cannot be written.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise StorageUnavailableError(f"--state {path} cannot be written: {error}.") from error


def is_planned(plan: Plan, binding: Binding, path: Path) -> bool:
    """Tell whether a state has its rows already.

    Raises:
        SettingsError: it belongs to another store, other inputs or other options.
    """
    digest = plan.noted(_DIGEST)
    if digest is None:
        return False
    store = plan.noted(_STORE)
    if plan.noted(_ADDRESS) != binding.address if store is None else store != binding.store_id:
        raise SettingsError(
            f"--state {path} belongs to another store ({_address(plan)}); give this run a state file of its own."
        )
    if digest != binding.digest:
        raise SettingsError(
            f"--state {path} belongs to a run with other or changed manifests or options; give this run a state file of its own."
        )
    return True


def _address(plan: Plan) -> str:
    address = plan.noted(_ADDRESS)
    return address if isinstance(address, str) else ""


def bind(plan: Plan, binding: Binding) -> None:
    """Write down what a state belongs to, with its rows, and make both last."""
    plan.note(_DIGEST, binding.digest)
    plan.note(_ADDRESS, binding.address)
    if binding.store_id is not None:
        plan.note(_STORE, binding.store_id)
    plan.commit()


def bind_store(plan: Plan, store_id: bytes) -> None:
    """Write down which store a state belongs to, once there is one."""
    if plan.noted(_STORE) is None:
        plan.note(_STORE, store_id)


def remember_dictionary(plan: Plan, use: DictionaryUse, dictionary: bytes | None) -> None:
    """Write down which dictionary a run found, so that it goes on with the same one."""
    plan.note(_DICTIONARY, dictionary or b"")
    plan.note(_DICTIONARY_USE, json.dumps(asdict(use)))


def remembered_dictionary(plan: Plan) -> tuple[DictionaryUse, bytes | None] | None:
    """Return the dictionary that was written down; None: none was looked for yet."""
    use, dictionary = plan.noted(_DICTIONARY_USE), plan.noted(_DICTIONARY)
    if use is None:
        return None
    return DictionaryUse(**json.loads(use)), dictionary if isinstance(dictionary, bytes) and dictionary else None


async def is_proven(storage: Storage, identity: Identity, done: Done) -> bool:
    """Tell whether a shard's head proves that it is done, and as many places hold that head as must.

    Raises:
        StorageError: the storage is unwell.
    """
    try:
        tables = (await load_head(storage, identity)).head.tables
    except (ObjectNotFoundError, CorruptShardError):
        return False
    listed = {ref.name for ref in tables.segments}
    is_same = tables.lineage == done.lineage and tables.generation >= done.generation
    if not (is_same and listed.issuperset(done.segments)):
        return False
    try:
        await settle(storage, identity)
    except NotSettledError:
        return False
    return True
