"""Tables that fit their terminal.  Numbers are never cut or broken: whole columns go, the least important first."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any

import rich.table
import typer
from rich.cells import cell_len
from rich.text import Text

from octosim.cli.terminal import out_console, parameters_of, plain, say, with_parameters

NARROW = 16
"""Columns of the terminal to which text may be folded."""
FRAME = 3
"""Columns of the terminal for a column's edges, two blanks and a line; the table has one line more."""
_WIDE: ContextVar[bool] = ContextVar("wide", default=False)


@dataclass(frozen=True)
class Column:
    """head: with the unit.  number: it is never broken.  rank: columns of the highest rank go first, those of rank 0 stay."""

    head: str
    number: bool = False
    rank: int = 0


def folded(text: str, width: int) -> str:
    """A text whose words longer than a column's width go on in a new line behind a comma: names of runs have many."""
    if cell_len(text) <= width or "," not in text:
        return text
    lines = [""]
    for part in re.findall(r"[^, ]*(?:, *| +|$)", text):
        if lines[-1] and cell_len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _longest(words: Iterable[str]) -> int:
    return max((cell_len(word) for word in words), default=0)


class Table:
    """Rows of text under columns."""

    def __init__(self, *heads: str, title: str = "") -> None:
        self.title, self.rows = title, list[list[str]]()
        self.columns = [Column(head) for head in heads]
        self._sections: set[int] = set()

    def add_column(self, head: str, justify: str = "left", rank: int = 0) -> None:
        """justify: right is for numbers."""
        self.columns.append(Column(head, justify == "right", rank))

    def add_row(self, *cells: object) -> None:
        self.rows.append([plain(cell) for cell in cells])

    def add_section(self) -> None:
        """A line follows the rows so far."""
        self._sections.add(len(self.rows))

    def _widths(self, shown: list[int], folded: bool) -> list[int]:
        """The columns' widths: of their whole text, or with text folded and heads on several lines."""
        widths = []
        for i in shown:
            column, whole = self.columns[i], _longest(row[i] for row in self.rows)
            if folded:
                text = whole if column.number else min(whole, NARROW)
                widths.append(max(text, _longest(column.head.split())))
            else:
                widths.append(max(whole, cell_len(column.head)))
        return widths

    def fitted(self, width: int | None) -> tuple[rich.table.Table, list[str]]:
        """The table of at most so many columns of the terminal, if its columns of rank 0 leave that; and the heads left out.

        width: None for every column in full.
        """
        shown = list(range(len(self.columns)))
        least = self._widths(shown, width is not None)
        while width is not None and sum(least) + FRAME * len(least) + 1 > width:
            rank = max(self.columns[i].rank for i in shown)
            if rank == 0:
                break
            shown.remove(max(i for i in shown if self.columns[i].rank == rank))
            least = self._widths(shown, True)
        if width is not None:
            spare = max(0, width - sum(least) - FRAME * len(least) - 1)
            for at, wanted in enumerate(self._widths(shown, False)):
                more = min(spare, max(0, wanted - least[at]))
                least[at], spare = least[at] + more, spare - more
        total = sum(least) + FRAME * len(least) + 1
        table = rich.table.Table(title=self.title or None, width=total)
        for i, size in zip(shown, least, strict=True):
            justify: Any = "right" if self.columns[i].number else "left"
            table.add_column(self.columns[i].head, justify=justify, width=size, overflow="fold")
        for number, row in enumerate(self.rows):
            cells = (Text(folded(row[i], size)) for i, size in zip(shown, least, strict=True))
            table.add_row(*cells, end_section=number + 1 in self._sections)
        return table, [column.head for i, column in enumerate(self.columns) if i not in shown]

    def show(self) -> None:
        """Prints the table, and below it the names of the columns for which there was no room."""
        table, left_out = self.fitted(None if _WIDE.get() else out_console.width)
        out_console.print(table, crop=False, width=max(table.width or 0, out_console.width))
        if left_out:
            say(f"not shown: {', '.join(left_out)} (--wide shows all)")


Wide = Annotated[bool, typer.Option("--wide", help="Show every column of a table, however narrow the terminal is.")]


def with_wide(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command that prints tables the option --wide."""
    option = inspect.Parameter("wide", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Wide)

    @functools.wraps(command)
    def run(wide: bool = False, **given: Any) -> None:
        token = _WIDE.set(wide)
        try:
            command(**given)
        finally:
            _WIDE.reset(token)

    return with_parameters(run, [*parameters_of(command), option])
