"""Quantizers: float32 tensors to int8 codes with a scale and a zero point, r = scale (q - zero)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from octosim import core

Array = np.ndarray[Any, Any]
LARGEST_CODE = 127  # -128 stays unused: the codes are symmetric and |q| <= 127 bounds every sum of products


@dataclass(frozen=True)
class QTensor:
    """int8 codes in +-127 and what they mean: r = scale (q - zero)."""

    q: Array
    scale: float
    zero: int


def _float32(value: float) -> float:
    """Rounded to float32; infinity beyond its range, which the next range check reports."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def product_scale(a: float, b: float) -> float:
    """The scale of a product of codes: a b in float32 (exact in float64 first, so rounded once)."""
    return _float32(a * b)


def _inverse(scale: float) -> float:
    """1 / scale in float32, where that is finite: a tensor below about 1e-36 becomes all zero codes."""
    return _float32(1.0 / scale) if scale > 1e-38 else 0.0


def symmetric(
    x: Array, low: float, high: float, *, random: tuple[int, int, int] | None = None, out: Array | None = None
) -> QTensor:
    """Codes of clip(x, low, high) with zero point 0 and scale = max(|low|, |high|) / 127.

    Jacob et al. 2018, section 2.1, with a symmetric range.  random: see `core.quantize`.
    """
    scale = _float32(max(abs(low), abs(high)) / LARGEST_CODE)
    inverse = _inverse(scale)
    # clip, then round, is round, then clip to the rounded limits: rounding is monotonic
    first = max(-LARGEST_CODE, int(np.rint(np.float32(low) * np.float32(inverse))))
    last = min(LARGEST_CODE, int(np.rint(np.float32(high) * np.float32(inverse))))
    return QTensor(core.quantize(x, inverse, low=first, high=last, random=random, out=out), scale, 0)


def asymmetric(x: Array, low: float, high: float, *, out: Array | None = None) -> QTensor:
    """Codes of x with the range [low, high], widened to contain 0, on all 255 codes of +-127.

    scale = (high - low) / 254, zero = round(-127 - low / scale): real 0 has an exact code, as zero padding needs
    (Jacob et al. 2018, section 2.1).
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = _float32((high - low) / (2 * LARGEST_CODE))
    inverse = _inverse(scale)
    zero = int(np.clip(np.rint(-LARGEST_CODE - low * inverse), -LARGEST_CODE, LARGEST_CODE)) if inverse else 0
    return QTensor(core.quantize(x, inverse, zero=zero, out=out), scale, zero)
