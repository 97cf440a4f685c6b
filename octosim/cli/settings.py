"""The settings of a run as options of a command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

from octosim.cli import words
from octosim.cli.terminal import parameters, parameters_of, with_parameters
from octosim.errors import OctosimError
from octosim.settings import NETWORK, Settings, kinds, spelling

FIELDS = {each.name: each for each in dataclasses.fields(Settings)}


def _option(name: str, help: str) -> inspect.Parameter:
    """The option of a setting."""
    field, kind = FIELDS[name], kinds()[name]
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    spellings = [field.metadata["option"] or spelling(name)]
    if field.metadata["parse"]:
        kind, default = str, ""
    elif typing.get_origin(kind) is dict:
        kind, default = list[str], []
    elif kind is bool and default:
        spellings = []  # --name and --no-name
    option = typer.Option(*spellings, help=help or field.metadata["help"], rich_help_panel=field.metadata["panel"],
                          **words.of_setting(name))  # fmt: skip
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _value(name: str, given: Any) -> Any:
    """A setting's value, of what its option was given."""
    parse = FIELDS[name].metadata["parse"]
    if parse:
        try:
            return parse(given)
        except ValueError:
            expected = "numbers with commas between them, as in 0.5,0.75"
            raise OctosimError(f"{spelling(name)} takes {expected}, not '{given}'") from None
    return parameters(given) if typing.get_origin(kinds()[name]) is dict else given


def with_settings(*names: str, **helps: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for each of these settings (all if none is named), whose values it gets as `settings`, by name.

    helps: texts that differ from the settings' own.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        before, after = list[inspect.Parameter](), list[inspect.Parameter]()
        for each in parameters_of(command):
            if each.name != "settings":
                (before if each.annotation is typer.Context else after).append(each)
        options = [_option(name, helps.get(name, "")) for name in names or FIELDS]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(settings={each.name: _value(each.name, given.pop(each.name)) for each in options}, **given)

        return with_parameters(run, [*before, *options, *after])

    return decorate


Layers = Annotated[
    list[str],
    typer.Option(
        "--layer", metavar="MODULE:CLASS", rich_help_panel=NETWORK,
        help="A layer of your own, whose kind a model file may name; repeatable.",
    ),
]  # fmt: skip


def with_layers(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command that reads networks the option --layer."""
    option = inspect.Parameter("layer", inspect.Parameter.KEYWORD_ONLY, default=[], annotation=Layers)

    @functools.wraps(command)
    def run(layer: list[str], **given: Any) -> None:
        if layer:
            from octosim.graph import plugins  # not for --help: it takes NumPy and the core

            for path in layer:
                plugins.give(path)
        command(**given)

    return with_parameters(run, [*parameters_of(command), option])
