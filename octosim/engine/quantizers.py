"""Quantizers: float32 tensors to int8 codes with a scale and a zero point, r = scale (q - zero)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octosim import core
from octosim.errors import OctosimError
from octosim.numerics import INT8, Requantization, Rounding, fixed_point

Array = np.ndarray[Any, Any]
BEYOND_FLOAT32 = float.fromhex("0x1.ffffffp127")  # halfway from the largest float32 to 2^128: rounds to infinity
LARGEST_CODE = INT8.high  # -128 stays unused: the codes are symmetric and |q| <= 127 bounds every sum of products

QTensor = core.Tensor
"""Its name in earlier releases, which methods of other packages use: QTensor(q, s, z)."""


def _float32(value: float) -> float:
    """Rounded to float32; infinity beyond its range, which the next range check reports."""
    return float(np.float32(value)) if abs(value) < BEYOND_FLOAT32 else value * math.inf


def reciprocal(scale: float) -> float:
    """1 / scale in float32, where that is finite: a tensor below about 1e-36 becomes all zero codes."""
    return _float32(1.0 / scale) if scale > 1e-38 else 0.0


def symmetric(
    x: Array,
    low: core.Number,
    high: core.Number,
    *,
    share: core.Number = 1.0,
    rounding: Rounding = Rounding.HALF_EVEN,
    random: core.Stream | None = None,
    out: Array | None = None,
) -> core.Tensor:
    """Codes of clip(x, share low, share high) as `core.symmetric_codes` says.  rounding, random: see `core.quantize`."""
    # the clip's ends, rounded to the nearest codes: clip, then round, is round, then clip to the rounded limits
    return of_codes(x, core.symmetric_codes(low, high, share), rounding=rounding, random=random, out=out)


def of_codes(
    x: Array, codes: core.Codes, *, rounding: Rounding = Rounding.HALF_EVEN, random: core.Stream | None = None,
    out: Array | None = None,
) -> core.Tensor:  # fmt: skip
    """Codes of x that `core.symmetric_codes` found."""
    q = core.quantize(x, codes.inverse, low=codes.low, high=codes.high, rounding=rounding, random=random, out=out)
    return core.Tensor(q, codes.scale)


def asymmetric(x: Array, low: core.Number, high: core.Number, *, out: Array | None = None) -> core.Tensor:
    """Codes of x with the range [low, high] on all 255 codes of +-127, as `core.asymmetric_codes` says."""
    codes = core.asymmetric_codes(low, high)
    return core.Tensor(core.quantize(x, codes.inverse, zero=codes.zero, out=out), codes.scale, codes.zero)


# ---- int32 sums to codes --------------------------------------------------

DEFAULT_ROUNDING = {
    Requantization.GEMMLOWP: None,
    Requantization.SINGLE_ROUNDING: Rounding.HALF_UP,
    Requantization.POWER_OF_TWO: Rounding.HALF_AWAY,
    Requantization.FLOAT_SCALE: Rounding.HALF_EVEN,
}
"""What is meant where no rounding is named: TFLite's single rounding, NITI's RoundShift, ONNX.  gemmlowp's is part of it."""


def requantize(
    acc: Array,
    scale: float | Array,
    how: Requantization,
    rounding: Rounding | None = None,
    *,
    add: Array | None = None,
    zero: int = 0,
    low: int = -128,
    high: int = 127,
    random: core.Stream | None = None,
    out: Array | None = None,
) -> Array:
    """int8 codes of int32 sums (acc + add) times a real scale, in the arithmetic `how`; otherwise as `core.requantize`.

    scale: a number, or one for each column (channel) of acc.  GEMMLOWP takes scales in [0, 1), as published, and no rounding;
    POWER_OF_TWO takes 2^-31 .. 1; SINGLE_ROUNDING any up to 2^31 - 1 (`fixed_point`).  Raises OctosimError otherwise.
    """
    if how is Requantization.GEMMLOWP and rounding is not None:
        raise OctosimError(f"gemmlowp requantization has its own two roundings; {rounding.value} cannot be chosen")
    if how is Requantization.FLOAT_SCALE:
        return core.requantize_float(
            acc, scale, rounding=rounding or Rounding.HALF_EVEN, add=add, zero=zero, low=low, high=high, random=random, out=out
        )
    scales = np.atleast_1d(np.asarray(scale, np.float64))
    if how is Requantization.POWER_OF_TWO:
        mantissa, exponent = np.frexp(scales)
        if np.any(mantissa != 0.5) or np.any(exponent > 1) or np.any(exponent < -30):
            raise OctosimError(f"power-of-two requantization needs scales 2^-31 .. 1, not {scale}")
        multiplier, shift = np.ones(scales.size, np.int32), (1 - exponent).astype(np.int32)
    else:
        multiplier, shift = np.array([fixed_point(float(value)) for value in scales], np.int32).T.copy()
    kind = rounding or DEFAULT_ROUNDING[how] or how
    if how is Requantization.GEMMLOWP:
        below = (shift == 30) & (multiplier == 2**30) & (scales < 1)  # rounds to 1, as which 2^31 - 1 gives the same codes
        multiplier, shift = np.where(below, 2**31 - 1, multiplier).astype(np.int32), np.where(below, 31, shift).astype(np.int32)
        shift = shift - 31
        if np.any(shift < 0):
            raise OctosimError(f"gemmlowp requantization needs scales below 1, not {scale}")
    assert isinstance(kind, Rounding) or kind is Requantization.GEMMLOWP
    if scales.size == 1 and np.ndim(scale) == 0:
        multiplier, shift = multiplier[0], shift[0]
    return core.requantize(
        acc, multiplier, shift, rounding=kind, add=add, zero=zero, low=low, high=high, random=random, out=out
    )
