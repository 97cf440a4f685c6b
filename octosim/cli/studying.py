"""Many runs: study, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from octosim.cli import words
from octosim.cli.tables import Table
from octosim.cli.terminal import (
    AsJson,
    check_output,
    command_line,
    duration_text,
    err_console,
    hint,
    plural,
    print_json,
    print_text,
    progress,
    say,
    shell_word,
)  # fmt: skip
from octosim.errors import OctosimError
from octosim.outcome import score


def study(
    name: Annotated[
        str,
        typer.Argument(
            help="A .toml file, or one in the package: accumulator-width, isa-divergence, methods, rounding, lac-prc-ablation; "
            "list prints them.",
            **words.of("studies"),
        ),  # fmt: skip
    ],
    out: Annotated[Optional[Path], typer.Option(help="The study's directory; studies/NAME if not given.")] = None,  # noqa: UP045
    jobs: Annotated[Optional[int], typer.Option(help="Runs at once; as many as cores if not given.")] = None,  # noqa: UP045
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Threads of each run; cores / jobs if not given, 1 with --cluster."),
    ] = None,
    cluster: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="ADDRESS", help="Train on the workers of this Dask scheduler, as tcp://host:8786."),
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the study and list its rows; run nothing.")] = False,
    json_: AsJson = False,
) -> None:
    """A grid of runs, in parallel; the same command again continues it.  Records in records.csv, runs for `octosim report`.

    A run that diverges (a NaN) is a result: its row says so.  Exit code 1 if a run is broken for another reason; the others
    are trained all the same.

    Example: octosim study list

    Example: octosim study rounding --jobs 2 --out studies/rounding

    Example: octosim study rounding --cluster tcp://192.0.2.1:8786
    """
    import os
    from functools import partial

    from rich.live import Live

    from octosim import study as studier

    cores = os.cpu_count() or 1
    for option, value in (("--jobs", jobs), ("--threads", threads), ("--checkpoint-every", checkpoint_every)):
        if value is not None and value < 1:
            raise OctosimError(f"{option} must be at least 1, not {value}")
    if cluster and jobs:
        raise OctosimError("--jobs is for runs on this machine; with --cluster the workers decide how many run at once")
    if name == "list":
        _list_studies(json_)
        return
    jobs = jobs or cores
    path = studier.source(name)
    read = studier.read(path)
    plan = studier.rows(read, path)
    with progress("checking", json_) as follow:
        studier.check(plan, path, lambda number: follow(number, len(plan)))
    folder = out or Path("studies") / path.stem
    if dry_run:
        if json_:
            print_json({"out": str(folder), "rows": [row.name for row in plan]})
        else:
            print_text("\n".join(row.name for row in plan))
        return
    told: set[str] = set()
    left = _time_left()
    with Live(console=err_console, auto_refresh=False, transient=True) as live:

        def show(states: list[Any]) -> None:
            if err_console.is_terminal:
                table = _study_table((read.title or path.stem) + left(states), states)
                live.update(table.fitted(err_console.width)[0], refresh=True)
                return
            ended = sum(state.state in studier.ENDED for state in states)
            for state in states:
                if state.state in studier.ENDED and state.name not in told:
                    told.add(state.name)
                    hint(f"{state.name}: {state.state} ({ended} of {len(states)}{left(states)})")

        train_all: Any
        if cluster:
            from octosim.study.cluster import train_all as on_cluster

            train_all = partial(
                on_cluster, address=cluster, threads=threads or 1, command=command_line(), every=checkpoint_every
            )
        else:
            train_all = partial(
                studier.in_processes,
                jobs=jobs, threads=threads or max(1, cores // jobs), command=command_line(), every=checkpoint_every,
            )  # fmt: skip
        states = studier.run(read, plan, folder, studier.text(path), train_all, show)
    if json_:
        print_json({"out": str(folder), "rows": [vars(state) for state in states]})
    else:
        _study_table(read.title or path.stem, states).show()
        say(f"records: {folder / 'records.csv'}; page: octosim report {shell_word(folder)}")
    for state in states:
        if state.reason:
            hint(f"{state.name} {'diverged' if state.state == 'diverged' else 'is broken'}: {state.reason}")
    found = {state.state for state in states}
    if "interrupted" in found or "waiting" in found:
        hint("interrupted; the same command continues")
        raise typer.Exit(130)
    raise typer.Exit(1 if "broken" in found else 0)


def _list_studies(as_json: bool) -> None:
    """The studies of the package."""
    from octosim import study as studier

    found = []
    for name in studier.shipped():
        path = studier.source(name)
        read = studier.read(path)
        runs = len(studier.rows(read, path))
        found.append({"name": name, "runs": runs, "title": read.title or "", "about": read.about or ""})
    if as_json:
        print_json(found)
        return
    table = Table("study")
    table.add_column("runs", justify="right")
    table.add_column("what it compares")
    for row in found:
        table.add_row(row["name"], str(row["runs"]), str(row["title"]))
    table.show()
    say("octosim study NAME runs one; your own: octosim study FILE.toml, see docs/studies.md")


def _time_left() -> Callable[[list[Any]], str]:
    """A text of the time that a study still takes, by how far its runs came since now; empty while too little is known."""
    began, first = time.monotonic(), [-1.0]

    def text(states: list[Any]) -> str:
        from octosim import study as studier

        far = sum(1.0 if s.state in studier.ENDED else s.step / s.steps if s.steps else 0.0 for s in states)
        first[0] = far if first[0] < 0 else first[0]
        seconds = time.monotonic() - began
        if seconds < 3 or far <= first[0] or far >= len(states):
            return ""
        return f", about {duration_text(seconds * (len(states) - far) / (far - first[0]))} left"

    return text


def _study_table(title: str, states: list[Any]) -> Table:
    counts = ", ".join(
        f"{sum(s.state == kind for s in states)} {kind}"
        for kind in ("finished", "running", "waiting", "interrupted", "diverged", "broken")
        if any(s.state == kind for s in states)
    )
    table = Table(title=f"{title}: {counts}")
    for column in ("run", "state"):
        table.add_column(column)
    for column, rank in (("step", 2), ("loss", 1), ("test accuracy", 0)):
        table.add_column(column, justify="right", rank=rank)
    for s in states:
        step = f"{s.step} of {s.steps}" if s.steps else str(s.step or "")
        loss = "" if s.loss is None else f"{s.loss:.4f}" if s.loss < 1e4 else f"{s.loss:.3g}"
        table.add_row(s.name, s.state, step, loss, score(s.test_accuracy, s.test_loss))
    return table


# ---- report --------------------------------------------------


def report(
    paths: Annotated[
        list[Path], typer.Argument(help="Run directories, folders of them, bench JSON files.", **words.of_runs(studies=True))
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write, .html or .md.")] = Path("report.html"),
    profile: Annotated[
        list[str],
        typer.Option(help="Predict the runs' time, energy and memory on this device; may be repeated.", **words.of("profiles")),
    ] = [],  # noqa: B006
    figures: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for the figures as SVG, PNG and PDF files; of a .md page, OUT-figures if not given."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """One self-contained page from recorded runs and benches: curves, tables, predicted and measured times.

    Example: octosim report runs/a runs/b bench.json -o report.html

    Example: octosim report studies/rounding --profile pi4 --profile jetson --figures pictures -o report.md
    """
    from octosim import report as reporter

    special = out.exists() and not (out.is_file() or out.is_dir())  # /dev/stdout has no such name
    check_output("--out", out, *(() if special else (".html", ".htm", ".md")))
    if profile:
        from octosim.train import step_of

        result = reporter.write_report(paths, out, command_line(), profile, figures, step_of)
    else:
        result = reporter.write_report(paths, out, command_line(), pictures=figures)
    if json_:
        print_json(result)
        return
    for path, reason in result["skipped"]:
        hint(f"left out {path}: {reason}")
    say(f"{out}: {plural(result['runs'], 'run')}, {plural(result['benches'], 'bench', 'benches')}")
