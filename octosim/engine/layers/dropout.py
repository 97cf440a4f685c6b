"""Dropout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.layers.base import MASK, Rule, Unweighted, number
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError


@dataclass(frozen=True)
class Dropout(Unweighted):
    """Inverted dropout: in training a share `rate` is zeroed and the rest scaled up; nothing in inference."""

    rate: float = 0.5
    aliases: ClassVar[bool] = True
    stem: ClassVar[str] = "dropout"
    kind: ClassVar[str] = "dropout"
    rules: ClassVar[Mapping[str, Rule]] = {"rate": number(lambda v: 0 <= v < 1, "a number of at least 0, below 1")}

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if not 0 <= self.rate < 1:
            raise OctosimError(f"dropout rate must be in [0, 1), not {self.rate}")
        return in_shape

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        if not context.training:
            return x
        y = node.buffer(x.shape, np.float32)
        return core.dropout(x, self.rate, context.random(node.tensor(MASK)), out=y)

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return core.dropout(dy, self.rate, context.random(node.tensor(MASK)), out=dy)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.Dropout(self.rate)
