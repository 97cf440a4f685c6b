"""Everything else that a training step does: reductions, normalization, layers, loss, optimizers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from octosim.core.call import (
    F32,
    S8,
    S32,
    U8,
    WRITES,
    Array,
    CoreError,
    Number,
    Range,
    Scalar,
    Stream,
    costs,
    ffi,
    lib,
    not_recorded,
    ok,
    operand_types,
    output,
    pointer,
)
from octosim.core.lazy import LazyDequant, Values, tensor

# ---- columns: sums, affine maps --------------------------------------------------


def matrix(x: Array) -> tuple[int, int]:
    """Rows and columns, the last axis being the columns."""
    if x.ndim < 1 or not x.size:
        raise CoreError("x must have a last axis and no empty one")
    return x.size // x.shape[-1], x.shape[-1]


def column_sums(x: Array, cols: int | None = None, *, out: Array | None = None) -> Array:
    """Sums over all axes but the last (or over rows of `cols` elements): float32 -> float32, int8 -> int32.

    Of int8 exact; CoreError where a sum is beyond int32.
    """
    _, last = matrix(x)
    cols = cols or last
    if cols < 1 or x.size % cols:
        raise CoreError(f"column sums: {x.size} elements are not rows of {cols}")
    kind, wide = operand_types(x)
    out, p = output("out", out, wide, (cols,))
    call = lib.octo_column_sums_s8 if kind == S8 else lib.octo_column_sums_f32
    ok(call(x.size // cols, cols, pointer("x", x, kind), p))
    return out


def row_sums(x: Array, *, out: Array | None = None) -> Array:
    """int32 sums of int8 x over all axes but the first; exact, CoreError where one is beyond int32."""
    matrix(x)
    out, p = output("out", out, S32, (x.shape[0],))
    ok(lib.octo_row_sums_s8(x.shape[0], x.size // x.shape[0], pointer("x", x, S8), p))
    return out


def affine(x: Array, scale: Array, shift: Array, *, relu: bool = False, out: Array | None = None) -> Array:
    """x * scale + shift over the last axis, then max(., 0) where relu is set; out may be x."""
    rows, cols = matrix(x)
    out, p = output("out", out, F32, x.shape)
    pointers = [pointer("scale", scale, F32, (cols,)), pointer("shift", shift, F32, (cols,))]
    ok(lib.octo_affine_f32(rows, cols, pointer("x", x, F32), *pointers, relu, p))
    return out


# ---- the other layers --------------------------------------------------


def avgpool(x: Array, *, out: Array | None = None) -> Array:
    """The mean of each image's pixels: (images, height, width, channels) -> (images, channels), summed in ascending order."""
    if x.ndim != 4 or not x.size:
        raise CoreError(f"average pooling needs images (batch, height, width, channels), not an array of shape {x.shape}")
    images, height, width, channels = x.shape
    out, p = output("out", out, F32, (images, channels))
    ok(lib.octo_avgpool_f32(images, height * width, channels, pointer("x", x, F32), p))
    return out


def avgpool_backward(dy: Array, height: int, width: int, *, out: Array | None = None) -> Array:
    """dx of `avgpool`: every pixel gets dy / (height width)."""
    if dy.ndim != 2:
        raise CoreError(f"average pooling: dy must be (batch, channels), not {dy.shape}")
    images, channels = dy.shape
    out, p = output("out", out, F32, (images, height, width, channels))
    ok(lib.octo_avgpool_backward_f32(images, height * width, channels, pointer("dy", dy, F32), p))
    return out


@dataclass(frozen=True)
class Pool:
    """A square pooling window without padding."""

    batch: int
    height: int
    width: int
    channels: int
    kernel: int
    stride: int

    def __post_init__(self) -> None:
        if self.stride < 1 or not 1 <= self.kernel <= min(self.height, self.width):
            raise CoreError(
                f"pooling: a {self.kernel} x {self.kernel} window with stride {self.stride} does not fit a "
                f"{self.height} x {self.width} image"
            )

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.height, self.width, self.channels)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        out_h, out_w = ((size - self.kernel) // self.stride + 1 for size in (self.height, self.width))
        return (self.batch, out_h, out_w, self.channels)


@lru_cache(maxsize=1024)
def pool_struct(g: Pool) -> Any:
    """octo_pool * of a geometry."""
    return ffi.new("octo_pool *", (g.batch, g.height, g.width, g.channels, g.kernel, g.stride))


def maxpool(g: Pool, x: Array, *, out: Array | None = None, argmax: Array | None = None) -> tuple[Array, Array]:
    """The largest of each window, and its position in the window (uint8, the first of equals)."""
    out, p = output("out", out, F32, g.y_shape)
    argmax, where = output("argmax", argmax, U8, g.y_shape)
    ok(lib.octo_maxpool_f32(pool_struct(g), pointer("x", x, F32, g.x_shape), p, where))
    return out, argmax


def maxpool_backward(g: Pool, dy: Array, argmax: Array, *, out: Array | None = None) -> Array:
    """dx of `maxpool`: dy added to each window's largest."""
    out, p = output("out", out, F32, g.x_shape)
    pd, where = pointer("dy", dy, F32, g.y_shape), pointer("argmax", argmax, U8, g.y_shape)
    ok(lib.octo_maxpool_backward_f32(pool_struct(g), pd, where, p))
    return out


def dropout(x: Array, rate: float, random: Stream, *, out: Array | None = None) -> Array:
    """Zeroes a share `rate` of x and scales the rest by 1 / (1 - rate).

    random = (seed, step, tensor) decides which: the same call on dy is the backward pass.
    """
    out, p = output("out", out, F32, x.shape)
    ok(lib.octo_dropout_f32(x.size, pointer("x", x, F32), rate, *random, p))
    return out


def softmax_cross_entropy(
    logits: Array, labels: Array, *, smoothing: float = 0.0, gradient: bool = True
) -> tuple[Scalar, Array | None, Scalar]:
    """Mean loss, dL/dlogits (float32 (rows, classes); None unless asked for) and the count of rows that argmax gets right.

    logits: float32 (rows, classes); labels: int32 (rows,).  smoothing: the share in [0, 1) of a label's probability that is
    spread evenly over all classes (Szegedy et al. 2016, section 7).  NotFiniteError where a logit is NaN or infinite.
    """
    if logits.ndim != 2:
        raise CoreError(f"logits must be 2-D, not {logits.ndim}-D")
    rows, cols = logits.shape
    dlogits, p = output("dlogits", None, F32, logits.shape) if gradient else (None, ffi.NULL)
    loss, correct = ffi.new("float *"), ffi.new("int64_t *")
    pl, pt = pointer("logits", logits, F32), pointer("labels", labels, S32, (rows,))
    ok(lib.octo_softmax_cross_entropy_f32(rows, cols, pl, pt, smoothing, loss, p, correct))
    return Scalar(loss), dlogits, Scalar(correct)


costs("octo_softmax_cross_entropy_f32", logits=2)


def mean_squared_error(y: Array, target: Array, *, gradient: bool = True) -> tuple[Scalar, Array | None]:
    """The mean of (y - target)^2 over all values, float32 of one size, and dL/dy (float32; None unless asked for).

    NotFiniteError where a value is NaN or infinite.
    """
    dy, p = output("dy", None, F32, y.shape) if gradient else (None, ffi.NULL)
    loss = ffi.new("float *")
    if target.shape != y.shape and not target.flags.c_contiguous:
        not_recorded("target was copied into rows")
    pt = pointer("target", target.reshape(y.shape) if target.size == y.size else target, F32, y.shape)
    ok(lib.octo_mean_squared_error_f32(y.size, pointer("y", y, F32), pt, loss, p))
    return Scalar(loss), dy


costs("octo_mean_squared_error_f32", y=2, target=2)


# ---- optimizers and Octo's compensation --------------------------------------------------


def sgd(w: Array, g: Values, v: Array, *, lr: Number, momentum: float, decay: float, found: Range | None = None) -> Range:
    """SGD with momentum, in place on w and v: v = momentum v + (g + decay w); w -= lr v.

    g: float32 of w's shape, or a LazyDequant of it `by_rows`.  Returns w's least and largest value then, in `found` if given;
    NotFiniteError where it holds a NaN or an infinity.
    """
    gradient, rows, cols = _gradient(g, w)
    pw, pv = pointer("w", w, F32, None, True), pointer("v", v, F32, w.shape, True)
    found = found or Range()
    ok(lib.octo_sgd_f32(rows, cols, pw, gradient, pv, lr, momentum, decay, found.at))
    return found


def adam(
    w: Array, g: Values, m: Array, v: Array, *, lr: Number, b1: float, b2: float, eps: float, c1: Number, c2: Number,
    decay: float, found: Range | None = None,
) -> Range:  # fmt: skip
    """Adam, in place on w, m and v; c1 = 1 - b1^t and c2 = 1 - b2^t correct the bias (Kingma & Ba 2015, algorithm 1).

    g, found, returns, NotFiniteError: as for `sgd`.
    """
    gradient, rows, cols = _gradient(g, w)
    pw, pm, pv = (pointer(name, x, F32, w.shape, True) for name, x in (("w", w), ("m", m), ("v", v)))
    found = found or Range()
    ok(lib.octo_adam_f32(rows, cols, pw, gradient, pm, pv, lr, b1, b2, eps, c1, c2, decay, found.at))
    return found


costs("octo_sgd_f32", "octo_adam_f32", update=True)


def _gradient(g: Values, w: Array) -> tuple[Any, int, int]:
    """octo_tensor * of a gradient of w, and rows and columns: one row where g is values."""
    if not w.size:
        raise CoreError("w is empty")
    made = tensor("g", g, w.shape, by_rows=True)
    return (made, len(w), w.size // len(w)) if isinstance(g, LazyDequant) else (made, 1, w.size)


def fold_bias(
    bias: Array,
    zero_point_correction: Array,
    scale: Number,
    lac: tuple[Array, Array, Array] | None = None,
    *,
    rest: Array | None = None,
    out: Array | None = None,
) -> Array:
    """The bias, and Octo's compensation if given, as addends of int32 accumulators, in units of scale:
    round((bias + alpha mu + offset) / scale) + zero_point_correction.

    bias float32 (cols,), zero_point_correction int32 (cols,), lac = (alpha, mu, offset), float32 of one shape (..., cols).
    rest: float32 (size + 1,), gets what int32 cannot hold at this scale, which `dequantize_sums` then adds in float32; without
    it that is clamped to 2^30 units.  Returns int32 of lac's shape, or (cols,).
    """
    cols = bias.size
    if not cols:
        raise CoreError("compensation: bias is empty")
    shape = lac[0].shape if lac else (cols,)
    size = lac[0].size if lac else cols
    if size % cols:
        raise CoreError(f"compensation of {size} elements for {cols} columns")
    out, p = output("out", out, S32, shape)
    pointers = (
        [pointer(n, v, F32, shape) for n, v in zip(("alpha", "mu", "offset"), lac, strict=True)] if lac else [ffi.NULL] * 3
    )
    terms = [pointer("bias", bias, F32, (cols,)), pointer("zero_point_correction", zero_point_correction, S32, (cols,))]
    beside = ffi.NULL if rest is None else pointer("rest", rest, F32, (size + 1,), access=WRITES)
    ok(lib.octo_lac_fold_f32(size // cols, cols, *pointers, *terms, scale, p, beside))
    return out


def lac_backward(
    sums: Array, lac: tuple[Array, Array, Array], decay: float, *,
    out: tuple[Array | None, Array | None, Array | None] = (None, None, None),
) -> tuple[Array, Array, Array]:  # fmt: skip
    """dalpha, dmu, doffset from sums = dL/d(compensation); decay is the L2 factor on mu and offset."""
    shape = lac[0].shape
    gradients = [output(n, array, F32, shape) for n, array in zip(("dalpha", "dmu", "doffset"), out, strict=True)]
    pointers = [pointer(n, v, F32, shape) for n, v in zip(("alpha", "mu", "offset"), lac, strict=True)]
    ok(lib.octo_lac_backward_f32(sums.size, pointer("sums", sums, F32, shape), *pointers, decay, *(p for _, p in gradients)))
    return gradients[0][0], gradients[1][0], gradients[2][0]


# ---- the machine's limits ------------------------------------------------------------------------


def peak(rounds: int) -> int:
    """Runs int8 multiply-accumulates from registers on all threads; how many.  Time the call to get the machine's peak."""
    macs = ffi.new("int64_t *")
    ok(lib.octo_peak_s8(rounds, macs))
    return int(macs[0])


def stream_triad(a: Array, b: Array, c: Array, scalar: float) -> None:
    """STREAM's triad a = b + scalar c on float32; it moves 12 bytes an element by STREAM's rule."""
    pointers = [pointer("a", a, F32, access=WRITES), pointer("b", b, F32, a.shape), pointer("c", c, F32, a.shape)]
    ok(lib.octo_stream_triad(a.size, *pointers, scalar))
