"""What there is: methods, data sets."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from octosim.cli.terminal import AsJson, err_console, hint, out_console, print_json, print_text, say

methods_app = typer.Typer(invoke_without_command=True, help="Training methods: what they are, their parameters.")
data_app = typer.Typer(no_args_is_help=True, help="Data sets: list, fetch.")


@methods_app.callback()
def methods_list(ctx: typer.Context, json_: AsJson = False) -> None:
    """Training methods: their papers, and the type of each tensor in a training step.

    Example: octosim methods

    Example: octosim methods show octo
    """
    if ctx.invoked_subcommand is None:
        _list_methods(json_)


def _list_methods(as_json: bool) -> None:
    from octosim import methods

    names, broken = methods.available()
    for sentence in broken.values():
        hint(sentence)
    rows = [methods.about(name) for name in names]
    if as_json:
        print_json([{key: value for key, value in row.items() if key not in ("doc", "parameters")} for row in rows])
        return
    table = Table("method", "what it does", "paper")
    for row in rows:
        table.add_row(row["name"], row["summary"], row["paper"])
    out_console.print(table)
    roles = list(rows[0]["bits"])
    table = Table("method", *roles, title="types; names of parameters are their bits")
    for row in rows:
        table.add_row(row["name"], *(row["bits"][role] for role in roles))
    out_console.print(table)


@methods_app.command("list", hidden=True)
def methods_list_too(json_: AsJson = False) -> None:
    """The same as `octosim methods`."""
    _list_methods(json_)


@methods_app.command("show")
def methods_show(name: Annotated[str, typer.Argument(help="A method.")], json_: AsJson = False) -> None:
    """One method: its source, how it differs from the paper, its parameters.  Example: octosim methods show octo"""
    from octosim import methods

    about = methods.about(name)
    if json_:
        print_json(about)
        return
    print_text(f"{about['name']}: {about['summary']} ({about['paper']})\n\n{about['doc']}\n")
    for role, kind in about["bits"].items():
        say(f"{role + ':':<15}{kind}")
    table = Table("parameter", "default", "values", "meaning")
    for key, parameter in about["parameters"].items():
        table.add_row(key, str(parameter["default"]), parameter["values"], parameter["doc"])
    if about["parameters"]:
        out_console.print(table)


@data_app.command("list")
def data_list(json_: AsJson = False) -> None:
    """Data sets and where they are.  Example: octosim data list"""
    from octosim import data

    rows = data.available()
    if json_:
        print_json(rows)
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    out_console.print(table)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist ...")],
    force: Annotated[bool, typer.Option("--force", help="Also where OCTOSIM_DATA has the set already.")] = False,
) -> None:
    """Download a data set, by checksum, into the cache.  Example: octosim data fetch mnist"""
    from octosim import data

    given = None if force else data.find_given(name)
    if given is not None:
        hint(f"{name} is in OCTOSIM_DATA already; --force downloads it into the cache")
        say(given)
        return
    say(data.fetch(name, progress=err_console.is_terminal))
