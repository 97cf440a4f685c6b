"""What all layers have: their fields in a model file, and the passes that those without a matrix product share.

Layers own geometry only.  A weighted layer asks the network's method for its numbers; the others work on float32 values.

A layer with one input takes and gives an array in each pass.  One with several takes a tuple of them forward and gives one
backward.  Each gradient array that a layer gives belongs to the receiver, who may write over it: it is never given twice, but
for what an addition gives where `FusedAdd.shares_dy` says so.

Shapes are without the batch axis, images (height, width, channels).  Each layer is a frozen value; what a network adds to it
stands in its `nodes.Node`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import ArgumentError, OctosimError

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


def several(low: int, high: int, counts: tuple[int, ...], what: str) -> Rule:
    """An integer in a range, or a list of so many."""

    def take(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return whole(value, low, high)
        if len(value) not in counts:
            raise ValueError
        return tuple(whole(each, low, high) for each in value)

    return Rule(take, f"an integer in {low} .. {high} or a list of {what}")


def word(*words: str) -> Rule:
    def take(value: Any) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return Rule(take, "one of " + ", ".join(words))


def integers(least: int, low: int, high: int) -> Rule:
    """A list of at least so many integers in a range."""

    def take(value: Any) -> tuple[int, ...]:
        if not isinstance(value, list | tuple) or len(value) < least:
            raise ValueError
        return tuple(whole(each, low, high) for each in value)

    return Rule(take, f"a list of integers in {low} .. {high}")


COUNT = integer(1, 2**20)
NUMBER = number(lambda v: abs(v) < float("inf"), "a number")
FLAG = Rule(lambda value: bool(whole(int(value), 0, 1)) if isinstance(value, bool) else whole(value, 1, 0), "true or false")
DEVIATION = number(lambda v: 0 < v < float("inf"), "a positive number")


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


RULES: dict[Any, Rule] = {"int": integer(-(2**31), 2**31 - 1), "float": NUMBER, "bool": FLAG, "str": Rule(_string, "a string")}
"""Of fields that a layer has no rule for, by their types as they are written."""
RULES |= {kind: RULES[kind.__name__] for kind in (int, float, bool, str)}


def elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


Sides = int | tuple[int, ...]
"""A size for all sides, or (down, across); of padding (down, across) or (above, left, below, right)."""


def pair(value: Sides) -> tuple[int, int]:
    """(down, across)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def pads(value: Sides) -> tuple[int, int, int, int]:
    """(above, left, below, right)."""
    if isinstance(value, int):
        return (value,) * 4
    return (value[0], value[1], *value[:2]) if len(value) == 2 else (value[0], value[1], value[2], value[3])


def by(value: Sides) -> str:
    """"3x1"."""
    return "{}x{}".format(*pair(value))


@dataclass(frozen=True)
class Layer:
    """What a layer is; a frozen dataclass whose fields are the layer's in a model file.

    stem: what its nodes' names begin with.  kind: its name in a model file, the stem if not given.  title: its name in
    sentences and in the manifest of `golden`, the kind if not given.  rules: of its fields; of a field without one its type's,
    of RULES.
    inputs: how many it takes, or the least and the largest number.
    weighted: whether it makes a matrix product with weights; multiplies: of activations.
    normalizes: whether it subtracts each channel's mean, so that a constant in front of it has no effect.
    aliases: the output may lie in the input's memory.  keeps: its backward pass needs the output, which nobody may write over.

    out_shape: of its inputs' shapes; OctosimError where it cannot take them.  Besides these it has `init`, `forward`,
    `weight_grad` and `input_grad`.
    """

    stem: ClassVar[str]
    kind: ClassVar[str]
    rules: ClassVar[Mapping[str, Rule]] = {}
    inputs: ClassVar[int | tuple[int, int]] = 1
    weighted: ClassVar[bool]
    keeps: ClassVar[bool] = False
    multiplies: ClassVar[bool] = False
    normalizes: ClassVar[bool] = False
    aliases: ClassVar[bool] = False
    out_shape: ClassVar[Callable[..., tuple[int, ...]]]

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if not hasattr(cls, "kind") and hasattr(cls, "stem"):
            cls.kind = cls.stem

    @property
    def title(self) -> str:
        return self.kind

    @classmethod
    def rule(cls, field: dataclasses.Field[Any]) -> Rule:
        """What a field may be."""
        return cls.rules.get(field.name) or RULES[field.type]

    @property
    def usual(self) -> bool:
        """Whether it is of the form that methods with passes of their own for its kind know."""
        return True

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        """The same in PyTorch, images channel first; nn: torch.nn, or a peer's functions with its names and arguments, as
        `bench.jax_peer.namespace`; shapes: the inputs'.  OctosimError where it has none."""
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
    deviation: float | None = None
    bias: bool = True

    def weight_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        raise NotImplementedError

    def init(self, node: Node, method: Method, seed: int | None) -> None:
        """The weights and biases that are given; else normal weights, with the layer's deviation or He's sqrt(2 / fan-in), and
        zero biases.  seed None: zero weights too."""
        shape = self.weight_shape(node.in_shape)
        deviation = self.deviation or math.sqrt(2 / elements(shape[1:]))
        w, b = node.given("w", shape), node.given("b", shape[:1])
        if w is None:
            w = np.zeros(shape, np.float32) if seed is None else core.normal(shape, seed, node.tensor(WEIGHT), deviation)
        node.params["w"] = w
        node.params["b"] = np.zeros(shape[0], np.float32) if b is None else b
        if node.normalized or not self.bias:
            node.zero_grad_params.add("b")
        method.init(node, seed or 0)

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        for observer in node.observers:
            observer.add(node.name, "forward", "input", x)
        y: Array = method.forward(node, x, context)
        if node.observers:
            y = core.materialize_in_place(y)
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
        if not node.trained:
            return error
        if node.outputs is None:
            method.weight_grad(node, error, context)
        else:
            part = self.part(node, node.outputs, method)
            method.weight_grad(part, first_channels(node, error, node.outputs), context)
            node.grads = part.grads
        if node.observers:
            node.grads = {name: core.materialize_in_place(g) for name, g in node.grads.items()}
        for observer in node.observers:
            for name, values in node.grads.items():
                observer.add(node.name, "dW", f"gradient of {name}", values)
        # of a normalized layer only rounding would move it, and the running mean could not follow
        if "b" in node.zero_grad_params and "b" in node.trained:
            node.grads["b"] = np.zeros_like(node.chosen("b"))
        return error

    def outputs_of_a_group(self, in_shape: tuple[int, ...]) -> int:
        """The output channels that the same input channels make."""
        return 1

    def with_outputs(self, in_shape: tuple[int, ...], count: int) -> tuple[Any, int]:
        """The layer with its first output channels alone, in whole groups, and how many input channels it has then."""
        raise ArgumentError(
            f"{{channels}} cannot choose channels of layers of the kind '{self.kind}', which lack `with_outputs`"
        )

    def part(self, node: Node, count: int, method: Method) -> Node:
        """The node that has the first output channels alone, whose parameters are parts of its own."""
        layer, channels = self.with_outputs(node.in_shape, count)
        saved = dict(node.saved)
        if channels < node.in_shape[-1]:
            saved |= {
                key: first_channels(node, saved[key], channels) for key in method.for_weight_grad if key in saved
            }
        return replace(
            node, layer=layer, in_shape=(*node.in_shape[:-1], channels), out_shape=(*node.out_shape[:-1], count), outputs=None,
            params={key: node.chosen(key) for key in node.params}, saved=saved, grads={},
        )  # fmt: skip

    def input_grad(self, node: Node, error: Any, method: Method, context: Context) -> Array:
        dx: Array = method.input_grad(node, error, context)
        if node.observers:
            dx = core.materialize_in_place(dx)
        for observer in node.observers:
            observer.add(node.name, "dX", "result", dx)
        return dx


def first_channels(node: Node, values: Any, count: int) -> Any:
    """A copy of the first channels of an array or a `core.Tensor`, the last axis."""
    if isinstance(values, core.Tensor):
        return replace(values, data=first_channels(node, values.data, count))
    out = node.buffer((*values.shape[:-1], count), values.dtype)
    core.python("first channels", _copy_channels, [values], [out])
    return out


def _copy_channels(values: Array, out: Array) -> None:
    out[...] = values[..., : out.shape[-1]]


def _tell_meanings(node: Node, values: dict[str, Any]) -> None:
    """Tells the observers of quantized tensors."""
    for name, value in values.items():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, core.Tensor):
                for observer in node.observers:
                    observer.means(node.name, name, part)


def channel_last(nn: Any, call: Callable[..., Any], parameters: Mapping[str, tuple[int, ...]] | None = None) -> Any:
    """A PyTorch module that applies `call` to inputs with the channel last, as the layers here have them; images come and go
    channel first.  parameters: by name, with their shapes; `call` takes them after the inputs.  A peer whose images have the
    channel last has a function of this name itself."""
    if hasattr(nn, "channel_last"):
        return nn.channel_last(call, parameters)

    def turned(x: Any, *axes: int) -> Any:
        return x.permute(*axes) if x.ndim == 4 else x

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            zeros = nn.Linear(1, 1).weight.new_zeros
            for name, shape in (parameters or {}).items():
                setattr(self, name, nn.Parameter(zeros(shape)))

        def forward(self, *x: Any) -> Any:
            own = (getattr(self, name) for name in parameters or {})
            return turned(call(*(turned(each, 0, 2, 3, 1) for each in x), *own), 0, 3, 1, 2)

    return Turned()


# ---- several inputs of different shapes --------------------------------------------------


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that NumPy's rules give; OctosimError where they give none."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise OctosimError(f"inputs of shapes {' and '.join(map(str, shapes))} cannot be broadcast to one") from None


def widened(x: Any, ndim: int) -> Any:
    """x (batch, ...) with axes of size 1 behind the batch, so many axes in all."""
    return x.reshape(x.shape[0], *(1,) * (ndim - x.ndim), *x.shape[1:])


def reduced(node: Node, at: int, dy: Array, times: Array | None = None) -> Array:
    """The gradient of an input that was broadcast: dy, times another tensor, summed over what the input has once."""
    dx = node.buffer((len(dy), *node.in_shapes[at]), np.float32)
    out = widened(dx, dy.ndim)
    if times is None:
        core.assign(out, dy)
    else:
        core.times(dy, times, out)
    return dx
