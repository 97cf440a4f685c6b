"""The page that `octosim` and `octosim --help` print, in the look of the commands' own pages, which typer makes.

typer would read every command for it, which takes three times as long (tests/cli/test_first_page.py compares the words).
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from octosim.cli.commands import OPTIONS, PANELS, SUMMARY


def _panel(title: str, rows: Iterable[tuple[Text, ...]]) -> Panel:
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False, expand=True)
    for row in (held := list(rows))[:1]:
        for _ in row[:-1]:
            table.add_column(no_wrap=True)
        table.add_column(ratio=1)
    for row in held:
        table.add_row(*row)
    return Panel(table, title=title, title_align="left", border_style="dim")


def show() -> None:
    console = Console(highlight=False)
    usage = Text.assemble(" ", ("Usage: ", "yellow"), ("octosim [OPTIONS] COMMAND [ARGS]...", "bold"))
    console.print(Padding(usage, (1, 0, 1, 0)))
    console.print(Padding(Text(SUMMARY), (0, 1, 1, 1)))
    console.print(
        _panel("Options", ((Text(name, "bold cyan"), Text(value, "bold yellow"), Text(help))
                           for name, (value, help) in OPTIONS.items()))
    )  # fmt: skip
    widest = max(map(len, (name for commands in PANELS.values() for name in commands)))
    for title, commands in PANELS.items():
        console.print(
            _panel(title, ((Text(name.ljust(widest), "bold cyan"), Text(summary)) for name, (_, summary) in commands.items()))
        )
    console.print()
