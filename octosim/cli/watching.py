"""octosim watch: runs while they train."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rich.table
import typer
from rich.live import Live

from octosim.cli import words
from octosim.cli.tables import Column, Table
from octosim.cli.terminal import duration_text, out_console, say
from octosim.errors import OctosimError
from octosim.outcome import score

if TYPE_CHECKING:
    from octosim.watch import Watch
    from octosim.watch.runs import RunView

COLUMNS = (
    Column("run"), Column("state"), Column("step", True, 1), Column("accuracy, %", True), Column("loss", True, 2),
    Column("loss so far", rank=4), Column("wrong sums", rank=5), Column("left", True, 3),
)  # fmt: skip
BARS = "▁▂▃▄▅▆▇█"


def watch(
    path: Annotated[
        Path, typer.Argument(help="A run directory, or a folder of them: a study's.", **words.of_runs(studies=True))
    ],
    port: Annotated[int, typer.Option(help="Port of the page on 127.0.0.1; 0 takes a free one.")] = 0,
    terminal: Annotated[bool, typer.Option("--terminal", help="Show the runs here instead of on a page.")] = False,
) -> None:
    """Watch a run or a study while it trains: curves, states, sums that went wrong, time left.

    Prints the address of a page that only this machine has; Ctrl-C ends it.  The files are read, never locked or written.
    With --terminal it ends when nothing runs any more; where there is no terminal it prints the runs as they are.

    Example: octosim watch studies/rounding

    Example: octosim watch runs/a --terminal
    """
    from octosim import watch as watching

    if not 0 <= port < 2**16:
        raise OctosimError(f"--port must be from 0 to 65535, not {port}")
    watched = watching.open_watch(path)
    if terminal:
        _in_terminal(watched)
        return
    server = watching.serve(watched, port)
    say(f"{path}: {server.url}")
    say("Ctrl-C ends it")
    out_console.file.flush()
    while True:
        time.sleep(3600)


def _in_terminal(watched: Watch) -> None:
    if not out_console.is_terminal:
        out_console.print(_table(watched), crop=False)
        return
    with Live(_on_screen(watched), console=out_console, auto_refresh=False) as live:
        while not watched.ended:
            time.sleep(1.0)
            watched.look()
            live.update(_on_screen(watched), refresh=True)
        live.update(_table(watched), refresh=True)


def _on_screen(watched: Watch) -> rich.table.Table:
    """As many runs as the terminal has lines for: a name may take two."""
    most = out_console.height
    while True:
        made = _table(watched, most)
        over = len(out_console.render_lines(made)) + 1 - out_console.height
        if over <= 0 or most == 1:
            return made
        most = max(1, most - over)


def _table(watched: Watch, most: int | None = None) -> rich.table.Table:
    """most: runs shown; the caption says how many more there are."""
    left = watched.seconds_left
    title = f"{watched.title}: {', '.join(f'{n} {state}' for state, n in watched.counts.items())}"
    title += "" if left is None else f"; about {duration_text(left)} left"
    runs = watched.ordered
    shown = runs if most is None else runs[:most]
    made = table_of(title, shown).fitted(out_console.width)[0]
    if len(shown) < len(runs):
        left_out = Counter(run.state for run in runs[len(shown) :])
        made.caption = f"not shown: {', '.join(f'{n} {state}' for state, n in left_out.items())}"
    return made


def table_of(title: str, runs: list[RunView]) -> Table:
    """Runs with how far they are; without the columns of which none has anything."""
    rows = []
    for run in runs:
        wrong = run.saturated
        rows.append((
            run.name, run.state + (f" ({run.detail})" if run.detail else ""),
            f"{run.step} of {run.steps}" if run.steps else str(run.step),
            score(None, run.test_loss) if run.accuracy is None else f"{100 * run.accuracy:.2f}",
            f"{run.losses[-1][1]:.4g}" if run.losses else "", bars([loss for _, loss in run.losses]),
            f"{100 * wrong['share']:.1f} % {wrong['layer']} {wrong['pass']}" if wrong and wrong["share"] else "",
            "" if run.seconds_left is None else duration_text(run.seconds_left),
        ))  # fmt: skip
    used = [i for i, column in enumerate(COLUMNS) if column.rank == 0 or any(row[i] for row in rows)]
    table = Table(title=title)
    table.columns += [COLUMNS[i] for i in used]
    for row in rows:
        table.add_row(*(row[i] for i in used))
    return table


def bars(values: list[float], width: int = 16) -> str:
    """A curve in one line of text: the means of equal parts of it, from its least to its largest."""
    if not values:
        return ""
    edges = [len(values) * i // min(width, len(values)) for i in range(min(width, len(values)) + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    return "".join(BARS[round((mean - low) / (high - low) * (len(BARS) - 1)) if high > low else 0] for mean in means)
