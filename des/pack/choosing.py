"""From the command line to what a run is told: inputs (manifests first, then directories, then archives, each in the order given), and how to compress."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from des.errors import InvalidRequestError, SettingsError
from des.pack.archive import Archive
from des.pack.inputs import STDIN, Manifests
from des.pack.tree import Tree
from des.routing import parse_created_at
from des.shard.codecs import CodecName, Compression
from des.shard.layout import MAX_DICTIONARY_BYTES
from des.shard.training import check_dictionary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from des.pack.inputs import Input
    from des.settings import Settings

NO_DICTIONARY = "none"
AUTO_DICTIONARY = "auto"


def chosen_inputs(
    manifests: Sequence[str],
    json_manifests: Sequence[str],
    directories: Sequence[Path],
    archives: Sequence[str],
    created_at: str | None,
    settings: Settings,
) -> list[Input]:
    """Return what a command line asks to pack.

    Args:
        manifests: of any format.
        json_manifests: that are JSON whatever their names say.
        directories: whose files are to be packed.
        archives: whose members are to be packed.
        created_at: for files of directories and archives; None: their own times.
        settings: of the store; its endpoint has the manifests on S3 too.

    Raises:
        SettingsError: there is nothing to pack, or what was asked contradicts itself.
    """
    if not (manifests or json_manifests or directories or archives):
        raise SettingsError(
            "give something to pack: a manifest with --input, a directory, or an archive with --from-tar."
        )
    if [*manifests, *json_manifests, *archives].count(STDIN) > 1:
        raise SettingsError("standard input (-) can be read only once.")
    if created_at is not None:
        if not (directories or archives):
            raise SettingsError(
                "--created-at is for directories and --from-tar; the rows of a manifest have their own."
            )
        try:
            parse_created_at(created_at)
        except InvalidRequestError as error:
            raise SettingsError(f"--created-at: {error}") from error
    for directory in directories:
        _check_apart(directory, settings)
    return [
        *(Manifests(name, settings=settings) for name in manifests),
        *(Manifests(name, only_json=True, settings=settings) for name in json_manifests),
        *(Tree(directory, created_at) for directory in directories),
        *(Archive(name, created_at) for name in archives),
    ]


def compression_of(codec: CodecName, level: int | None, dictionary: str) -> Compression:
    """Return how a command line asks to compress.

    Args:
        codec: as of `--codec`.
        level: as of `--level`.
        dictionary: as of `--dictionary`: `none`, `auto` or a file's name.

    Raises:
        SettingsError: these contradict each other, or the file holds no dictionary that can be used.
        InvalidRequestError: a level that the codec does not have.
    """
    plain = Compression(codec, level)
    if dictionary == NO_DICTIONARY:
        return plain
    if codec != "zstd":
        raise SettingsError(f"--dictionary works with --codec zstd, not with {codec}.")
    if dictionary == AUTO_DICTIONARY:
        return plain
    try:
        with Path(dictionary).open("rb") as file:
            content = file.read(MAX_DICTIONARY_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"--dictionary {dictionary} cannot be read: {error.strerror}.") from error
    if not content:
        raise SettingsError(f"--dictionary {dictionary} is empty.")
    try:
        compression = Compression(codec, level, content)
        check_dictionary(compression)
    except InvalidRequestError as error:
        raise SettingsError(f"--dictionary {dictionary}: {error}") from error
    return compression


def _check_apart(directory: Path, settings: Settings) -> None:
    """Refuse to pack a store into itself.

    Raises:
        SettingsError: the store lies in the directory.
    """
    if settings.backend != "local":
        return
    inner, outer = os.path.realpath(settings.base_dir), os.path.realpath(directory)
    if os.path.commonpath([inner, outer]) == outer:
        raise SettingsError(
            f"the store {settings.base_dir} lies in {directory}, which is to be packed; put it elsewhere."
        )
