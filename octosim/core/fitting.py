"""Weights of few levels, fitted in the metric of the curvature, and codes in two int8 parts (cext/levels.inc)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octosim.core.call import (
    F32,
    S8,
    S32,
    S64,
    WRITES,
    Array,
    CoreError,
    Number,
    Scalar,
    Stream,
    Whole,
    costs,
    ffi,
    lib,
    number64,
    ok,
    output,
    pointer,
)
from octosim.core.codes import NO_RANDOM, rounding_code
from octosim.core.layers import matrix
from octosim.numerics import Rounding

# ---- an optimizer's step taken apart: w - lr direction / curvature --------------------------------------------------


def _wanted(shape: tuple[int, ...], **arrays: Array | None) -> list[Any]:
    return [ffi.NULL if a is None else pointer(name, a, F32, shape, access=WRITES) for name, a in arrays.items()]


def newton_sgd(
    w: Array, g: Array, v: Array, *, momentum: float, decay: float, direction: Array | None = None,
    curvature: Array | None = None, after: Array | None = None,
) -> None:  # fmt: skip
    """Writes direction, curvature and v after the step, float32, into those that are given (octo_newton_sgd_f32)."""
    given = [pointer(n, x, F32, w.shape) for n, x in (("w", w), ("g", g), ("v", v))]
    wanted = _wanted(w.shape, direction=direction, curvature=curvature, after=after)
    ok(lib.octo_newton_sgd_f32(w.size, *given, momentum, decay, *wanted))


def newton_adam(
    w: Array, g: Array, m: Array, v: Array, *, b1: float, b2: float, eps: float, c1: Number, c2: Number, decay: float,
    direction: Array | None = None, curvature: Array | None = None, m_after: Array | None = None,
    v_after: Array | None = None,
) -> None:  # fmt: skip
    """The same of Adam, with m and v after the step (octo_newton_adam_f32)."""
    given = [pointer(n, x, F32, w.shape) for n, x in (("w", w), ("g", g), ("m", m), ("v", v))]
    wanted = _wanted(w.shape, direction=direction, curvature=curvature, m_after=m_after, v_after=v_after)
    ok(lib.octo_newton_adam_f32(w.size, *given, b1, b2, eps, c1, c2, decay, *wanted))


def newton_move(before: Array, direction: Array, curvature: Array, lr: Number, *, out: Array) -> Array:
    """float32 before - lr direction / curvature."""
    named = (("before", before), ("direction", direction), ("curvature", curvature))
    given = [pointer(n, x, F32, out.shape) for n, x in named]
    ok(lib.octo_newton_move_f32(out.size, *given, lr, pointer("out", out, F32, access=WRITES)))
    return out


def blend(a: Array, b: Array, share: float, *, out: Array) -> Array:
    """float32 share a + (1 - share) b; out may be either."""
    given = pointer("a", a, F32, out.shape), pointer("b", b, F32, out.shape)
    ok(lib.octo_blend_f32(out.size, *given, share, 1 - share, pointer("out", out, F32, access=WRITES)))
    return out


def bias_correction(step: Whole, ahead: int, base: float) -> Scalar:
    """1 - base^(step + ahead), float64, by squaring."""
    correction = number64(0.0)
    ok(lib.octo_bias_correction(step, ahead, base, correction.at))
    return correction


# ---- the fit --------------------------------------------------


def fit_levels(w: Array, d: Array, codes: Array, alpha: Array, changes: Array, *, bits: int, exact: bool = False) -> None:
    """Fits int8 codes and alpha, float32 (1,), so that alpha codes / n is w in the metric of d > 0 (octo_fit_levels_f32).

    codes: those of the step before, from which the fit begins; changes: int64 (1,), grows by the count of those that differ.
    bits: 1 .. 8; n = 2^(bits - 1) - 1, of one bit 1.  exact: two bits, all thresholds are tried.
    """
    given = pointer("w", w, F32), pointer("d", d, F32, w.shape)
    made = pointer("codes", codes, S8, w.shape, True), pointer("alpha", alpha, F32, (1,), access=WRITES)
    ok(lib.octo_fit_levels_f32(w.size, *given, bits, exact, *made, pointer("changes", changes, S64, (1,), True)))


def count_reversals(before: Array, w: Array, sign: Array, count: Array) -> None:
    """Keeps float32 w within +-1 and counts, in int64 (1,), where w - before is against int8 `sign`, which follows it."""
    given = pointer("before", before, F32, w.shape), pointer("w", w, F32, None, True)
    ok(lib.octo_turned_f32(w.size, *given, pointer("sign", sign, S8, w.shape, True), pointer("count", count, S64, (1,), True)))


def level_values(codes: Array, alpha: Array, levels: int, *, out: Array) -> Array:
    """float32 codes (alpha / levels) of int8 codes."""
    given = pointer("codes", codes, S8, out.shape), pointer("alpha", alpha, F32, (1,))
    ok(lib.octo_level_values_f32(out.size, *given, levels, pointer("out", out, F32, access=WRITES)))
    return out


# ---- codes in two parts --------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parts:
    """Codes 255 high + low within +-32,512, both int8 in +-127, and their scale, float64."""

    low: Array
    high: Array
    scale: Scalar


def _parts(x: Array, low: Array | None, high: Array | None) -> tuple[Parts, list[Any]]:
    (low, pl), (high, ph) = output("low", low, S8, x.shape), output("high", high, S8, x.shape)
    scale = number64(0.0)
    return Parts(low, high, scale), [pl, ph, scale.at]


def forward_parts(
    x: Array, rounding: Rounding, random: Stream | None = None, *, low: Array | None = None, high: Array | None = None
) -> Parts:
    """Codes of 510 steps between the ends of float32 x (octo_forward_parts_f32); rounding: half to even or stochastic.

    NotFiniteError where x holds a NaN or an infinity; so do the functions below.
    """
    given = pointer("x", x, F32)
    made, pointers = _parts(x, low, high)
    ok(lib.octo_forward_parts_f32(x.size, given, rounding_code(rounding), *(random or NO_RANDOM), *pointers))
    return made


def backward_parts(
    x: Array, ratio: float, with_zero: bool = False, *, low: Array | None = None, high: Array | None = None
) -> Parts:
    """Codes of 254 steps of float32 x clipped to `ratio` times its ends (octo_backward_parts_f32)."""
    given = pointer("x", x, F32)
    made, pointers = _parts(x, low, high)
    ok(lib.octo_backward_parts_f32(x.size, given, ratio, with_zero, *pointers))
    return made


def backward_values(x: Array) -> Array:
    """float32 values of the codes of `backward_parts` with ratio 1."""
    out, p = output("out", None, F32, x.shape)
    ok(lib.octo_backward_values_f32(x.size, pointer("x", x, F32), p))
    return out


def combine_parts(sums: list[Array], a: Scalar, b: Scalar, bias: Array | None = None, *, out: Array) -> Array:
    """float32 values, and the bias (last axis), of int32 products of parts: low low, low high, high low, high high; a, b: the
    scales."""
    rows, cols = matrix(out)
    given = [pointer("sums", each, S32, out.shape) for each in sums]
    beside = ffi.NULL if bias is None else pointer("bias", bias, F32, (cols,))
    ok(lib.octo_combine_parts_s32(rows, cols, *given, a, b, beside, pointer("out", out, F32, access=WRITES)))
    return out


def compensate(alpha: Array, mu: Array, offset: Array, y: Array) -> Array:
    """float32 y + (alpha mu + offset), in place; alpha for each of y's first axis."""
    given = [pointer(n, x, F32) for n, x in (("alpha", alpha), ("mu", mu), ("offset", offset))]
    if mu.shape != y.shape or offset.shape != y.shape or alpha.shape != y.shape[1:]:
        raise CoreError(f"mu and offset must have shape {y.shape}, alpha {y.shape[1:]}")
    ok(lib.octo_compensate_f32(len(y), alpha.size, *given, pointer("y", y, F32, None, True)))
    return y


def scale(x: Array, factor: float, *, out: Array) -> Array:
    """float32 x factor; out may be x."""
    given = pointer("x", x, F32, out.shape)
    ok(lib.octo_scale_f32(x.size, given, factor, pointer("out", out, F32, access=WRITES)))
    return out


def raise_to(most: Array, value: int) -> None:
    """int32 (1,) most = max(most, value)."""
    ok(lib.octo_most_s32(value, pointer("most", most, S32, (1,), True)))


costs("octo_fit_levels_f32", w=2, d=2)
costs("octo_forward_parts_f32", rounding=2, x=2)
costs("octo_backward_parts_f32", x=2)
