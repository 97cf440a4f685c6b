"""What layers and methods share: a layer's place in a network, its matrix product, and the hooks of a method.

Layers own geometry, methods own numbers.  A weighted layer is one matrix product in three passes, forward Y = X W^T, input
gradient dX = dY W, weight gradient dW = dY^T X; a method decides the numbers that go in and what is made of the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from octosim import core
from octosim.trace import Op

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Context:
    """What a pass needs to know beyond its operands.  `step` counts from 1 and, with the seed, keys all randomness.

    epoch: from 1, for methods whose parameters change with it.
    """

    training: bool
    seed: int
    step: int
    epoch: int = 1

    def random(self, tensor: int) -> tuple[int, int, int]:
        """The Philox stream of a tensor in this step."""
        return self.seed, self.step, tensor


@dataclass(frozen=True)
class Convolution:
    """The matrix product of a convolution: M = batch x out_h x out_w, K = kernel x kernel x channels, N = filters."""

    geometry: core.Conv
    groups: ClassVar[int] = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, K, N) of the forward pass."""
        g = self.geometry
        return g.batch * g.out_h * g.out_w, g.kernel_h * g.kernel_w * g.channels, g.filters

    @property
    def kernel(self) -> tuple[int, int]:
        return self.geometry.kernel_h, self.geometry.kernel_w

    @property
    def depths(self) -> tuple[int, int, int]:
        """The longest sums, in products: forward, dX, dW."""
        m, k, n = self.shape
        return k, self.geometry.kernel_h * self.geometry.kernel_w * n, m

    def forward(self, x: Array, w: Array, *, x_zero: int = 0, out: Array | None = None) -> Array:
        return core.conv_forward(self.geometry, x, w, x_zero=x_zero, out=out)

    def input_grad(self, dy: Array, w: Array, *, out: Array | None = None) -> Array:
        return core.conv_input_grad(self.geometry, dy, w, out=out)

    def weight_grad(self, x: Array, dy: Array, *, x_zero: int = 0, out: Array | None = None) -> Array:
        return core.conv_weight_grad(self.geometry, x, dy, x_zero=x_zero, out=out)


@dataclass(frozen=True)
class FullProduct:
    """The matrix product of a fully connected layer: M = batch, K = inputs, N = outputs."""

    batch: int
    inputs: int
    outputs: int
    groups: ClassVar[int] = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, K, N) of the forward pass."""
        return self.batch, self.inputs, self.outputs

    @property
    def kernel(self) -> tuple[int, int]:
        """(0, 0): no convolution."""
        return 0, 0

    @property
    def depths(self) -> tuple[int, int, int]:
        """The longest sums, in products: forward, dX, dW."""
        return self.inputs, self.outputs, self.batch

    def forward(self, x: Array, w: Array, *, x_zero: int = 0, out: Array | None = None) -> Array:
        return core.gemm(x, w, transpose_b=True, out=out)

    def input_grad(self, dy: Array, w: Array, *, out: Array | None = None) -> Array:
        return core.gemm(dy, w, out=out)

    def weight_grad(self, x: Array, dy: Array, *, x_zero: int = 0, out: Array | None = None) -> Array:
        return core.gemm(dy, x, transpose_a=True, out=out)


@dataclass(frozen=True)
class Depthwise:
    """A convolution of each channel with its own kernel.

    As products: one for each channel, M = batch x out_h x out_w, K = kernel x kernel, N = 1.
    """

    geometry: core.Conv

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, K, N) of one channel's forward pass."""
        g = self.geometry
        return g.batch * g.out_h * g.out_w, g.kernel_h * g.kernel_w, 1

    @property
    def groups(self) -> int:
        return self.geometry.channels

    @property
    def kernel(self) -> tuple[int, int]:
        return self.geometry.kernel_h, self.geometry.kernel_w

    @property
    def depths(self) -> tuple[int, int, int]:
        """The longest sums, in products: forward, dX, dW."""
        g = self.geometry
        taps = g.kernel_h * g.kernel_w
        return taps, taps, g.batch * g.out_h * g.out_w

    def forward(self, x: Array, w: Array, *, x_zero: int = 0, out: Array | None = None) -> Array:
        return core.depthwise_forward(self.geometry, x, w, x_zero=x_zero, out=out)

    def input_grad(self, dy: Array, w: Array, *, out: Array | None = None) -> Array:
        return core.depthwise_input_grad(self.geometry, dy, w, out=out)

    def weight_grad(self, x: Array, dy: Array, *, x_zero: int = 0, out: Array | None = None) -> Array:
        return core.depthwise_weight_grad(self.geometry, x, dy, x_zero=x_zero, out=out)


Product = Convolution | FullProduct | Depthwise


@dataclass
class Node:
    """A layer in a network: name, place, shapes (without the batch axis), numbers and memory.

    inputs: the nodes whose outputs it takes, by index; -1 is the network's input.  in_shape is the first one's.
    in_place: nothing else needs its input's values, nor will, so the layer may write over them.  (It may always write over
    the gradient of its output.)
    edge: the network's first or last weighted layer, which some methods leave unquantized.
    params are trained, state is kept and saved but not trained (running statistics), grads belong to params by name.
    """

    name: str
    index: int
    layer: Any
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    inputs: tuple[int, ...] = (-1,)
    in_place: bool = True
    edge: bool = False
    params: dict[str, Array] = field(default_factory=dict)
    state: dict[str, Array] = field(default_factory=dict)
    grads: dict[str, Array] = field(default_factory=dict)
    saved: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Array] = field(default_factory=dict)

    def tensor(self, role: int) -> int:
        """The number of a tensor of this layer in the Philox streams; roles 0 .. 15."""
        return self.index * 16 + role

    def buffer(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Memory that this layer keeps from step to step; its old content is lost when it is asked for again."""
        count = int(np.prod(shape))
        held = self.memory.get(name)
        if held is None or held.size < count or held.dtype != dtype:
            held = self.memory[name] = np.empty(count, dtype)
        return held[:count].reshape(shape)


class Method(Protocol):
    """The hooks of a training method; frozen dataclasses whose fields are the method's parameters.

    summary, paper: one line each.  bits: what type each of ROLES has.  A method may also have the hooks of `OwnStep` and of
    `Measured`.  Checked against the cards of the methods to come: Banner and UI8 return two copies of dY from `error`, one for
    each gradient; NITI's values between layers are integers, which only `input`, the elementwise functions and `loss` see.
    """

    name: str
    summary: str
    paper: str
    bits: dict[str, str]

    def check(self, node: Node, batch: int) -> None:
        """Refuses, with OctosimError, a layer whose sums could overflow the accumulator at this batch size."""

    def init(self, node: Node, seed: int) -> None:
        """Adds what the method itself needs to a weighted layer's params and state (`w` and `b` are there already)."""

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        """Y of a weighted layer; keeps in node.saved what the backward passes need."""

    def error(self, node: Node, dy: Array, context: Context) -> Any:
        """dY as the two gradient passes want it, made once."""

    def weight_grad(self, node: Node, error: Any, context: Context) -> None:
        """Fills node.grads."""

    def input_grad(self, node: Node, error: Any, context: Context) -> Array:
        """dX."""

    def trace(self, node: Node, batch: int) -> list[Op]:
        """The operations of a weighted layer in all passes."""


ROLES = ("weights", "activations", "gradients", "errors", "update", "accumulator", "normalization")
"""The tensors of a training step whose types a method's `bits` names; gradients are dL/dW, errors dL/dY."""


class Update(Protocol):
    """The run's optimizer at one step, as a method's own `step` sees it."""

    @property
    def lr(self) -> float: ...

    def all(self) -> None:
        """The optimizer's step on every parameter; NotFiniteError names the first layer with a NaN or an infinity."""

    def newton(self, node: Node, g: Array, slots: dict[str, Array] | None = None) -> tuple[Array, Array, dict[str, Array]]:
        """The optimizer's step on `w` for a gradient, taken apart: w - lr direction / curvature.  Changes nothing.

        Returns direction, curvature and the optimizer's tensors after the step.  slots: such tensors, to take the step after.
        """

    def set_slots(self, node: Node, slots: dict[str, Array]) -> None:
        """Makes these the optimizer's tensors of `w`."""


@runtime_checkable
class OwnStep(Protocol):
    """A method that does more in a training step than one pass and the optimizer's update (BLAQ's trial and second pass)."""

    def step(self, nodes: list[Node], gradients: Callable[[], float], update: Update, context: Context) -> float:
        """One training step; returns its loss.  gradients(): forward and backward on this step's batch, as often as called."""


@runtime_checkable
class Measured(Protocol):
    """A method that counts things in node.state, for the record of each epoch's last step."""

    def metrics(self, nodes: list[Node]) -> dict[str, Any]:
        """What was counted since the last call, by name; counts from 0 again."""
