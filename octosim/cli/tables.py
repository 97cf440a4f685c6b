"""Tables that fit their terminal.  Numbers are never cut or broken: whole columns go, the least important first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table

from octosim.cli.terminal import out_console, plain, say

NARROW = 16
"""Columns to which text may be folded."""
FRAME = 3
"""Columns of a column's edges: two blanks and a line; the table has one line more."""


@dataclass(frozen=True)
class Column:
    """A column.  head: with the unit.  number: it is never broken.  rank: columns of the highest rank go first, 0 never."""

    head: str
    number: bool = False
    rank: int = 0


def _longest(words: Iterable[str]) -> int:
    return max((cell_len(word) for word in words), default=0)


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], folded: bool) -> list[int]:
    """The columns' widths: of their whole text, or with text folded and heads on several lines."""
    widths = []
    for column, cells in zip(columns, zip(*rows, strict=True) if rows else [()] * len(columns), strict=True):
        whole = _longest(cells)
        if folded:
            whole = max(whole if column.number else min(whole, NARROW), _longest(column.head.split()))
        else:
            whole = max(whole, cell_len(column.head))
        widths.append(whole)
    return widths


def fitted(
    columns: Sequence[Column], rows: Iterable[Sequence[object]], width: int | None, title: str = ""
) -> tuple[Table, list[str]]:  # fmt: skip
    """A table of at most `width` columns of the terminal, if its columns of rank 0 leave that; and the heads left out.

    width: None for every column in full.
    """
    lines = [[plain(cell) for cell in row] for row in rows]
    shown = list(range(len(columns)))

    def widths(folded: bool) -> list[int]:
        return _widths([columns[i] for i in shown], [[line[i] for i in shown] for line in lines], folded)

    def total(sizes: Sequence[int]) -> int:
        return sum(sizes) + FRAME * len(sizes) + 1

    least = widths(folded=width is not None)
    while width is not None and total(least) > width and (rank := max(columns[i].rank for i in shown)):
        shown.remove(max(i for i in shown if columns[i].rank == rank))
        least = widths(folded=True)
    spare = 0 if width is None else max(0, width - total(least))
    for at, wanted in enumerate(widths(folded=False)):
        more = min(spare, max(0, wanted - least[at]))
        least[at], spare = least[at] + more, spare - more
    table = Table(title=title or None, width=total(least), title_justify="left" if total(least) < cell_len(title) else "center")
    for i, size in zip(shown, least, strict=True):
        number = columns[i].number
        table.add_column(columns[i].head, justify="right" if number else "left", width=size, overflow="fold", no_wrap=False)
    for line in lines:
        table.add_row(*(line[i] for i in shown))
    return table, [column.head for i, column in enumerate(columns) if i not in shown]


def show_table(columns: Sequence[Column], rows: Iterable[Sequence[object]], title: str = "", wide: bool = False) -> None:
    """Prints a table, and below it the names of the columns for which there was no room."""
    table, left_out = fitted(columns, rows, None if wide else out_console.width, title)
    out_console.print(table, crop=False, width=max(table.width or 0, out_console.width))
    if left_out:
        say(f"not shown: {', '.join(left_out)} (--wide shows all)")
