"""Clocks of octosim's Arm inner loops, of products and of elements, as llvm-mca schedules them, beside measured peaks.

    python tools/mca_arm.py [--mca llvm-mca-19] [--peaks cpufp_peak_measured.csv] [--write]

The loops are those that gcc makes of cext/arm_neon.c, cext/arm_dotprod.c and cext/ref.c; llvm-mca repeats each, all loads
hitting the L1 cache.  Needs aarch64-linux-gnu-gcc and llvm-mca (Debian: gcc-aarch64-linux-gnu, llvm-19).
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "arm-kernels.md"
PRODUCTS = {"smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8, "sdot": 16, "smmla": 32}
"""Products of bytes that one instruction computes, on full 128-bit registers."""

FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-S", "-o", "-")
CORES = {
    # core: llvm's name, whose scheduling model that is, file and setting of the measured peaks, GHz at which they were taken
    "Cortex-A53": ("cortex-a53", "its own", "RockChip_RK3399.md", "single Little core", 1.416),
    "Cortex-A72": ("cortex-a72", "Cortex-A57's", "Broadcom_BCM2711.md", "single core", 1.5),
    "Cortex-A76": ("neoverse-n1", "Neoverse N1's", "Broadcom_BCM2712.md", "single core", 2.4),
}
MEASURED = {"dp4a.vs(s32,s8,s8)": "SDOT", "fmla.vs(f32,f32,f32)": "FMLA float32"}
LOOPS = {"NEON": "arm_neon.c", "NEON, codes of -128 on both sides": "arm_neon.c", "dot product": "arm_dotprod.c"}
SLOW = "NEON, codes of -128 on both sides"
HAS_SDOT = {"Cortex-A76"}
ELEMENTWISE = {
    "quantize": "quantize_s8", "requantize": "requantize_s32", "batch normalization, sums": "column_moments_f32",
    "batch normalization, output": "affine_f32", "its backward pass, sums": "column_dots_f32",
    "its backward pass, dX": "batchnorm_grad_f32", "ReLU": "relu_f32", "SGD with momentum": "sgd_f32",
}  # fmt: skip
"""Loop -> kernel of kernels.def."""


def assembly(source: str, compiler: str) -> str:
    """What the compiler makes of a file of cext/."""
    command = [compiler, *FLAGS, f"-I{ROOT / 'cext'}", str(ROOT / "cext" / source)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def loops(text: str) -> list[list[str]]:
    """The bodies of innermost loops: from a label to the first branch back to it, no other label between."""
    found: list[list[str]] = []
    label, body = "", [""]
    for line in text.splitlines():
        line = line.split("//")[0].strip()
        named = re.match(r"(\.?\w+):", line)
        if named:
            label, body = named[1], []
        elif line and not line.startswith("."):
            body.append(line)
            jump = re.match(r"(?:b\.?\w\w|cbn?z|tbn?z)\s+(?:.*,\s*)?(\.?\w+)$", line)
            if jump and jump[1] == label:
                found.append(body)
                body = []
    return found


def products(body: list[str]) -> int:
    """Multiply-accumulates of one turn of a loop."""
    return sum(PRODUCTS.get(line.split()[0], 0) for line in body)


def inner(text: str, slow: bool = False) -> list[str]:
    """The loop with the most products; `slow`: of those without SMLAL, which follow codes of -128."""
    fitting = [body for body in loops(text) if slow != any(line.startswith(("smlal", "sdot")) for line in body)]
    return max(fitting, key=products)


def elementwise(text: str, kernel: str) -> tuple[list[str], int]:
    """The shortest vectorized loop of a kernel of ref.c, and the elements of 4 bytes that a turn of it goes on by."""
    start = text.index(f"\n{kernel}_ref:")
    found = []
    for body in loops(text[start : text.index(f".size\t{kernel}_ref", start)]):
        vector = any(re.search(r"\bv\d+\.4s", line) and not re.match(r"ld|st|mov", line) for line in body)
        steps = [int(m[1]) for line in body if (m := re.match(r"add\s+(?:x\d+), (?:x\d+), (\d+)$", line))]
        if vector and steps:
            found.append((body, max(steps) // 4))
    return min(found, key=lambda each: len(each[0]) / each[1])


def clocks(body: list[str], core: str, mca: str, turns: int = 1000) -> float:
    """llvm-mca's clocks for one turn."""
    command = [mca, "-mtriple=aarch64-linux-gnu", f"-mcpu={core}", "-mattr=+dotprod", f"-iterations={turns}"]
    text = subprocess.run(command, input="\n".join(body), capture_output=True, text=True, check=True).stdout
    return float(re.search(r"Total Cycles:\s+(\d+)", text)[1]) / turns  # type: ignore[index]


def measured(path: Path) -> dict[str, str]:
    """Core -> measured MACs a clock of one core's instructions, of a table of cpufp's results."""
    with open(path) as file:
        rows = list(csv.DictReader(file))
    found = {}
    for core, (_, _, where, setting, ghz) in CORES.items():
        own = [r for r in rows if r["source"].endswith(where) and r["cores"] == setting and r["instruction"] in MEASURED]
        found[core] = ", ".join(f"{MEASURED[r['instruction']]} {float(r['gmac_per_s']) / ghz:.1f}" for r in own)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mca", default="llvm-mca-19")
    parser.add_argument("--compiler", default="aarch64-linux-gnu-gcc")
    parser.add_argument("--peaks", type=Path, help="measured peaks: a CSV of cpufp's results")
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name}, else print it")
    args = parser.parse_args()
    peaks = measured(args.peaks) if args.peaks else {}
    rows = []
    for core, (name, model, *_) in CORES.items():
        for loop, source in LOOPS.items():
            if loop == "dot product" and core not in HAS_SDOT:
                continue
            body = inner(assembly(source, args.compiler), loop == SLOW)
            macs, time = products(body), clocks(body, name, args.mca)
            cells = (core, model, loop, f"{len(body)}", f"{macs}", f"{time:.1f}", f"{macs / time:.1f}", peaks.get(core, ""))
            rows.append(f"| {' | '.join(cells)} |")
    elements, source_text = [], assembly("ref.c", args.compiler)
    for loop, kernel in ELEMENTWISE.items():
        body, count = elementwise(source_text, kernel)
        times = [clocks(body, name, args.mca) / count for name, *_ in CORES.values()]
        cells = (loop, f"`{kernel}`", f"{len(body) / count:.2f}", *(f"{time:.2f}" for time in times))
        elements.append(f"| {' | '.join(cells)} |")
    versions = [subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout for tool in
                (args.mca, args.compiler)]  # fmt: skip
    llvm = re.search(r"LLVM version ([\d.]+)", versions[0])
    text = TEXT.format(
        rows="\n".join(rows), elements="\n".join(elements), cores=" | ".join(CORES), llvm=llvm[1] if llvm else "?",
        gcc=versions[1].splitlines()[0].split()[-1],
    )  # fmt: skip
    if args.write:
        PAGE.write_text(text)
    else:
        print(text)


TEXT = """# Inner loops of the Arm kernels

Multiply-accumulates a clock and core of octosim's int8 inner loops, as llvm-mca {llvm} schedules what gcc {gcc} makes of
`cext/arm_neon.c` and `cext/arm_dotprod.c`, all loads hitting the L1 cache. Made by

    python tools/mca_arm.py --peaks cpufp_peak_measured.csv --write

This is a model of the core (LLVM's scheduling model; the Neoverse N1 is the server version of the Cortex-A76), not a
measurement. Beside it stand single instructions from registers as pigirons/cpufp@93e165e measured them (Pi 4, Pi 5, the A53 of
an RK3399 at 1.416 GHz): a loop cannot be faster than its instruction.

| core | model | loop | instructions | MACs a turn | clocks a turn | MACs a clock | measured, MACs a clock |
|---|---|---|---|---|---|---|---|
{rows}

- Cortex-A76: the dot product's loop runs at the measured peak of SDOT.
- Cortex-A72: 8 MACs a clock, the figure that the Pi 4's profile derives from the optimization guide; nobody measured it.
- Cortex-A53: less than the 5.3 that the profiles of the Pi 3B+ and Zero 2 W estimate from one 128-bit operation a clock. They
  keep their figure, with which the shipped factors were fitted to measured networks.
- dW is the product's loop: NEON has no kernel of its own for it, its windows are gathered first.

## Elementwise loops

Instructions and clocks an element (four bytes of float32 or int32) and core, of the shortest vectorized loop that gcc makes
of each kernel of `cext/ref.c`, which is what Arm runs; the same model, all loads hitting the L1 cache. Max pooling is
missing: its windows are a loop of loops, which llvm-mca cannot repeat.

| loop | kernel | instructions | {cores} |
|---|---|---|---|---|---|
{elements}

From memory such a pass takes what its bytes take. A Raspberry Pi 4 sustains 5 GB/s, with one thread too: 0.3 clocks a byte at
1.5 GHz. With one thread quantize (5 bytes an element), requantize (5) and the sums of batch normalization (4 and 8) are bound
by the core, the others by memory. With four threads each core has four times the clocks for a byte, and memory binds them
all. The cost model prices these passes by their bytes, products by the profiles' rates, whose sources name these loops.
"""


if __name__ == "__main__":
    main()
