"""Activations, pooling windows, views, layer normalization and softmax (cext/activations.inc, cext/windows.inc)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from octosim.core.call import (
    F32,
    READS,
    U8,
    WRITES,
    Array,
    CoreError,
    Range,
    costs,
    ffi,
    here,
    lib,
    ok,
    output,
    pointer,
)
from octosim.core.layers import matrix
from octosim.core.normalize import sign_bytes

# ---- activations --------------------------------------------------


GATED = {"clip": lib.OCTO_CLIP, "leaky": lib.OCTO_LEAKY, "hard-sigmoid": lib.OCTO_HARD_SIGMOID}
"""Activations of straight pieces, whose backward pass needs a bit an element."""
SMOOTH = {
    "hard-swish": lib.OCTO_HARD_SWISH, "sigmoid": lib.OCTO_SIGMOID, "silu": lib.OCTO_SILU, "tanh": lib.OCTO_TANH,
    "gelu": lib.OCTO_GELU, "gelu-tanh": lib.OCTO_GELU_TANH,
}  # fmt: skip
"""Activations whose backward pass needs the input, or of sigmoid and tanh the output."""


def activation(
    kind: str, x: Array, a: float = 0.0, b: float = 0.0, *, gate: Array | None = None, find_range: bool = False,
    out: Array | None = None,
) -> tuple[Array, Range | None]:  # fmt: skip
    """An activation of float32 x, by its name in GATED or SMOOTH, and its least and largest value if asked for; out may be x.

    a, b: the ends of "clip", the slope of "leaky", the factor and the addend of "hard-sigmoid".  gate: uint8
    (sign_bytes(size),), gets what `gate_backward` needs of a gated one.  NotFiniteError with find_range where a value is none.
    """
    kinds = GATED | SMOOTH
    if kind not in kinds:
        raise CoreError(f"activation '{kind}' is none of {', '.join(kinds)}")
    out, p = output("out", out, F32, x.shape)
    bits = ffi.NULL if gate is None else pointer("gate", gate, U8, (sign_bytes(x.size),), access=WRITES)
    found = Range() if find_range else None
    ok(lib.octo_activation_f32(x.size, kinds[kind], pointer("x", x, F32), a, b, p, bits, found.at if found else ffi.NULL))
    return out, found


def activation_backward(kind: str, kept: Array, dy: Array, *, out: Array | None = None) -> Array:
    """dx of a smooth activation; kept: the output of "sigmoid" and "tanh", the input of others.  out may be dy or kept."""
    if kind not in SMOOTH:
        raise CoreError(f"activation '{kind}' is none of {', '.join(SMOOTH)}")
    out, p = output("out", out, F32, dy.shape)
    ok(lib.octo_activation_backward_f32(dy.size, SMOOTH[kind], pointer("kept", kept, F32, dy.shape), pointer("dy", dy, F32), p))
    return out


def gate_backward(gate: Array, dy: Array, inside: float, outside: float, *, out: Array | None = None) -> Array:
    """dx of a gated activation: dy times `inside` where its bit is set, else times `outside`.  out may be dy."""
    out, p = output("out", out, F32, dy.shape)
    bits = pointer("gate", gate, U8, (sign_bytes(dy.size),))
    ok(lib.octo_gate_backward_f32(dy.size, bits, pointer("dy", dy, F32), inside, outside, p))
    return out


# ---- pooling --------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Pooling windows; sizes in elements.  pads: above, left, below, right.  ceil: a window that begins on the padded image
    but does not end on it counts too (PyTorch's ceil_mode)."""

    batch: int
    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    ceil: bool = False

    def __post_init__(self) -> None:
        if min(self.stride) < 1 or min(self.y_shape) < 1:
            raise CoreError(
                f"pooling: a window {self.kernel} with stride {self.stride} and padding {self.pads} does not fit a "
                f"{self.height} x {self.width} image"
            )

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.height, self.width, self.channels)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        sizes = []
        for size, kernel, stride, low, high in zip(
            (self.height, self.width), self.kernel, self.stride, self.pads[:2], self.pads[2:], strict=True
        ):
            count = (size + low + high - kernel + (stride - 1 if self.ceil else 0)) // stride + 1
            sizes.append(count - (self.ceil and (count - 1) * stride >= size + low))
        return (self.batch, sizes[0], sizes[1], self.channels)


@lru_cache(maxsize=1024)
def _window_struct(g: Window) -> Any:
    _, out_h, out_w, _ = g.y_shape
    return ffi.new("octo_window *", (*g.x_shape, *g.kernel, *g.stride, *g.pads, out_h, out_w))


def window_max(g: Window, x: Array, *, out: Array | None = None, argmax: Array | None = None) -> tuple[Array, Array]:
    """The largest of each window, and its position in it (uint8, the first of equals); at most 256 positions."""
    out, p = output("out", out, F32, g.y_shape)
    argmax, where = output("argmax", argmax, U8, g.y_shape)
    ok(lib.octo_window_max_f32(_window_struct(g), pointer("x", x, F32, g.x_shape), p, where))
    return out, argmax


def window_max_backward(g: Window, dy: Array, argmax: Array, *, out: Array | None = None) -> Array:
    """dx of `window_max`: dy added to each window's largest."""
    out, p = output("out", out, F32, g.x_shape)
    given = pointer("dy", dy, F32, g.y_shape), pointer("argmax", argmax, U8, g.y_shape)
    ok(lib.octo_window_max_backward_f32(_window_struct(g), *given, p))
    return out


def window_mean(g: Window, x: Array, *, with_padding: bool = True, out: Array | None = None) -> Array:
    """The mean of each window; with_padding: of zeros in the padding too (PyTorch's count_include_pad)."""
    out, p = output("out", out, F32, g.y_shape)
    ok(lib.octo_window_avg_f32(_window_struct(g), with_padding, pointer("x", x, F32, g.x_shape), p))
    return out


def window_mean_backward(g: Window, dy: Array, *, with_padding: bool = True, out: Array | None = None) -> Array:
    """dx of `window_mean`."""
    out, p = output("out", out, F32, g.x_shape)
    ok(lib.octo_window_avg_backward_f32(_window_struct(g), with_padding, pointer("dy", dy, F32, g.y_shape), p))
    return out


# ---- views --------------------------------------------------


def _at(name: str, x: Array, access: str) -> Any:
    """The pointer of float32 elements that may lie apart."""
    if not isinstance(x, np.ndarray) or x.dtype != F32:
        raise CoreError(f"{name} must be a float32 array")
    if access == WRITES and not x.flags.writeable:
        raise CoreError(f"{name} is read-only")
    if not x.flags.aligned:
        raise CoreError(f"{name} must be aligned to the size of its items")
    if here.recorder is not None:
        here.recorder.operand(name, x, access)
    return ffi.cast("float *", x.ctypes.data)


def _dimensions(shape: tuple[int, ...], arrays: list[Array]) -> tuple[list[int], list[list[int]]]:
    """Sizes, the last the fastest, and the arrays' strides in elements when broadcast; neighbours that lie as one are one."""
    strides = [[s // 4 for s in np.broadcast_to(x, shape).strides] for x in arrays]
    sizes: list[int] = []
    kept: list[list[int]] = [[] for _ in arrays]
    for d, size in enumerate(shape):
        if size == 1:
            continue
        if sizes and all(each[-1] == now[d] * size for each, now in zip(kept, strides, strict=True)):
            sizes[-1] *= size
            for each, now in zip(kept, strides, strict=True):
                each[-1] = now[d]
        else:
            sizes.append(size)
            for each, now in zip(kept, strides, strict=True):
                each.append(now[d])
    if len(sizes) > 6:
        raise CoreError(f"views of shape {shape} have more than 6 dimensions")
    ahead = 6 - len(sizes)
    return [1] * ahead + sizes, [[0] * ahead + each for each in kept]


def _combine(op: int, a: Array, b: Array | None, out: Array) -> Array:
    arrays = [a, b, out] if b is not None else [a, a, out]
    try:
        shape = np.broadcast_shapes(*(x.shape for x in arrays))
    except ValueError as error:
        raise CoreError(f"views: {error}") from None
    sizes, strides = _dimensions(shape, arrays)
    if min(min(each) for each in strides) < 0:
        raise CoreError("views: a stride is negative")
    if not math.prod(shape):
        return out
    made = ffi.new("octo_strided *", (sizes, *strides))
    pa, pb = _at("a", a, READS), ffi.NULL if b is None else _at("b", b, READS)
    ok(lib.octo_strided_f32(made, op, pa, pb, _at("out", out, WRITES)))
    return out


def assign(out: Array, a: Array) -> Array:
    """out = a by NumPy's broadcasting, of views; where `out` has size 1 and a has more, their sum in ascending order."""
    return _combine(lib.OCTO_COPY, a, None, out)


def plus(a: Array, b: Array, out: Array) -> Array:
    """out = a + b, broadcast and summed as by `assign`; out may be a."""
    return _combine(lib.OCTO_PLUS, a, b, out)


def times(a: Array, b: Array, out: Array) -> Array:
    """out = a b, broadcast and summed as by `assign`; out may be a."""
    return _combine(lib.OCTO_TIMES, a, b, out)


# ---- rows --------------------------------------------------


def layernorm(
    x: Array, gamma: Array, beta: Array, *, eps: float, out: Array | None = None
) -> tuple[Array, Array, Array]:
    """(x - mean) inv_std gamma + beta over the last axis of float32 x, and mean and inv_std = 1 / sqrt(variance + eps) of each
    row; gamma, beta: (last,)."""
    rows, cols = matrix(x)
    out, p = output("out", out, F32, x.shape)
    (mean, pm), (inv_std, ps) = output("mean", None, F32, (rows,)), output("inv_std", None, F32, (rows,))
    given = [pointer(n, v, F32, (cols,)) for n, v in (("gamma", gamma), ("beta", beta))]
    ok(lib.octo_layernorm_f32(rows, cols, pointer("x", x, F32), *given, eps, p, pm, ps))
    return out, mean, inv_std


def layernorm_backward(
    x: Array, dy: Array, gamma: Array, mean: Array, inv_std: Array, *, work: Array, out: Array | None = None
) -> Array:
    """dx of `layernorm`; work: float32 of x's shape, gets dy times the normalized x, whose column sums are dgamma."""
    rows, cols = matrix(x)
    out, p = output("out", out, F32, x.shape)
    of_rows = (pointer(n, v, F32, (rows,)) for n, v in (("mean", mean), ("inv_std", inv_std)))
    given = [pointer("gamma", gamma, F32, (cols,)), *of_rows]
    pw = pointer("work", work, F32, x.shape, access=WRITES)
    ok(lib.octo_layernorm_backward_f32(rows, cols, pointer("x", x, F32), pointer("dy", dy, F32, x.shape), *given, p, pw))
    return out


def softmax(x: Array, scale: float, *, out: Array | None = None) -> Array:
    """softmax(scale x) over the last axis of float32 x; out may be x."""
    rows, cols = matrix(x)
    out, p = output("out", out, F32, x.shape)
    ok(lib.octo_softmax_f32(rows, cols, pointer("x", x, F32), scale, p))
    return out


def softmax_backward(y: Array, dy: Array, scale: float, *, out: Array | None = None) -> Array:
    """dx of `softmax`, of its output y; out may be dy."""
    rows, cols = matrix(y)
    out, p = output("out", out, F32, y.shape)
    ok(lib.octo_softmax_backward_f32(rows, cols, pointer("y", y, F32), pointer("dy", dy, F32, y.shape), scale, p))
    return out


costs("octo_layernorm_f32", x=3)
costs("octo_layernorm_backward_f32", x=2, dy=3)
costs("octo_softmax_f32", x=2)
costs("octo_softmax_backward_f32", y=2, dy=2)
