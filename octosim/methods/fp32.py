"""float32 training: the baseline, with sums in a fixed order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from octosim.engine.nodes import ROLES, Array, Context, Method, Node
from octosim.methods import float32


@dataclass(frozen=True)
class Fp32(Method):
    """Everything in float32; no parameters."""

    name: ClassVar[str] = "fp32"
    summary: ClassVar[str] = "float32 baseline"
    paper: ClassVar[str] = "-"
    bits: ClassVar[dict[str, str]] = dict.fromkeys(ROLES, "float32")
    multiplies: ClassVar[bool] = True
    by_channel: ClassVar[bool] = True

    def check(self, node: Node, batch: int) -> None:
        pass

    def init(self, node: Node, seed: int) -> None:
        pass

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        node.saved["x"] = x
        return float32.forward(node, x, node.params["w"])

    def error(self, node: Node, dy: Array, context: Context) -> Array:
        return dy

    def weight_grad(self, node: Node, error: Array, context: Context) -> None:
        float32.weight_grad(node, node.saved.get("x"), error)

    def input_grad(self, node: Node, error: Array, context: Context) -> Array:
        return float32.input_grad(node, error, node.params["w"])
