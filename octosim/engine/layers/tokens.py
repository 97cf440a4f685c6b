"""What a transformer adds to its tokens: learned positions, a class token."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.layers.base import Unweighted, channel_last
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError

ROLE = 13  # in the Philox streams
DEVIATION = 0.02  # of the initial values (Dosovitskiy et al. 2021)


def _initial(node: Node, shape: tuple[int, ...], seed: int | None) -> Array:
    return np.zeros(shape, np.float32) if seed is None else core.normal(shape, seed, node.tensor(ROLE), DEVIATION)


@dataclass(frozen=True)
class Positions(Unweighted):
    """Adds a learned value to each element of an image's tensor."""

    stem: ClassVar[str] = "positions"
    kind: ClassVar[str] = "positions"
    aliases: ClassVar[bool] = True

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        node.params["positions"] = _initial(node, node.in_shape, seed)

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        out = x if node.in_place else node.buffer(x.shape, np.float32)
        return core.plus(x, node.params["positions"][None], out)

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        grad = node.grads["positions"] = node.buffer(node.in_shape, np.float32)
        core.assign(grad[None], dy)
        return dy

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return channel_last(nn, lambda x, positions: x + positions, {"positions": shapes[0]})


@dataclass(frozen=True)
class Token(Unweighted):
    """Puts a learned token before the others: (tokens, channels) -> (tokens + 1, channels)."""

    stem: ClassVar[str] = "token"
    kind: ClassVar[str] = "token"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) != 2:
            raise OctosimError(f"a token cannot stand before an input of shape {in_shape}, expected (tokens, channels)")
        return in_shape[0] + 1, in_shape[1]

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        node.params["token"] = _initial(node, (1, node.in_shape[1]), seed)

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        out = node.buffer((x.shape[0], *node.out_shape), np.float32)
        core.assign(out[:, :1], node.params["token"][None])
        core.assign(out[:, 1:], x)
        return out

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        grad = node.grads["token"] = node.buffer((1, node.in_shape[1]), np.float32)
        core.assign(grad[None], dy[:, :1])
        return core.assign(node.buffer((dy.shape[0], *node.in_shape), np.float32), dy[:, 1:])

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        def joined(x: Any, token: Any) -> Any:
            return sys.modules["torch"].cat((token.expand(len(x), 1, -1), x), 1)

        return channel_last(nn, joined, {"token": (1, shapes[0][1])})
