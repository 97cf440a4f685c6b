"""Attention: products of activations, whose numbers are the method's as a weighted layer's are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from octosim import core
from octosim.engine.layers.base import COUNT, Rule, Unweighted
from octosim.engine.nodes import Array, BatchedProduct, Context, Method, Node
from octosim.errors import OctosimError

SCORES, MIXTURE = "scores", "mixture"
"""The products' names: Q K^T and softmax(scores) V."""


@dataclass(frozen=True)
class Attention(Unweighted):
    """softmax(Q K^T / sqrt(channels of a head)) V for each of `heads` heads, whose channels lie side by side (Vaswani et al.
    2017): queries, keys and values (tokens, channels) -> (tokens of the queries, channels of the values)."""

    heads: int = 1
    multiplies: ClassVar[bool] = True
    stem: ClassVar[str] = "attention"
    kind: ClassVar[str] = "attention"
    inputs: ClassVar[int] = 3
    rules: ClassVar[Mapping[str, Rule]] = {"heads": COUNT}

    def out_shape(self, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        q, k, v = shapes
        if any(len(shape) != 2 for shape in shapes) or k[0] != v[0] or q[1] != k[1]:
            raise OctosimError(f"an attention cannot take queries {q}, keys {k} and values {v}")
        if q[1] % self.heads or v[1] % self.heads:
            raise OctosimError(f"{q[1]} and {v[1]} channels are not {self.heads} heads")
        return q[0], v[1]

    def _products(self, node: Node, batch: int) -> dict[str, BatchedProduct]:
        (rows, width), (others, _), (_, out) = node.in_shapes
        heads, depth, made = self.heads, width // self.heads, out // self.heads
        scores = core.Batched(batch, heads, rows, others, depth, transpose_b=True, wide=(True, True, False))
        mixture = core.Batched(batch, heads, rows, made, others, wide=(False, True, True))
        return {SCORES: BatchedProduct(scores), MIXTURE: BatchedProduct(mixture)}

    def _scale(self, node: Node) -> float:
        return 1 / math.sqrt(node.in_shape[1] // self.heads)

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        method.init_products(node, (SCORES, MIXTURE))

    def forward(self, node: Node, x: tuple[Array, Array, Array], method: Method, context: Context) -> Array:
        q, k, v = x
        products = self._products(node, len(q))
        weights = method.multiply(node, SCORES, node.product_hook(products[SCORES]), q, k, context)
        weights = node.saved["weights"] = core.softmax(weights, self._scale(node), out=weights)
        return method.multiply(node, MIXTURE, node.product_hook(products[MIXTURE]), weights, v, context)

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> tuple[Array, Array, Array]:
        products, weights = self._products(node, len(dy)), node.saved["weights"]
        dweights, dv = method.multiply_grads(node, MIXTURE, node.product_hook(products[MIXTURE]), dy, context)
        dscores = core.softmax_backward(weights, dweights, self._scale(node), out=dweights)
        dq, dk = method.multiply_grads(node, SCORES, node.product_hook(products[SCORES]), dscores, context)
        return dq, dk, dv

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        heads = self.heads

        class Heads(nn.Module):
            def forward(self, *x: Any) -> Any:
                q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in x)
                return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

        return Heads()
