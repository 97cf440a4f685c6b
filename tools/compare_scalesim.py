"""Compute cycles of octosim's model of a weight-stationary systolic array against SCALE-Sim's, and the time of both tools.

    python -m venv SCRATCH && SCRATCH/bin/pip install scalesim "numpy<2"
    python tools/compare_scalesim.py --python SCRATCH/bin/python --write

The products are the forward passes of ResNet-20 and VGG-11 for one 32 x 32 image.  SCALE-Sim walks through every cycle:
products of more than --most-cycles are left to octosim alone.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import tempfile
import time
from pathlib import Path

from octosim import cost, engine, graph, hardware, methods
from octosim.trace import Op

NETWORKS = ("resnet20", "vgg11")
SIDES = (16, 32)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "scalesim.md"

CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight = {side}
ArrayWidth = {side}
IfmapSramSzkB = 1024
FilterSramSzkB = 1024
OfmapSramSzkB = 1024
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = ws
Bandwidth = 16
ReadRequestBuffer = 64
WriteRequestBuffer = 64
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = False
SparseRep = ellpack_block
OptimizedMapping = False
BlockSize = 8
RandomNumberGeneratorSeed = 40
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""

TEXT = """# Systolic arrays: octosim against SCALE-Sim

Forward products of one 32 x 32 image, weight stationary, SCALE-Sim 3.0.0 (`Total Cycles` of its compute report: no
prefetching, no stalls). Made by

    python tools/compare_scalesim.py --python SCRATCH/bin/python --write

where SCRATCH is a virtual environment with `pip install scalesim "numpy<2"`. octosim's cycles are
`octosim.cost.systolic_cycles`, which engines with an `array` in their profile use: a fold of the weights takes rows (to
load) + M (to stream) + rows - 1 + columns - 1 (to drain) clocks. SCALE-Sim counts from zero: one cycle less a product.
Products of more than {most:,.0f} cycles were left to octosim alone ("not run").

| network | array | products compared | total, octosim / SCALE-Sim | octosim, ms | SCALE-Sim, s |
|---|---|---|---|---|---|
{summary}

The last column is the tile model, where a fold takes M clocks: right for an array that hides loading and draining behind
the stream.

| product | array | M x K x N | octosim | SCALE-Sim | difference, % | tile model, % |
|---|---|---|---|---|---|---|
{lines}
"""


def products(model: str) -> list[Op]:
    """The forward products of a network for one 32 x 32 colour image, those of one shape once."""
    shape = (32, 32, 3)
    network = engine.Network(graph.layers(model, 10, in_shape=shape), shape, methods.make("octo", {}), None)
    ops = [op for op in engine.trace(network, 1) if op.kind == "gemm" and op.pass_ == "forward"]
    return list({op.shape: op for op in ops}.values())


def array_device(side: int) -> hardware.Device:
    """A device with nothing but a systolic array: one clock a nanosecond, no overhead, no memory limit."""

    def figure(value: float) -> dict[str, object]:
        return {"value": value, "kind": "estimate", "source": "an array to compare with"}

    return hardware.Device.model_validate({
        "name": f"array-{side}", "title": f"systolic array {side} x {side}", "overhead_us": figure(0),
        "training": {"status": "forward-only", "note": "an array to compare with"},
        "engines": [{"name": "array", "accumulator": "exact32", "trains": False, "units": figure(1), "clock_ghz": figure(1),
                     "macs_per_clock": {"int8": figure(side * side)}, "gemm_efficiency": {"int8": figure(1)},
                     "array": {"rows": figure(side), "columns": figure(side)}}],
    })  # fmt: skip


def scalesim(python: Path, side: int, ops: list[Op]) -> tuple[list[int], float]:
    """SCALE-Sim's cycles of each product without prefetching, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = "".join(f"{op.layer}, {op.shape[0]}, {op.shape[2]}, {op.shape[1]},\n" for op in ops)
        (folder / "gemm.csv").write_text("Layer, M, N, K,\n" + rows)
        (folder / "array.cfg").write_text(CONFIG.format(side=side))
        command = [python.absolute(), "-m", "scalesim.scale", "-t", "gemm.csv", "-l", "gemm.csv", "-c", "array.cfg"]
        before = time.perf_counter()
        subprocess.run([*map(str, command), "-p", "out", "-i", "gemm", "-s", "N"], cwd=folder, check=True, capture_output=True)
        seconds = time.perf_counter() - before
        with open(folder / "out" / "run" / "COMPUTE_REPORT.csv") as file:
            report = [[cell.strip() for cell in row] for row in csv.reader(file)]
    column = report[0].index("Total Cycles")
    return [int(float(row[column])) for row in report[1:]], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="the Python that has scalesim")
    parser.add_argument("--most-cycles", type=float, default=1e6, help="SCALE-Sim runs no product of more (100 s a million)")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--sides", nargs="*", type=int, default=list(SIDES))
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name}, else print it")
    args = parser.parse_args()
    lines, summary = [], []
    for side in args.sides:
        device = array_device(side)
        for model in args.networks:
            ops = products(model)
            before = time.perf_counter()
            ours = [round(c.compute_s * 1e9) for c in cost.predict(ops, device)]
            own_s = time.perf_counter() - before
            run = [op for op, cycles in zip(ops, ours, strict=True) if cycles <= args.most_cycles]
            theirs, seconds = scalesim(args.python, side, run)
            found = dict(zip((op.shape for op in run), theirs, strict=True))
            for op, cycles in zip(ops, ours, strict=True):
                m, k, n = op.shape
                other = found.get(op.shape)
                shown = ("not run", "") if other is None else (f"{other:,}", f"{100 * (cycles / other - 1):+.3f}")
                padded = cost.systolic_folds(k, n, side, side) * m
                tile = "" if other is None else f"{100 * (padded / other - 1):+.0f}"
                cells = (f"{model} {op.layer}", f"{side} x {side}", f"{m} x {k} x {n}", f"{cycles:,}", *shown, tile)
                lines.append(f"| {' | '.join(cells)} |")
            common = [(c, found[op.shape]) for op, c in zip(ops, ours, strict=True) if op.shape in found]
            ratio = sum(c for c, _ in common) / sum(t for _, t in common)
            counts = f"{len(common)} of {len(ops)}"
            summary.append(f"| {model} | {side} x {side} | {counts} | {ratio:.5f} | {own_s * 1e3:.1f} | {seconds:.1f} |")
    text = TEXT.format(most=args.most_cycles, summary="\n".join(summary), lines="\n".join(lines))
    if args.write:
        PAGE.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
