"""Vectors for kernel and RTL authors, and tensors of theirs beside octosim's: golden, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from octosim.cli import words
from octosim.cli.tables import Table
from octosim.cli.terminal import AsJson, Threads, hint, is_typed, plural, print_json, progress, say, shell_word, use_threads
from octosim.errors import OctosimError


def golden(
    ctx: typer.Context,
    run: Annotated[Optional[Path], typer.Argument(help="A run directory; none with --shape.", **words.of_runs())] = None,  # noqa: UP045
    step: Annotated[int, typer.Option(help="The training step, from 1.")] = 1,
    layer: Annotated[Optional[str], typer.Option(help="One weighted layer, as conv1; all if not given.")] = None,  # noqa: UP045
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder to write to; RUN/golden-stepN if not given, golden with --shape."),
    ] = None,
    shape: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="A layer without a run: conv,x=2x8x8x4,filters=4,kernel=3 with ,stride=2 ,pad=1 ,dilation=2 ,groups=2 if not "
            "1, 0, 1 and 1, 3x1 where down is not across; depthwise,x=2x8x8x4,kernel=3, with ,multiplier=2; "
            "linear,x=8x100,units=10."
        ),
    ] = None,
    operands: Annotated[
        str,
        typer.Option(
            help="With --shape: random, corners (-128, 127, 0 ...), or an .npz file with int8 x, w and dy.",
            **words.of("operands"),
        ),
    ] = "random",
    accumulator: Annotated[
        str, typer.Option(help="With --shape: the register of the sums, as acc16 or maddubs.", **words.of("accumulators"))
    ] = "exact32",
    requantize: Annotated[
        str,
        typer.Option(
            help="With --shape: how sums become codes: single-rounding, gemmlowp, power-of-two.", **words.of("requantizations")
        ),
    ] = "single-rounding",
    rounding: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="With --shape: half-up (if not given), half-even, half-away, floor, toward-zero.", **words.of("roundings")
        ),
    ] = None,
    per_channel: Annotated[
        bool, typer.Option("--per-channel", help="With --shape: a multiplier and a shift for each output channel.")
    ] = False,
    x_zero: Annotated[int, typer.Option(help="With --shape: the zero point, which padding holds; -128 .. 127.")] = 0,
    seed: Annotated[int, typer.Option(help="With --shape: seed of --operands random and corners.")] = 0,
    threads: Threads = None,
    json_: AsJson = False,
) -> None:
    """Forward and backward test vectors for kernel and RTL authors: .npz, hex, a C header, a C program and a Verilog testbench.

    Of a step of a run, or of a layer by its shape.

    Example: octosim golden runs/a --step 10 --layer conv2

    Example: octosim golden --shape conv,x=1x8x8x16,filters=32,kernel=3,pad=1 --accumulator acc16 --requantize gemmlowp
    """
    from octosim.evidence import golden as maker

    use_threads(threads)
    if (run is None) == (shape is None):
        raise OctosimError("golden takes either a run directory or --shape; see octosim golden --help")
    if shape is not None:
        for name in ("step", "layer"):
            if is_typed(ctx, name):
                raise OctosimError(f"--{name} is for the steps of a run, not for --shape")
        rows = [_by_hand(shape, operands, accumulator, requantize, rounding, per_channel, out or Path("golden"), x_zero, seed)]
    else:
        assert run is not None
        for name in ("operands", "accumulator", "requantize", "rounding", "per_channel", "x_zero", "seed"):
            if is_typed(ctx, name):
                raise OctosimError(f"--{name.replace('_', '-')} is for --shape; a run has its own")
        left: list[str] = []
        with progress("replaying", json_) as follow:
            rows = maker.golden(run, step, layer, out or run / f"golden-step{step}", follow, left.append)
        for text in left:
            hint(f"left out: {text}")
    if json_:
        print_json(rows)
        return
    for row in rows:
        say(f"{row['layer']}: {', '.join(row['passes'])}: {row['npz']}, {row['header']}")
        say(f"  for $readmemh: {', '.join(row['hex'].values())}")
    say(f"shapes, order of axes, register, files: {rows[0]['manifest']}")
    for row in rows:
        checker = Path(row["checker"])
        say(f"to check: cc {shell_word(checker)} -o {shell_word(checker.stem)} && ./{shell_word(checker.stem)}")
        bench = Path(row["testbench"])
        say(f"in Verilog: cd {shell_word(bench.parent)} && iverilog -o tb {shell_word(bench.name)} && ./tb")


def _by_hand(
    shape: str, operands: str, accumulator: str, requantize: str, rounding: str | None, per_channel: bool, out: Path,
    x_zero: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    from octosim import numerics
    from octosim.evidence import golden as maker

    arithmetic = maker.Arithmetic(
        _member("--requantize", numerics.Requantization, requantize, maker.REQUANTIZATIONS),
        None if rounding is None else _member("--rounding", numerics.Rounding, rounding, maker.ROUNDINGS),
        per_channel,
    )
    return maker.by_hand(shape, operands, numerics.find(accumulator), arithmetic, out, x_zero, seed)


def _member(option: str, kind: Any, value: str, possible: list[str]) -> Any:
    if value not in possible:
        raise OctosimError(f"{option} must be one of {', '.join(possible)}, not '{value}'")
    return kind(value)


def check(
    vectors: Annotated[Path, typer.Argument(help="LAYER.npz of `octosim golden`.")],
    against: Annotated[Path, typer.Option(help="Your tensor: .npy, or hexadecimal numbers, one a line.")],
    tensor: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="What it is: forward, dx, dw, forward_codes, dx_codes, dw_codes; the one that fits if not given.",
            **words.of("tensors"),
        ),  # fmt: skip
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Layout of your tensor: NHWC (if not given) or NCHW; OIHW of dw.", **words.of("layouts"))
    ] = None,  # noqa: UP045
    json_: AsJson = False,
) -> None:
    """Compare a tensor of your own kernel with octosim's vectors, and name the deviation that explains the difference.

    Tried are other roundings, requantizations, registers, layouts, signs and zero points, alone and in pairs.
    Exit code 0 if the tensors are equal, 1 if not.

    Example: octosim check golden/layer.npz --against mine.npy

    Example: octosim check golden/layer.npz --against mine.hex --tensor forward_codes --layout NCHW
    """
    from octosim.evidence import check as checker

    result = checker.check(vectors, against, tensor, layout)
    if json_:
        print_json(result)
        raise typer.Exit(0 if result["equal"] else 1)
    if result["equal"]:
        say(f"{result['tensor']}: equal, {plural(result['elements'], 'element')}")
        raise typer.Exit(0)
    share = 100 * result["differ"] / result["elements"]
    first = result["values"]
    say(f"{result['tensor']}: {result['differ']} of {plural(result['elements'], 'element')} differ ({share:.3g} %)")
    say(f"first at {tuple(result['index'])}: yours {first['theirs']}, octosim's {first['octosim']}")
    table = Table(title="off by")
    table.add_column("difference", justify="right")
    table.add_column("elements", justify="right")
    for distance, count in result["off_by"].items():
        table.add_row(distance, str(count))
    table.show()
    for number, text in enumerate(result["hypotheses"]):
        say(f"{'also ' if number else ''}equal {text}")
    if not result["hypotheses"]:
        closest = result["closest"]
        say(f"no deviation explains it ({result['tried']} tried)")
        if closest:
            say(f"closest: {100 * closest['equal']:.2f} % equal {closest['hypothesis']}")
    raise typer.Exit(1)
