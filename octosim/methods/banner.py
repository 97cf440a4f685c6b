"""Scalable methods for 8-bit training: Range BN and gradient bifurcation.

Banner, Hubara, Hoffer and Soudry, "Scalable Methods for 8-bit Training of Neural Networks", NeurIPS 2018 (arXiv 1805.11046).
Equations: the authors' code (eladhoffer/quantized.pytorch, models/modules/quantize.py) as the algorithm card 5.5 gives them.

Differs from the paper in: activations have 255 codes with an exact zero instead of 256 without; weights and dY are symmetric;
the copy of dY for the weight gradient is float32 (as in the code; the paper has 16 bits); activations round to nearest (the
code's are stochastic by a swap of arguments); Range BN keeps a running deviation for inference, not the running inverse
scale, and takes fewer chunks where 16 do not divide a channel's values or would have less than 16 each; biases are float32
masters, added to the sums as integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.engine.quantizers import LARGEST_CODE, QTensor
from octosim.methods import int8
from octosim.numerics import Rounding

ERROR = 0  # role in the Philox streams
CHUNKS = 16  # of a batch, whose ranges are averaged
SHORTEST = 16  # values in a chunk, if there are as many; a chunk of one has no range
KEEP = 0.1  # share of the old value in the running activation range
LN_4 = 1.3862943611198906
SPREAD = (
    0.5 * 0.35 * (1 + math.sqrt(math.pi * LN_4))
)  # as in the authors' code; / sqrt(2 ln n) it is deviation / expected range


def coded(x: Array) -> Array:
    """x as 255 codes between its least and its largest value represent it, nearest."""
    low, high = core.value_range(x)
    step = float(np.float32((high - low) / (2 * LARGEST_CODE)))
    q = core.quantize(x - np.float32(low), quantizers.reciprocal(step), zero=-LARGEST_CODE)
    return core.dequantize(q, step, zero=-LARGEST_CODE) + np.float32(low)


def coded_gradient(dy: Array, random: core.Stream) -> Array:
    """dY as symmetric stochastic codes represent it."""
    t = quantizers.symmetric(dy, *core.value_range(dy), rounding=Rounding.STOCHASTIC, random=random)
    return core.dequantize(t.q, t.scale)


def _factor(count: int) -> np.float32:
    """Deviation / expected range of so many values; ln from the core, which gives the same bits everywhere."""
    with core.unrecorded():
        ln = float(core.log(np.array([max(count, 2)], np.float32))[0])
    return np.float32(SPREAD / math.sqrt(2 * ln))


class RangeBatchNorm:
    """y = gamma (x - mean) / (C range) + beta for each channel: the range stands for the deviation.

    range = mean of 16 chunks' maxima - mean of their minima; C makes it the deviation of normal values.  gamma, beta and
    1 / (C range) have 8-bit codes (each between its least and largest value) in the passes, and so has dY, stochastically;
    gradients pass through the codes unchanged.
    """

    def init(self, node: Node, method: Method, seed: int) -> None:
        channels = node.in_shape[-1]
        node.params.update(gamma=np.ones(channels, np.float32), beta=np.zeros(channels, np.float32))
        node.state.update(mean=np.zeros(channels, np.float32), deviation=np.ones(channels, np.float32))

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        p, s, eps = node.params, node.state, np.float32(node.layer.eps)
        mean, deviation = s["mean"], s["deviation"]
        if context.training:
            mean, deviation = self._statistics(node, x)
            keep = np.float32(1 - node.layer.momentum)
            for name, value in (("mean", mean), ("deviation", deviation)):
                s[name][:] = keep * s[name] + (np.float32(1) - keep) * value
        scale, gamma, beta = np.float32(1) / (deviation + eps), coded(p["gamma"]), coded(p["beta"])
        coded_scale = coded(scale)
        centered = np.subtract(x, mean, out=node.buffer(x.shape, np.float32))
        if context.training:
            node.saved.update(centered=centered, scale=scale, coded_scale=coded_scale, gamma=gamma)
        return core.affine(centered, coded_scale * gamma, beta, out=node.buffer(x.shape, np.float32))

    def _statistics(self, node: Node, x: Array) -> tuple[Array, Array]:
        """Mean and C range of each channel."""
        core.value_range(x)  # refuses a NaN
        rows = x.reshape(-1, x.shape[-1])
        most = min(CHUNKS, max(1, len(rows) // SHORTEST))
        chunks = next(c for c in range(most, 0, -1) if len(rows) % c == 0)
        parts = rows.reshape(chunks, -1, rows.shape[1])
        where = [pick(parts, 1)[:, None] for pick in (np.argmax, np.argmin)]
        high, low = (np.take_along_axis(parts, index, 1)[:, 0] for index in where)
        factor = _factor(parts.shape[1])
        node.saved.update(where=where, chunks=chunks, factor=factor)
        spread = (core.column_sums(high) - core.column_sums(low)) / np.float32(chunks)
        return core.column_sums(rows) / np.float32(len(rows)), spread * factor

    def weight_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return dy

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        saved = node.saved
        dy = coded_gradient(dy, context.random(node.tensor(ERROR)))
        products = core.column_sums(dy * saved["centered"])
        node.grads.update(gamma=products * saved["coded_scale"], beta=core.column_sums(dy))
        dx = dy * (saved["gamma"] * saved["coded_scale"])
        rows = dx.reshape(-1, dx.shape[-1])
        rows -= core.column_sums(rows) / np.float32(len(rows))
        # d(1 / (C range + eps)) / d range = -C scale^2; the range's own gradient goes to the chunks' extremes
        d_range = products * saved["gamma"] * -(saved["scale"] * saved["scale"]) * saved["factor"]
        parts, share = rows.reshape(saved["chunks"], -1, rows.shape[1]), d_range / np.float32(saved["chunks"])
        for index, change in zip(saved["where"], (share, -share), strict=True):
            np.put_along_axis(parts, index, np.take_along_axis(parts, index, 1) + change, 1)
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

    def check(self, node: Node, batch: int) -> None:
        int8.refuse_overflow(node, batch, ("forward", "dX"))

    def init(self, node: Node, seed: int) -> None:
        node.state["x_range"] = np.zeros(2, np.float32)

    def _range(self, node: Node, x: Array, context: Context) -> tuple[float, float]:
        """The mean of the images' minima and maxima; its running average in inference."""
        running = node.state["x_range"]
        if context.training:
            core.value_range(x)  # refuses a NaN
            images = x.reshape(len(x), -1)
            # exact sums, so that they do not depend on the order
            now = np.array([math.fsum(ends.tolist()) / len(x) for ends in (images.min(1), images.max(1))], np.float32)
            keep = np.float32(KEEP)
            running[:] = keep * running + (np.float32(1) - keep) * now if running.any() else now
            return float(now[0]), float(now[1])
        return float(running[0]), float(running[1])

    def forward(self, node: Node, x: Array, context: Context) -> core.Sums:
        qx = quantizers.asymmetric(x, *self._range(node, x, context), out=node.buffer(x.shape, np.int8))
        return int8.forward(node, qx, int8.weights(node))

    def error(self, node: Node, dy: Array, context: Context) -> tuple[QTensor, Array]:
        """Bifurcation: stochastic 8-bit codes for dX, dY itself for dW."""
        low, high = core.value_range(dy)
        out, random = node.buffer(dy.shape, np.int8), context.random(node.tensor(ERROR))
        return quantizers.symmetric(dy, low, high, rounding=Rounding.STOCHASTIC, random=random, out=out), dy

    def weight_grad(self, node: Node, error: tuple[QTensor, Array], context: Context) -> None:
        """dW from the values that the codes of x represent and dY, in float32."""
        _, dy = error
        qx, w = node.saved["x"], node.params["w"]
        x = core.dequantize(qx.q, qx.scale, zero=qx.zero, out=node.buffer(qx.q.shape, np.float32))
        product = node.layer.product(node, dy.shape[0])
        node.grads["w"] = product.weight_grad(x, dy, out=node.buffer(w.shape, np.float32))
        node.grads["b"] = core.column_sums(dy)

    def input_grad(self, node: Node, error: tuple[QTensor, Array], context: Context) -> core.Sums:
        return int8.input_grad(node, error[0])
