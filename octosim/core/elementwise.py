"""Maps and ranges that training methods need: few levels, masks, barriers (cext/elementwise.inc)."""

from __future__ import annotations

from octosim.core.call import (
    F32,
    S8,
    S64,
    U8,
    Array,
    CoreError,
    Number,
    Range,
    Scalar,
    Stream,
    costs,
    lib,
    ok,
    output,
    pointer,
)  # fmt: skip

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


def signed_sum(x: Array, side: Array) -> Scalar:
    """The sum of float32 x times int8 `side`, added in double."""
    made = Scalar.zero()
    ok(lib.octo_signed_sum_f32(x.size, pointer("x", x, F32), pointer("side", side, S8, x.shape), made.at))
    return made


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


costs("octo_levels_f32", "octo_level_errors_f32", "octo_image_range", x=2)
costs("octo_level_weights_f32", w=2, out=2)
costs("octo_binary_weights_f32", w=3)
