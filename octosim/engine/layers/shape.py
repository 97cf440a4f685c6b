"""Layers that move values and change none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from octosim.engine.layers.base import Unweighted, elements
from octosim.engine.nodes import Array, Context, Method, Node


@dataclass(frozen=True)
class Flatten(Unweighted):
    """(height, width, channels) -> (height * width * channels,), no copy."""

    aliases: ClassVar[bool] = True
    stem: ClassVar[str] = "flatten"
    kind: ClassVar[str] = "flatten"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (elements(in_shape),)

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        return x.reshape(x.shape[0], -1)

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return dy.reshape(dy.shape[0], *node.in_shape)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.Flatten()
