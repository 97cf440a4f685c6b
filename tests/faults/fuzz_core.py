"""Calls every public function of octosim.core with random arguments: nothing but a result or a CoreError may come back.

    python tests/faults/fuzz_core.py [--seed N] [--calls N] [--only I]

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

from octosim import core
from octosim.errors import OctosimError
from octosim.numerics import ACCUMULATORS, MuLaw, Requantization, Rounding

LEFT_OUT = {"at", "python", "unrecorded", "float_environment", "here", "set_isa"}  # no calls, or of another kind
FUNCTIONS = {name: f for name in core.__all__ if isinstance(f := getattr(core, name), FunctionType) and name not in LEFT_OUT}
DTYPES = [np.float32, np.int8, np.int32, np.uint8, np.uint32, np.float64, np.int64, np.bool_]
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 64, 65, 100]
MEMORY = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
WHOLE = [0, 1, 2, 3, 7, 31, 127, 128, 255, -1, -2, -128, 2**20, 2**31 - 1, 2**31, 2**32, -(2**31), 2**40, 2**63, -(2**70)]
REAL = [0.0, -0.0, 1.0, 0.5, -1.0, 1e-45, 1e-38, 3e38, 1e300, float("inf"), float("nan"), -0.001, 2.0**-20]
SECONDS = {"peak": [0, 1, 5, -1, 2**41, 2**70], "stream_triad": WHOLE}
"""Of a function whose time an argument sets: what its whole numbers may be."""


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
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= size <= MEMORY.nbytes // 2 or not all(0 <= n < 1 << 31 for n in shape):
            shape, size = (3, 5), 15 * dtype.itemsize
        if kind < 0.1:  # beside other operands of the call, or over them
            start = self.r.randrange(64)
            return MEMORY[start : start + size].view(dtype).reshape(shape)
        values = np.random.default_rng(self.r.randrange(2**32))
        array = np.asarray(values.normal(size=shape) * self.r.choice([1, 50, 1e30])).astype(dtype)
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
        whole = kind in ("int", "Whole")
        if whole:
            some = SECONDS.get(function, WHOLE)
            return self.r.choice(some[:9] if self.r.random() < 0.7 else some)
        return self.r.choice(REAL[:4] if self.r.random() < 0.6 else REAL)

    def geometry(self, kind: type) -> Any:
        small = lambda: self.r.choice([1, 1, 2, 3, 4, 5, 8])  # noqa: E731
        wild = self.r.random() < 0.1
        fields = [
            self.r.choice(WHOLE) if wild and self.r.random() < 0.3 else small() for _ in inspect.signature(kind).parameters
        ]
        return kind(*fields)

    def argument(self, function: str, parameter: inspect.Parameter) -> Any:
        kind, name = str(parameter.annotation), parameter.name
        if "None" in kind and self.r.random() < 0.5:
            return None
        kind = kind.removesuffix(" | None")
        if kind == "Conv":
            self.conv = self.geometry(core.Conv)
            return self.conv
        if kind == "Pool":
            return self.geometry(core.Pool)
        if kind == "Stream":
            return tuple(self.number("int", name, function) for _ in range(3))
        if kind.startswith("tuple[int"):
            return self.shape(name) if self.r.random() < 0.9 else tuple(self.r.choice(WHOLE) for _ in range(2))
        if kind.startswith("tuple[Array"):
            return tuple(self.array(name) for _ in range(3))
        if kind == "Range":
            return core.Range(*(self.r.choice(REAL[:8]) for _ in range(2)))
        if kind == "list[Range]":
            return [core.Range(-1.0, 2.0) for _ in range(self.r.randrange(3))]
        if "Requantization" in kind or "Rounding" in kind:
            return self.r.choice([*Rounding, *Requantization])
        if kind == "Accumulator":
            return self.r.choice(list(ACCUMULATORS.values()))
        if kind == "MuLaw":
            return MuLaw()
        if kind in ("bool", "int", "Whole", "float", "Number"):
            return self.number(kind, name, function)
        if kind in ("Values", "Values | Pair", "Any") and self.r.random() < 0.4:
            return core.Sums(self.array(name), self.array(name), self.number("float", name, function), self.r.random() < 0.2)
        return self.array(name)

    def call(self) -> tuple[str, dict[str, Any]]:
        """A function and its arguments by name."""
        function, arguments = self.r.choice(list(FUNCTIONS)), {}
        for name, parameter in inspect.signature(FUNCTIONS[function]).parameters.items():
            if parameter.default is parameter.empty or self.r.random() < 0.5:
                arguments[name] = self.argument(function, parameter)
        return function, arguments

    def mended(self, arguments: dict[str, Any], sentence: str) -> bool:
        """Gives the argument that a refusal names the type or the shape that it asks for; whether it names one."""
        found = re.match(r"(\w+) must (?:be a (\w+) array|have shape \(([\d, ]*)\))", sentence)
        if not found or found[1] not in arguments or self.r.random() < 0.1:
            return False
        before = arguments[found[1]]
        dtype = np.dtype(found[2]) if found[2] else getattr(before, "dtype", np.dtype(np.float32))
        shape = getattr(before, "shape", (3,)) if found[2] else tuple(int(n) for n in found[3].split(",") if n.strip())
        arguments[found[1]] = self.filled(dtype, shape, self.r.random())
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


def sanitized(arguments: list[str]) -> int:
    """The same over a copy of the package whose core is built with sanitizers; its exit code."""
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("octosim", "cext"):
            shutil.copytree(root / name, Path(folder) / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(root / name, folder)
        flags = {"CC": "gcc -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined"}
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=folder, env=os.environ | flags, check=True)
        find = ["gcc", "-print-file-name=libasan.so"]
        asan = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
        limits = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=2000"
        environment = {"LD_PRELOAD": asan, "ASAN_OPTIONS": limits, "PYTHONPATH": folder}
        return subprocess.run([sys.executable, __file__, *arguments], env=os.environ | environment).returncode


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--calls", type=int, default=20_000)
    options.add_argument("--only", type=int)
    options.add_argument("--sanitize", action="store_true")
    given = options.parse_args()
    if given.sanitize:
        return sanitized([word for word in sys.argv[1:] if word != "--sanitize"])
    if "ASAN_OPTIONS" not in os.environ:  # which limits by itself
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30,) * 2)
    warnings.simplefilter("ignore")
    numbers = range(given.calls) if given.only is None else range(given.only, given.only + 1)
    made, refused, wrong = Counter[str](), Counter[str](), []
    for batch in (numbers[at : at + 1000] for at in range(0, len(numbers), 1000)):
        print(f"from call {batch[0]}", flush=True)
        for total, part in zip((made, refused), (results := fuzz(given.seed, batch))[:2], strict=True):
            total.update(part)
        wrong += results[2]
    never = sorted(set(FUNCTIONS) - set(made)) if given.only is None else []
    print(f"{sum(made.values())} calls made, {sum(refused.values())} refused, {len(wrong)} wrong")
    print(f"never made: {', '.join(never) or 'none'}")
    print("\n".join(wrong[:50]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
