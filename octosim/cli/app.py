"""The commands of `octosim`."""

from __future__ import annotations

from typing import Annotated

import typer

import octosim
from octosim.cli import (
    audit,
    benching,
    catalogue,
    checking,
    cost,
    exporting,
    importing,
    profiles,
    scaffold,
    show_env,
    studying,
    training,
    watching,
)
from octosim.cli.settings import with_layers
from octosim.cli.tables import with_wide
from octosim.cli.terminal import say

app = typer.Typer(
    name="octosim",
    help="Bit-exact simulation, cost prediction and profiling of INT8 training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_COMMANDS = (
    training.train, training.verify, training.diff, checking.golden, checking.check, exporting.export, audit.audit, cost.cost,
    benching.bench, studying.study, watching.watch, studying.report, show_env.show_env,
)
_WITH_TABLES = {
    training.train, training.diff, checking.check, exporting.export, audit.audit, cost.cost, benching.bench, studying.study,
    show_env.show_env,
}  # fmt: skip
_WITH_NETWORKS = set(_COMMANDS) - {checking.golden, checking.check, watching.watch, show_env.show_env}  # golden has a --layer
for _command in _COMMANDS:
    _whole = with_layers(_command) if _command in _WITH_NETWORKS else _command
    app.command()(with_wide(_whole) if _command in _WITH_TABLES else _whole)
app.command("import")(importing.import_)
app.add_typer(profiles.profiles_app, name="profiles")
app.add_typer(catalogue.data_app, name="data")
app.add_typer(catalogue.methods_app, name="methods")
app.add_typer(scaffold.new_app, name="new")


def _version(asked: bool) -> None:
    if asked:
        say(f"octosim {octosim.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    plugin: Annotated[
        list[str],
        typer.Option(
            metavar="MODULE", help="A module in the current folder whose methods run directories may name; repeatable."
        ),
    ] = [],  # noqa: B006 - typer's way
) -> None:
    if plugin:
        from octosim.extensions import trust

        for module in plugin:
            trust(module)
