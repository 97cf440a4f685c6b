"""octosim audit: is a float32 simulation of a run exact?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from octosim.cli import words
from octosim.cli.tables import Table
from octosim.cli.terminal import AsJson, Threads, print_json, progress, say, use_threads


def audit(
    run: Annotated[Path, typer.Argument(help="A run directory.", **words.of_runs())],
    step: Annotated[int, typer.Option(help="The training step, from 1.")] = 1,
    threads: Threads = None,
    json_: AsJson = False,
) -> None:
    """For which layers and passes a float32 simulation of the run (fake quantization) is not exact, and by how much.

    Replays the run to a step, makes its int8 products' sums in float32 as well, and counts those that differ.

    Example: octosim audit runs/a --step 100
    """
    from octosim.evidence import audit as auditor

    use_threads(threads)
    with progress("replaying", json_) as follow:
        rows = auditor.audit(run, step, follow)
    if json_:
        print_json({"run": str(run), "step": step, "exact_below": auditor.EXACT, "rows": rows})
        return
    _show(rows, step)


def _bits(value: int) -> str:
    return "0" if value == 0 else f"2^{math.log2(value):.1f}"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _show(rows: list[dict[str, Any]], step: int) -> None:
    table = Table(title=f"step {step}: float32 sums are exact for sure where K max|a| max|b| < 2^24")
    for column in ("layer", "pass"):
        table.add_column(column)
    for rank, column in (
        (2, "K"), (6, "max|a|, max|b|"), (1, "bound"), (5, "worst case"), (4, "largest sum"), (0, "sums"), (0, "wrong"),
        (3, "wrong by up to"), (7, "scaled: wrong"), (8, "scaled: by up to"),
    ):  # fmt: skip
        table.add_column(column, justify="right", rank=rank)
    table.add_column("float32")
    for row in rows:
        verdict = "wrong" if row["differ"] else "proven" if row["proven"] else "exact here"
        table.add_row(
            row["layer"], row["pass"], str(row["k"]), ", ".join(map(str, row["largest"].values())), _bits(row["bound"]),
            _bits(row["worst_bound"]), _bits(row["largest_sum"]), str(row["sums"]), str(row["differ"]),
            str(row["largest_difference"]), _number(row["scaled_differ"]), _number(row["scaled_largest_difference"]), verdict,
        )  # fmt: skip
    table.show()
    wrong, unproven = sum(row["differ"] > 0 for row in rows), sum(not row["proven"] for row in rows)
    say(
        f"of {len(rows)} products, float32 is not proven exact for {unproven}, and wrong in {wrong}; scaled: with the run's "
        "own scales instead of powers of two, to the nearest sum"
    )
