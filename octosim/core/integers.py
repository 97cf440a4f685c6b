"""Layers, loss and updates on int8 codes alone (cext/integers.inc): values q 2^exponent, exponents in C memory."""

from __future__ import annotations

import math
from typing import Any

from octosim.core.call import (
    F32,
    S8,
    S32,
    U8,
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
)
from octosim.core.codes import rounding_code
from octosim.core.layers import Pool, pool_struct
from octosim.numerics import Rounding


def _exponent() -> Scalar:
    return Scalar(ffi.new("int32_t *"))


def images_as_codes(x: Array, shift: int, *, out: Array | None = None) -> Array:
    """int8 x >> shift of uint8 pixels; shift 1 .. 7."""
    out, p = output("out", out, S8, x.shape)
    ok(lib.octo_images_s8(x.size, pointer("x", x, U8), shift, p))
    return out


def add_exponents(a: Whole, b: Whole) -> Scalar:
    """a + b, int32."""
    made = _exponent()
    ok(lib.octo_add_exponents(a, b, made.at))
    return made


def power_of_two(exponent: Whole) -> Scalar:
    """float32 2^exponent; beyond +-120 that of the nearer end."""
    made = Scalar.zero()
    ok(lib.octo_power_of_two(exponent, made.at))
    return made


def narrow(
    acc: Array, bits: int, rounding: Rounding, exponent: Whole = 0, *, out: Array | None = None
) -> tuple[Array, Scalar]:
    """int8 codes of int32 sums, shifted right until the largest has so many bits (1 .. 7), and exponent + shift.

    Small sums stay as they are.  rounding: any but stochastic.
    """
    made, (out, q) = _exponent(), output("out", out, S8, acc.shape)
    ok(lib.octo_narrow_s32(acc.size, pointer("acc", acc, S32), bits, rounding_code(rounding), exponent, q, made.at))
    return out, made


def align(
    a: Array, exponent_a: Whole, b: Array, exponent_b: Whole, *, acc: Array | None = None, out: Array | None = None
) -> tuple[Array, Scalar]:
    """The sum of two tensors of int8 codes with an exponent each, exact in int32 `acc`, then narrowed to 7 bits; its exponent.

    What is lower by more than 22 powers of two is nothing.
    """
    pa, pb = pointer("a", a, S8), pointer("b", b, S8, a.shape)
    acc, sums = output("acc", acc, S32, a.shape)
    made, (out, q) = _exponent(), output("out", out, S8, a.shape)
    ok(lib.octo_align_s8(a.size, pa, exponent_a, pb, exponent_b, sums, q, made.at))
    return out, made


def relu_codes(x: Array, *, out: Array | None = None) -> Array:
    """int8 max(x, 0); out may be x."""
    out, p = output("out", out, S8, x.shape)
    ok(lib.octo_relu_s8(x.size, pointer("x", x, S8), p))
    return out


def relu_codes_backward(y: Array, dy: Array, *, out: Array | None = None) -> Array:
    """int8 dy where y > 0, else 0; out may be dy."""
    out, p = output("out", out, S8, dy.shape)
    ok(lib.octo_relu_backward_s8(dy.size, pointer("y", y, S8, dy.shape), pointer("dy", dy, S8), p))
    return out


def dropout_codes(x: Array, doublings: int, random: Stream, *, out: Array | None = None) -> Array:
    """Keeps a share 2^-doublings (1 .. 16) of the places of int8 x (batch, ...), the same in each image, and zeroes the rest;
    out may be x.  The same call on dy goes back."""
    out, p = output("out", out, S8, x.shape)
    ok(lib.octo_dropout_s8(len(x), math.prod(x.shape[1:]), pointer("x", x, S8), doublings, *random, p))
    return out


def maxpool_codes(g: Pool, x: Array, *, out: Array | None = None, argmax: Array | None = None) -> tuple[Array, Array]:
    """`maxpool` of int8 codes."""
    out, p = output("out", out, S8, g.y_shape)
    argmax, where = output("argmax", argmax, U8, g.y_shape)
    ok(lib.octo_maxpool_s8(pool_struct(g), pointer("x", x, S8, g.x_shape), p, where))
    return out, argmax


def maxpool_codes_backward(g: Pool, dy: Array, argmax: Array, *, out: Array | None = None) -> Array:
    """int32 sums of dy at each window's largest."""
    out, p = output("out", out, S32, g.x_shape)
    where = pointer("argmax", argmax, U8, g.y_shape)
    ok(lib.octo_maxpool_backward_s8(pool_struct(g), pointer("dy", dy, S8, g.y_shape), where, p))
    return out


def _images(x: Array) -> tuple[int, int, int]:
    if x.ndim != 4 or not x.size:
        raise CoreError(f"average pooling needs images (batch, height, width, channels), not an array of shape {x.shape}")
    return x.shape[0], x.shape[1] * x.shape[2], x.shape[3]


def pixel_sums(x: Array, *, out: Array | None = None) -> Array:
    """int32 sums over each image's pixels of int8 (images, height, width, channels): (images, channels)."""
    images, pixels, channels = _images(x)
    out, p = output("out", out, S32, (images, channels))
    ok(lib.octo_pixel_sums_s8(images, pixels, channels, pointer("x", x, S8), p))
    return out


def spread(dy: Array, height: int, width: int, *, out: Array | None = None) -> Array:
    """int8 dy (images, channels) at every pixel: (images, height, width, channels)."""
    images, channels = dy.shape
    out, p = output("out", out, S8, (images, height, width, channels))
    ok(lib.octo_spread_s8(images, height * width, channels, pointer("dy", dy, S8), p))
    return out


def copy_codes(x: Array, *, out: Array | None = None) -> Array:
    """int8 x in other memory."""
    out, p = output("out", out, S8, x.shape)
    ok(lib.octo_copy_s8(x.size, pointer("x", x, S8), p))
    return out


# ---- loss and updates --------------------------------------------------


def _labelled(logits: Array, labels: Array) -> Any:
    if logits.ndim != 2:
        raise CoreError(f"logits must be 2-D, not {logits.ndim}-D")
    return pointer("labels", labels, S32, logits.shape[:1])


def softmax_codes_gradient(q: Array, exponent: Whole, labels: Array, random: Stream, *, out: Array | None = None) -> Array:
    """int8 gradient of softmax cross-entropy of logits q 2^exponent (rows, classes), in integers (octo_softmax_s8), whose last
    shift is rounded stochastically."""
    pt = _labelled(q, labels)
    out, p = output("out", out, S8, q.shape)
    ok(lib.octo_softmax_s8(*q.shape, pointer("q", q, S8), exponent, pt, *random, p))
    return out


def squared_error(logits: Array, labels: Array, *, gradient: bool = True) -> tuple[Scalar, Array | None, Scalar]:
    """Half the mean over rows of the squared distance of float32 logits (rows, classes) to one-hot targets, in double and
    rounded once; the gradient, not divided by the rows; and the count of rows that argmax gets right."""
    pt = _labelled(logits, labels)
    dlogits, p = output("dlogits", None, F32, logits.shape) if gradient else (None, ffi.NULL)
    loss, correct = ffi.new("double *"), ffi.new("int64_t *")
    ok(lib.octo_squared_error(*logits.shape, pointer("logits", logits, F32), pt, loss, p, correct))
    return Scalar(loss), dlogits, Scalar(correct)


def subtract_codes(w: Array, g: Array, limit: int = 127) -> None:
    """int8 w = w - g kept within +-limit, in place."""
    ok(lib.octo_subtract_s8(w.size, pointer("g", g, S8, w.shape), limit, pointer("w", w, S8, None, True)))


def ternary_codes(x: Array, limit: int, *, out: Array | None = None) -> Array:
    """int8 1 where x is above the limit, -1 where it is below -limit, else 0."""
    out, p = output("out", out, S8, x.shape)
    ok(lib.octo_ternary_s8(x.size, pointer("x", x, S8), limit, p))
    return out


def direction_scale(found: Range, least: float) -> tuple[Scalar, Scalar]:
    """1 / (least S), which the direction of values in a range is quantized with, and least S, the scale of these codes.

    S is the power of two next to the range's larger magnitude; both are 0 where that is at most 1e-30.
    """
    inverse, scale = Scalar.zero(), Scalar.zero()
    ok(lib.octo_direction_scale(found.low, found.high, least, inverse.at, scale.at))
    return inverse, scale


def walk_codes(w: Array, g: Array, rate: Number, limit: int, random: Stream) -> None:
    """Moves int8 codes w, within +-limit and in place, by steps of the direction of int32 g: stochastically rounded
    rate g / S, S the power of two next to max|g| (octo_walk_s8)."""
    pw = pointer("w", w, S8, None, True)
    ok(lib.octo_walk_s8(w.size, pointer("g", g, S32, w.shape), rate, limit, *random, pw))


costs("octo_narrow_s32", acc=2)
costs("octo_align_s8", acc=2)
costs("octo_walk_s8", g=2, update=True)
costs("octo_subtract_s8", update=True)
