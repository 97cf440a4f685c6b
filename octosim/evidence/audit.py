"""Where a simulation of INT8 training in float32 ("fake quantization") would not have the run's own sums, and by how much.

float32 holds every integer up to 2^24.  A sum of K products of integers with |a| <= A and |b| <= B, and each of its partial
sums in whatever order, is at most K A B in magnitude: below 2^24 float32 makes no error.  From there on it may, and what it
makes then depends on the order.  Here the sums of a step are really made in float32, in the order of octosim's own float32
kernels (blocks of 256 products in ascending order, the blocks' sums added in that order), and compared with the exact ones.

A fake quantizer's values are r = scale (q - zero).  The sums are made twice: of q - zero, which is the simulation at its best,
with scales that are powers of two; and of r with the run's own scales, where values and products are rounded as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from octosim import core, train
from octosim.engine import registers
from octosim.engine.nodes import Array, Product
from octosim.engine.probes import watching
from octosim.engine.quantizers import LARGEST_CODE
from octosim.errors import OctosimError
from octosim.train import measure

EXACT = 2**24  # float32's significand: 24 bits
_DEPTHS = ("forward", "dX", "dW")  # the order of Product.depths


def _without_zero(pass_: str, operands: dict[str, Array], x_zero: int, sums: Array) -> Array:
    """Sums of (x - zero) b, from those of x b: padding holds the zero point, so every sum has all K terms of zero b."""
    if pass_ == "forward":
        w = operands["w"]
        return sums - x_zero * w.reshape(w.shape[0], -1).sum(1, dtype=np.int64)
    if pass_ == "dW":
        dy = operands["dy"]
        total = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=np.int64)
        return sums - x_zero * total.reshape(-1, *[1] * (sums.ndim - 1))
    return sums


def _wrong(made: Array, exact: Array, unit: float = 1.0) -> tuple[int, int]:
    """How many sums, counted in units and rounded to the nearest integer, are not the exact ones, and the largest distance."""
    distance = np.abs(np.rint(made.astype(np.float64) / unit) - exact)  # |exact| < 2^53
    return int(np.count_nonzero(distance)), int(distance.max(initial=0))


def compare(
    product: Product, pass_: str, operands: dict[str, Array], x_zero: int = 0, scales: dict[str, float] | None = None
) -> dict[str, Any]:
    """One pass of a product on int8 codes, exact and in float32.

    k: products of the longest sum.  largest: of each operand, |q - zero|.  bound: k times both; worst_bound: with the largest
    codes that an operand with this zero point can have.  Each proves float32 exact where it is below EXACT.  sums, differ: how
    many there are, and how many float32 makes wrong from q - zero; largest_difference; largest_sum: in magnitude.
    scaled_differ, scaled_largest_difference: from scale (q - zero), as multiples of the scales' product to the nearest integer;
    None where no scales are given.
    """
    zeros = {name: x_zero if name == "x" else 0 for name in operands}
    whole = {name: q.astype(np.int32) - zeros[name] for name, q in operands.items()}
    exact = _without_zero(pass_, operands, x_zero, registers.exact_sums(product, pass_, operands, x_zero))
    differ, difference = _wrong(
        registers.multiply(product, pass_, {name: v.astype(np.float32) for name, v in whole.items()}), exact
    )
    scaled: tuple[int | None, int | None] = None, None
    if scales is not None and all(scale > 0 for scale in scales.values()):
        reals = {name: core.dequantize(q, scales[name], zero=zeros[name]) for name, q in operands.items()}
        scaled = _wrong(registers.multiply(product, pass_, reals), exact, math.prod(scales.values()))
    k = product.depths[_DEPTHS.index(pass_)]
    largest = {name: int(np.abs(v).max(initial=0)) for name, v in whole.items()}
    bound, worst = (k * math.prod(each) for each in (largest.values(), (LARGEST_CODE + abs(z) for z in zeros.values())))
    return {
        "k": k,
        "largest": largest,
        "bound": bound,
        "proven": bound < EXACT,
        "worst_bound": worst,
        "always_proven": worst < EXACT,
        "sums": exact.size,
        "largest_sum": int(np.abs(exact).max(initial=0)),
        "differ": differ,
        "largest_difference": difference,
        "scaled_differ": scaled[0],
        "scaled_largest_difference": scaled[1],
    }


class _Auditor:
    """An observer that compares a pass's product, if it was one on int8 codes, when the pass is done."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._made: dict[tuple[str, str], tuple[Product, dict[str, Array], int]] = {}
        self._meanings: dict[str, list[Any]] = {}

    def means(self, layer: str, operand: str, value: Any) -> None:
        self._meanings.setdefault(layer, []).append(value)

    def product(self, layer: str, pass_: str, product: Product, operands: dict[str, Array], x_zero: int, sums: Array) -> None:
        if all(values.dtype == np.int8 for values in operands.values()):
            self._made[layer, pass_] = product, operands, x_zero

    def add(self, layer: str, pass_: str, tensor: str, values: Any) -> None:
        if tensor not in ("output", "gradient of w", "result") or (layer, pass_) not in self._made:
            return
        product, operands, x_zero = self._made.pop((layer, pass_))
        found = {name: measure.meaning_of(q, self._meanings.get(layer, [])) for name, q in operands.items()}
        scales = {name: meaning[0] for name, meaning in found.items() if meaning is not None}
        row = compare(product, pass_, operands, x_zero, scales if len(scales) == len(operands) else None)
        self.rows.append({"layer": layer, "pass": pass_} | row)


def audit(folder: Path, step: int, progress: Callable[[int, int], None] | None = None) -> list[dict[str, Any]]:
    """Replays a run to a step: a row for each layer and pass with int8 products, as `compare` makes it.

    OctosimError where the run has no such step or no int8 products.
    """
    run = train.replay(folder)
    train.advance_before(run, step, progress)
    auditor = _Auditor()
    with watching(run.network, auditor):
        run.train_step()
    if not auditor.rows:
        raise OctosimError(f"{folder}: method {run.config.method} has no int8 products to audit")
    order = {node.name: node.index for node in run.network.nodes}
    return sorted(auditor.rows, key=lambda row: (order[row["layer"]], _DEPTHS.index(row["pass"])))
