"""Which kernels are vectorized, by instruction set: read from the disassembly of the built core, or of an object file.

    python tools/vector_report.py                          of the extension in this environment
    python tools/vector_report.py --objdump aarch64-linux-gnu-objdump build/ref.o build/arm_neon.o

A kernel is "vector" where an innermost loop of it, or of a function of the same instruction set that it calls, computes in
registers of the set's width; "scalar" where none does; EXEMPT ones say why they need none.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

REGISTERS = {
    "avx2": r"%ymm",
    "avxvnni": r"%ymm",
    "avx512vl": r"%ymm",
    "avx512bw": r"%[yz]mm",  # float32 products keep to 256 bits, on purpose (VECTOR_BYTES)
    "avx512vnni": r"%zmm",
    "amx": r"%[tz]mm",
    "ref": r"\bv\d+\.(16b|8b|8h|4h|4s|2s|2d)",  # on Arm the loops of ref are NEON's
    "neon": r"\bv\d+\.(16b|8b|8h|4h|4s|2s|2d)",
    "dotprod": r"\bv\d+\.(16b|4b|4s)",
    "i8mm": r"\bv\d+\.(16b|4s)",
}
"""Suffix of a kernel's name -> how its vector registers are written."""

HALVES = {("gemm_f32", "avx512vnni"), ("weight_grad_f32", "avx512vnni")}
"""Kernels of a set with 512 bits that have 256, on purpose: they are used where a core executes 512 as two halves."""

EXEMPT = {
    "gather_rows": "moves memory: memcpy",
    "gather_view": "moves memory: memcpy",
    "transpose_s8": "16 x 16 bytes in 128-bit registers, unrolled",
    "window_max_backward_f32": "scatters to the places of maxima",
    "magnitude_sum_f32": "one sum in double, in order, by its definition",
    "signed_sum_f32": "one sum in double, in order, by its definition",
    "side_sums_f32": "one sum in double, in order, by its definition",
    "level_sums_f32": "one sum in double, in order, by its definition",
    "forward_parts_f32": "octo-reference's, in double: scalar as yet",
    "softmax_s8": "64-bit shifts, products and a division",
}
"""Kernel -> why no loop of it need compute in vectors."""

ARM = {"weight_grad_s8"}
"""Kernels of ref that no table of Arm has: arm_neon.c leaves them out."""

TILES = {"gemm_s8": "tile_", "weight_grad_s8": "tile_", "gemm_f32": "rows_", "weight_grad_f32": "turned_"}
"""Kernel -> what the names of its tiles begin with: one of them must be vectorized."""

Instruction = tuple[int, str, str]  # address, name, operands


def kernels() -> list[str]:
    """The names of kernels.def."""
    return re.findall(r"^KERNEL\((\w+),", (ROOT / "cext" / "kernels.def").read_text(), re.MULTILINE)


def functions(objects: list[Path], objdump: str = "objdump") -> dict[str, list[Instruction]]:
    """Name -> instructions of every function."""
    found: dict[str, list[Instruction]] = {}
    for path in objects:
        done = subprocess.run([objdump, "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True, check=True)
        name = ""
        for line in done.stdout.splitlines():
            if head := re.match(r"[0-9a-f]+ <([^>]+)>:", line):
                name = head[1].split(".")[0]  # parts that a compiler split off count as the function's
                found.setdefault(name, [])
            elif name and (body := re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)", line)):
                found[name].append((int(body[1], 16), body[2], body[3]))
    return found


def innermost_loops(code: list[Instruction]) -> Iterator[list[Instruction]]:
    """What lies between a jump backwards and its target, where no other such span lies within."""
    places = {address for address, _, _ in code}
    spans = set()
    for address, name, operands in code:
        if re.match(r"j|b\.|b$|cbn?z|tbn?z", name) and (target := re.search(r"\b([0-9a-f]+) <", operands)):
            start = int(target[1], 16)
            if start <= address and start in places:
                spans.add((start, address))
    for start, end in spans:
        if not any((a, b) != (start, end) and start <= a and b <= end for a, b in spans):
            yield [one for one in code if start <= one[0] <= end]


def is_vectorized(code: list[Instruction], registers: str) -> bool:
    """Whether an innermost loop computes in the registers; a move alone computes nothing."""
    return any(
        re.search(registers, operands) and not re.match(r"v?mov|ld|st", name)
        for loop in innermost_loops(code) for _, name, operands in loop
    )


def reached(code: dict[str, list[Instruction]], start: str, isa: str) -> set[str]:
    """The function and all of its instruction set that it calls, and those call."""
    names, left = {start}, [start]
    while left:
        for _, name, operands in code.get(left.pop(), []):
            if not re.match(r"call|bl$|b$|jmp", name) or not (called := re.search(rf"<(\w+_{isa})\b", operands)):
                continue
            if called[1] not in names:
                names.add(called[1])
                left.append(called[1])
    return names


def report(objects: list[Path], objdump: str = "objdump") -> dict[str, dict[str, str]]:
    """Kernel -> {instruction set: "vector", "scalar" or the reason of EXEMPT}, for those that a set has of its own."""
    code = functions(objects, objdump)
    found: dict[str, dict[str, str]] = {}
    arm = "gemm_s8_neon" in code  # elsewhere ref is what it says
    for kernel in kernels():
        for isa, registers in REGISTERS.items():
            if f"{kernel}_{isa}" not in code or isa == "ref" and (not arm or kernel in ARM or f"{kernel}_neon" in code):
                continue
            names = reached(code, f"{kernel}_{isa}", isa)
            tiles = TILES.get(kernel)
            if tiles:
                names |= {name for name in code if name.startswith(tiles) and name.endswith(f"_{isa}")}
            written = r"%ymm" if (kernel, isa) in HALVES else registers
            vector = any(is_vectorized(code[name], written) for name in names if name in code)
            found.setdefault(kernel, {})[isa] = "vector" if vector else EXEMPT.get(kernel, "scalar")
    return found


def built() -> Path:
    """The extension of this environment."""
    from octosim import _core

    return Path(str(_core.__file__))


def main() -> int:
    """Prints the table; 1 where a kernel is scalar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("objects", nargs="*", type=Path, help="object files or a library; by default the built extension")
    parser.add_argument("--objdump", default="objdump")
    arguments = parser.parse_args()
    found = report(arguments.objects or [built()], arguments.objdump)
    isas = [isa for isa in REGISTERS if any(isa in row for row in found.values())]
    width = max(map(len, found))
    print("kernel".ljust(width), *(isa.ljust(10) for isa in isas))
    for kernel, row in found.items():
        words = [row.get(isa, "-") for isa in isas]
        print(kernel.ljust(width), *((word if word in ("vector", "scalar", "-") else "exempt").ljust(10) for word in words))
    for kernel, why in EXEMPT.items():
        if why in found.get(kernel, {}).values():
            print(f"exempt: {kernel}: {why}")
    return int(any("scalar" in row.values() for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
