"""The roofline of a step: what this machine's registers and memory allow at least for each layer and pass."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from octosim import core
from octosim.bench import calibrate
from octosim.trace import Op

SIZES = tuple(1 << bits for bits in (16, 19, 21, 23, 25, 27))
"""Bytes that a triad moves, from what the first cache holds to what none does."""
SIDE = 512  # of the float32 product


def _fastest(call: Callable[[], Any], seconds: float) -> float:
    """The fastest call's seconds within about so many: another program can only slow a call down."""
    call()
    best, begun = float("inf"), time.perf_counter()
    while (before := time.perf_counter()) - begun < seconds:
        call()
        best = min(best, time.perf_counter() - before)
    return best


@dataclass(frozen=True)
class Roof:
    """The limits of this machine, with the instruction set and threads in use.

    macs: multiply-accumulates a second by type of arithmetic: of int8 from registers alone, of float32 in the core's own
    product of 512 cubed, as its sums have a fixed order.  moved: (bytes, bytes a second) of STREAM's triad, which is faster
    where a cache holds them.
    """

    macs: dict[str, float]
    moved: tuple[tuple[int, float], ...]

    def bandwidth(self, size: int) -> float:
        """Bytes a second for an operation that moves `size` of them."""
        sizes, rates = zip(*self.moved, strict=True)
        return float(np.interp(np.log2(max(1, size)), np.log2(sizes), rates))

    def seconds(self, ops: Iterable[Op]) -> float | None:
        """The least time of operations one after the other; None where the limit of one's arithmetic is not known."""
        total = 0.0
        for op in ops:
            if op.kind == "gemm" and op.dtype not in self.macs:
                return None
            products = op.macs / self.macs[op.dtype] if op.kind == "gemm" else 0.0
            total += max(products, op.traffic / self.bandwidth(op.traffic))
        return total


def measure(seconds: float = 0.05) -> Roof:
    """Measures the limits, about so many seconds each; of a triad's time without what a call takes that moves nothing."""
    times = []
    for size in (0, *SIZES):
        a, b, c = (np.ones(size // 12, np.float32) for _ in range(3))
        times.append(_fastest(functools.partial(core.stream_triad, a, b, c, 3.0), seconds))
    moved = [(size, size / max(took - times[0], took / 10)) for size, took in zip(SIZES, times[1:], strict=True)]
    x, y = (np.ones((SIDE, SIDE), np.float32) for _ in range(2))
    out = np.empty((SIDE, SIDE), np.float32)
    floats = SIDE**3 / _fastest(lambda: core.gemm(x, y, out=out), seconds)
    return Roof({"int8": calibrate.peak_mac_s(), "float32": floats}, tuple(moved))
