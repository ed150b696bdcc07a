"""`des-pack`, `python -m des.pack`, `des pack`: bulk ingestion from manifests."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import anyio
import click
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console

from des.errors import EXIT_BAD_ANSWER, EXIT_DONE, SettingsError
from des.pack.progress import PlainProgress, TerminalProgress, summary_table
from des.pack.report import Report
from des.pack.run import PackJob, Progress, pack
from des.shard.codecs import CodecName, Compression
from des.storage.opening import open_storage, resolve_target

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
            anyio.run(_run, settings, job, report, progress)
        finally:
            if as_json and report.files:
                click.echo(report.to_json())
    if as_json and not report.files:
        click.echo(report.to_json())
    if not quiet and not as_json:
        console.print(summary_table(report))
    return EXIT_BAD_ANSWER if report.failed else EXIT_DONE


def _open_errors(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--errors {path} cannot be written: {error.strerror}.") from error


async def _run(settings: Settings, job: PackJob, report: Report, progress: Progress) -> None:
    storage: Storage = await open_storage(settings)
    try:
        report.store = storage.address
        await pack(storage, job, report, progress)
    finally:
        with anyio.CancelScope(shield=True):
            await storage.aclose()


def main() -> None:
    """Entry point of `des-pack`."""
    from des.cli import run_command  # noqa: PLC0415 - the command line imports this module

    run_command(pack_command)


if __name__ == "__main__":
    main()
