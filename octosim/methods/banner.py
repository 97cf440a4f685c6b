"""Scalable methods for 8-bit training: Range BN and gradient bifurcation.

Banner, Hubara, Hoffer and Soudry, "Scalable Methods for 8-bit Training of Neural Networks", NeurIPS 2018 (arXiv 1805.11046).
Equations: the authors' code (eladhoffer/quantized.pytorch, models/modules/quantize.py) as the algorithm card 5.5 gives them.

Differs from the paper in: activations have 255 codes with an exact zero instead of 256 without; weights and dY are symmetric;
the copy of dY for the weight gradient is float32 (as in the code; the paper has 16 bits); activations round to nearest (the
code's are stochastic by a swap of arguments), Range BN's too; Range BN keeps a running deviation for inference, not the running
inverse scale, begins with gamma 1 (the code's is uniform in 0 .. 1), and takes fewer chunks where 16 do not divide a channel's
values or would have less than 16 each; biases are float32 masters, added to the sums as integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import Array, Circumstances, Context, Method, Node, Seen
from octosim.methods import caveats, int8
from octosim.numerics import Rounding

ERROR = 0  # role in the Philox streams
CHUNKS = 16  # of a batch, whose ranges are averaged
SHORTEST = 16  # values in a chunk, if there are as many; a chunk of one has no range
KEEP = 0.1  # share of the old value in running ranges and statistics
LN_4 = 1.3862943611198906
SPREAD = (
    0.5 * 0.35 * (1 + math.sqrt(math.pi * LN_4))
)  # as in the authors' code; / sqrt(2 ln n) it is deviation / expected range


def _factor(count: int) -> float:
    """Deviation / expected range of so many values; ln from the core, which gives the same bits everywhere."""
    with core.unrecorded():
        ln = float(core.log(np.array([max(count, 2)], np.float32))[0])
    return SPREAD / math.sqrt(2 * ln)


def _image_range(running: Array, x: Array, context: Context) -> core.Range:
    """The mean of the images' minima and maxima; its running average in inference."""
    if not context.training:  # before the first step the images' own
        return core.Range.of(running) if running.any() else core.image_range(x)
    found = core.image_range(x)
    core.average(running, found, KEEP, from_zero=True)
    return found


class RangeBatchNorm:
    """y = gamma (x - mean) / (C range) + beta for each channel: the range stands for the deviation.

    range = mean of 16 chunks' maxima - mean of their minima; C makes it the deviation of normal values.  x is taken as 8-bit
    codes represent it, as a layer's activations are; gamma, beta and 1 / (C range) have 8-bit codes (each between its least and
    largest value) in the passes, and so has dY, stochastically; gradients pass through the codes unchanged.
    """

    def init(self, node: Node, method: Method, seed: int) -> None:
        channels = node.in_shape[-1]
        node.params.update(gamma=np.ones(channels, np.float32), beta=np.zeros(channels, np.float32))
        node.state.update(mean=np.zeros(channels, np.float32), deviation=np.ones(channels, np.float32))
        node.state["input_range"] = np.zeros(2, np.float32)

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        p, s, rows = node.params, node.state, x.size // x.shape[-1]
        x_range = _image_range(s["input_range"], x, context)
        q = quantizers.asymmetric(x, x_range.low, x_range.high, out=node.buffer(x.shape, np.int8))
        x = core.dequantize(q.q, q.s, zero=q.z, out=node.buffer(x.shape, np.float32))
        most = min(CHUNKS, max(1, rows // SHORTEST))
        chunks = next(c for c in range(most, 0, -1) if rows % c == 0)
        y, node.saved["norm"] = core.range_norm_forward(
            x, p["gamma"], p["beta"], s["mean"], s["deviation"], eps=node.layer.eps, keep=KEEP,
            factor=_factor(rows // chunks), chunks=chunks if context.training else 0,
            centered=node.buffer(x.shape, np.float32), out=node.buffer(x.shape, np.float32),
        )  # fmt: skip
        return y

    def weight_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return dy

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        """With dY as symmetric stochastic codes represent it."""
        found, random = core.value_range(dy), context.random(node.tensor(ERROR))
        codes = node.buffer(dy.shape, np.int8)
        t = quantizers.symmetric(dy, found.low, found.high, rounding=Rounding.STOCHASTIC, random=random, out=codes)
        dy = core.dequantize(t.q, t.s, out=dy)
        dx, gamma, beta = core.range_norm_backward(node.saved["norm"], dy, out=node.buffer(dy.shape, np.float32))
        node.grads.update(gamma=gamma, beta=beta)
        return dx


@dataclass(frozen=True)
class Banner(Method):
    """No parameters.  Batch normalization is Range BN."""

    name: ClassVar[str] = "banner"
    summary: ClassVar[str] = "INT8 forward and dX, float32 dW (bifurcated gradients), Range BN"
    paper: ClassVar[str] = "Banner et al., NeurIPS 2018"
    bits: ClassVar[dict[str, str]] = {
        "weights": "int8",
        "activations": "int8",
        "gradients": "float32",
        "errors": "int8 for dX, float32 for dW",
        "update": "float32",
        "accumulator": "int32",
        "normalization": "float32, of 8-bit codes",
    }
    layers: ClassVar[Mapping[str, Any]] = {"bn": RangeBatchNorm()}

    def caveats(self, nodes: Sequence[Node], run: Circumstances, seen: Seen) -> list[str]:
        return caveats.without_norm(nodes, "Range BN never acts")

    def check(self, node: Node, batch: int) -> None:
        int8.refuse_overflow(node, batch, ("forward", "dX"))

    def init(self, node: Node, seed: int) -> None:
        node.state["x_range"] = np.zeros(2, np.float32)

    def forward(self, node: Node, x: Array, context: Context) -> core.LazyDequant:
        x_range = _image_range(node.state["x_range"], x, context)
        qx = quantizers.asymmetric(x, x_range.low, x_range.high, out=node.buffer(x.shape, np.int8))
        return int8.forward(node, qx, int8.weights(node))

    def error(self, node: Node, dy: Array, context: Context) -> tuple[core.Tensor, Array]:
        """Bifurcation: stochastic 8-bit codes for dX, dY itself for dW."""
        found, random = core.value_range(dy), context.random(node.tensor(ERROR))
        out = node.buffer(dy.shape, np.int8)
        return quantizers.symmetric(dy, found.low, found.high, rounding=Rounding.STOCHASTIC, random=random, out=out), dy

    def weight_grad(self, node: Node, error: tuple[core.Tensor, Array], context: Context) -> None:
        """dW from the values that the codes of x represent and dY, in float32."""
        _, dy = error
        if node.trains("w"):
            qx, w = node.saved["x"], node.params["w"]
            x = core.dequantize(qx.q, qx.s, zero=qx.z, out=node.buffer(qx.q.shape, np.float32))
            product = node.layer.product(node, dy.shape[0])
            node.grads["w"] = product.weight_grad(x, dy, out=node.buffer(w.shape, np.float32))
        node.grads["b"] = core.column_sums(dy)

    def input_grad(self, node: Node, error: tuple[core.Tensor, Array], context: Context) -> core.LazyDequant:
        return int8.input_grad(node, error[0])
