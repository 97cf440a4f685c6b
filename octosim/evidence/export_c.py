"""A trained network as one C99 file: static buffers, no allocation, only the kernels that it needs.

    void octosim_run(const uint8_t *image, float *logits);

takes one image (height, width, channels) and gives octosim's own logits, to the bit where the compiler keeps float32 (no
-ffast-math, no excess precision) and does not contract multiply and add (-std=c99 or -ffp-contract=off).
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octosim import train
from octosim.engine import buffers, quantizers
from octosim.engine.layers import (
    Add,
    BatchNorm,
    Clip,
    Conv2d,
    DepthwiseConv2d,
    GlobalAvgPool,
    Linear,
    MaxPool,
    ReLU,
    ReLU6,
)
from octosim.engine.nodes import Array, Node
from octosim.errors import OctosimError
from octosim.evidence.export import Weighted, folded, takes_pixels, takes_tokens, weighted
from octosim.numerics import EXACT32

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-O2")

KERNELS = {
    "quantize": """
/* int8 codes of x inverse + zero, rounded half to even, within +-127. */
static void quantize(long n, const float *x, float inverse, int zero, int8_t *q)
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
        q[i] = (int8_t)(code < -127 ? -127 : code > 127 ? 127 : code);
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
static void linear(int inputs, int outputs, const int8_t *x, int zero, const int8_t *w, const int32_t *add, float scale,
                   float *y)
{
    int i, f;
    for (f = 0; f < outputs; f++) {
        int32_t sum = 0;
        for (i = 0; i < inputs; i++)
            sum += (x[i] - zero) * w[(long)f * inputs + i];
        y[f] = (float)(sum + add[f]) * scale;
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
    "add": """
static void add(long n, const float *a, const float *b, float *y)
{
    long i;
    for (i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}
""",
}


@dataclass(frozen=True)
class Program:
    """source: of the C file.  flash: bytes of constants.  ram: bytes of buffers."""

    source: str
    flash: int
    ram: int


class _Writer:
    def __init__(self) -> None:
        self.constants: list[str] = []
        self.calls: list[str] = []
        self.kernels: set[str] = set()
        self.flash = 0
        self.codes = 0  # the longest operand, in codes

    def array(self, kind: str, name: str, values: Array) -> str:
        name = _identifier(name)
        if kind == "float":
            told = [float(v).hex() + "f" if v == v and abs(v) != math.inf else "0.0f" for v in values.ravel()]
        else:
            told = [str(int(v)) if v != -(2**31) else "(-2147483647 - 1)" for v in values.ravel()]
        lines = ",\n".join(", ".join(told[i : i + 16]) for i in range(0, len(told), 16))
        self.constants.append(f"static const {kind} {name}[{len(told)}] = {{\n{lines}\n}};\n")
        self.flash += values.size * {"float": 4, "int32_t": 4, "int8_t": 1, "int": 4}[kind]
        return name

    def call(self, kernel: str, *arguments: object) -> None:
        self.kernels.add(kernel)
        self.calls.append(f"    {kernel}({', '.join(map(str, arguments))});\n")


def _identifier(name: str) -> str:
    return "n_" + re.sub(r"\W", "_", name)


def _real(value: float) -> str:
    return float(np.float32(value)).hex() + "f"


def _product(w: _Writer, node: Node, x: Sequence[str], y: str, held: dict[str, Weighted]) -> None:
    layer, size = held[node.name], math.prod(node.in_shape)
    if not layer.quantized:
        raise OctosimError(f"layer {node.name}: products in float32 are not exported to C yet")
    w.codes = max(w.codes, size)
    w.call("quantize", f"{size}L", x[0], _real(quantizers.reciprocal(layer.x_scale)), layer.x_zero, "codes")
    codes, add = w.array("int8_t", f"{node.name}.w", layer.w), w.array("int32_t", f"{node.name}.add", layer.add)
    product = node.layer.product(node, 1)
    if product.kernel == (0, 0):
        w.call("linear", size, node.out_shape[0], "codes", layer.x_zero, codes, add, _real(layer.scale), y)
        return
    g = product.geometry
    sizes = np.array([g.height, g.width, g.channels, g.filters, g.kernel_h, g.kernel_w, *g.strides, *g.pads[:2], *g.dilations,
                      product.groups, g.out_h, g.out_w])  # fmt: skip
    each = int(layer.add.size != g.filters)
    sizes_name = w.array("int", f"{node.name}.sizes", sizes)
    w.call("conv", sizes_name, "codes", layer.x_zero, codes, add, each, _real(layer.scale), y)


def _batchnorm(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    scale, shift = folded(node)
    names = w.array("float", f"{node.name}.scale", scale), w.array("float", f"{node.name}.shift", shift)
    w.call("affine", f"{math.prod(node.in_shape)}L", node.in_shape[-1], x[0], *names, y)


def _maxpool(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    g = node.layer._window(node.in_shape, 1)
    sizes = [g.height, g.width, g.channels, *g.kernel, *g.stride, *g.pads[:2], *g.y_shape[1:3]]
    w.call("maxpool", w.array("int", f"{node.name}.sizes", np.array(sizes)), x[0], y)


def _average(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    pixels = math.prod(node.in_shape[:-1])
    w.call("average", f"{pixels}L", node.in_shape[-1], x[0], _real(float(np.float32(1) / np.float32(pixels))), y)


def _relu(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    w.call("relu", f"{math.prod(node.in_shape)}L", x[0], y)


def _clip(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    w.call("clip", f"{math.prod(node.in_shape)}L", x[0], *(_real(end) for end in node.layer.ends), y)


def _add(w: _Writer, node: Node, x: Sequence[str], y: str, held: Any) -> None:
    if node.in_shapes[0] != node.in_shapes[1]:
        raise OctosimError(f"layer {node.name}: an addition of two shapes is not exported to C yet")
    w.call("add", f"{math.prod(node.out_shape)}L", *x, y)


_LAYERS: dict[type[Any], Callable[[_Writer, Node, Sequence[str], str, Any], None]] = {
    Conv2d: _product, DepthwiseConv2d: _product, Linear: _product, BatchNorm: _batchnorm, ReLU: _relu, ReLU6: _clip,
    Clip: _clip, MaxPool: _maxpool, GlobalAvgPool: _average, Add: _add,
}  # fmt: skip
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
    held, w = weighted(run), _Writer()
    place, sizes = buffers.assign(network.nodes)
    inputs = math.prod(network.nodes[0].in_shape)
    for node in network.nodes:
        if buffers.is_view(node):
            continue
        make = _LAYERS.get(type(node.layer))
        if make is None or node.layer.stem in run.method.layers or takes_tokens(node):
            raise OctosimError(f"layer {node.name}: layers of the kind '{node.layer.kind}' are not exported to C yet")
        given = [f"buffer_{place[i]}" for i in node.inputs]
        w.calls.append(f"    /* {node.name} */\n")
        make(w, node, given, f"buffer_{place[node.index]}", held)
    outputs = math.prod(network.nodes[-1].out_shape)
    result = f"buffer_{place[network.nodes[-1].index]}"
    kernels = "".join(text for name, text in KERNELS.items() if name in w.kernels)
    memory = "".join(f"static float buffer_{i}[{size}];\n" for i, size in enumerate(sizes))
    about = f"model {run.config.model}, method {run.config.method}, step {run.step}, sha256:{run.digest()}".replace("*/", "* /")
    source_text = (
        f"/* Made by octosim export from {about} */\n\n#include <stdint.h>\n\n#define OCTOSIM_INPUTS {inputs}\n"
        f"#define OCTOSIM_OUTPUTS {outputs}\n\nvoid octosim_run(const uint8_t *image, float *logits);\n\n"
        + "".join(w.constants) + f"\n{memory}static int8_t codes[{max(1, w.codes)}];\n{kernels}\n"
        "void octosim_run(const uint8_t *image, float *logits)\n{\n    long i;\n"
        f"    for (i = 0; i < OCTOSIM_INPUTS; i++)\n        buffer_{place[-1]}[i] = (float)image[i] * {_real(1 / 255)};\n"
        + "".join(w.calls) + f"    for (i = 0; i < OCTOSIM_OUTPUTS; i++)\n        logits[i] = {result}[i];\n}}\n{MAIN}"
    )  # fmt: skip
    return Program(source_text, w.flash, 4 * sum(sizes) + w.codes)


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
