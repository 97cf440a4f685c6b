"""Clocks of the core's functions on Arm cores that are not here, as llvm-mca schedules what they execute.

    python tools/schedule.py --peaks cpufp_peak_measured.csv --write
    python tools/schedule.py --here znver3

Each function of FUNCTIONS is called by tools/schedule.c, compiled like the core, in qemu as the processor, which lists every
instruction that it executes.  llvm-mca takes that list as one straight line, all loads hitting the L1 cache and no branch
mispredicted.  Of two sizes the difference is taken: clocks an element, without what a call costs.
--write makes docs/arm-kernels.md and the loops of hwprofiles/runtimes/octosim.toml.  --here: the same for this x86 processor,
whose model llvm-mca knows by that name, beside the time that it really takes.

Needs llvm-mca, qemu and a cross compiler with its C library (Debian: llvm-19 qemu-user gcc-aarch64-linux-gnu
libc6-dev-arm64-cross).
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tomli_w

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "arm-kernels.md"
RUNTIME = ROOT / "hwprofiles" / "runtimes" / "octosim.toml"
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-static", "-w")
TURNS = 5000  # of a function that is timed


@dataclass(frozen=True)
class Core:
    """llvm: its name there, whose scheduling model that is; peaks: file, setting and GHz of its measured peaks."""

    llvm: str
    model: str
    peaks: tuple[str, str, float]


CORES = {
    "Cortex-A53": Core("cortex-a53", "its own", ("RockChip_RK3399.md", "single Little core", 1.416)),
    "Cortex-A72": Core("cortex-a72", "Cortex-A57's", ("Broadcom_BCM2711.md", "single core", 1.5)),
    "Cortex-A76": Core("neoverse-n1", "Neoverse N1's", ("Broadcom_BCM2712.md", "single core", 2.4)),
}
MEASURED = {"dp4a.vs(s32,s8,s8)": "SDOT", "fmla.vs(f32,f32,f32)": "FMLA float32"}

COLS, SIDE, CHANNELS, DEPTH = 64, 8, 16, 128  # of tools/schedule.c
FILTER = SIDE * SIDE * 9
PRODUCTS = {
    # function of octosim.h: what it is, multiply-accumulates of a size of 1
    "octo_gemm_s8": ("linear layer, 128 to 64", 16 * COLS * DEPTH),
    "octo_conv_forward_s8": ("convolution 3x3, 16 to 16", FILTER * CHANNELS**2),
    "octo_conv_input_grad_s8": ("its dX", FILTER * CHANNELS**2),
    "octo_conv_weight_grad_s8": ("its dW", FILTER * CHANNELS**2),
    "octo_depthwise_forward_s8": ("depthwise convolution 3x3", FILTER * COLS),
    "octo_depthwise_input_grad_s8": ("its dX", FILTER * COLS),
    "octo_depthwise_weight_grad_s8": ("its dW", FILTER * COLS),
}
ELEMENTWISE = {
    # function of octosim.h: what it is
    "octo_images_f32": "bytes of images to float32",
    "octo_range_f32": "smallest and largest value",
    "octo_quantize_s8": "quantize, ties to even",
    "octo_requantize_s32": "requantize as gemmlowp does",
    "octo_dequantize_s32": "dequantize",
    "octo_column_sums_s8": "sums of columns",
    "octo_row_sums_s8": "sums of rows",
    "octo_batchnorm_forward": "batch normalization and ReLU of int32 sums, with codes, mask and range",
    "octo_batchnorm_backward": "its dX, with range",
    "octo_batchnorm_maxpool_forward": "batch normalization, ReLU and max pooling 2x2 of int32 sums, with codes and range",
    "octo_batchnorm_maxpool_backward": "its dX, with range",
    "octo_maxpool_f32": "max pooling 2x2, for each element of its input",
    "octo_maxpool_backward_f32": "its dX",
    "octo_relu_f32": "ReLU, with mask and range",
    "octo_relu_backward": "its dX",
    "octo_add": "residual add and ReLU, with mask and range",
    "octo_sgd_f32": "SGD with momentum and weight decay, of int32 sums, with range",
    "octo_adam_f32": "Adam, of int32 sums, with range",
}
FUNCTIONS = PRODUCTS | {name: (what, COLS) for name, what in ELEMENTWISE.items()}


def run(*command: str | Path, text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def build(compiler: str, folder: Path) -> Path:
    """The program that calls one function."""
    sources = [path for path in sorted((ROOT / "cext").glob("*.c")) if path.name != "checkasm.c"]
    program = folder / f"{compiler}-schedule"
    run(compiler, *FLAGS, f"-I{ROOT / 'cext'}", ROOT / "tools" / "schedule.c", *sources, "-o", program, "-lm", "-lpthread")
    return program


Code = tuple[dict[int, str], dict[str, int]]


def listing(disassembly: str) -> Code:
    """(instruction by address, address by symbol) of what objdump prints; where a branch goes is left out."""
    instructions, symbols = {}, {}
    for line in disassembly.splitlines():
        if symbol := re.match(r"([0-9a-f]+) <([^>]+)>:$", line):
            symbols[symbol[2]] = int(symbol[1], 16)
        elif found := re.match(r"\s+([0-9a-f]+):\t(.*)", line):
            text = re.sub(r"\s*(?://.*|#\s.*|<[^>]*>)", "", found[2]).strip()
            text = re.sub(r"^(bl?|b\.\w+|cbn?z|tbn?z|adrp?)(\s+.*?)\b(?:0x)?[0-9a-f]+$", r"\1\2#0", text)
            text = re.sub(r"^(?:bnd |notrack )?(j\w+|call)q?\s+(?:[0-9a-f]+|\*%cs:.*)$", r"\1 0", text)
            instructions[int(found[1], 16)] = "nop" if re.match(r"nop|data16|cs ", text) else text
    return instructions, symbols


def executed(emulator: tuple[str | Path, ...], function: str, size: int, code: Code) -> list[str]:
    """The instructions between the two marks.  emulator: command and program; code: its listing."""
    (instructions, symbols), (qemu, *rest) = code, emulator
    begin, end = symbols["begin_marked"], symbols["end_marked"]
    with tempfile.NamedTemporaryFile("r") as log:
        run(qemu, "-singlestep", "-d", "exec,nochain", "-D", log.name, *rest, function, str(size))
        found: list[str] = []
        inside = False
        for line in log:
            at = int(line.split("/", 2)[1], 16)
            if at == end:
                break
            if inside:
                found.append(instructions[at])
            inside = inside or at == begin
    return found


def clocks(lines: list[str], mca: str, triple: str, core: str) -> float:
    """llvm-mca's clocks for instructions that are executed once."""
    flags = ["-iterations=1", "-instruction-info=0", "-resource-pressure=0"]
    if "aarch64" in triple:
        flags.append("-mattr=+dotprod")
    text = run(mca, f"-mtriple={triple}", f"-mcpu={core}", *flags, text="\n".join(lines))
    return float(re.search(r"Total Cycles:\s+(\d+)", text)[1])  # type: ignore[index]


def sizes_of(function: str) -> tuple[int, int]:
    return (1, 2) if function in PRODUCTS else (64, 128)


def each(function: str, values: list[float]) -> float:
    """An element's or a multiply-accumulate's part of what two sizes take."""
    small, large = sizes_of(function)
    return (values[1] - values[0]) / ((large - small) * FUNCTIONS[function][1])


def measured(path: Path) -> dict[str, str]:
    """Core -> measured MACs a clock of one core's instructions, of a table of cpufp's results."""
    with open(path) as file:
        rows = list(csv.DictReader(file))
    found = {}
    for core, (where, setting, ghz) in ((name, core.peaks) for name, core in CORES.items()):
        own = [r for r in rows if r["source"].endswith(where) and r["cores"] == setting and r["instruction"] in MEASURED]
        found[core] = ", ".join(f"{MEASURED[r['instruction']]} {float(r['gmac_per_s']) / ghz:.1f}" for r in own)
    return found


def on_arm(compiler: str, mca: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Function -> core -> (instructions, clocks) of an element or a multiply-accumulate."""
    found: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in FUNCTIONS}
    with tempfile.TemporaryDirectory() as folder:
        program = build(compiler, Path(folder))
        code = listing(run(compiler.removesuffix("gcc") + "objdump", "-d", "--no-show-raw-insn", program))
        for function in FUNCTIONS:
            for name, core in CORES.items():
                emulator = ("qemu-aarch64", "-cpu", name.lower(), program)
                runs = [executed(emulator, function, size, code) for size in sizes_of(function)]
                times = [clocks(lines, mca, "aarch64-linux-gnu", core.llvm) for lines in runs]
                found[function][name] = each(function, [len(lines) for lines in runs]), each(function, times)
                print(function, name, found[function][name], flush=True)
    return found


def here(model: str, mca: str) -> None:
    """Prints the rows of a table of this processor's functions: scheduled by a model, and measured, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        program = build("gcc", Path(folder))
        taken = {}
        for function in FUNCTIONS:  # together, so that the machine need not be quiet for long
            timed = [run(program, function, str(size), str(TURNS)).split() for size in sizes_of(function)]
            taken[function] = each(function, [float(seconds) * float(ghz) * 1e9 for seconds, ghz in timed])
        code = listing(run("objdump", "-d", "--no-show-raw-insn", program))
        for function in FUNCTIONS:
            runs = [executed(("qemu-x86_64", "-cpu", "max", program), function, size, code) for size in sizes_of(function)]
            count = each(function, [len(lines) for lines in runs])
            scheduled = each(function, [clocks(lines, mca, "x86_64", model) for lines in runs])
            ratio = scheduled / taken[function]
            print(f"| `{function}` | {count:.2f} | {scheduled:.3f} | {taken[function]:.3f} | {ratio:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mca", default="llvm-mca-19")
    parser.add_argument("--compiler", default="aarch64-linux-gnu-gcc")
    parser.add_argument("--peaks", type=Path, help="measured peaks: a CSV of cpufp's results")
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name} and {RUNTIME.name}, else print the page")
    parser.add_argument("--here", metavar="MODEL", help="this x86 processor in place of Arm's, by llvm-mca's name of its model")
    args = parser.parse_args()
    if args.here:
        here(args.here, args.mca)
        return
    peaks = measured(args.peaks) if args.peaks else dict.fromkeys(CORES, "")
    found = on_arm(args.compiler, args.mca)
    llvm = re.search(r"LLVM version ([\d.]+)", run(args.mca, "--version"))[1]  # type: ignore[index]
    gcc = run(args.compiler, "-dumpfullversion").strip()
    text = page(found, peaks, llvm, gcc)
    if not args.write:
        print(text)
        return
    PAGE.write_text(text)
    kept = RUNTIME.read_text().split("\n[[loops]]")[0].rstrip("\n")
    tables = [
        {
            "core": name,
            "kind": "estimate",
            "source": f"tools/schedule.py (docs/arm-kernels.md): llvm-mca {llvm}, {core.model} scheduling model, gcc {gcc}",
            "clocks": {function: float(f"{found[function][name][1]:.3g}") for function in ELEMENTWISE},
        }
        for name, core in CORES.items()
    ]
    RUNTIME.write_text(kept + "\n\n" + tomli_w.dumps({"loops": tables}))


def page(found: dict[str, dict[str, tuple[float, float]]], peaks: dict[str, str], llvm: str, gcc: str) -> str:
    """docs/arm-kernels.md; what stands behind HERE in it stays."""
    products = [
        f"| {what} | `{function}` | {' | '.join(f'{1 / clocks:.1f}' for _, clocks in found[function].values())} |"
        for function, (what, _) in PRODUCTS.items()
    ]
    loops = [
        f"| {what} | `{function}` | {found[function]['Cortex-A72'][0]:.1f} | "
        f"{' | '.join(f'{clocks:.1f}' for _, clocks in found[function].values())} |"
        for function, what in ELEMENTWISE.items()
    ]
    models = ", ".join(f"{name}: {core.model}" for name, core in CORES.items())
    made = TEXT.format(
        products="\n".join(products), loops="\n".join(loops), cores=" | ".join(CORES), line="---|" * len(CORES), llvm=llvm,
        gcc=gcc, peaks=" | ".join(peaks.values()), models=models,
    )  # fmt: skip
    return made + HERE + PAGE.read_text().split(HERE, 1)[-1]


HERE = "## The same on a processor that is here\n"

TEXT = """# Clocks of the kernels on Arm

What octosim's functions take on cores of which none is here: llvm-mca {llvm} schedules what they execute, compiled by gcc
{gcc}, all loads hitting the L1 cache and no branch mispredicted. Made by

    python tools/schedule.py --peaks cpufp_peak_measured.csv --write

which runs each function in qemu as that processor, takes down every instruction, and gives llvm-mca those of two sizes, whose
difference is taken: no loop is picked by hand, and what a call costs is not in it. This is a model of the core and no
measurement; the [last section](#the-same-on-a-processor-that-is-here) says how far it is from the clock on a processor where
both can be had. Scheduling models: {models}; the Neoverse N1 is the server version of the Cortex-A76. That of the A53 gives
each NEON operation six clocks of latency, and most passes are chains of them that an in-order core waits for: its figures are
likely long.

## Products

Multiply-accumulates a clock and core, with packing and all; images of 8 x 8 pixels, no code of -128. The last row are single
instructions from registers as pigirons/cpufp@93e165e measured them (A53 of an RK3399 at 1.416 GHz, Pi 4, Pi 5).

| product | function | {cores} |
|---|---|{line}
{products}
| measured peaks | | {peaks} |

The A53 and the A72 take SMULL, SMLAL2 and SADALP, the A76 SDOT. The profile of the Pi 4 derives 8 MACs a clock from the
optimization guide, those of the Pi 3B+ and Zero 2 W 5.3 from one 128-bit operation a clock. Nobody measured them; they stay,
since the shipped factors were fitted to measured networks with them.

## Passes over memory

Clocks an element (four bytes of float32 or int32, one of codes) and core; instructions are those of the Cortex-A72.

| pass | function | instructions | {cores} |
|---|---|---|{line}
{loops}

The cost model takes these clocks where the runtime is `octosim` and the core one of the three, and says so in its notes
(`loops` in hwprofiles/runtimes/octosim.toml, which the same command writes). What comes from memory takes what its bytes take,
if that is longer.

There is no instruction set for SVE: with 128 bits it computes no more at a time than NEON does, a Neoverse V1 has two pipes of
256 bits for it and four of 128 for NEON, and none of the profiles' devices has it.

"""


if __name__ == "__main__":
    main()
