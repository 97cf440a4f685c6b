"""Quantization-aware training for integer-only inference: int8 forward, float32 backward straight through the quantizers.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018
(arXiv 1712.05877): section 2.1 (r = S (q - Z)), 2.2 to 2.4 (integer products, int32 bias with S_b = S_1 S_2), 3 and 3.1
(simulated quantization, ranges of weights from their extremes, of activations as moving averages).  The moving average's
initial value and the gradient outside the range are not fixed by what is known here; they are marked below.

Differs from the paper in: codes are int8 in +-127 (paper: uint8 on 256 levels); weights are symmetric, per tensor or per
channel (paper: affine, with a zero point); the forward pass computes the integer products themselves, where the paper's
training simulates them in floating point; sums become float32 and the next layer's quantizer makes codes of them, so that the
multiplier M of section 2.2 is not used (it is `quantizers.requantize`); batch normalization is not folded into the weights;
biases are rounded in the forward pass, with the scale of that step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.engine.quantizers import LARGEST_CODE, QTensor
from octosim.errors import OctosimError
from octosim.methods import float32
from octosim.numerics import EXACT32

LARGEST_BIAS = 2**30  # in units of the sums' scale; leaves room for the products


@dataclass(frozen=True)
class Qat(Method):
    """Parameters of the method.

    weights:   "tensor": one scale for a layer's weights; "channel": one for each output channel.
    smoothing: of the activations' range: range = smoothing range + (1 - smoothing) batch's range; the first batch sets it.
    delay:     steps before the activations are quantized in training; inference always quantizes them.
    """

    weights: Literal["tensor", "channel"] = "tensor"
    smoothing: float = 0.99
    delay: int = 0

    name: ClassVar[str] = "qat"
    summary: ClassVar[str] = "INT8 forward with averaged ranges, float32 backward straight through"
    paper: ClassVar[str] = "Jacob et al., CVPR 2018"
    bits: ClassVar[dict[str, str]] = {
        "weights": "int8",
        "activations": "int8",
        "gradients": "float32",
        "errors": "float32",
        "update": "float32",
        "accumulator": "int32",
        "normalization": "float32",
    }

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise OctosimError(f"qat: smoothing must be in [0, 1), not {self.smoothing}")
        if self.delay < 0:
            raise OctosimError(f"qat: delay must not be negative, not {self.delay}")

    def check(self, node: Node, batch: int) -> None:
        depth, safe = node.layer.product(node, batch).depths[0], EXACT32.safe_depth(LARGEST_CODE, LARGEST_CODE)
        if depth > safe:
            raise OctosimError(
                f"layer {node.name}, forward: a sum of {depth} int8 products could overflow the 32-bit accumulator "
                f"(safe up to {safe})"
            )

    def init(self, node: Node, seed: int) -> None:
        node.state["x_range"] = np.zeros(2, np.float32)

    def _range(self, node: Node, x: Array, context: Context) -> tuple[float, float]:
        running = node.state["x_range"]
        if context.training:
            batch = np.array([*core.value_range(x)], np.float32)
            running[:] = running + np.float32(1 - self.smoothing) * (batch - running) if running.any() else batch
        return float(running[0]), float(running[1])

    def _weight_codes(self, node: Node) -> tuple[Array, Array]:
        """Codes and their scales, float32 (1,) or (channels,)."""
        w = node.params["w"]
        low, high = node.range_of("w")
        codes = node.buffer(w.shape, np.int8)
        if self.weights == "tensor":
            whole = quantizers.symmetric(w, low, high, out=codes)
            return whole.q, np.array([whole.scale], np.float32)
        rows = w.reshape(len(w), -1)
        scale = np.abs(rows).max(axis=1) / np.float32(LARGEST_CODE)
        inverse = np.where(scale > 1e-38, 1 / np.maximum(scale, np.float32(1e-38)), 0).astype(np.float32)
        codes[:] = np.clip(np.rint(rows * inverse[:, None]), -LARGEST_CODE, LARGEST_CODE).reshape(w.shape)
        return codes, scale

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        qw, w_scale = self._weight_codes(node)
        real = node.buffer(qw.shape, np.float32)
        np.multiply(qw, w_scale.reshape(-1, *[1] * (qw.ndim - 1)), out=real)
        low, high = self._range(node, x, context)
        if context.training and int(context.step) <= self.delay:
            node.saved.update(x=x, w=real, inside=None)
            return float32.forward(node, x, real)
        qx = quantizers.asymmetric(x, low, high, out=node.buffer(x.shape, np.int8))
        if context.training:
            x_real = core.dequantize(qx.q, qx.scale, zero=qx.zero, out=node.buffer(x.shape, np.float32))
            node.saved.update(x=x_real, w=real, inside=self._inside(node, x, qx))
        return self._sums(node, qx, qw, w_scale)

    def _inside(self, node: Node, x: Array, qx: QTensor) -> Array:
        """Where x lies in the codes' range: elsewhere the quantizer is flat and passes no gradient on (a choice: see above)."""
        first, last = (np.float32(qx.scale) * np.float32(end - qx.zero) for end in (-LARGEST_CODE, LARGEST_CODE))
        inside = node.buffer(x.shape, np.bool_)
        np.greater_equal(x, first, out=inside)
        inside &= x <= last
        return inside

    def _sums(self, node: Node, qx: QTensor, qw: Array, w_scale: Array) -> Array:
        """The int32 products, with the bias and the zero point's part in int32, times their scales."""
        batch = len(qx.q)
        acc = node.buffer((batch, *node.out_shape), np.int32)
        node.layer.product(node, batch).forward(qx.q, qw, x_zero=qx.zero, out=acc)
        scale = (w_scale * np.float32(qx.scale)).astype(np.float32)
        # a scale of 0 has only codes of 0: what is divided there does not matter
        bias = np.rint(node.params["b"] / np.where(scale > 0, scale, np.float32(1)))
        left = np.where(scale > 0, np.abs(bias) > LARGEST_BIAS, True)  # what int32 cannot hold is added in float32
        bias = np.where(left, 0, bias)
        add = bias.astype(np.int32) - np.int32(qx.zero) * core.row_sums(qw)
        if scale.size == 1:
            y = core.dequantize_sums(acc, add, float(scale[0]), out=acc.view(np.float32))
        else:
            y = core.dequantize_sums(acc, add, 1.0, out=acc.view(np.float32))
            y = core.affine(y, scale, np.zeros_like(scale), out=y)
        if left.any():
            y += np.where(left, node.params["b"], np.float32(-0.0))
        return y

    def error(self, node: Node, dy: Array, context: Context) -> Array:
        return dy

    def weight_grad(self, node: Node, error: Array, context: Context) -> None:
        float32.weight_grad(node, node.saved["x"], error)

    def input_grad(self, node: Node, error: Array, context: Context) -> Array:
        dx = float32.input_grad(node, error, node.saved["w"])
        if node.saved["inside"] is not None:
            dx *= node.saved["inside"]
        return dx
