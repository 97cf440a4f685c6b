"""Fully connected layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from octosim.engine.layers.base import COUNT, DEVIATION, FLAG, Rule, Weighted, elements
from octosim.engine.nodes import FullProduct, Node, Product
from octosim.errors import OctosimError


@dataclass(frozen=True)
class Linear(Weighted):
    """A fully connected layer, of a vector or of each token.  units None: the number of classes of the data."""

    units: int | None = None
    deviation: float | None = None
    bias: bool = True
    stem: ClassVar[str] = "fc"
    kind: ClassVar[str] = "linear"
    rules: ClassVar[Mapping[str, Rule]] = {"units": COUNT, "deviation": DEVIATION, "bias": FLAG}
    title: ClassVar[str] = "linear"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) not in (1, 2) or self.units is None:
            raise OctosimError(f"a linear layer needs flat input, or tokens, and a size, not {in_shape} and {self.units}")
        return (*in_shape[:-1], self.units)

    def weight_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.out_shape(in_shape)[-1], in_shape[-1])

    def with_outputs(self, in_shape: tuple[int, ...], count: int) -> tuple[Any, int]:
        return replace(self, units=count), in_shape[-1]

    def product(self, node: Node, batch: int) -> Product:
        return node.product_hook(FullProduct(batch * elements(node.in_shape[:-1]), node.in_shape[-1], node.out_shape[-1]))

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.Linear(shapes[0][-1], self.units, self.bias)
