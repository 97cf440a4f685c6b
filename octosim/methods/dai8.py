"""Distribution Adaptive INT8: gradients quantized per output channel, with magnitude-aware clipping.

Zhao et al., "Distribution Adaptive INT8 Quantization for Training CNNs", AAAI 2021 (arXiv 2102.04782).  Equations: from notes
about the paper (algorithm card 5.8); no official code is known.

Differs from the paper in, or is our reconstruction of: a channel's sigma is its root mean square (mean zero); a channel's first
clipping value is its maximum; the copy of dY for dX is not clipped; the range of activations in inference is a running one;
first and last layers are quantized as all others; biases are float32 masters, added to the int32 sums as integers, and their
gradient comes from the codes of dW.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError
from octosim.methods import int8
from octosim.numerics import Rounding

TENSOR, CHANNELS = range(2)  # roles in the Philox streams


def _by_channel(factor: core.Number, values: Array, scales: Array, out: Array) -> None:
    each = scales * np.float32(float(factor))
    np.multiply(values, each.reshape(-1, *[1] * (values.ndim - 1)), out=out)


class _Error(NamedTuple):
    """dY twice: one scale for dX; a scale for each output channel for dW."""

    tensor: core.Tensor
    channels: core.Tensor


@dataclass(frozen=True)
class Dai8(Method):
    """Parameters of the method.

    threshold: a channel of dY is Gaussian where a larger share of its values than this is beyond sigma, else an inverted T
               (paper: 0.3).
    k, a:      clipping value of an inverted T: s = (1 - k a) s + a max|dY| (paper: 1, 0.8); of a Gaussian: max|dY|.
    rounding:  of dY.
    """

    threshold: float = 0.3
    k: float = 1.0
    a: float = 0.8
    rounding: Literal["half-even", "stochastic"] = "half-even"

    name: ClassVar[str] = "dai8"
    summary: ClassVar[str] = "INT8 forward and backward, gradients per output channel, magnitude-aware clipping"
    paper: ClassVar[str] = "Zhao et al., AAAI 2021"
    bits: ClassVar[Mapping[str, str]] = int8.BITS | {"errors": "int8, per channel for dW"}

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise OctosimError(f"dai8: threshold must be in 0 .. 1, not {self.threshold}")
        if not (0 < self.a <= 1 and 0 < self.k * self.a <= 1):
            raise OctosimError(f"dai8: a and k a must be in (0, 1], not {self.a} and {self.k * self.a}")

    def check(self, node: Node, batch: int) -> None:
        int8.refuse_overflow(node, batch, long=True)

    def init(self, node: Node, seed: int) -> None:
        node.state["x_range"] = np.zeros(2, np.float32)
        node.state["clip"] = np.zeros(node.out_shape[-1], np.float32)

    def forward(self, node: Node, x: Array, context: Context) -> core.LazyDequant:
        return int8.forward_symmetric(node, x, context)

    def error(self, node: Node, dy: Array, context: Context) -> _Error:
        dy_range, rounding, rows = core.value_range(dy), Rounding(self.rounding), dy.size // dy.shape[-1]
        one, many = (node.buffer(dy.shape, np.int8) for _ in range(2))
        both, random = core.mirrored(dy_range), context.random(node.tensor(TENSOR))
        tensor = quantizers.symmetric(dy, both.low, both.high, rounding=rounding, random=random, out=one)
        scales, inverses = core.channel_clips(
            dy, dy_range, node.state["clip"], most_beyond=math.floor(self.threshold * rows), keep=1 - self.k * self.a,
            share=self.a,
        )  # fmt: skip
        scaled = core.affine(dy, inverses, np.zeros_like(inverses), out=node.buffer(dy.shape, np.float32))
        random = context.random(node.tensor(CHANNELS))
        codes = core.quantize(scaled, 1.0, rounding=rounding, random=random, out=many)
        return _Error(tensor, core.Tensor(codes, scales=scales))

    def weight_grad(self, node: Node, error: _Error, context: Context) -> None:
        """dW = (sum q_dy q_x) S_dy[channel] S_x, db = S_dy[channel] sum q_dy."""
        codes, scales = error.channels.q, error.channels.scales
        assert scales is not None
        if node.trains("w"):
            x, w = node.saved["x"], node.params["w"]
            product = node.layer.product(node, len(codes))
            if int8.sums_in_32_bits(product):
                acc = product.weight_grad(x.q, codes, out=node.buffer(w.shape, np.int32))
                node.grads["w"] = core.dequantize_channels(acc, scales, x.s, out=acc.view(np.float32))
            else:  # in 64 bits, rounded once to float32, then as above
                long = product.long_weight_grad(x.q, codes, out=node.buffer(w.shape, np.int64))
                zero = np.zeros(len(w), np.int32)
                dw = core.dequantize_long_rows(long, zero, 0, 1.0, out=node.buffer(w.shape, np.float32))
                core.python("a scale a channel", partial(_by_channel, x.s), [dw, scales], [dw])
                node.grads["w"] = dw
        node.grads["b"] = core.dequantize_channels(core.column_sums(codes), scales)

    def input_grad(self, node: Node, error: _Error, context: Context) -> core.LazyDequant:
        return int8.input_grad(node, error.tensor)
