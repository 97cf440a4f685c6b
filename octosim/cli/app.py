"""The commands of `octosim`."""

from __future__ import annotations

from collections.abc import Callable
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
_WITH_TABLES = {
    training.train, training.diff, checking.check, exporting.export, audit.audit, cost.cost, benching.bench, studying.study,
}  # fmt: skip
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Train and compare": (training.train, studying.study, watching.watch, studying.report),
    "Evidence to the bit": (training.verify, training.diff, checking.golden, checking.check, audit.audit),
    "Cost and speed": (cost.cost, benching.bench),
    "In and out": (importing.import_, exporting.export),
}
_WITHOUT_NETWORKS = {checking.golden, checking.check, watching.watch, importing.import_}  # golden has a --layer
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        _whole = _command if _command in _WITHOUT_NETWORKS else with_layers(_command)
        _name = _command.__name__.strip("_")
        app.command(_name, rich_help_panel=_panel)(with_wide(_whole) if _command in _WITH_TABLES else _whole)
_LISTS = {
    "models": catalogue.models_app, "methods": catalogue.methods_app, "data": catalogue.data_app,
    "profiles": profiles.profiles_app, "runs": catalogue.runs_app,
}  # fmt: skip
for _name, _list in _LISTS.items():
    app.add_typer(_list, name=_name, rich_help_panel="What there is")
app.command("show-env", rich_help_panel="What there is")(with_wide(show_env.show_env))
app.add_typer(scaffold.new_app, name="new", rich_help_panel="In and out")


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
