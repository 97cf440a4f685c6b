"""Activations: the core's, each a class of its own fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.layers.base import NUMBER, Rule, Unweighted, word
from octosim.engine.nodes import Array, Context, Method, Node
from octosim.errors import OctosimError


@dataclass(frozen=True)
class ReLU(Unweighted):
    """max(x, 0), in the memory of its input where nothing else needs that; keeps a bit an element."""

    aliases: ClassVar[bool] = True
    stem: ClassVar[str] = "relu"
    kind: ClassVar[str] = "relu"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        relu_mask = node.saved["relu_mask"] = node.buffer((core.sign_bytes(x.size),), np.uint8)
        out = x if node.in_place else node.buffer(x.shape, np.float32)
        y, node.output_range = core.relu(x, relu_mask=relu_mask, find_range=method.saves_int8, out=out)
        return y

    def input_grad(self, node: Node, dy: Any, method: Method, context: Context) -> Any:
        return core.relu_backward(node.saved["relu_mask"], dy, out=dy)

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.ReLU()


class _Gated(Unweighted):
    """An activation of straight pieces, in the memory of its input where nothing else needs that; keeps a bit an element.

    function: of core.GATED.  ends: its two numbers.  slopes: where the bit is set, and where it is not.
    """

    aliases: ClassVar[bool] = True
    function: ClassVar[str]
    ends: ClassVar[Any]
    slopes: ClassVar[Any]

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        gate = node.buffer((core.sign_bytes(x.size),), np.uint8) if context.training else None
        out = x if node.in_place else node.buffer(x.shape, np.float32)
        y, node.output_range = core.activation(self.function, x, *self.ends, gate=gate, find_range=method.saves_int8, out=out)
        node.saved["gate"] = gate
        return y

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return core.gate_backward(node.saved["gate"], dy, *self.slopes, out=dy)


@dataclass(frozen=True)
class Clip(_Gated):
    """x within low .. high; the gradient passes between them."""

    low: float = 0.0
    high: float = 1.0
    function: ClassVar[str] = "clip"
    slopes: ClassVar[Any] = (1.0, 0.0)
    stem: ClassVar[str] = "clip"
    kind: ClassVar[str] = "clip"
    rules: ClassVar[Mapping[str, Rule]] = {"low": NUMBER, "high": NUMBER}

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self.low < self.high:
            raise OctosimError(f"a clip needs low below high, not {self.low} and {self.high}")
        return in_shape

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.Hardtanh(self.low, self.high)


@dataclass(frozen=True)
class ReLU6(_Gated):
    """x within 0 .. 6."""

    function: ClassVar[str] = "clip"
    ends: ClassVar[Any] = (0.0, 6.0)
    slopes: ClassVar[Any] = (1.0, 0.0)
    stem: ClassVar[str] = "relu6"
    kind: ClassVar[str] = "relu6"

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.ReLU6()


@dataclass(frozen=True)
class LeakyReLU(_Gated):
    """x where it is positive, else slope x."""

    slope: float = 0.01
    function: ClassVar[str] = "leaky"
    stem: ClassVar[str] = "leaky"
    kind: ClassVar[str] = "leakyrelu"
    rules: ClassVar[Mapping[str, Rule]] = {"slope": NUMBER}

    @property
    def ends(self) -> tuple[float]:
        return (self.slope,)

    @property
    def slopes(self) -> tuple[float, float]:
        return 1.0, self.slope

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.LeakyReLU(self.slope)


@dataclass(frozen=True)
class HardSigmoid(_Gated):
    """alpha x + beta within 0 .. 1; PyTorch's has 1/6 and 1/2, ONNX's 0.2 and 1/2."""

    alpha: float = 1 / 6
    beta: float = 0.5
    function: ClassVar[str] = "hard-sigmoid"
    stem: ClassVar[str] = "hardsigmoid"
    kind: ClassVar[str] = "hardsigmoid"
    rules: ClassVar[Mapping[str, Rule]] = {"alpha": NUMBER, "beta": NUMBER}

    @property
    def ends(self) -> tuple[float, float]:
        return self.alpha, self.beta

    @property
    def slopes(self) -> tuple[float, float]:
        return self.alpha, 0.0

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        alpha, beta = self.alpha, self.beta

        class Line(nn.Module):
            def forward(self, x: Any) -> Any:
                return (alpha * x + beta).clamp(0, 1)

        return nn.Hardsigmoid() if (alpha, beta) == (1 / 6, 0.5) else Line()


class _Smooth(Unweighted):
    """An activation whose backward pass needs its input, or its output.  function: of core.SMOOTH."""

    function: ClassVar[str]

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def forward(self, node: Node, x: Array, method: Method, context: Context) -> Array:
        free = node.in_place and (self.keeps or not context.training)
        out = x if free else node.buffer(x.shape, np.float32)
        y, node.output_range = core.activation(self._function, x, find_range=method.saves_int8, out=out)
        node.saved["kept"] = y if self.keeps else x
        return y

    @property
    def _function(self) -> str:
        return self.function

    def input_grad(self, node: Node, dy: Array, method: Method, context: Context) -> Array:
        return core.activation_backward(self._function, node.saved["kept"], dy, out=dy)


@dataclass(frozen=True)
class HardSwish(_Smooth):
    """x times x / 6 + 1/2 within 0 .. 1 (Howard et al. 2019)."""

    function: ClassVar[str] = "hard-swish"
    stem: ClassVar[str] = "hardswish"
    kind: ClassVar[str] = "hardswish"

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.Hardswish()


@dataclass(frozen=True)
class Sigmoid(_Smooth):
    """1 / (1 + e^-x); keeps its output."""

    aliases: ClassVar[bool] = True
    keeps: ClassVar[bool] = True
    function: ClassVar[str] = "sigmoid"
    stem: ClassVar[str] = "sigmoid"
    kind: ClassVar[str] = "sigmoid"

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.Sigmoid()


@dataclass(frozen=True)
class SiLU(_Smooth):
    """x times its sigmoid (swish)."""

    function: ClassVar[str] = "silu"
    stem: ClassVar[str] = "silu"
    kind: ClassVar[str] = "silu"

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.SiLU()


@dataclass(frozen=True)
class Tanh(_Smooth):
    """The hyperbolic tangent; keeps its output."""

    aliases: ClassVar[bool] = True
    keeps: ClassVar[bool] = True
    function: ClassVar[str] = "tanh"
    stem: ClassVar[str] = "tanh"
    kind: ClassVar[str] = "tanh"

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.Tanh()


@dataclass(frozen=True)
class GELU(_Smooth):
    """x times the normal distribution at x (Hendrycks & Gimpel 2016), or with approximate "tanh" their formula for it."""

    approximate: str = "none"
    stem: ClassVar[str] = "gelu"
    kind: ClassVar[str] = "gelu"
    rules: ClassVar[Mapping[str, Rule]] = {"approximate": word("none", "tanh")}

    @property
    def _function(self) -> str:
        return "gelu" if self.approximate == "none" else "gelu-tanh"

    def peer(self, nn: Any, *shapes: tuple[int, ...]) -> Any:
        return nn.GELU(self.approximate)
