"""Random words, ranges and codes: float32 and int32 to int8 and back (cext/quantize.inc)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from octosim.core.call import (
    F32,
    S8,
    S32,
    S64,
    U8,
    U32,
    Array,
    CoreError,
    Number,
    Range,
    Scalar,
    Stream,
    Whole,
    costs,
    ffi,
    lib,
    ok,
    output,
    pointer,
    scalar,
)
from octosim.numerics import Requantization, Rounding, mu_law, mu_thresholds

# ---- randomness and elementary functions --------------------------------------------------


def philox(n: int, seed: int, step: Whole = 0, tensor: int = 0, *, out: Array | None = None) -> Array:
    """uint32 words 0 .. n-1 of the Philox4x32-10 stream (seed, step, tensor)."""
    out, p = output("out", out, U32, (n,))
    ok(lib.octo_philox(n, seed, step, tensor, p))
    return out


def normal(shape: tuple[int, ...], seed: int, tensor: int, deviation: float, *, step: int = 0, mean: float = 0.0) -> Array:
    """float32 normal deviates from the Philox stream (seed, step, tensor), the same on every machine."""
    out, p = output("out", None, F32, shape)
    ok(lib.octo_normal_f32(out.size, seed, step, tensor, mean, deviation, p))
    return out


def exp(x: Array) -> Array:
    """float32 e^x for |x| <= 87, at most 2 ulp off."""
    out, p = output("out", None, F32, x.shape)
    ok(lib.octo_exp_f32(x.size, pointer("x", x, F32), p))
    return out


def log(x: Array) -> Array:
    """float32 ln x for normal x > 0, at most 2 ulp off."""
    out, p = output("out", None, F32, x.shape)
    ok(lib.octo_log_f32(x.size, pointer("x", x, F32), p))
    return out


# ---- quantization --------------------------------------------------


def value_range(x: Array) -> Range:
    """Smallest and largest value of a float32 array; NotFiniteError where it holds a NaN or an infinity."""
    found = Range()
    ok(lib.octo_range_f32(x.size, pointer("x", x, F32), found.at, found.at + 1))
    return found


def join_ranges(ranges: list[Range], out: Range) -> Range:
    """The range of several tensors, from theirs."""
    ok(lib.octo_join_ranges(len(ranges), ffi.new("float *[]", [one.at for one in ranges]), out.at))
    return out


def ema_range(running: Array, found: Range, weight: float) -> None:
    """running (float32, 2 values) += weight (found - running); a running range of zeros becomes what was found."""
    if not running.flags.writeable:
        raise CoreError("running is read-only")
    ok(lib.octo_follow_range(found.low, found.high, weight, pointer("running", running, F32, (2,))))  # priced as read


def sum_range(acc: Array) -> tuple[int, int]:
    """Smallest and largest value of an int32 array."""
    pair = ffi.new("int32_t[2]")
    ok(lib.octo_range_s32(acc.size, pointer("acc", acc, S32), pair, pair + 1))
    return pair[0], pair[1]


def moments(x: Array) -> tuple[float, float]:
    """Mean and standard deviation (divided by n) of a float32 array."""
    pair = ffi.new("float[2]")
    ok(lib.octo_moments_f32(x.size, pointer("x", x, F32), pair, pair + 1))
    return pair[0], pair[1]


@dataclass(frozen=True, slots=True)
class Codes:
    """What `quantize` takes for a tensor, and what its codes then mean: r = scale (q - zero).  low, high: the codes' ends."""

    scale: Scalar
    inverse: Scalar
    zero: Scalar
    low: Scalar
    high: Scalar


_CODES = ffi.typeof("octo_codes *")


def new_codes() -> tuple[Any, Codes]:
    """octo_codes * of any content, and its numbers."""
    made = ffi.new(_CODES)
    return made, Codes(*(Scalar(ffi.addressof(made[0], name), made) for name in ("scale", "inverse", "zero", "lo", "hi")))


def symmetric_codes(low: Number, high: Number, share: Number = 1.0, *, out: Codes | None = None) -> Codes:
    """Zero point 0 and scale = max(|low|, |high|) / 127, of share times a range, whose ends are the codes' ends too.

    Jacob et al. 2018, section 2.1, with a symmetric range; octosim.h says how it is rounded.
    """
    made, codes = new_codes() if out is None else (out.scale.memory, out)
    ok(lib.octo_symmetric_codes(low, high, share, made))
    return codes


def asymmetric_codes(low: Number, high: Number) -> Codes:
    """scale = (high - low) / 254, zero = round(-127 - low / scale), of a range widened to contain 0: real 0 has an exact code,
    as zero padding needs (Jacob et al. 2018, section 2.1)."""
    made, codes = new_codes()
    ok(lib.octo_asymmetric_codes(low, high, made))
    return codes


def combined_scale(a: Number, b: Number) -> Scalar:
    """The scale of a product of codes: a b in float32; infinity beyond its range, which the next range check reports."""
    made = scalar(0.0)
    ok(lib.octo_product_scale(a, b, made.at))
    return made


def zero_point_correction(sums: Array, zero: Whole) -> Array:
    """int32 -zero * sums, modulo 2^32: what a zero point adds to sums of products, of the other operand's sums."""
    out, p = output("out", None, S32, sums.shape)
    ok(lib.octo_zero_term(sums.size, pointer("sums", sums, S32), zero, p))
    return out


_ROUNDINGS = {rounding: getattr(lib, f"OCTO_{rounding.name}") for rounding in Rounding}
NO_RANDOM = (0, 0, 0)


def rounding_code(rounding: Rounding) -> int:
    """The core's number of a rounding."""
    return int(_ROUNDINGS[rounding])


def _stream(rounding: Rounding, random: Stream | None) -> Stream:
    """The Philox stream of a rounding: (seed, step, tensor), which stochastic rounding needs."""
    if rounding is Rounding.STOCHASTIC and random is None:
        raise CoreError("stochastic rounding needs random = (seed, step, tensor)")
    return random or NO_RANDOM


def quantize(
    x: Array,
    inv_scale: Number,
    *,
    zero: Whole = 0,
    low: Whole = -127,
    high: Whole = 127,
    rounding: Rounding = Rounding.HALF_EVEN,
    random: Stream | None = None,
    out: Array | None = None,
) -> Array:
    """int8 codes clamp(round(x * inv_scale) + zero, low, high) of a float32 array; the product is rounded to float32.

    random = (seed, step, tensor) is the Philox stream of stochastic rounding.  NaN becomes `low`.
    Raises CoreError for a rounding that is for integers only (pseudo-stochastic).
    """
    if not rounding.for_reals:
        raise CoreError(f"{rounding.value} rounding is defined for integers that are shifted, not for float32 values")
    out, q = output("out", out, S8, x.shape)
    p, stream = pointer("x", x, F32), _stream(rounding, random)
    ok(lib.octo_quantize_s8(x.size, p, inv_scale, _ROUNDINGS[rounding], zero, low, high, *stream, q))
    return out


costs("octo_quantize_s8", rounding=3)
costs("octo_requantize_s32", rounding=6)
costs("octo_requantize_f32", rounding=5)


def _columns(acc: Array, add: Array | None, dtype: np.dtype[Any], **scales: Any) -> tuple[int, int, list[Any]]:
    """Rows, columns (1 where each has one value) and the pointers of `add` and of the scales, repeated to all columns."""
    made = {name: np.asarray(value, dtype) for name, value in scales.items()}
    sizes = {value.size for value in made.values() if value.ndim} | ({add.size} if add is not None else set())
    cols = max(sizes, default=1)
    if sizes - {cols}:
        raise CoreError(f"add and the scales differ in their number of columns: {', '.join(map(str, sorted(sizes)))}")
    if not acc.size or cols > 1 and acc.shape[-1:] != (cols,):
        raise CoreError(f"acc has the shape {acc.shape}, expected {cols} columns, as add and the scales have")
    add = np.zeros(cols, np.int32) if add is None else add
    wide = [np.ascontiguousarray(np.broadcast_to(value, (cols,))) for value in made.values()]
    return acc.size // cols, cols, [pointer("add", add, S32, (cols,)), *(pointer("scale", value, dtype) for value in wide)]


def requantize(
    acc: Array,
    multiplier: int | Array,
    shift: int | Array,
    *,
    rounding: Rounding | Requantization = Rounding.HALF_UP,
    add: Array | None = None,
    zero: int = 0,
    low: int = -128,
    high: int = 127,
    random: Stream | None = None,
    out: Array | None = None,
) -> Array:
    """int8 codes clamp(round((acc + add) multiplier / 2^shift) + zero, low, high) of int32 sums, exact until rounded.

    multiplier, shift: integers, or int32 arrays with one value for each column (channel, the last axis) of acc;
    0 <= multiplier < 2^31, 0 <= shift <= 62.  add: int32 (columns,), added modulo 2^32.
    rounding: any Rounding; pseudo-stochastic for multiplier 1 and shift <= 31 only.  Or Requantization.GEMMLOWP: the scale is
    multiplier / 2^31 / 2^shift, shift <= 31, rounded twice as gemmlowp does.
    """
    if isinstance(rounding, Rounding):
        code, stream = _ROUNDINGS[rounding], _stream(rounding, random)
    elif rounding is Requantization.GEMMLOWP:
        code, stream = lib.OCTO_GEMMLOWP, NO_RANDOM
    else:
        raise CoreError(f"requantize: rounding is {rounding!r}, expected octosim.numerics.Rounding or Requantization.GEMMLOWP")
    for name, value in (("multiplier", multiplier), ("shift", shift)):
        if np.any(np.asarray(value) != np.asarray(value).astype(np.int32)):
            raise CoreError(f"requantize: {name} must be integers below 2^31")
    rows, cols, pointers = _columns(acc, add, S32, multiplier=multiplier, shift=shift)
    out, q = output("out", out, S8, acc.shape)
    ok(lib.octo_requantize_s32(rows, cols, pointer("acc", acc, S32), *pointers, code, zero, low, high, *stream, q))
    return out


def requantize_float(
    acc: Array,
    scale: float | Array,
    *,
    rounding: Rounding = Rounding.HALF_EVEN,
    add: Array | None = None,
    zero: int = 0,
    low: int = -128,
    high: int = 127,
    random: Stream | None = None,
    out: Array | None = None,
) -> Array:
    """int8 codes clamp(round(float32(acc + add) scale) + zero, low, high) of int32 sums.

    scale: a number, or float32 with one value for each column of acc.  Otherwise as `requantize` and `quantize`.
    """
    if not rounding.for_reals:
        raise CoreError(f"{rounding.value} rounding is defined for integers that are shifted, not for float32 scales")
    stream = _stream(rounding, random)
    rows, cols, pointers = _columns(acc, add, F32, scale=scale)
    out, q = output("out", out, S8, acc.shape)
    code = _ROUNDINGS[rounding]
    ok(lib.octo_requantize_f32(rows, cols, pointer("acc", acc, S32), *pointers, code, zero, low, high, *stream, q))
    return out


def dequantize(q: Array, scale: Number, *, zero: Whole = 0, out: Array | None = None) -> Array:
    """float32 (q - zero) * scale of int8 codes."""
    out, p = output("out", out, F32, q.shape)
    ok(lib.octo_dequantize_s8(q.size, pointer("q", q, S8), scale, zero, p))
    return out


def dequantize_rows(acc: Array, add: Array, scale: Number, *, out: Array | None = None) -> Array:
    """float32 (acc + add) * scale of int32 sums, `add` int32 (acc.shape[0],): one value for each index of the first axis."""
    if not acc.size:
        raise CoreError("acc is empty")
    rows = acc.shape[0]
    out, p = output("out", out, F32, acc.shape)
    pointers = [pointer("acc", acc, S32), pointer("add", add, S32, (rows,))]
    ok(lib.octo_dequantize_rows_s32(rows, acc.size // rows, *pointers, scale, p))
    return out


def dequantize_sums(acc: Array, add: Array, scale: Number, *, rest: Array | None = None, out: Array | None = None) -> Array:
    """float32 (acc + add) * scale of int32 sums; `add` (int32) repeats along acc: acc.size is a multiple of add.size.

    rest: what `fold_bias` leaves for float32, added there.
    """
    if not add.size or acc.size % add.size:
        raise CoreError(f"acc has {acc.size} elements, not a multiple of add's {add.size}")
    out, p = output("out", out, F32, acc.shape)
    beside = ffi.NULL if rest is None else pointer("rest", rest, F32, (add.size + 1,))
    sums, rows = (pointer("acc", acc, S32), pointer("add", add, S32)), acc.size // add.size
    ok(lib.octo_dequantize_s32(rows, add.size, *sums, scale, beside, p))
    return out


def images(x: Array, scale: float, shift: float, *, out: Array | None = None) -> Array:
    """float32 x * scale + shift of uint8 pixels."""
    out, p = output("out", out, F32, x.shape)
    ok(lib.octo_images_f32(x.size, pointer("x", x, U8), scale, shift, p))
    return out


def copy(x: Array, *, out: Array) -> Array:
    """float32 x in other memory."""
    out, p = output("out", out, F32, x.shape)
    ok(lib.octo_copy_f32(x.size, pointer("x", x, F32), p))
    return out


# ---- mu-law codes --------------------------------------------------


@lru_cache(maxsize=16)
def _floats(values: tuple[float, ...]) -> Any:
    """A float32 array in C memory."""
    return ffi.new("float[]", values)


@lru_cache(maxsize=16)
def _thresholds(mu: int) -> Any:
    return _floats(tuple(mu_thresholds(mu)))


def encode_mu8(
    x: Array, bound: float, *, mu: int = 255, out: Array | None = None, count: Array | None = None
) -> tuple[Array, Array]:
    """Mu-law codes (uint8) of float32 values within +-bound, and how many values lay outside and got the largest code.

    count: int64 memory whose first element gets that number.
    """
    if not 0 < bound < np.inf:
        raise CoreError(f"mu-law codes need a bound above 0, not {bound}")
    out, q = output("out", out, U8, x.shape)
    count = np.empty(1, np.int64) if count is None else count[:1]
    clipped = pointer("count", count, S64, (1,), True)
    ok(lib.octo_encode_mu8(x.size, pointer("x", x, F32), 1.0 / bound, _thresholds(mu), q, clipped))
    return out, count


def decode_table(q: Array, bound: float, table: tuple[float, ...], *, out: Array | None = None) -> Array:
    """float32 values bound table[m] of uint8 codes of a sign, the top bit, and a magnitude m; table: 128 values."""
    out, p = output("out", out, F32, q.shape)
    ok(lib.octo_decode_mu8(q.size, pointer("q", q, U8), _floats(table), bound, p))
    return out


def decode_mu8(q: Array, bound: float, *, mu: int = 255, out: Array | None = None) -> Array:
    """float32 values bound F^-1(m / 127) of mu-law codes."""
    return decode_table(q, bound, mu_law(mu).table, out=out)
