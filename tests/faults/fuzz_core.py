"""Calls every public function of octosim.core with random arguments: nothing but a result or a CoreError may come back.

    python tests/faults/fuzz_core.py [--seed N] [--calls N] [--first I] [--only I]

Arrays have random types, strides and sizes (zero among them), are read-only or overlap; numbers are negative, huge, NaN.  What
a refusal asks for is given, so that calls get through.  Call I of a seed is the same in every run; a crash leaves its thousand
in the last line.  --sanitize builds the core with the address and the undefined-behaviour sanitizer first.
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

os.environ.setdefault("OMP_STACKSIZE", "256k")  # a call may ask for hundreds of threads within the limit of memory
from octosim import core  # noqa: E402
from octosim.errors import OctosimError  # noqa: E402
from octosim.numerics import ACCUMULATORS, MuLaw, Requantization, Rounding  # noqa: E402

LEFT_OUT = {"at", "python", "unrecorded", "float_environment", "here", "set_isa"}  # no calls, or of another kind
FUNCTIONS = {name: f for name in core.__all__ if isinstance(f := getattr(core, name), FunctionType) and name not in LEFT_OUT}
DTYPES = [np.float32, np.int8, np.int32, np.uint8, np.uint32, np.float64, np.int64, np.bool_]
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 64, 65, 100]
LARGEST = 1 << 17
"""Elements of an array that is not asked for by a refusal: a call takes microseconds."""
MEMORY = np.random.default_rng(0).integers(0, 256, 8 * LARGEST + 64, np.uint8)  # the largest of 8 bytes each, from any start
NAMES = list(FUNCTIONS)
SIGNATURES = {
    name: [(p.name, str(p.annotation), p.default is p.empty) for p in inspect.signature(function).parameters.values()]
    for name, function in FUNCTIONS.items()
}


def _values() -> dict[tuple[np.dtype[Any], int], Any]:
    """Random values by type and size, each twice as many as an array may have."""
    normal = np.random.default_rng(1).normal(size=2 * LARGEST)
    with np.errstate(all="ignore"):
        return {(np.dtype(t), k): (normal * size).astype(t) for t in DTYPES for k, size in enumerate((1, 50, 1e30))}


VALUES = _values()
WHOLE = [0, 1, 2, 3, 7, 31, 127, 128, 255, -1, -2, -128, 2**20, 2**31 - 1, 2**31, 2**32, -(2**31), 2**40, 2**63, -(2**70)]
REAL = [0.0, -0.0, 1.0, 0.5, -1.0, 1e-45, 1e-38, 3e38, 1e300, float("inf"), float("nan"), -0.001, 2.0**-20]
SECONDS = {"peak": [0, 1, 5, -1, 2**41, 2**70]}
"""Of a function whose time an argument sets: what its whole numbers may be."""
USUAL = {
    "rate": [0.5, 0.25], "bits": [8, 4, 2], "doublings": [1, 2], "limit": [127, 7], "steps": [2, 4, 15], "bound": [1.0, 3.0],
    "eps": [1e-5], "b1": [0.9], "b2": [0.999], "c1": [0.1], "c2": [0.01], "lr": [0.1], "momentum": [0.9], "decay": [0.0, 1e-4],
    "multiplier": [1 << 30, 3], "shift": [0, 3, 31], "exponent": [0, 1, -3], "mu": [255], "chunks": [1, 3], "factor": [0.5],
    "height": [1, 3, 4], "width": [1, 2, 5], "kind": ["clip", "leaky", "sigmoid", "gelu", "gelu-tanh", "hard-swish", "no"],
}  # fmt: skip
"""By the name of an argument: what many functions take."""


ASKS = [
    r"(?P<name>[\w']+(?: scales)?) must be a (?P<dtype>\w+\d) array",
    r"(?P<name>[\w']+(?: scales)?) must have shape \((?P<shape>[\d, ]*)\)",
    r"(?P<name>\w+) must (?:be a|be) (?P<dimensions>\d)-D(?: array of (?P<dtype>\w+\d))?",
    r"(?P<name>\w+) (?:must be C-contiguous|must be aligned|is read-only)",
    r"(?P<name>\w+)(?P<empty>: bias is empty| is empty| must have a last axis)",
    r"(?P<name>\w): (?:sums need)",
]
"""How a refusal says which argument it wants otherwise, and how."""


class Draw:
    """Random arguments of a call."""

    def __init__(self, seed: int, number: int) -> None:
        self.r = random.Random(f"{seed} {number}")
        self.shapes = [tuple(self.r.choice(SIZES) for _ in range(self.r.choice([1, 2, 2, 4]))) for _ in range(2)]
        if self.r.random() < 0.4:  # of one size and type: many functions take such
            self.shapes = [(self.r.choice(SIZES),) * self.r.choice([2, 2, 4])]
        self.dtype = self.r.choice(DTYPES[:4])
        self.conv: core.Conv | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        if self.conv and self.r.random() < 0.8:
            known = {"x": self.conv.x_shape, "w": self.conv.w_shape, "dy": self.conv.y_shape, "out": self.conv.y_shape}
            if name in known and all(0 < n < 1000 for n in known[name]):
                return known[name]
        if name in ("labels", "bias") and self.r.random() < 0.8:
            return self.shapes[0][:1]
        shape = self.r.choice(self.shapes)
        if self.r.random() < 0.3:
            shape = shape[-1:]  # a row of it
        return shape if self.r.random() < 0.95 else tuple(self.r.choice(SIZES) for _ in range(self.r.randrange(5)))

    def array(self, name: str) -> Any:
        if self.r.random() < 0.01:
            return self.r.choice([None, 3, "x", [1.0, 2.0], np.float32(1)])
        dtype = np.dtype(self.dtype if self.r.random() < 0.6 else self.r.choice(DTYPES))
        shape, kind = self.shape(name), self.r.random()
        return self.filled(dtype, shape, kind)

    def filled(self, dtype: np.dtype[Any], shape: tuple[int, ...], kind: float) -> Any:
        """kind: in [0, 1), decides whether it overlaps others, its strides, and whether it is read-only."""
        count = math.prod(shape)
        if not 0 <= count <= LARGEST or not all(0 <= n < 1 << 31 for n in shape):
            shape, count = (3, 5), 15
        if kind < 0.1:  # beside other operands of the call, or over them
            start = self.r.randrange(64)
            return MEMORY[start : start + count * dtype.itemsize].view(dtype).reshape(shape)
        start = int(self.r.random() * LARGEST)
        array = VALUES[dtype, int(self.r.random() * 3)][start : start + count].reshape(shape).copy()
        if kind < 0.15:
            array = np.asfortranarray(array)
        elif kind < 0.2 and array.ndim:
            array = np.repeat(array, 2, -1)[..., ::2]
        elif kind < 0.25 and array.ndim:
            array.flags.writeable = False
        return array

    def number(self, kind: str, name: str, function: str) -> Any:
        if kind == "bool":
            return self.r.random() < 0.5
        if name in USUAL and self.r.random() < 0.7:
            return self.r.choice(USUAL[name])
        whole = kind in ("int", "Whole")
        if whole:
            some = SECONDS.get(function, WHOLE)
            return self.r.choice(some[:9] if self.r.random() < 0.8 else some)
        return self.r.choice(REAL[:4] if self.r.random() < 0.6 else REAL)

    def size(self, wild: bool) -> int:
        return self.r.choice(WHOLE) if wild and self.r.random() < 0.3 else self.r.choice([1, 1, 2, 3, 4, 5, 8])

    def some(self, count: int, wild: bool) -> Any:
        return tuple(self.size(wild) for _ in range(count))

    def geometry(self, kind: str) -> Any:
        """Of a convolution, of windows or of a product with heads: half fit."""
        wild = self.r.random() < 0.1
        batch, height, width, channels = self.some(4, wild)
        if kind == "Batched":
            turned = [self.r.random() < 0.3 for _ in range(5)]
            return core.Batched(batch, height, width, channels, self.size(wild), *turned[:2], tuple(turned[2:]))
        fits = self.r.random() < 0.7
        kernel = [self.r.randint(1, max(1, n)) for n in (height, width)] if fits and not wild else self.some(2, wild)
        stride = self.some(2, wild)
        pads = tuple(self.r.randrange(max(1, kernel[k % 2])) for k in range(4)) if fits else self.some(4, wild)
        if kind == "Pool":
            return core.Pool(batch, height, width, channels, min(kernel) if fits else kernel[0], stride[0])
        if kind == "Window":
            return core.Window(batch, height, width, channels, tuple(kernel), stride, pads, self.r.random() < 0.3)
        filters, groups, dilation = self.size(wild), 1, self.r.choice([1, 1, self.some(2, wild)])
        if self.r.random() < 0.3:
            groups = channels if fits else self.size(wild)
            filters = filters * groups
        stride = self.r.choice([stride, stride[0]])
        pads = self.r.choice([pads, 0, pads[0]])
        return core.Conv(batch, height, width, channels, filters, kernel[0], kernel[1], stride, pads, dilation, groups)

    def saved(self) -> Any:
        """What range normalization saves for its backward pass."""
        arrays = (self.filled(np.dtype(np.float32), shape, 0.9) for shape in (self.shapes[0], (3, *self.shapes[0][-1:])))
        chunks, fits = self.number("int", "chunks", ""), self.r.random() < 0.7
        if fits:
            chunks = self.r.randrange(1, 5)
        shape, kinds = self.shape("extremes"), [np.int32, np.int64, np.uint32]
        if fits:
            shape, kinds = (2, chunks, *self.shapes[0][-1:]), kinds[:1]
        extremes = self.filled(np.dtype(self.r.choice(kinds)), shape, 0.9)
        if fits and self.r.random() < 0.8:  # rows of the first chunk
            extremes = np.zeros(shape, np.int32)
        return core.RangeNorm(*arrays, extremes, chunks, self.number("float", "factor", ""))

    def argument(self, function: str, name: str, kind: str) -> Any:
        if "None" in kind and self.r.random() < 0.5:
            return None
        kind = kind.removesuffix(" | None")
        if kind in ("Conv", "Pool", "Window", "Batched"):
            made = self.geometry(kind)
            self.conv = made if kind == "Conv" else self.conv
            return made
        if kind == "RangeNorm":
            return self.saved()
        if kind == "str":
            return self.r.choice(USUAL[name]) if name in USUAL else "x"
        if kind == "Scalar" or (kind == "Array | Scalar" and self.r.random() < 0.5):
            return core.scalar(self.number("float", name, function))
        if kind == "Stream":
            wild = self.r.random() < 0.2
            return tuple(self.number("int", name, function) if wild else self.r.randrange(1 << 31) for _ in range(3))
        if kind.startswith("tuple[int"):
            return self.shape(name) if self.r.random() < 0.9 else tuple(self.r.choice(WHOLE) for _ in range(2))
        if kind.startswith("tuple[Array"):
            return tuple(self.filled(np.dtype(np.float32), self.shape(name), self.r.random()) for _ in range(3))
        if kind == "Range":
            return core.Range(*(self.r.choice(REAL[:8]) for _ in range(2)))
        if kind == "list[Range]":
            return [core.Range(-1.0, 2.0) for _ in range(self.r.randrange(3))]
        if "Requantization" in kind or "Rounding" in kind:
            return self.r.choice([*Rounding, *Requantization] if self.r.random() < 0.2 or "|" in kind else [*Rounding])
        if kind == "Accumulator":
            return self.r.choice(list(ACCUMULATORS.values()))
        if kind == "MuLaw":
            return MuLaw()
        plain = kind in ("bool", "int", "Whole", "float", "Number")
        if plain or (kind.startswith(("int |", "float |")) and self.r.random() < 0.5):
            return self.number(kind.split(" |")[0], name, function)
        if kind in ("Values", "Values | LazyAdd", "Any") and self.r.random() < 0.4:
            scale = self.number("float", name, function)
            return core.LazyDequant(self.array(name), self.array(name), scale, self.r.random() < 0.2)
        return self.array(name)

    def call(self) -> tuple[str, dict[str, Any]]:
        """A function and its arguments by name."""
        function, arguments = self.r.choice(NAMES), {}
        for name, kind, needed in SIGNATURES[function]:
            if needed or self.r.random() < 0.5:
                arguments[name] = self.argument(function, name, kind)
        return function, arguments

    def mended(self, arguments: dict[str, Any], sentence: str) -> bool:
        """Gives the argument that a refusal names the type or the shape that it asks for; whether it names one."""
        for pattern in ASKS:
            if found := re.match(pattern, sentence):
                break
        else:
            return False
        named = found.groupdict()
        name = named["name"].replace("'s scales", "_scales")
        if name not in arguments or self.r.random() < 0.05:
            return False
        before = arguments[name]
        if isinstance(before, core.LazyDequant):
            before = before.acc
        dtype = np.dtype(named.get("dtype") or getattr(before, "dtype", np.float32))
        shape = getattr(before, "shape", (3,))
        if named.get("shape") is not None:
            shape = tuple(int(n) for n in named["shape"].split(",") if n.strip())
        elif dimensions := named.get("dimensions"):
            sizes = [n or 3 for n in (*self.shapes[0], 2, 3, 4, 5)]
            shape = tuple(sizes[: int(dimensions)])
        elif named.get("empty"):
            shape = tuple(n or 3 for n in shape) or (3,)
        arguments[name] = self.filled(dtype, shape, self.r.random() if named.get("dtype") else 0.2 + 0.8 * self.r.random())
        return True


def fuzz(seed: int, numbers: Any) -> tuple[Counter[str], Counter[str], list[str]]:
    """Calls made and refused, by function, and what came that should not."""
    made, refused, wrong = Counter[str](), Counter[str](), []
    for number in numbers:
        draw, function = Draw(seed, number), "an argument"
        try:
            function, arguments = draw.call()
            for _ in range(12):
                try:
                    FUNCTIONS[function](**arguments)
                    made[function] += 1
                    break
                except core.CoreError as error:
                    if not draw.mended(arguments, str(error)):
                        raise
        except OctosimError:
            refused[function] += 1
        except Exception as error:
            wrong.append(f"call {number}, {function}: {type(error).__name__}: {error}")
        core.set_threads(1 + number % 3)
    return made, refused, wrong


def sanitized(arguments: list[str], folder: Path) -> int:
    """The same over a copy of the package in a folder whose core is built with sanitizers; its exit code."""
    root = Path(__file__).resolve().parents[2]
    for name in ("octosim", "cext"):
        without = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(root / name, folder / name, ignore=without, dirs_exist_ok=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, folder)
    compiler = folder / "cc"  # what cffi generates takes minutes with sanitizers, and has no loops of its own
    sanitizers = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *_core.c*) exec gcc "$@" -O0;; esac\nexec gcc "$@" -O1 -g {sanitizers}\n')
    compiler.chmod(0o700)
    flags = {"CC": str(compiler)}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=folder, env=os.environ | flags, check=True)
    find = ["gcc", "-print-file-name=libasan.so"]
    asan = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    limits = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=200:quarantine_size_mb=32"
    environment = {"LD_PRELOAD": asan, "ASAN_OPTIONS": limits, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, __file__, *arguments], env=os.environ | environment).returncode


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--calls", type=int, default=20_000)
    options.add_argument("--first", type=int, default=0, help="go on from this call: those before it were made")
    options.add_argument("--only", type=int)
    options.add_argument("--sanitize", action="store_true")
    given = options.parse_args()
    if given.sanitize:
        with tempfile.TemporaryDirectory() as folder:
            return sanitized([word for word in sys.argv[1:] if word != "--sanitize"], Path(folder))
    if "ASAN_OPTIONS" not in os.environ:  # which limits by itself
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30,) * 2)
    warnings.simplefilter("ignore")
    numbers = range(given.first, given.calls) if given.only is None else range(given.only, given.only + 1)
    made, refused, wrong = Counter[str](), Counter[str](), []
    for batch in (numbers[at : at + 1000] for at in range(0, len(numbers), 1000)):
        print(f"from call {batch[0]}", flush=True)
        for total, part in zip((made, refused), (results := fuzz(given.seed, batch))[:2], strict=True):
            total.update(part)
        wrong += results[2]
        print("".join(f"WRONG: {each}\n" for each in results[2]), end="", flush=True)
    never = sorted(set(FUNCTIONS) - set(made)) if given.only is None else []
    print(f"{sum(made.values())} calls made, {sum(refused.values())} refused, {len(wrong)} wrong")
    print(f"never made: {', '.join(never) or 'none'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
