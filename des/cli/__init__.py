"""The command line: one module a verb, loaded when the verb is used, so that `des locate` does not pay for what `des serve` needs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

from des import __version__

# Where each verb's command stands.
_VERBS = {
    "init": "des.cli.init:init",
    "pack": "des.pack.__main__:pack_command",
    "get": "des.cli.get:get",
    "stat": "des.cli.stat:stat",
    "ls": "des.cli.ls:ls",
    "locate": "des.cli.locate:locate",
    "verify": "des.cli.verify:verify",
    "delete": "des.cli.delete:delete",
    "compact": "des.cli.compact:compact",
    "gc": "des.cli.gc:gc",
    "repair": "des.cli.repair:repair",
    "expire": "des.cli.expire:expire",
    "export": "des.cli.export:export",
    "serve": "des.cli.serve:serve",
    "zones": "des.cli.zones:zones",
    "keys": "des.cli.keys:keys",
    "sign": "des.cli.sign:sign",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's own signature
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        place = _VERBS.get(cmd_name)
        if place is None:
            return None
        module, name = place.split(":")
        command = getattr(import_module(module), name)
        return command if isinstance(command, click.Command) else None


@click.group(
    cls=_Verbs,
    name="des",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, 1 the answer is bad (not found, damaged, some files failed), 2 the call or a setting is wrong, 3 storage trouble.",
)
@click.option("--store", metavar="DIR|s3://…", help="The store, also after the verb. Default: what DES_* says.")
@click.option("--zones", metavar="FILE", type=click.Path(path_type=Path), help="A store in zones, also after the verb.")
@click.version_option(__version__, prog_name="des")
@click.pass_context
def des(context: click.Context, store: str | None, zones: Path | None) -> None:
    """Pack huge numbers of small files into few large shards, and get any one back."""
    verb = context.invoked_subcommand
    command = context.command
    given = "--store" if store is not None else "--zones" if zones is not None else None
    if given is None or verb is None or not isinstance(command, click.Group):
        return
    called = command.get_command(context, verb)
    if called is not None and all("--store" not in parameter.opts for parameter in called.params):
        raise click.UsageError(f"`des {verb}` takes no {given} before the verb.")
