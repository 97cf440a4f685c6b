"""The command `octosim export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from octosim.cli import words
from octosim.cli.tables import Table
from octosim.cli.terminal import AsJson, Threads, print_json, say, use_threads
from octosim.errors import OctosimError


def export(
    run: Annotated[Path, typer.Argument(help="A finished run directory.", **words.of_runs())],
    to: Annotated[
        str, typer.Option(help="onnx (QDQ and QOperator), c (one C99 file) or safetensors.", **words.of("formats"))
    ] = "onnx",
    out: Annotated[Optional[Path], typer.Option(help="Folder to write to; RUN/export if not given.")] = None,  # noqa: UP045
    images: Annotated[Optional[int], typer.Option(help="Images of the test set to compare on; all if not given.")] = None,  # noqa: UP045
    compare: Annotated[bool, typer.Option(help="Run what was written, and compare it with octosim.")] = True,
    training: Annotated[bool, typer.Option("--training", help="With --to c: the training step itself, not inference.")] = False,
    steps: Annotated[Optional[int], typer.Option(help="With --training: steps to compare; 10, or the run's.")] = None,  # noqa: UP045
    threads: Threads = None,
    json_: AsJson = False,
) -> None:
    """Write a trained network for other programs, with the integers that training ended with, and compare what they compute.

    Example: octosim export runs/a --to onnx

    Example: octosim export runs/a --to c --out deploy

    Example: octosim export runs/a --to c --training --steps 10
    """
    from octosim.evidence import export as exporter

    use_threads(threads)
    if images is not None and images < 1:
        raise OctosimError(f"--images must be at least 1, not {images}")
    if training or steps is not None:
        if to != "c" or not training or images is not None:
            raise OctosimError("--training goes with --to c, --steps with --training, and --images with neither")
        _training(run, out or run / "export", steps, compare, json_)
        return
    rows = exporter.export(run, to, out or run / "export", images, compare)
    if json_:
        print_json(rows)
        return
    for name, size in dict.fromkeys((row["file"], row["bytes"]) for row in rows):
        say(f"{name}: {size:,} bytes")
    if to == "c":
        say(f"constants {rows[0]['flash']:,} bytes, buffers {rows[0]['ram']:,} bytes")
    if not compare:
        return
    unit = "tensors" if to == "safetensors" else "int8 steps of the logits"
    table = Table(title=f"against octosim, in {unit}")
    for column in ("file", "run by"):
        table.add_column(column)
    columns = ["equal", "off by one", "more"] + (["same bits", "same class"] if to != "safetensors" else [])
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        counts = [f"{row[key]} of {row['elements']}" for key in ("equal",)] + [str(row[key]) for key in ("off_by_one", "more")]
        if to != "safetensors":
            counts += [str(row["same_bits"]), f"{row['same_class']} of {row['images']}"]
        table.add_row(Path(row["file"]).name, row["runtime"], *counts)
    table.show()


def _training(run: Path, out: Path, steps: int | None, compare: bool, json_: bool) -> None:
    from octosim.evidence import export_step

    rows = export_step.export(run, out, steps, compare)
    if json_:
        print_json(rows)
        return
    first = rows[0]
    say(f"{first['file']}: {first['bytes']:,} bytes")
    say(
        f"memory: weights and state {first['state']:,} bytes, values {first['values']:,}, scratch {first['scratch']:,}; "
        f"constants {first['initial']:,}; the plan's peak is {first['planned']:,}"
    )
    if not compare:
        return
    table = Table(title=f"{first['steps']} steps against octosim's")
    for column in ("run by", "digest", "losses"):
        table.add_column(column)
    for column in ("flash [bytes]", "RAM [bytes]"):
        table.add_column(column, justify="right")
    for row in rows:
        told = ["equal" if row[key] else "differs" for key in ("digest", "losses")]
        table.add_row(row["runtime"], *told, *("-" if row[key] is None else f"{row[key]:,}" for key in ("flash", "ram")))
    table.show()
    say(f"sha256:{first['sha256']}")
