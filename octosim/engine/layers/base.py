"""What all layers have: their fields in a model file, and the passes that those without a matrix product share.

Layers own geometry only.  A weighted layer asks the network's method for its numbers; the others work on float32 values.

A layer with one input takes and gives an array in each pass.  One with several takes a tuple of them forward and gives one
backward.  Each gradient array that a layer gives belongs to the receiver, who may write over it: it is never given twice, but
for what an addition gives where `FusedAdd.shares_dy` says so.

Shapes are without the batch axis, images (height, width, channels).  Each layer is a frozen value; what a network adds to it
stands in its `nodes.Node`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError

WEIGHT, MASK = 14, 15  # roles in the Philox streams; methods have the lower ones


class Rule(NamedTuple):
    """What a field of a layer may be.  take: a value of a model file as the layer holds it, ValueError where it is none.
    expected: in words."""

    take: Callable[[Any], Any]
    expected: str


def whole(value: Any, low: int, high: int) -> int:
    """An integer in a range; ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError
    return value


def integer(low: int, high: int) -> Rule:
    return Rule(lambda value: whole(value, low, high), f"an integer in {low} .. {high}")


def number(fits: Callable[[float], bool], expected: str) -> Rule:
    def take(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
            raise ValueError
        return float(value)

    return Rule(take, expected)


COUNT = integer(1, 2**20)
DEVIATION = number(lambda v: 0 < v < float("inf"), "a positive number")


def elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def windows(title: str, in_shape: tuple[int, ...], kernel: int, stride: int, pad: int) -> tuple[int, int]:
    """Output height and width of a square window that moves over a padded image."""
    if len(in_shape) != 3 or min(in_shape[:2]) + 2 * pad < kernel:
        raise OctosimError(f"a {title} cannot take an input of shape {in_shape}")
    if not pad < kernel:
        raise OctosimError(f"the padding {pad} of a {title} must be smaller than its kernel")
    height, width = ((size + 2 * pad - kernel) // stride + 1 for size in in_shape[:2])
    return height, width


@dataclass(frozen=True)
class Layer:
    """What a layer is; a frozen dataclass whose fields are the layer's in a model file.

    stem: what its nodes' names begin with.  kind: its name in a model file.  rules: of its fields.  inputs: how many it takes.
    weighted: whether it makes a matrix product.  aliases: the output may lie in the input's memory.

    out_shape: of its inputs' shapes; OctosimError where it cannot take them.  Besides these it has `init`, `forward`,
    `weight_grad` and `input_grad`.
    """

    stem: ClassVar[str]
    kind: ClassVar[str]
    rules: ClassVar[Mapping[str, Rule]] = {}
    inputs: ClassVar[int] = 1
    weighted: ClassVar[bool]
    aliases: ClassVar[bool] = False
    out_shape: ClassVar[Callable[..., tuple[int, ...]]]

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        """The same in PyTorch, images channel first; nn: torch.nn, shapes: the inputs'.  OctosimError where it has none."""
        raise OctosimError(f"layers of the kind '{self.kind}' have no counterpart in PyTorch here")


class Unweighted(Layer):
    """What layers without a matrix product share: no error of their own, no weight gradient."""

    weighted: ClassVar[bool] = False

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        pass

    def weight_grad(self, node: Node, dy: core.Values, method: Method, context: Context) -> core.Values:
        return dy


class Weighted(Layer):
    """What layers with a matrix product share: weights `w` [outputs][...], biases `b` [outputs], and the method's hooks."""

    weighted: ClassVar[bool] = True
    deviation: float | None

    def weight_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        raise NotImplementedError

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        """Normal weights, with the layer's deviation or He's sqrt(2 / fan-in); zero biases.  seed None: zero weights too."""
        shape = self.weight_shape(node.in_shape)
        deviation = self.deviation or math.sqrt(2 / elements(shape[1:]))
        w = np.zeros(shape, np.float32) if seed is None else core.normal(shape, seed, node.tensor(WEIGHT), deviation)
        node.params["w"] = w
        node.params["b"] = np.zeros(shape[0], np.float32)
        if node.normalized:
            node.still.add("b")
        method.init(node, seed or 0)

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        for observer in node.observers:
            observer.add(node.name, "forward", "input", x)
        y: Array = method.forward(node, x, context)
        if node.observers:
            y = core.values(y)
            _tell_meanings(node, node.saved)
        for observer in node.observers:
            observer.add(node.name, "forward", "output", y)
        return y

    def weight_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Any:
        for observer in node.observers:
            observer.add(node.name, "dW", "gradient", dy)
        error = method.error(node, dy, context)
        if node.observers:
            _tell_meanings(node, {"dy": error})
        method.weight_grad(node, error, context)
        if node.observers:
            node.grads = {name: core.values(g) for name, g in node.grads.items()}
        for observer in node.observers:
            for name, values in node.grads.items():
                observer.add(node.name, "dW", f"gradient of {name}", values)
        if node.normalized:  # only rounding would move a bias here, and the running mean could not follow it
            node.grads["b"] = np.zeros_like(node.params["b"])
        return error

    def input_grad(self, node: Node, error: Any, method: Method, context: Context) -> Array:
        dx: Array = method.input_grad(node, error, context)
        if node.observers:
            dx = core.values(dx)
        for observer in node.observers:
            observer.add(node.name, "dX", "result", dx)
        return dx


def _tell_meanings(node: Node, values: dict[str, Any]) -> None:
    """Tells the observers of codes with their meaning."""
    for name, value in values.items():
        for part in value if isinstance(value, tuple) else (value,):
            if hasattr(part, "q"):
                for observer in node.observers:
                    observer.means(node.name, name, part)
