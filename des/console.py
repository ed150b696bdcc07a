"""A command as a process: results on stdout, all else on stderr, one line for an error, an exit status for every end.

    0    done
    1    the answer is bad: not found, damaged, some files failed; or a bug
    2    the call, a setting or the manifest is wrong, and nothing was written
    3    the storage is in trouble: unreachable, denied, too slow; or stdout cannot be written
    130  interrupted (128 + SIGINT, as shells count)
    141  whoever read stdout went away (128 + SIGPIPE)

What is written to stdout is UTF-8, whatever the locale says, so that every uid can be. Nobody sees a traceback, except of a bug, and with
DES_LOG_LEVEL=debug.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from des.errors import EXIT_BAD_ANSWER, EXIT_DONE, EXIT_WRONG_CALL, DESError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_INTERRUPTED = 130
EXIT_OUTPUT_CLOSED = 141
EXIT_STATUSES = (0, 1, 2, 3, EXIT_INTERRUPTED, EXIT_OUTPUT_CLOSED)

_LAST_OF_BMP = 0xFFFF  # what one escape of JSON can say
_log = logging.getLogger(__name__)


class OutputClosedError(Exception):
    """Whoever read stdout went away."""


def run_command(command: click.Command, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    Args:
        command: returns its exit status, None for 0.
        arguments: of the command line; those of this process where None.
    """
    sys.exit(status_of(command, arguments))


def status_of(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a command to its exit status, whatever happens. Arguments as for `run_command`."""
    if sys.stderr is None:  # closed from the start: nobody listens, which is not a reason to fail
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    try:
        status = command.main(args=arguments, standalone_mode=False)
        flush()
    except OutputClosedError:
        return EXIT_OUTPUT_CLOSED
    except (click.Abort, KeyboardInterrupt):
        say("interrupted.")
        return EXIT_INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        _show_help(error)
        return EXIT_WRONG_CALL
    except click.ClickException as error:
        return _fail(_usage_sentence(error), EXIT_WRONG_CALL)
    except Exception as error:  # noqa: BLE001 - the outermost boundary: every error becomes a line and a status
        return _explain(_first(error))
    return status if isinstance(status, int) else EXIT_DONE


def visible(text: str) -> str:
    """Return text in one line, with everything that would act on a terminal, or not show there, written as an escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def visible_json(text: str) -> str:
    """Return JSON in one line in which all that `visible` would escape is escaped as JSON has it, which leaves it the same value."""
    return text if text.isprintable() else "".join(map(_json_character, text))


def _json_character(one: str) -> str:
    if one.isprintable():
        return one
    return f"\\u{ord(one):04x}" if ord(one) <= _LAST_OF_BMP else json.dumps(one)[1:-1]


def say(sentence: str) -> None:
    """Tell the person at the command line, on stderr, in one line."""
    with suppress(OSError, ValueError):  # nobody listens: not a reason to fail
        sys.stderr.write(f"des: {visible(sentence)}\n")
        sys.stderr.flush()


def write_line(text: str) -> None:
    """Write a line of the result to stdout; errors as for `write_bytes`."""
    write_bytes(text.encode("utf-8", "surrogateescape") + b"\n")


def write_bytes(data: bytes) -> None:
    """Write a part of the result to stdout. Blocks.

    Raises:
        OutputClosedError: whoever read it went away.
        StorageUnavailableError: it cannot be written, because a disk is full for instance.
    """
    try:
        sys.stdout.buffer.write(data)
    except (OSError, AttributeError) as error:
        raise _output_error(error) from error


def flush() -> None:
    """Hand over what was written to stdout; errors as for `write_bytes`."""
    if sys.stdout is None:  # closed from the start, and nothing was written
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        raise _output_error(error) from error


def _output_error(error: OSError | AttributeError) -> Exception:
    if isinstance(error, AttributeError):
        return StorageUnavailableError("cannot write to stdout: it is closed.")
    # The interpreter flushes stdout once more as it ends, and would complain in its own words.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        return OutputClosedError()
    return StorageUnavailableError(f"cannot write to stdout: {error.strerror}.")


def _explain(error: Exception) -> int:
    _log.debug("where it failed", exc_info=error)
    if isinstance(error, OutputClosedError):
        return EXIT_OUTPUT_CLOSED
    if isinstance(error, DESError):
        return _fail(str(error), error.exit_status)
    return _fail(
        f"this is a bug in DES: {type(error).__name__}: {error}; set DES_LOG_LEVEL=debug to see where.", EXIT_BAD_ANSWER
    )


def _fail(sentence: str, status: int) -> int:
    with suppress(OutputClosedError, DESError):  # the failure itself is what counts now
        flush()
    say(f"error: {sentence}")
    return status


def _show_help(error: click.UsageError) -> None:
    with suppress(OSError, ValueError):  # as for `say`
        sys.stderr.write(f"{error.format_message()}\n")
        sys.stderr.flush()


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _usage_sentence(error: click.ClickException) -> str:
    sentence = error.format_message()
    sentence = sentence if sentence.endswith((".", "?")) else f"{sentence}."
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{sentence} See `{context.command_path} --help`." if context is not None else sentence
