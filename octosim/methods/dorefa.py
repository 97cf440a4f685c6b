"""DoReFa-Net: weights, activations and gradients of a few bits each, values simulated in float32.

Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients", 2016
(arXiv 1606.06160): quantize_k (section 2.2), weights (2.3), activations (2.4), gradients (2.5), first and last layer (2.7).

Differs from the paper in: the quantizers stand at each layer's input and at its output's gradient, so that the clip to [0, 1]
of activations comes after a model's own ReLU and pooling; the derivative of max |tanh w| is left out (the weights' gradient
goes through tanh and the division by that maximum); tanh is made of the core's exp, so that its bits are the same everywhere;
no use is made of the codes' few bits: the products are in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError
from octosim.methods import float32

F = np.float32
ERROR = 0  # role in the Philox streams


def steps(x: Array, bits: int) -> Array:
    """quantize_k of values in [0, 1]: round(x (2^k - 1)) / (2^k - 1)."""
    n = F(2**bits - 1)
    return np.rint(x * n) / n


def tanh(x: Array) -> Array:
    """float32 (1 - e^-2|x|) / (1 + e^-2|x|) with x's sign."""
    e = core.exp(np.maximum(F(-2) * np.abs(x), F(-80)))
    return np.copysign((F(1) - e) / (F(1) + e), x)


def weights(w: Array, bits: int) -> tuple[Array, Array | None]:
    """Quantized weights and, unless it is 1, their derivative.

    1 bit: sign(w) E|w|.  More: 2 quantize_k(tanh(w) / (2 max |tanh w|) + 1/2) - 1.
    """
    if bits == 1:
        mean = F(float32.total(np.abs(w)) / w.size)
        return np.where(w < 0, -mean, mean).astype(F), None
    t = tanh(w)
    largest = np.abs(t).max()
    if not largest:
        return np.zeros_like(w), None
    return F(2) * steps(t / (F(2) * largest) + F(0.5), bits) - F(1), (F(1) - t * t) / largest


def gradients(dy: Array, bits: int, random: core.Stream) -> Array:
    """f_k of each sample: 2 max|g| (quantize_k(g / (2 max|g|) + 1/2 + U(-1/2, 1/2) / (2^k - 1)) - 1/2), clipped to +-max|g|."""
    largest = np.abs(dy.reshape(len(dy), -1)).max(axis=1).reshape(-1, *[1] * (dy.ndim - 1))
    twice = F(2) * np.where(largest > 0, largest, F(1))  # a sample of zeros stays one: see the last line
    noise = (core.philox(dy.size, *random) >> np.uint32(8)).astype(F) / F(2**24) - F(0.5)
    shifted = dy / twice + F(0.5) + noise.reshape(dy.shape) / F(2**bits - 1)
    return twice * (steps(np.clip(shifted, F(0), F(1)), bits) - F(0.5)) * (largest > 0)


@dataclass(frozen=True)
class Dorefa(Method):
    """Parameters of the method; 32 bits is float32.

    weight_bits, activation_bits, gradient_bits: 1 .. 8, or 32.
    edges: the network's first and last layer, "float" as in the paper or "quantized" as all others.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    gradient_bits: int = 8
    edges: Literal["float", "quantized"] = "float"

    name: ClassVar[str] = "dorefa"
    summary: ClassVar[str] = "k-bit weights, activations and gradients, simulated"
    paper: ClassVar[str] = "Zhou et al., arXiv 1606.06160, 2016"
    bits: ClassVar[dict[str, str]] = {
        "weights": "weight_bits",
        "activations": "activation_bits",
        "gradients": "float32, of quantized errors",
        "errors": "gradient_bits",
        "update": "float32",
        "accumulator": "float32",
        "normalization": "float32",
    }

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits", "gradient_bits"):
            value = getattr(self, name)
            if value not in (*range(1, 9), 32):
                raise OctosimError(f"dorefa: {name} must be in 1 .. 8, or 32, not {value}")

    def check(self, node: Node, batch: int) -> None:
        pass

    def init(self, node: Node, seed: int) -> None:
        pass

    def _bits(self, node: Node) -> tuple[int, int, int]:
        """Of weights, activations and gradients in a layer."""
        plain = node.edge and self.edges == "float"
        return (32, 32, 32) if plain else (self.weight_bits, self.activation_bits, self.gradient_bits)

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        weight_bits, activation_bits, _ = self._bits(node)
        w, slope, inside = node.params["w"], None, None
        if weight_bits < 32:
            core.value_range(w)  # a NaN is told here: comparisons would hide it
            w, slope = weights(w, weight_bits)
        if activation_bits < 32:
            core.value_range(x)
            inside = (x >= 0) & (x <= 1)
            x = steps(np.clip(x, F(0), F(1)), activation_bits)
        node.saved.update(x=x, w=w, slope=slope, inside=inside)
        return float32.forward(node, x, w)

    def error(self, node: Node, dy: Array, context: Context) -> Array:
        gradient_bits = self._bits(node)[2]
        if gradient_bits == 32:
            return dy
        core.value_range(dy)
        return gradients(dy, gradient_bits, context.random(node.tensor(ERROR)))

    def weight_grad(self, node: Node, error: Array, context: Context) -> None:
        float32.weight_grad(node, node.saved["x"], error)
        if node.saved["slope"] is not None:
            node.grads["w"] *= node.saved["slope"]

    def input_grad(self, node: Node, error: Array, context: Context) -> Array:
        dx = float32.input_grad(node, error, node.saved["w"])
        if node.saved["inside"] is not None:
            dx *= node.saved["inside"]
        return dx
