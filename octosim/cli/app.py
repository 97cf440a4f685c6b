"""The commands of `octosim`, made of the table in octosim.cli.commands."""

from __future__ import annotations

import functools
import importlib
from typing import Annotated, Any

import typer

import octosim
from octosim.cli.commands import OPTIONS, PANELS, SUMMARY

WITH_TABLES = {"train", "diff", "check", "export", "audit", "cost", "bench", "study", "show-env"}
"""Commands that print tables, hence with --wide."""
WITHOUT_LAYERS = {"golden", "check", "watch", "import", "show-env"}
"""Commands that read no network of a model file, or have a --layer of their own (golden)."""


def build(*names: str) -> typer.Typer:
    """The command line with these commands; with all if none is named."""
    made = typer.Typer(
        name="octosim", help=SUMMARY, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich"
    )
    made.callback()(root)
    for panel, commands in PANELS.items():
        for name, (place, _) in commands.items():
            if names and name not in names:
                continue
            module, _, attribute = place.partition(":")
            command: Any = getattr(importlib.import_module(f"octosim.cli.{module}"), attribute)
            if isinstance(command, typer.Typer):
                made.add_typer(command, name=name, rich_help_panel=panel)
                continue
            if name not in WITHOUT_LAYERS:
                from octosim.cli.settings import with_layers

                command = with_layers(command)
            if name in WITH_TABLES:
                from octosim.cli.tables import with_wide

                command = with_wide(command)
            made.command(name, rich_help_panel=panel)(command)
    return made


def _version(asked: bool) -> None:
    if asked:
        from octosim.cli.terminal import say

        say(f"octosim {octosim.__version__}")
        raise typer.Exit


def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help=OPTIONS["--version"][1])] = False,
    plugin: Annotated[list[str], typer.Option(metavar=OPTIONS["--plugin"][0], help=OPTIONS["--plugin"][1])] = [],  # noqa: B006
) -> None:
    if plugin:
        from octosim.extensions import trust

        for module in plugin:
            trust(module)


@functools.cache
def _whole() -> typer.Typer:
    return build()


def __getattr__(name: str) -> Any:
    """app: the whole command line, made when it is first asked for."""
    if name == "app":
        return _whole()
    raise AttributeError(name)
