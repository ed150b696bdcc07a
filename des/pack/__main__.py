"""`des-pack`, `python -m des.pack`, `des pack`: bulk ingestion from manifests."""

from __future__ import annotations

import gc
import signal
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import anyio
import click
from anyio import open_signal_receiver  # by name, so that it is loaded before the loop runs
from pydantic import ByteSize, TypeAdapter, ValidationError

from des.console import run_command, say, write_bytes, write_line
from des.errors import EXIT_BAD_ANSWER, EXIT_DONE, SettingsError, StorageError
from des.pack.choosing import AUTO_DICTIONARY, NO_DICTIONARY, chosen_inputs, compression_of
from des.pack.crew import Crew
from des.pack.partition import Partition
from des.pack.report import Report
from des.pack.run import PackJob, Progress, pack
from des.pack.textfile import metrics_written
from des.pack.workers import forked_workers
from des.storage.opening import SourceBuckets, load_backend, opened_storage, resolve_target
from des.store.whole_objects import WholeObjects
from des.tasks import open_tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from des.pack.decisions import OnConflict
    from des.pack.dry_run import DryRun
    from des.settings import Settings
    from des.shard.codecs import CodecName
    from des.storage.protocol import Storage

_SIZE = TypeAdapter(ByteSize)
_MIN_SEGMENT_BYTES = 64 << 10
_MIN_MEMORY_BYTES = 64 << 20
_ALLOCATIONS_A_COLLECTION = 50_000


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
@click.argument("directories", nargs=-1, metavar="[DIR]...", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "manifests",
    multiple=True,
    metavar="M",
    help="Manifest: a file, a directory, a 'pattern*', s3://bucket/key, s3://bucket/prefix/, or - for stdin. .json is one array of rows, .jsonl or"
    " .ndjson a row a line, .csv has a header line, .parquet; each also .gz or .zst. Repeatable.",
)
@click.option(
    "--input-json", "json_manifests", multiple=True, metavar="M", help="The same, JSON whatever its name. Repeatable."
)
@click.option(
    "--from-tar",
    "archives",
    multiple=True,
    metavar="FILE",
    help="A tar archive, also .gz or .zst, or - for stdin: uid = member's name. Unpacked into TMPDIR until packed. Repeatable.",
)
@click.option(
    "--created-at", metavar="T", help="For files of DIR and --from-tar. Default: when they were last changed."
)
@click.option(
    "--source-root",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Sources that manifests name must lie in here, links resolved; relative paths start here.",
)
@click.option(
    "--partition", metavar="i/N", help="Pack only share i (from 0) of N of the shards: N machines, one manifest."
)
@click.option("--output-dir", "--output", "output", metavar="DIR|s3://…", help="The store. Default: what DES_* says.")
@click.option(
    "--zones",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The store is what this zones file says; excludes --output.",
)
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
    "--dictionary",
    default=NO_DICTIONARY,
    show_default=True,
    metavar="none|auto|FILE",
    help="zstd dictionary for small files: auto looks whether one pays, and keeps or trains it; FILE is one of `zstd --train`.",
)
@click.option(
    "--on-conflict",
    default="error",
    show_default=True,
    type=click.Choice(["error", "skip", "replace"]),
    help="What to do where other content holds a uid and day.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the plan and what is done of it in this file: the same command again goes on where it stopped, manifests unread.",
)
@click.option(
    "--errors",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write failed rows here, one JSON object a line.",
)
@click.option(
    "--metrics-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the run's metrics here at its end, for Prometheus' textfile collector.",
)
@click.option(
    "--dry-run", "is_dry_run", is_flag=True, help="Say what would be written and what it would cost; write nothing."
)
@click.option("--memory", type=SizeType(_MIN_MEMORY_BYTES), help="Bytes a run may hold. Default: DES_PACK_MEMORY.")
@click.option("--threads", type=click.IntRange(1), help="Workers that read and compress. Default: DES_PACK_THREADS.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on stdout.")
@click.option("--quiet", is_flag=True, help="No progress, no table.")
def pack_command(
    directories: tuple[Path, ...],
    manifests: tuple[str, ...],
    json_manifests: tuple[str, ...],
    archives: tuple[str, ...],
    created_at: str | None,
    source_root: Path | None,
    partition: str | None,
    output: str | None,
    zones: Path | None,
    max_shard_size: int,
    n_bits: int | None,
    codec: CodecName,
    level: int | None,
    dictionary: str,
    on_conflict: OnConflict,
    state: Path | None,
    errors: Path | None,
    metrics_file: Path | None,
    is_dry_run: bool,
    memory: int | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Pack the files that manifests name, all files below a directory (DIR), or those of a tar archive into a store.

    Of a directory or an archive, uid is the path in it and created_at the time of the last change. Running the same command again is safe: what is
    there already is skipped. Failed rows go to stderr, one JSON object a line, which can be packed again as a manifest.
    """
    _check_dry(state, is_dry_run=is_dry_run)
    settings = resolve_target(output, zones=zones)
    if settings.backend == "multi_s3":
        from des.storage.zones_config import with_its_n_bits  # noqa: PLC0415 - most stores lie in one place

        settings = with_its_n_bits(settings, n_bits)
    inputs = chosen_inputs(manifests, json_manifests, directories, archives, created_at, settings)
    job = PackJob(
        inputs=inputs,
        compression=compression_of(codec, level, dictionary),
        finds_dictionary=dictionary == AUTO_DICTIONARY,
        on_conflict=on_conflict,
        n_bits=settings.n_bits if n_bits is None else n_bits,
        max_segment_bytes=max_shard_size,
        memory=settings.pack_memory if memory is None else memory,
        threads=settings.pack_threads if threads is None else threads,
        single_writer=settings.single_writer,
        partition=None if partition is None else Partition.parse(partition),
        source_root=source_root,
        state=state,
    )
    report = Report(store="")
    with ExitStack() as stack:
        report.shown = sys.stderr
        stack.enter_context(_rare_garbage_collections())
        if metrics_file is not None:
            stack.enter_context(metrics_written(metrics_file, report))
        load_backend(settings)
        workers = stack.enter_context(forked_workers(job.threads))  # before anything has threads
        if errors is not None:
            report.errors = stack.enter_context(_open_errors(errors, manifests + json_manifests))
        progress = Progress() if quiet or as_json else _shown_progress(stack)
        crew = None if workers is None else Crew(workers, settings)
        work = _work_of(job, report, progress, crew, is_dry_run=is_dry_run)
        try:
            found, stopped_by = anyio.run(_run, settings, work)
        except StorageError:
            if report.shards and not is_dry_run:  # else nothing was begun, and the error says it all
                _conclude(report, as_json=as_json, quiet=quiet)
                stopped = "not all of it counts yet" if report.is_complete else "packing stopped"
                say(f"{stopped}; run the same command again: what is done is skipped.")
            raise
    if stopped_by is None and found is not None:
        _show(found, as_json=as_json)
    elif not is_dry_run:
        _conclude(report, as_json=as_json, quiet=quiet)
    _tell_done_before(report)
    if stopped_by is not None:
        say(f"stopped by {stopped_by.name}; run the same command again: what is done is skipped.")
        return 128 + stopped_by
    return EXIT_BAD_ANSWER if report.failed else EXIT_DONE


@contextmanager
def _rare_garbage_collections() -> Iterator[None]:
    """Look for cycles rarely: rows are no part of any, but come and go by the million."""
    threshold = gc.get_threshold()
    gc.set_threshold(_ALLOCATIONS_A_COLLECTION, *threshold[1:])
    try:
        yield
    finally:
        gc.set_threshold(*threshold)


def _check_dry(state: Path | None, *, is_dry_run: bool) -> None:
    if state is not None and is_dry_run:
        raise click.UsageError("--dry-run writes nothing, a state file neither; leave --state away.")


def _tell_done_before(report: Report) -> None:
    """Say how much of a run an earlier one had done, as the state file says and the store proves."""
    if 0 < report.shards_done_before == report.shards and report.is_complete:
        say("the state file is that of a finished run, and the store holds all of it: nothing was left to do.")
    elif report.shards_done_before:
        say(
            f"{report.shards_done_before:,} of {report.shards:,} shards were done before, as the state file says and the store proves."
        )


def _shown_progress(stack: ExitStack) -> Progress:
    """Return progress that is shown until the stack is left."""
    from rich.console import Console  # noqa: PLC0415 - 0.1 s that only those pay who look

    from des.pack.progress import PlainProgress, TerminalProgress  # noqa: PLC0415 - the same

    console = Console(stderr=True)
    shown = TerminalProgress(console) if console.is_terminal else PlainProgress(sys.stderr)
    stack.callback(shown.close)
    return shown


def _work_of(
    job: PackJob, report: Report, progress: Progress, crew: Crew | None, *, is_dry_run: bool
) -> Callable[[Storage, SourceBuckets], Awaitable[DryRun | None]]:
    if is_dry_run:
        from des.pack.dry_run import dry_run  # noqa: PLC0415 - as above

        return lambda storage, _: dry_run(storage, job, report, progress, crew.workers if crew else None)
    return lambda storage, buckets: pack(storage, job, report, progress, buckets, crew)


def _conclude(report: Report, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        write_line(report.to_json())
    elif not quiet:
        from rich.console import Console  # noqa: PLC0415 - as above

        from des.pack.progress import summary_table  # noqa: PLC0415 - as above

        Console(stderr=True).print(summary_table(report))


def _show(found: DryRun, *, as_json: bool) -> None:
    """Show what a run would do; unlike a run's summary it is what was asked for, so it goes to stdout."""
    if as_json:
        write_line(found.to_json())
        return
    from rich.console import Console  # noqa: PLC0415 - as above

    console = Console(stderr=True)
    with console.capture() as text:
        console.print(found.to_table())
    write_bytes(text.get().encode("utf-8", "surrogateescape"))
    for warning in found.warnings:
        say(f"warning: {warning}")


def _open_errors(path: Path, manifests: Sequence[str]) -> TextIO:
    """Open the file of failed rows.

    Raises:
        SettingsError: it cannot be written, or is a manifest of this very run.
    """
    try:
        if any(path.exists() and Path(one).exists() and path.samefile(one) for one in manifests):
            raise SettingsError(
                f"--errors {path} is a manifest of this run and would be overwritten; give it another name."
            )
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--errors {path} cannot be written: {error.strerror}.") from error


async def _run(
    settings: Settings, work: Callable[[Storage, SourceBuckets], Awaitable[DryRun | None]]
) -> tuple[DryRun | None, signal.Signals | None]:
    """Work until done or told to stop; return what came of it, and the signal that stopped it.

    Shards under way are abandoned: they stay as they were.
    """
    stopped_by: signal.Signals | None = None
    found: DryRun | None = None

    async def stop_on_signal(scope: anyio.CancelScope) -> None:
        nonlocal stopped_by
        with open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                stopped_by = number
                scope.cancel()

    async with opened_storage(settings, WholeObjects()) as storage, open_tasks() as tasks:
        tasks.start_soon(stop_on_signal, tasks.cancel_scope)
        async with SourceBuckets(settings) as buckets:
            found = await work(storage, buckets)
    return found, stopped_by


def main() -> None:
    """Entry point of `des-pack`."""
    gc.freeze()  # no module is garbage, and what is not looked at stays shared with the workers
    try:
        run_command(pack_command)
    finally:
        gc.freeze()  # the process is about to end, whatever is left


if __name__ == "__main__":
    main()
