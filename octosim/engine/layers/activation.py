"""Activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.layers.base import Unweighted
from octosim.engine.nodes import Array, Context, Method, Node


@dataclass(frozen=True)
class ReLU(Unweighted):
    """max(x, 0), in the memory of its input where nothing else needs that; keeps a bit an element."""

    aliases: ClassVar[bool] = True
    stem: ClassVar[str] = "relu"
    kind: ClassVar[str] = "relu"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        signs = node.saved["signs"] = node.buffer((core.sign_bytes(x.size),), np.uint8)
        out = x if node.in_place else node.buffer(x.shape, np.float32)
        y, node.found = core.relu(x, signs=signs, find_range=method.compact, out=out)
        return y

    def input_grad(self, node: Node, dy: Any, method: Method, context: Context) -> Any:
        return core.relu_backward(node.saved["signs"], dy, out=dy)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.ReLU()
