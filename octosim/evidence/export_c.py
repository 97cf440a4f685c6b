"""A trained network as one C99 file: static buffers, no allocation, only the kernels that it needs.

    void octosim_run(const uint8_t *image, float *logits);

takes one image (height, width, channels) and gives octosim's own logits, to the bit where the compiler keeps float32 (no
-ffast-math, no excess precision) and does not contract multiply and add (-std=c99 or -ffp-contract=off).
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octosim import train
from octosim.engine import buffers, quantizers
from octosim.engine.layers import (
    GELU,
    Add,
    Attention,
    AvgPool,
    BatchNorm,
    ChannelShuffle,
    Clip,
    Concat,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    HardSigmoid,
    HardSwish,
    LayerNorm,
    LeakyReLU,
    Linear,
    MaxPool,
    Multiply,
    Positions,
    ReLU,
    ReLU6,
    Reshape,
    Sigmoid,
    SiLU,
    Slice,
    Tanh,
    Token,
    Transpose,
    Upsample,
)
from octosim.engine.layers.attention import MIXTURE, SCORES
from octosim.engine.layers.base import pair
from octosim.engine.nodes import Array, Node
from octosim.errors import OctosimError
from octosim.evidence import core_source
from octosim.evidence.export import Weighted, check_kinds, folded, multiplied, takes_pixels, weighted
from octosim.evidence.golden import identifier, stems
from octosim.numerics import EXACT32


def _each(name: str, value: str, numbers: str = "") -> str:
    """The kernel of an activation, as the core has it; value: of v, or of u = a v + b."""
    line = "        float v = x[i], u = a * v + b;\n" if "u" in value.split() or "(u" in value else "        float v = x[i];\n"
    given = f", {numbers}" if numbers else ""
    head = f"static void {name}(long n, const float *x{given}, float *y)\n{{\n    long i;\n"
    return f"\n{head}    for (i = 0; i < n; i++) {{\n{line}        y[i] = {value};\n    }}\n}}\n"


def _broadcast(name: str, sign: str) -> str:
    """The kernel of a sum or a product of two tensors, of which one may be smaller."""
    return f"""
/* s: the sizes of six axes, and how far apart their elements lie in a and in b. */
static void {name}(const int *s, const float *a, const float *b, float *y)
{{
    long out = 0, count = 1;
    int at[6] = {{0}}, i;
    for (i = 0; i < 6; i++)
        count *= s[i];
    for (; out < count; out++) {{
        long p = 0, q = 0;
        for (i = 0; i < 6; i++) {{
            p += (long)at[i] * s[6 + i];
            q += (long)at[i] * s[12 + i];
        }}
        y[out] = a[p] {sign} b[q];
        for (i = 5; i >= 0 && ++at[i] == s[i]; i--)
            at[i] = 0;
    }}
}}
"""


FLAGS = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-O2")

KERNELS = {
    "quantize": """
/* int8 codes of x inverse + zero, rounded half to even, within low .. high. */
static void quantize(long n, const float *x, float inverse, int zero, int low, int high, int8_t *q)
{
    long i;
    for (i = 0; i < n; i++) {
        volatile float big = 12582912.0f; /* 1.5 x 2^23: what is added is rounded to an integer */
        float v = x[i] * inverse, r;
        int code;
        v = v < -1000.0f ? -1000.0f : v > 1000.0f ? 1000.0f : v;
        r = v + big;
        r = r - big;
        code = (int)r + zero;
        q[i] = (int8_t)(code < low ? low : code > high ? high : code);
    }
}
""",
    "conv": """
/* Sums of (q - zero) w over a window; then (sum + add) scale.  The k-th of g groups sees its own channels. */
static void conv(const int *s, const int8_t *x, int zero, const int8_t *w, const int32_t *add, int each, float scale, float *y)
{
    const int height = s[0], width = s[1], channels = s[2], filters = s[3], kh = s[4], kw = s[5], sh = s[6], sw = s[7];
    const int top = s[8], left = s[9], dh = s[10], dw = s[11], groups = s[12], oh = s[13], ow = s[14];
    const int depth = channels / groups, part = filters / groups;
    int i, j, f, a, b, c;
    long out = 0;
    for (i = 0; i < oh; i++)
        for (j = 0; j < ow; j++)
            for (f = 0; f < filters; f++, out++) {
                const int8_t *k = w + (long)f * kh * kw * depth;
                int32_t sum = 0;
                for (a = 0; a < kh; a++)
                    for (b = 0; b < kw; b++) {
                        int h = i * sh + a * dh - top, v = j * sw + b * dw - left;
                        if (h >= 0 && h < height && v >= 0 && v < width) {
                            const int8_t *p = x + ((long)h * width + v) * channels + f / part * depth;
                            const int8_t *q = k + (a * kw + b) * depth;
                            for (c = 0; c < depth; c++)
                                sum += (p[c] - zero) * q[c];
                        }
                    }
                y[out] = (float)(sum + add[each ? out : f]) * scale;
            }
}
""",
    "linear": """
static void linear(int rows, int inputs, int outputs, const int8_t *x, int zero, const int8_t *w, const int32_t *add, int each,
                   float scale, float *y)
{
    int r, i, f;
    long out = 0;
    for (r = 0; r < rows; r++, x += inputs)
        for (f = 0; f < outputs; f++, out++) {
            int32_t sum = 0;
            for (i = 0; i < inputs; i++)
                sum += (x[i] - zero) * w[(long)f * inputs + i];
            y[out] = (float)(sum + add[each ? out : f]) * scale;
        }
}
""",
    "affine": """
static void affine(long n, int channels, const float *x, const float *scale, const float *shift, float *y)
{
    long i;
    for (i = 0; i < n; i++) {
        float scaled = x[i] * scale[i % channels];
        y[i] = scaled + shift[i % channels];
    }
}
""",
    "clip": """
static void clip(long n, const float *x, float low, float high, float *y)
{
    long i;
    for (i = 0; i < n; i++)
        y[i] = x[i] > low ? (x[i] < high ? x[i] : high) : low;
}
""",
    "relu": """
static void relu(long n, const float *x, float *y)
{
    long i;
    for (i = 0; i < n; i++)
        y[i] = x[i] > 0.0f ? x[i] : 0.0f;
}
""",
    "maxpool": """
static void maxpool(const int *s, const float *x, float *y)
{
    const int height = s[0], width = s[1], channels = s[2], kh = s[3], kw = s[4], sh = s[5], sw = s[6], top = s[7], left = s[8];
    const int oh = s[9], ow = s[10];
    int i, j, a, b, c;
    for (i = 0; i < oh; i++)
        for (j = 0; j < ow; j++)
            for (c = 0; c < channels; c++) {
                float best = 0.0f;
                int any = 0;
                for (a = 0; a < kh; a++)
                    for (b = 0; b < kw; b++) {
                        int h = i * sh + a - top, v = j * sw + b - left;
                        if (h >= 0 && h < height && v >= 0 && v < width) {
                            float value = x[((long)h * width + v) * channels + c];
                            best = !any || value > best ? value : best;
                            any = 1;
                        }
                    }
                y[((long)i * ow + j) * channels + c] = best;
            }
}
""",
    "average": """
static void average(long pixels, int channels, const float *x, float inverse, float *y)
{
    long p;
    int c;
    for (c = 0; c < channels; c++) {
        float sum = 0.0f;
        for (p = 0; p < pixels; p++)
            sum += x[p * channels + c];
        y[c] = sum * inverse;
    }
}
""",
    "attention": """
/* Codes of queries, keys and values, whose heads lie side by side; a head's scores, their softmax, its codes, the mixture. */
static void attention(const int *s, const float *f, const float *q, const float *k, const float *v, int8_t *codes,
                      float *scores, float *y)
{
    const int heads = s[0], rows = s[1], others = s[2], depth = s[3], made = s[4], width = heads * depth, out = heads * made;
    int8_t *qq = codes, *qk = qq + (long)rows * width, *qv = qk + (long)others * width, *qw = qv + (long)others * out;
    int h, r, o, i;
    quantize((long)rows * width, q, f[0], 0, s[5], s[6], qq);
    quantize((long)others * width, k, f[1], 0, s[7], s[8], qk);
    quantize((long)others * out, v, f[3], 0, s[11], s[12], qv);
    for (h = 0; h < heads; h++) {
        for (r = 0; r < rows; r++)
            for (o = 0; o < others; o++) {
                int32_t sum = 0;
                for (i = 0; i < depth; i++)
                    sum += qq[(long)r * width + h * depth + i] * qk[(long)o * width + h * depth + i];
                scores[(long)r * others + o] = (float)sum * f[4];
            }
        softmax_rows_f32_ref(rows, others, scores, f[5], scores);
        quantize((long)rows * others, scores, f[2], 0, s[9], s[10], qw);
        for (r = 0; r < rows; r++)
            for (i = 0; i < made; i++) {
                int32_t sum = 0;
                for (o = 0; o < others; o++)
                    sum += qw[(long)r * others + o] * qv[(long)o * out + h * made + i];
                y[(long)r * out + h * made + i] = (float)sum * f[6];
            }
    }
}
""",
    "move": """
/* s: the sizes of six axes, and how far apart their elements lie in x and in y. */
static void move(const int *s, const float *x, float *y)
{
    int a, b, c, d, e, f;
    for (a = 0; a < s[0]; a++)
        for (b = 0; b < s[1]; b++)
            for (c = 0; c < s[2]; c++)
                for (d = 0; d < s[3]; d++)
                    for (e = 0; e < s[4]; e++)
                        for (f = 0; f < s[5]; f++)
                            y[(long)a * s[12] + b * s[13] + c * s[14] + d * s[15] + e * s[16] + f * s[17]] =
                                x[(long)a * s[6] + b * s[7] + c * s[8] + d * s[9] + e * s[10] + f * s[11]];
}
""",
    "plus": _broadcast("plus", "+"),
    "times": _broadcast("times", "*"),
    "leaky": _each("leaky", "v > 0.0f ? v : a * v", "float a"),
    "hard_sigmoid": _each("hard_sigmoid", "(u > 0.0f ? u : 0.0f) < 1.0f ? (u > 0.0f ? u : 0.0f) : 1.0f", "float a, float b"),
    "hard_swish": _each("hard_swish", "v <= -3.0f ? 0.0f : v >= 3.0f ? v : v * (v + 3.0f) / 6.0f"),
    "sigmoid": _each("sigmoid", "sigmoid1_ref(v)"),
    "silu": _each("silu", "v * sigmoid1_ref(v)"),
    "hyperbolic_tangent": _each("hyperbolic_tangent", "tanh1_ref(v)"),
    "gelu": _each("gelu", "v * phi1_ref(v)"),
    "gelu_tanh": _each("gelu_tanh", "0.5f * v * (1.0f + tanh1_ref(0.797884561f * (v + 0.044715f * (v * v * v))))"),
    "add": """
static void add(long n, const float *a, const float *b, float *y)
{
    long i;
    for (i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}
""",
}


CORE = {
    "attention": "softmax_rows_f32_ref", "sigmoid": "sigmoid1_ref", "silu": "sigmoid1_ref", "hyperbolic_tangent": "tanh1_ref",
    "gelu": "phi1_ref", "gelu_tanh": "tanh1_ref", "layernorm_f32_ref": "layernorm_f32_ref",
    "window_avg_f32_ref": "window_avg_f32_ref",
}  # fmt: skip
"""Functions of the core that kernels call, or that are called as they are."""


@dataclass(frozen=True)
class Program:
    """source: of the C file.  flash: bytes of constants.  ram: bytes of buffers."""

    source: str
    flash: int
    ram: int


class _Writer:
    """names: `golden.stems` of the layers."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.constants: list[str] = []
        self.calls: list[str] = []
        self.kernels: set[str] = set()
        self.flash = 0
        self.codes = 0  # the longest operand, in codes
        self.scratch = 0  # the most values that a kernel needs beside its input and output

    def array(self, kind: str, node: Node, part: str, values: Array) -> str:
        name = f"n_{identifier(self.names[node.name])}_{part}"
        if kind == "float":
            told = [float(v).hex() + "f" if v == v and abs(v) != math.inf else "0.0f" for v in values.ravel()]
        else:
            told = [str(int(v)) if v != -(2**31) else "(-2147483647 - 1)" for v in values.ravel()]
        lines = ",\n".join(", ".join(told[i : i + 16]) for i in range(0, len(told), 16))
        self.constants.append(f"static const {kind} {name}[{len(told)}] = {{\n{lines}\n}};\n")
        self.flash += values.size * {"float": 4, "int32_t": 4, "int8_t": 1, "int": 4}[kind]
        return name

    def window(self, node: Node, sizes: Sequence[int]) -> str:
        name = f"n_{identifier(self.names[node.name])}_window"
        self.constants.append(f"static const octo_window {name} = {{{', '.join(map(str, sizes))}}};\n")
        self.flash += 8 * len(sizes)
        return f"&{name}"

    def call(self, kernel: str, *arguments: object) -> None:
        self.kernels.add(kernel)
        self.calls.append(f"    {kernel}({', '.join(map(str, arguments))});\n")


def _real(value: float) -> str:
    return float(np.float32(value)).hex() + "f"


def _product(w: _Writer, node: Node, x: Sequence[str], y: str, held: dict[str, Weighted]) -> None:
    layer, size = held[node.name], math.prod(node.in_shape)
    if not layer.quantized:
        raise OctosimError(f"layer {node.name}: products in float32 are not exported to C")
    w.codes = max(w.codes, size)
    w.call("quantize", f"{size}L", x[0], _real(quantizers.reciprocal(layer.x_scale)), layer.x_zero, *layer.x_ends, "codes")
    codes, add = w.array("int8_t", node, "w", layer.w), w.array("int32_t", node, "add", layer.add)
    product = node.layer.product(node, 1)
    if product.kernel == (0, 0):
        (*tokens, inputs), outputs = node.in_shape, node.out_shape[-1]
        each = int(layer.add.size != outputs)
        given = "codes", layer.x_zero, codes, add, each, _real(layer.scale), y
        w.call("linear", math.prod(tokens), inputs, outputs, *given)
        return
    g = product.geometry
    sizes = np.array([g.height, g.width, g.channels, g.filters, g.kernel_h, g.kernel_w, *g.strides, *g.pads[:2], *g.dilations,
                      product.groups, g.out_h, g.out_w])  # fmt: skip
    each = int(layer.add.size != g.filters)
    sizes_name = w.array("int", node, "sizes", sizes)
    w.call("conv", sizes_name, "codes", layer.x_zero, codes, add, each, _real(layer.scale), y)


def _batchnorm(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    scale, shift = folded(node)
    names = w.array("float", node, "scale", scale), w.array("float", node, "shift", shift)
    w.call("affine", f"{math.prod(node.in_shape)}L", node.in_shape[-1], x[0], *names, y)


def _maxpool(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    g = node.layer._window(node.in_shape, 1)
    sizes = [g.height, g.width, g.channels, *g.kernel, *g.stride, *g.pads[:2], *g.y_shape[1:3]]
    w.call("maxpool", w.array("int", node, "sizes", np.array(sizes)), x[0], y)


def _average(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    pixels = math.prod(node.in_shape[:-1])
    w.call("average", f"{pixels}L", node.in_shape[-1], x[0], _real(float(np.float32(1) / np.float32(pixels))), y)


def _averagepool(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    g = node.layer._window(node.in_shape, 1)
    window = w.window(node, (*g.x_shape, *g.kernel, *g.stride, *g.pads, *g.y_shape[1:3]))
    w.call("window_avg_f32_ref", window, 0, g.y_shape[1], int(node.layer.count_pad), x[0], y)


def _activation(kernel: str, *fields: str) -> Callable[[_Writer, Node, Sequence[str], str, Any], None]:
    """fields: of the layer, numbers that the kernel takes."""

    def call(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
        numbers = [_real(getattr(node.layer, name)) for name in fields]
        w.call(kernel, f"{math.prod(node.in_shape)}L", x[0], *numbers, y)

    return call


def _clip(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    w.call("clip", f"{math.prod(node.in_shape)}L", x[0], *(_real(end) for end in node.layer.ends), y)


def _gelu(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    w.call("gelu" if node.layer.approximate == "none" else "gelu_tanh", f"{math.prod(node.in_shape)}L", x[0], y)


def _layernorm(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    rows, channels = math.prod(node.in_shape[:-1]), node.in_shape[-1]
    gamma, beta = (w.array("float", node, key, node.params[key]) for key in ("gamma", "beta"))
    w.scratch = max(w.scratch, 2 * rows)
    ends = _real(node.layer.eps), y, "scratch", f"scratch + {rows}"
    w.call("layernorm_f32_ref", f"{rows}L", channels, x[0], gamma, beta, *ends)


def _attention(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    scores, mixture = (held[node.name, product] for product in (SCORES, MIXTURE))
    if not scores.quantized or not mixture.quantized:
        raise OctosimError(f"layer {node.name}: products of activations in float32 are not exported to C")
    (rows, width), (others, _), (_, out) = node.in_shapes
    heads = node.layer.heads
    ends = *scores.left_ends, *scores.right_ends, *mixture.left_ends, *mixture.right_ends
    sizes = w.array("int", node, "sizes", np.array([heads, rows, others, width // heads, out // heads, *ends]))
    inverses = [quantizers.reciprocal(scale) for scale in (scores.left, scores.right, mixture.left, mixture.right)]
    factors = [*inverses, scores.scale, 1 / math.sqrt(width // heads), mixture.scale]
    w.codes = max(w.codes, rows * width + others * (width + out) + rows * others)
    w.scratch = max(w.scratch, rows * others)
    w.kernels.add("quantize")
    w.call("attention", sizes, w.array("float", node, "factors", np.array(factors, np.float32)), *x, "codes", "scratch", y)


# ---- layers that move values, and those of two tensors --------------------------------------------------


def _strides(shape: Sequence[int]) -> list[int]:
    """How far apart the elements of each axis lie."""
    return [math.prod(shape[at + 1 :]) for at in range(len(shape))]


def _six(sizes: Sequence[int], *strides: Sequence[int]) -> Array:
    """Sizes and strides of axes with axes of size 1 in front."""
    more = 6 - len(sizes)
    return np.array([*[1] * more, *sizes, *(n for each in strides for n in (*[0] * more, *each))])


def _moved(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    """A layer whose output is a view of its input: where the view has its elements."""
    places = np.arange(math.prod(node.in_shape), dtype=np.int64).reshape(1, *node.in_shape)
    if isinstance(node.layer, Upsample):
        (down, across), (height, width, channels) = pair(node.layer.factor), node.in_shape
        view = np.broadcast_to(places.reshape(height, 1, width, 1, channels), (height, down, width, across, channels))
    else:
        view = node.layer.view(places)[0]
    strides = [stride // places.itemsize for stride in view.strides]
    table = w.array("int", node, "sizes", _six(view.shape, strides, _strides(view.shape)))
    w.call("move", table, f"{x[0]} + {int(view.flat[0])}", y)


def _concat(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    axis, strides, at = node.layer.axis % len(node.out_shape), _strides(node.out_shape), 0
    for number, (each, shape) in enumerate(zip(x, node.in_shapes, strict=True)):
        table = w.array("int", node, f"sizes{number}", _six(shape, _strides(shape), strides))
        w.call("move", table, each, f"{y} + {at * strides[axis]}")
        at += shape[axis]


def _token(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    shape, token = node.in_shape, node.params["token"]
    for name, source, sizes, at in (("first", w.array("float", node, "token", token), token.shape, 0),
                                    ("others", x[0], shape, token.size)):  # fmt: skip
        w.call("move", w.array("int", node, name, _six(sizes, _strides(sizes), _strides(sizes))), source, f"{y} + {at}")


def _positions(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    positions = w.array("float", node, "positions", node.params["positions"])
    w.call("add", f"{math.prod(node.out_shape)}L", x[0], positions, y)


def _both(kernel: str) -> Callable[[_Writer, Node, Sequence[str], str, Any], None]:
    """A sum or a product of two tensors, of one shape or broadcast."""

    def call(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
        if kernel == "plus" and node.in_shapes[0] == node.in_shapes[1]:
            w.call("add", f"{math.prod(node.out_shape)}L", *x, y)
            return
        strides = []
        for shape in node.in_shapes:
            wide = (*[1] * (len(node.out_shape) - len(shape)), *shape)
            strides.append([0 if size == 1 else stride for size, stride in zip(wide, _strides(wide), strict=True)])
        w.call(kernel, w.array("int", node, "sizes", _six(node.out_shape, *strides)), *x, y)

    return call


_LAYERS: dict[type[Any], Callable[[_Writer, Node, Sequence[str], str, Any], None]] = {
    Conv2d: _product, DepthwiseConv2d: _product, Linear: _product, BatchNorm: _batchnorm, ReLU: _activation("relu"),
    ReLU6: _clip, Clip: _clip, LeakyReLU: _activation("leaky", "slope"),
    HardSigmoid: _activation("hard_sigmoid", "alpha", "beta"),
    HardSwish: _activation("hard_swish"), Sigmoid: _activation("sigmoid"), SiLU: _activation("silu"),
    Tanh: _activation("hyperbolic_tangent"), GELU: _gelu, MaxPool: _maxpool, AvgPool: _averagepool, GlobalAvgPool: _average,
    LayerNorm: _layernorm, Transpose: _moved, Slice: _moved, ChannelShuffle: _moved, Upsample: _moved, Concat: _concat,
    Positions: _positions, Token: _token, Add: _both("plus"), Multiply: _both("times"), Attention: _attention,
}  # fmt: skip
VIEWS = (Dropout, Flatten, Reshape)
"""Their output is their input in memory (`buffers.is_view`)."""
MAIN = """
#ifdef OCTOSIM_MAIN
#include <stdio.h>

/* Reads images from standard input, writes their logits to standard output, as they lie in memory. */
int main(void)
{
    static uint8_t image[OCTOSIM_INPUTS];
    static float logits[OCTOSIM_OUTPUTS];
    while (fread(image, sizeof image, 1, stdin) == 1) {
        octosim_run(image, logits);
        if (fwrite(logits, sizeof logits, 1, stdout) != 1)
            return 1;
    }
    return 0;
}
#endif
"""


def program(run: train.Run) -> Program:
    """The network in inference; OctosimError, with the layer, for what cannot be exported."""
    network = run.network
    if not takes_pixels(run):
        raise OctosimError("the export to C is for networks that take uint8 images as pixels in [0, 1]")
    if run.registers.accumulator != EXACT32:
        raise OctosimError(f"the export to C has exact 32-bit sums; the run was trained in {run.registers.accumulator.name}")
    check_kinds(run, {*_LAYERS, *VIEWS}, "C")
    held: dict[Any, Any] = {**weighted(run), **multiplied(run)}
    w = _Writer(stems(node.name for node in network.nodes))
    place, sizes = buffers.assign(network.nodes)
    inputs = math.prod(network.nodes[0].in_shape)
    for node in network.nodes:
        if buffers.is_view(node):
            continue
        given = [f"buffer_{place[i]}" for i in node.inputs]
        w.calls.append(f"    /* {node.name} */\n")
        _LAYERS[type(node.layer)](w, node, given, f"buffer_{place[node.index]}", held)
    outputs = math.prod(network.nodes[-1].out_shape)
    result = f"buffer_{place[network.nodes[-1].index]}"
    core = core_source.source(sorted({CORE[name] for name in w.kernels if name in CORE})) if w.kernels & set(CORE) else ("", "")
    kernels = "".join(text for name, text in KERNELS.items() if name in w.kernels)
    memory = "".join(f"static float buffer_{i}[{size}];\n" for i, size in enumerate(sizes))
    memory += f"static float scratch[{w.scratch}];\n" if w.scratch else ""
    about = f"model {run.config.model}, method {run.config.method}, step {run.step}, sha256:{run.digest()}".replace("*/", "* /")
    source_text = (
        f"/* Made by octosim export from {about} */\n\n#include <stdint.h>\n\n#define OCTOSIM_INPUTS {inputs}\n"
        f"#define OCTOSIM_OUTPUTS {outputs}\n\nvoid octosim_run(const uint8_t *image, float *logits);\n\n"
        + "".join(f"{text}\n" for text in core if text) + "".join(w.constants)
        + f"\n{memory}static int8_t codes[{max(1, w.codes)}];\n{kernels}\n"
        "void octosim_run(const uint8_t *image, float *logits)\n{\n    long i;\n"
        f"    for (i = 0; i < OCTOSIM_INPUTS; i++)\n        buffer_{place[-1]}[i] = (float)image[i] * {_real(1 / 255)};\n"
        + "".join(w.calls) + f"    for (i = 0; i < OCTOSIM_OUTPUTS; i++)\n        logits[i] = {result}[i];\n}}\n{MAIN}"
    )  # fmt: skip
    return Program(source_text, w.flash, 4 * (sum(sizes) + w.scratch) + w.codes)


def run_c(source: Path, images: Array, classes: int, compiler: Sequence[str] = ("cc",), runner: Sequence[str] = ()) -> Array:
    """What the program makes of images, compiled here; OctosimError where it does not compile without a warning."""
    if shutil.which(compiler[0]) is None:
        raise OctosimError(f"the comparison needs the C compiler {compiler[0]}, which is not there; or --no-compare")
    with tempfile.TemporaryDirectory(prefix="octosim-") as folder:
        program = Path(folder) / "network"
        line = [*compiler, *FLAGS, "-Werror", "-DOCTOSIM_MAIN", str(source), "-o", str(program)]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            raise OctosimError(f"{source} does not compile: {done.stderr[:500]}")
        ran = subprocess.run([*runner, str(program)], input=np.ascontiguousarray(images).tobytes(), capture_output=True)
    if ran.returncode or len(ran.stdout) != 4 * classes * len(images):
        raise OctosimError(f"{source}: the program ended with exit code {ran.returncode} after {len(ran.stdout)} bytes")
    return np.frombuffer(ran.stdout, np.float32).reshape(len(images), classes)
