"""`des-pack`, `python -m des.pack`, `des pack`: bulk ingestion from manifests."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import anyio
import click
from anyio import open_signal_receiver  # by name, so that it is loaded before the loop runs
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console

from des.console import run_command, say, write_line
from des.errors import EXIT_BAD_ANSWER, EXIT_DONE, SettingsError, StorageError
from des.pack.progress import PlainProgress, TerminalProgress, summary_table
from des.pack.report import Report
from des.pack.run import PackJob, Progress, pack
from des.shard.codecs import CodecName, Compression
from des.storage.opening import SourceBuckets, open_storage, resolve_target
from des.tasks import open_tasks

if TYPE_CHECKING:
    from des.pack.decisions import OnConflict
    from des.settings import Settings
    from des.storage.protocol import Storage

_SIZE = TypeAdapter(ByteSize)
_MIN_SEGMENT_BYTES = 64 << 10
_MIN_MEMORY_BYTES = 64 << 20


class SizeType(click.ParamType[int]):
    """A number of bytes, with units if one likes: 1073741824, 1GiB, 64 MiB."""

    name = "size"

    def __init__(self, minimum: int) -> None:
        """Accept sizes of at least `minimum` bytes."""
        self._minimum = minimum

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        try:
            size = int(_SIZE.validate_python(value))
        except ValidationError:
            self.fail(f"{value!r} is no size; write 1073741824 or 1GiB.", param, ctx)
        if size < self._minimum:
            self.fail(f"{value!r} is less than {self._minimum} bytes.", param, ctx)
        return size


@click.command("pack", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--input-json",
    "--input",
    "manifests",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Manifest: a JSON array of rows. Repeatable.",
)
@click.option("--output-dir", "--output", "output", metavar="DIR|s3://…", help="The store. Default: what DES_* says.")
@click.option(
    "--max-shard-size",
    default=1 << 30,
    show_default=True,
    type=SizeType(1),
    help="A segment is closed before it grows past this.",
)
@click.option(
    "--n-bits", type=click.IntRange(1, 16), help="Bits of routing for a new store; otherwise the store's own."
)
@click.option("--codec", default="zstd", show_default=True, type=click.Choice(["zstd", "lz4", "none"]))
@click.option(
    "--level", type=click.IntRange(1, 22), help="zstd 1 to 22 (default 3); lz4 1 to 12 (default 1, the fast mode)."
)
@click.option(
    "--on-conflict",
    default="error",
    show_default=True,
    type=click.Choice(["error", "skip", "replace"]),
    help="What to do where other content holds a uid and day.",
)
@click.option(
    "--errors",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write failed rows here, one JSON object a line.",
)
@click.option("--memory", type=SizeType(_MIN_MEMORY_BYTES), help="Bytes a run may hold. Default: DES_PACK_MEMORY.")
@click.option("--threads", type=click.IntRange(1), help="Worker threads. Default: DES_PACK_THREADS.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on stdout.")
@click.option("--quiet", is_flag=True, help="No progress, no table.")
def pack_command(
    manifests: tuple[Path, ...],
    output: str | None,
    max_shard_size: int,
    n_bits: int | None,
    codec: CodecName,
    level: int | None,
    on_conflict: OnConflict,
    errors: Path | None,
    memory: int | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Pack the files that manifests name into a store.

    Running the same command again is safe: what is there already is skipped. Failed rows go to stderr, one JSON object a line.
    """
    if not manifests:
        raise click.UsageError("give at least one manifest with --input-json.")
    settings = resolve_target(output)
    job = PackJob(
        manifests=manifests,
        compression=Compression(codec, level),
        on_conflict=on_conflict,
        n_bits=settings.n_bits if n_bits is None else n_bits,
        max_segment_bytes=max_shard_size,
        memory=settings.pack_memory if memory is None else memory,
        threads=settings.pack_threads if threads is None else threads,
        single_writer=settings.single_writer,
    )
    console = Console(stderr=True)
    report = Report(store="")
    with ExitStack() as stack:
        report.shown = sys.stderr
        if errors is not None:
            report.errors = stack.enter_context(_open_errors(errors))
        progress: Progress = Progress()
        if not quiet and not as_json:
            shown = TerminalProgress(console) if console.is_terminal else PlainProgress(sys.stderr)
            stack.callback(shown.close)
            progress = shown
        try:
            stopped_by = anyio.run(_run, settings, job, report, progress)
        except StorageError:
            _conclude(report, console, as_json=as_json, quiet=quiet)
            say("packing stopped; run the same command again: what is done is skipped.")
            raise
    _conclude(report, console, as_json=as_json, quiet=quiet)
    if stopped_by is not None:
        say(f"stopped by {stopped_by.name}; run the same command again: what is done is skipped.")
        return 128 + stopped_by
    return EXIT_BAD_ANSWER if report.failed else EXIT_DONE


def _conclude(report: Report, console: Console, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        write_line(report.to_json())
    elif not quiet:
        console.print(summary_table(report))


def _open_errors(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--errors {path} cannot be written: {error.strerror}.") from error


async def _run(settings: Settings, job: PackJob, report: Report, progress: Progress) -> signal.Signals | None:
    """Pack until done or told to stop; return the signal that said so. Shards under way are abandoned: they stay as they were."""
    stopped_by: signal.Signals | None = None

    async def stop_on_signal(scope: anyio.CancelScope) -> None:
        nonlocal stopped_by
        with open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                stopped_by = number
                scope.cancel()

    storage: Storage = await open_storage(settings)
    try:
        report.store = storage.address
        async with open_tasks() as tasks:
            tasks.start_soon(stop_on_signal, tasks.cancel_scope)
            async with SourceBuckets(settings) as buckets:
                await pack(storage, job, report, progress, buckets)
    finally:
        with anyio.CancelScope(shield=True):
            await storage.aclose()
    return stopped_by


def main() -> None:
    """Entry point of `des-pack`."""
    run_command(pack_command)


if __name__ == "__main__":
    main()
