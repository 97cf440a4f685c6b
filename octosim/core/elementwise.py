"""Maps, ranges and scales of channels that training methods need (cext/elementwise.inc, cext/api_channels.c)."""

from __future__ import annotations

from dataclasses import dataclass

from octosim.core.call import (
    F32,
    S8,
    S32,
    S64,
    U8,
    WRITES,
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
    number64,
    ok,
    output,
    pointer,
)  # fmt: skip
from octosim.core.layers import matrix

# ---- values --------------------------------------------------


def within(x: Array, low: Number, high: Number, *, out: Array | None = None) -> Array:
    """uint8 1 where low <= x <= high, else 0; x float32."""
    out, p = output("out", out, U8, x.shape)
    ok(lib.octo_within_f32(x.size, pointer("x", x, F32), low, high, p))
    return out


def mask(x: Array, inside: Array, *, out: Array | None = None) -> Array:
    """float32 x times uint8 `inside`, whose elements are 0 or 1; out may be x."""
    out, p = output("out", out, F32, x.shape)
    ok(lib.octo_mask_f32(x.size, pointer("x", x, F32), pointer("inside", inside, U8, x.shape), p))
    return out


def within_columns(
    x: Array, low: Array, high: Array, *, out: Array | None = None, side: Array | None = None
) -> Array:
    """uint8 1 where low <= x <= high of the column (last axis), else 0; x float32.

    side: int8, gets 1 above high, -1 below low, else 0.
    """
    rows, cols = matrix(x)
    out, p = output("out", out, U8, x.shape)
    ends = [pointer(n, v, F32, (cols,)) for n, v in (("low", low), ("high", high))]
    beside = ffi.NULL if side is None else pointer("side", side, S8, x.shape, access=WRITES)
    ok(lib.octo_within_columns_f32(rows, cols, pointer("x", x, F32), *ends, p, beside))
    return out


def clip_columns(q: Array, low: Array, high: Array) -> Array:
    """int8 codes kept within low .. high of their column (last axis), in place."""
    rows, cols = matrix(q)
    ends = [pointer(n, v, S8, (cols,)) for n, v in (("low", low), ("high", high))]
    ok(lib.octo_clip_columns_s8(rows, cols, *ends, pointer("q", q, S8, None, True)))
    return q


def multiply(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """float32 a b of one shape; out may be either."""
    out, p = output("out", out, F32, a.shape)
    ok(lib.octo_multiply_f32(a.size, pointer("a", a, F32), pointer("b", b, F32, a.shape), p))
    return out


def levels(x: Array, steps: int, *, out: Array | None = None, inside: Array | None = None) -> tuple[Array, Array]:
    """float32 x clipped to [0, 1] and rounded to `steps` equal steps there (1 .. 255), and uint8 where it was not clipped.

    NotFiniteError where x holds a NaN or an infinity; so do the functions below.
    """
    out, p = output("out", out, F32, x.shape)
    inside, pi = output("inside", inside, U8, x.shape)
    ok(lib.octo_levels_f32(x.size, pointer("x", x, F32), steps, p, pi))
    return out, inside


def level_weights(
    w: Array, steps: int, *, out: Array | None = None, slope: Array | None = None
) -> tuple[Array, Array]:
    """float32 2 levels(tanh(w) / (2 max|tanh w|) + 1/2) - 1, and its derivative but for the levels' and the maximum's."""
    out, p = output("out", out, F32, w.shape)
    slope, ps = output("slope", slope, F32, w.shape)
    ok(lib.octo_level_weights_f32(w.size, pointer("w", w, F32), steps, p, ps))
    return out, slope


def binary_weights(w: Array, *, out: Array | None = None) -> Array:
    """float32 +-mean|w|, minus where w < 0."""
    out, p = output("out", out, F32, w.shape)
    ok(lib.octo_binary_weights_f32(w.size, pointer("w", w, F32), p))
    return out


def level_errors(x: Array, steps: int, random: Stream, *, out: Array | None = None) -> Array:
    """Each sample (first axis) of float32 x within +-max|x| of it, rounded stochastically to `steps` equal steps there."""
    out, p = output("out", out, F32, x.shape)
    ok(lib.octo_level_errors_f32(len(x), x.size // len(x), pointer("x", x, F32), steps, *random, p))
    return out


def barrier(g: Array, x: Array, bound: float, tightness: float, weight: float) -> Array:
    """float32 g, in place: 0 where |x| is above the bound; then, unless weight is 0, plus weight times the derivative of a log
    barrier of |x| - bound (octo_barrier_f32)."""
    ok(lib.octo_barrier_f32(x.size, pointer("x", x, F32), bound, tightness, weight, pointer("g", g, F32, x.shape, True)))
    return g


def signed_sum(x: Array, side: Array, *, out: Array | None = None) -> Array:
    """The sum of float32 x times int8 `side`, added in double: float32 (1,)."""
    out, p = output("out", out, F32, (1,))
    ok(lib.octo_signed_sum_f32(x.size, pointer("x", x, F32), pointer("side", side, S8, x.shape), p))
    return out


def add_counts(counts: Array, total: Array) -> None:
    """total += counts, int64 of one shape."""
    pt = pointer("total", total, S64, counts.shape, True)
    ok(lib.octo_add_counts(counts.size, pointer("counts", counts, S64), pt))


# ---- ranges --------------------------------------------------


def image_range(x: Array) -> Range:
    """The means of the images' (first axis) least and largest values, whose sums are rounded once."""
    found = Range()
    ok(lib.octo_image_range(len(x), x.size // len(x), pointer("x", x, F32), found.at))
    return found


def average(running: Array, latest: Array | Range, keep: float, *, from_zero: bool = False) -> None:
    """float32 running = keep running + (1 - keep) latest; with from_zero, running values that are all 0 become the latest."""
    if isinstance(latest, Range):
        if running.shape != (2,):
            raise CoreError(f"running must have shape (2,), not {running.shape}")
        given = latest.at
    else:
        given = pointer("latest", latest, F32, running.shape)
    ok(lib.octo_average_f32(running.size, keep, given, from_zero, pointer("running", running, F32, None, True)))


def earlier_range(running: Array, found: Range, keep: float) -> Range:
    """The range float32 (2,) `running` before it becomes keep running + (1 - keep) found; where it is zeros, what was found,
    which it becomes then."""
    made = Range()
    ok(lib.octo_earlier_range(found.low, found.high, keep, pointer("running", running, F32, (2,), True), made.at))
    return made


def mirrored(found: Range) -> Range:
    """-m, m of the range's larger magnitude m."""
    made = Range()
    ok(lib.octo_mirror_range(found.low, found.high, made.at))
    return made



# ---- channels: the last axis, or of weights the first --------------------------------------------------


@dataclass(frozen=True)
class RangeNorm:
    """What the backward pass of range normalization needs of the forward pass (octo_range_norm_forward)."""

    centered: Array
    columns: Array
    extremes: Array
    chunks: int
    factor: float


def range_norm_forward(
    x: Array, gamma: Array, beta: Array, running_mean: Array, running_deviation: Array, *,
    eps: float, keep: float, factor: float, chunks: int, centered: Array | None = None, out: Array | None = None,
) -> tuple[Array, RangeNorm]:  # fmt: skip
    """Range normalization of float32 x with the statistics of so many chunks of rows, or with 0 the running ones (octosim.h).

    NotFiniteError where x, gamma or beta holds a NaN or an infinity.
    """
    rows, cols = matrix(x)
    columns, pc = output("columns", None, F32, (3, cols))
    extremes, pe = output("extremes", None, S32, (2, max(chunks, 1), cols))
    centered, pm = output("centered", centered, F32, x.shape)
    out, py = output("out", out, F32, x.shape)
    given = [pointer(n, v, F32, (cols,)) for n, v in (("gamma", gamma), ("beta", beta))]
    running = [pointer(n, v, F32, (cols,), True) for n, v in (("mean", running_mean), ("deviation", running_deviation))]
    px = pointer("x", x, F32)
    ok(lib.octo_range_norm_forward(rows, cols, chunks, px, *given, eps, factor, keep, *running, pc, pe, pm, py))
    return out, RangeNorm(centered, columns, extremes, chunks, factor)


def range_norm_backward(saved: RangeNorm, dy: Array, *, out: Array | None = None) -> tuple[Array, Array, Array]:
    """dx, dgamma and dbeta of `range_norm_forward` for float32 dy."""
    (rows, cols), shape = matrix(dy), saved.centered.shape
    out, p = output("out", out, F32, dy.shape)
    (dgamma, pg), (dbeta, pb) = output("dgamma", None, F32, (cols,)), output("dbeta", None, F32, (cols,))
    pd, pm = pointer("dy", dy, F32, shape), pointer("centered", saved.centered, F32, shape)
    pc = pointer("columns", saved.columns, F32, (3, cols))
    pe = pointer("extremes", saved.extremes, S32, (2, saved.chunks, cols))
    ok(lib.octo_range_norm_backward(rows, cols, saved.chunks, pd, pm, pc, saved.factor, pe, p, pg, pb))
    return out, dgamma, dbeta


def channel_clips(
    dy: Array, found: Range, clip: Array, *, most_beyond: int, keep: float, share: float
) -> tuple[Array, Array]:
    """Updates the clipping values of the channels of float32 dy, in the range found (octo_channel_clips); float32 scales
    clip / 127 and their inverses."""
    rows, cols = matrix(dy)
    (scales, ps), (inverses, pi) = output("scales", None, F32, (cols,)), output("inverses", None, F32, (cols,))
    pd, pc = pointer("dy", dy, F32), pointer("clip", clip, F32, (cols,), True)
    ok(lib.octo_channel_clips(rows, cols, pd, found.low, found.high, most_beyond, keep, share, pc, ps, pi))
    return scales, inverses


def dequantize_channels(acc: Array, scales: Array, factor: Number = 1.0, *, out: Array | None = None) -> Array:
    """float32 acc (scales factor) of int32 sums, a scale for each index of the first axis."""
    rows = len(acc)
    out, p = output("out", out, F32, acc.shape)
    pa, ps = pointer("acc", acc, S32), pointer("scales", scales, F32, (rows,))
    ok(lib.octo_dequantize_channels_s32(rows, acc.size // rows, pa, ps, factor, p))
    return out


def quantize_rows(x: Array, *, out: Array | None = None, real: Array | None = None) -> tuple[Array, Array, Array]:
    """int8 codes of float32 x with a scale max|x| / 127 for each index of the first axis, their values, and the scales.

    NotFiniteError where x holds a NaN or an infinity.
    """
    rows = len(x)
    out, q = output("out", out, S8, x.shape)
    real, py = output("real", real, F32, x.shape)
    scales, ps = output("scales", None, F32, (rows,))
    ok(lib.octo_quantize_rows_s8(rows, x.size // rows, pointer("x", x, F32), ps, q, py))
    return out, real, scales


def fold_channel_bias(
    bias: Array, weight_scales: Array | Scalar, x_scale: Number, weight_sums: Array, zero: Whole
) -> tuple[Array, Array | Scalar, Array]:
    """What bias and zero point add to int32 sums, the sums' scales, and what is left of the bias to be added in float32.

    bias float32 (channels,), weight_sums: int32, of each channel's codes.  The scales: weight scale times x_scale, one
    or one a channel.  In units of the scale, nearest; what is beyond +-2^30, and all where the scale is 0, is left: for one
    scale as `dequantize_sums` takes it, (channels + 1,), else (channels,).
    """
    (cols,) = bias.shape
    add, p = output("add", None, S32, (cols,))
    rest, pr = output("rest", None, F32, (cols + 1,))
    if isinstance(weight_scales, Scalar):
        made: Array | Scalar = Scalar.zero()
        count, given, scales = 1, weight_scales.at, made.at  # type: ignore[union-attr]
    else:
        count, given = cols, pointer("weight_scales", weight_scales, F32, (cols,))
        made, scales = output("scales", None, F32, (cols,))
    pb, ps = pointer("bias", bias, F32), pointer("weight_sums", weight_sums, S32, (cols,))
    ok(lib.octo_fold_bias(cols, count, given, x_scale, zero, pb, ps, scales, p, pr))
    return add, made, rest if isinstance(weight_scales, Scalar) else rest[:cols]


def code_ends(scale: Number, zero: Whole) -> Range:
    """The values of the codes -127 and 127."""
    made = Range()
    ok(lib.octo_code_ends(scale, zero, made.at))
    return made


def counteract(lr: Number, deviation: Number, slope: float, least: float) -> Scalar:
    """lr max(exp(slope deviation), least), float64 of a float32 exponential."""
    made = number64(0.0)
    ok(lib.octo_counteract(lr, deviation, slope, least, made.at))
    return made


costs("octo_levels_f32", "octo_level_errors_f32", "octo_image_range", x=2)
costs("octo_level_weights_f32", w=2, out=2)
costs("octo_binary_weights_f32", w=3)
costs("octo_range_norm_forward", x=3)
costs("octo_range_norm_backward", dy=3)
costs("octo_channel_clips", dy=3)
costs("octo_quantize_rows_s8", x=3)
