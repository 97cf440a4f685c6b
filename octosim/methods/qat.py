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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import Array, Circumstances, Context, Method, Node, Seen
from octosim.engine.quantizers import LARGEST_CODE
from octosim.errors import OctosimError
from octosim.methods import float32
from octosim.numerics import EXACT32


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
    by_channel: ClassVar[bool] = True
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

    def caveats(self, nodes: Sequence[Node], run: Circumstances, seen: Seen) -> list[str]:
        if self.delay < run.steps:
            return []
        return [f"activations are never quantized: delay={self.delay}, the run has {run.steps} steps"]

    def check(self, node: Node, batch: int) -> None:
        depth, safe = node.layer.product(node, batch).depths[0], EXACT32.safe_depth(LARGEST_CODE, LARGEST_CODE)
        if depth > safe:
            raise OctosimError(
                f"layer {node.name}, forward: a sum of {depth} int8 products could overflow the 32-bit accumulator "
                f"(safe up to {safe})"
            )

    def init(self, node: Node, seed: int) -> None:
        node.state["x_range"] = np.zeros(2, np.float32)

    def phase(self, context: Context) -> bool:
        """Whether activations are quantized."""
        return context.number > self.delay

    def _range(self, node: Node, x: Array, context: Context) -> core.Range:
        running = node.state["x_range"]
        if context.training:
            core.ema_range(running, core.value_range(x), 1 - self.smoothing)
        elif not running.any():  # before the first step
            return core.value_range(x)
        return core.Range.of(running)

    def _weight_codes(self, node: Node) -> tuple[Array, Array, Array | core.Scalar]:
        """Codes, their values, and their scale or (channels,) of them."""
        w = node.params["w"]
        codes, real = node.buffer(w.shape, np.int8), node.buffer(w.shape, np.float32)
        if self.weights == "channel":
            return core.quantize_rows(w, out=codes, real=real)
        found = node.range_of("w")
        whole = quantizers.symmetric(w, found.low, found.high, out=codes)
        assert isinstance(whole.s, core.Scalar)
        return whole.q, core.dequantize(whole.q, whole.s, out=real), whole.s

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        qw, real, w_scale = self._weight_codes(node)
        x_range = self._range(node, x, context)
        if context.training and not self.phase(context):
            node.saved.update(x=x, w=real, inside=None)
            return float32.forward(node, x, real)
        qx = quantizers.asymmetric(x, x_range.low, x_range.high, out=node.buffer(x.shape, np.int8))
        if context.training:
            x_real = core.dequantize(qx.q, qx.s, zero=qx.z, out=node.buffer(x.shape, np.float32))
            # elsewhere the quantizer is flat and passes no gradient on (a choice: see above)
            ends = core.code_ends(qx.s, qx.z)
            inside = core.within(x, ends.low, ends.high, out=node.buffer(x.shape, np.uint8))
            node.saved.update(x=x_real, w=real, inside=inside)
        return self._sums(node, qx, qw, w_scale)

    def _sums(self, node: Node, qx: core.Tensor, qw: Array, w_scale: Array | core.Scalar) -> Array:
        """The int32 products, with the bias and the zero point's part in int32, times their scales."""
        batch = len(qx.q)
        acc = node.buffer((batch, *node.out_shape), np.int32)
        node.layer.product(node, batch).forward(qx.q, qw, x_zero=qx.z, out=acc)
        add, scale, rest = core.fold_channel_bias(node.params["b"], w_scale, qx.s, core.row_sums(qw), qx.z)
        if isinstance(scale, core.Scalar):
            return core.dequantize_sums(acc, add, scale, rest=rest, out=acc.view(np.float32))
        y = core.dequantize_sums(acc, add, 1.0, out=acc.view(np.float32))
        return core.affine(y, scale, rest, out=y)

    def error(self, node: Node, dy: Array, context: Context) -> Array:
        return dy

    def weight_grad(self, node: Node, error: Array, context: Context) -> None:
        float32.weight_grad(node, node.saved.get("x"), error)

    def input_grad(self, node: Node, error: Array, context: Context) -> Array:
        dx = float32.input_grad(node, error, node.saved["w"])
        return dx if node.saved["inside"] is None else core.mask(dx, node.saved["inside"], out=dx)
