"""float32 training: the baseline, with sums in a fixed order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from octosim.methods import passes
from octosim.nodes import ROLES, Array, Context, Kept, Method, Node
from octosim.trace import Op


@dataclass(frozen=True)
class Fp32(Method):
    """Everything in float32; no parameters."""

    name: ClassVar[str] = "fp32"
    summary: ClassVar[str] = "float32 baseline"
    paper: ClassVar[str] = "-"
    bits: ClassVar[dict[str, str]] = dict.fromkeys(ROLES, "float32")
    recordable = True

    def check(self, node: Node, batch: int) -> None:
        pass

    def init(self, node: Node, seed: int) -> None:
        pass

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        node.saved["x"] = x
        return passes.forward(node, x, node.params["w"])

    def error(self, node: Node, dy: Array, context: Context) -> Array:
        return dy

    def weight_grad(self, node: Node, error: Array, context: Context) -> None:
        passes.weight_grad(node, node.saved["x"], error)

    def input_grad(self, node: Node, error: Array, context: Context) -> Array:
        return passes.input_grad(node, error, node.params["w"])

    def kept(self, node: Node, batch: int) -> Kept:
        return Kept(given=True)

    def trace(self, node: Node, batch: int) -> list[Op]:
        y = passes.sizes(node, batch)[2]
        return [
            passes.gemm(node, batch, "forward"),
            passes.elementwise(node, "forward", "bias", y, 4 * y, 4 * y, channels=node.out_shape[-1]),
            passes.gemm(node, batch, "dW"),
            passes.elementwise(node, "dW", "bias gradient", y, 4 * y, 0, channels=node.out_shape[-1]),
            passes.gemm(node, batch, "dX"),
        ]
