"""DoReFa-Net: weights, activations and gradients of a few bits each, values simulated in float32.

Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients", 2016
(arXiv 1606.06160): quantize_k (section 2.2), weights (2.3), activations (2.4), gradients (2.5), first and last layer (2.7).

Differs from the paper in: the quantizers stand at each layer's input and at its output's gradient, so that the clip to [0, 1]
of activations comes after a model's own ReLU and pooling; the derivative of max |tanh w| is left out (the weights' gradient
goes through tanh and the division by that maximum); tanh is made of the core's exp, so that its bits are the same everywhere;
no use is made of the codes' few bits: the products are in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Circumstances, Context, Method, Node, Seen
from octosim.errors import OctosimError
from octosim.methods import caveats, float32
from octosim.numerics import unsigned

F = np.float32
ERROR = 0  # role in the Philox streams
SATURATED = 0.5


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

    inspects: ClassVar[bool] = True
    for_weight_grad: ClassVar[tuple[str, ...]] = ("x", "slope")

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
        plain = node.is_first_or_last and self.edges == "float"
        return (32, 32, 32) if plain else (self.weight_bits, self.activation_bits, self.gradient_bits)

    def caveats(self, nodes: Sequence[Node], run: Circumstances, seen: Seen) -> list[str]:
        """Its authors have batch normalization directly in front of each clip to [0, 1]."""
        clipped = [node for node in nodes if node.layer.weighted and self._bits(node)[1] < 32]
        bare = [node.name for node in clipped if node.inputs[0] >= 0 and not caveats.behind_norm(node, nodes)]
        bits = self.weight_bits, self.activation_bits, self.gradient_bits
        sentences = ["32 bits everywhere: nothing is quantized"] if min(bits) == 32 else []
        if bare:
            where = caveats.layers_text(bare, len(clipped))
            sentences.append(
                f"no batch normalization in front of the clip to [0, 1] {where}: preresnet20 and hidden_batchnorm have it"
            )
        shares = {node.name: float(np.mean(seen[node.name]["input"] >= 1)) for node in clipped if node.name in seen}
        half = [f"{name}: {share:.0%}" for name, share in shares.items() if share >= SATURATED]
        if half:
            sentences.append(f"the clip saturates half of the inputs {caveats.layers_text(half, len(clipped))}")
        return sentences

    def input_values(self, x: Array, limit: float) -> Array:
        """Where the first layer's input is quantized: values in [0, 1], zero at 1/2."""
        if self.edges == "float":
            return x
        channels = x.shape[-1]
        return core.affine(x, np.full(channels, 0.5 / limit, np.float32), np.full(channels, 0.5, np.float32), out=x)

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        """Values of few levels: of w, 1 bit, sign(w) E|w|; more, 2 quantize_k(tanh(w) / (2 max |tanh w|) + 1/2) - 1; of x,
        quantize_k(clip(x, 0, 1)), quantize_k(v) = round(v (2^k - 1)) / (2^k - 1)."""
        weight_bits, activation_bits, _ = self._bits(node)
        w, slope, inside = node.params["w"], None, None
        if weight_bits < 32:
            quantized = node.buffer(w.shape, F)
            if weight_bits == 1:
                w = core.binary_weights(w, out=quantized)
            else:
                w, slope = core.level_weights(w, unsigned(weight_bits).high, out=quantized, slope=node.buffer(w.shape, F))
        if activation_bits < 32:
            memory = node.buffer(x.shape, F), node.buffer(x.shape, np.uint8)
            x, inside = core.levels(x, unsigned(activation_bits).high, out=memory[0], inside=memory[1])
        node.saved.update(x=x, w=w, slope=slope, inside=inside)
        return float32.forward(node, x, w)

    def error(self, node: Node, dy: Array, context: Context) -> Array:
        """f_k of each sample: 2 max|g| (quantize_k(g / (2 max|g|) + 1/2 + U(-1/2, 1/2) / (2^k - 1)) - 1/2), within +-max|g|."""
        gradient_bits = self._bits(node)[2]
        if gradient_bits == 32:
            return dy
        random = context.random(node.tensor(ERROR))
        return core.level_errors(dy, unsigned(gradient_bits).high, random, out=node.buffer(dy.shape, F))

    def weight_grad(self, node: Node, error: Array, context: Context) -> None:
        float32.weight_grad(node, node.saved.get("x"), error)
        if node.trains("w") and node.saved["slope"] is not None:
            core.multiply(node.grads["w"], node.saved["slope"], out=node.grads["w"])

    def input_grad(self, node: Node, error: Array, context: Context) -> Array:
        dx = float32.input_grad(node, error, node.saved["w"])
        return dx if node.saved["inside"] is None else core.mask(dx, node.saved["inside"], out=dx)
