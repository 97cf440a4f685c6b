"""What layers and methods share: a layer's place in a network, its matrix product, and the hooks of a method.

Layers own geometry, methods own numbers.  A weighted layer is one matrix product in three passes, forward Y = X W^T, input
gradient dX = dY W, weight gradient dW = dY^T X; a method decides the numbers that go in and what is made of the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from octosim import core
from octosim.core.memory import Pool

Array = np.ndarray[Any, Any]

LOSS = 13
"""Role of the loss's gradient in the Philox streams, of the last layer's tensors."""
LOSSES = ("cross-entropy", "mse")
"""Of a network: softmax cross-entropy of labels, or the mean squared error of its output against its input."""

RANGE, SIDES = "x_range", ("left", "right")
"""In a layer's state: the range of its input that inference uses; what the names of a product's operands' ranges end in."""

INPUT_RANGE = "input_range"
"""Among initial tensors: a range of a layer's input that an imported quantized network brings; calibration keeps it."""

MICRO = 1 << 20
"""Tensors of a network in the Philox streams: those of the next micro-batch of a step have numbers from here on."""


@dataclass(frozen=True)
class Context:
    """What a pass needs to know beyond its operands.  `step` counts from 1 and, with the seed, keys all randomness.

    steps: how many the run has, for methods with a schedule of their own; 0 where there is no run.  epoch: from 1.
    recorded: of a step that is recorded, and made again as others: the step's number, for what is the same in all of a phase
    (`Method.phase`).  micro: the number of the micro-batch in its step, from 0, which has random streams of its own.
    """

    training: bool
    seed: int
    step: core.Whole
    steps: int = 0
    epoch: int = 1
    recorded: int | None = None
    micro: int = 0

    @property
    def number(self) -> int:
        """The step's number, for decisions that hold for all steps of a phase."""
        return int(self.step) if self.recorded is None else self.recorded

    def random(self, tensor: int) -> core.Stream:
        """The Philox stream of a tensor in this step."""
        return self.seed, self.step, tensor + self.micro * MICRO


@dataclass(frozen=True)
class _Windows:
    """What products of windows of images share."""

    geometry: core.Conv
    any_length: ClassVar[bool] = True

    @property
    def kernel(self) -> tuple[int, int]:
        return self.geometry.kernel_h, self.geometry.kernel_w

    @property
    def stride(self) -> int:
        return self.geometry.stride


@dataclass(frozen=True)
class Convolution(_Windows):
    """The matrix product of a convolution: M = batch x out_h x out_w, K = kernel x kernel x channels, N = filters,
    of one group."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, K, N) of the forward pass."""
        g = self.geometry
        return g.batch * g.out_h * g.out_w, g.kernel_h * g.kernel_w * g.channels // g.groups, g.filters // g.groups

    @property
    def groups(self) -> int:
        """How many products of `shape` there are."""
        return self.geometry.groups

    @property
    def depths(self) -> tuple[int, int, int]:
        """The longest sums, in products: forward, dX, dW."""
        m, k, n = self.shape
        return k, self.geometry.kernel_h * self.geometry.kernel_w * n, m

    def forward(self, x: Array, w: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        return core.conv_forward(self.geometry, x, w, x_zero=x_zero, out=out)

    def input_grad(self, dy: Array, w: Array, *, out: Array | None = None) -> Array:
        return core.conv_input_grad(self.geometry, dy, w, out=out)

    def weight_grad(self, x: Array, dy: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        return core.conv_weight_grad(self.geometry, x, dy, x_zero=x_zero, out=out)

    def long_weight_grad(self, x: Array, dy: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        return core.conv_weight_grad_long(self.geometry, x, dy, x_zero=x_zero, out=out)


def _rows(x: Any) -> Any:
    """Vectors, or tokens of several images, as a matrix."""
    return x if x is None or x.ndim == 2 else x.reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class FullProduct:
    """The matrix product of a fully connected layer: M = batch (times tokens), K = inputs, N = outputs."""

    batch: int
    inputs: int
    outputs: int

    @property
    def geometry(self) -> core.Conv:
        """The convolution of a 1 x 1 image that it is."""
        return core.Conv(self.batch, 1, 1, self.inputs, self.outputs, 1, 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, K, N) of the forward pass."""
        return self.batch, self.inputs, self.outputs

    @property
    def groups(self) -> int:
        """How many products of `shape` there are."""
        return 1

    @property
    def kernel(self) -> tuple[int, int]:
        """(0, 0): no convolution."""
        return 0, 0

    @property
    def stride(self) -> int:
        return 1

    @property
    def depths(self) -> tuple[int, int, int]:
        """The longest sums, in products: forward, dX, dW."""
        return self.inputs, self.outputs, self.batch

    def forward(self, x: Array, w: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        made = core.gemm(_rows(x), w, transpose_b=True, out=_rows(out))
        return made if out is None else out

    def input_grad(self, dy: Array, w: Array, *, out: Array | None = None) -> Array:
        made = core.gemm(_rows(dy), w, out=_rows(out))
        return made if out is None else out

    def weight_grad(self, x: Array, dy: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        return core.gemm(_rows(dy), _rows(x), transpose_a=True, out=out)

    any_length: ClassVar[bool] = False

    def weight_grad_rows(self, x: Array, dy: Array, rows: slice, *, out: Array | None = None) -> Array:
        """Some rows of dW, one for each output."""
        return core.gemm(_rows(dy)[:, rows], _rows(x), transpose_a=True, out=out)


@dataclass(frozen=True)
class Depthwise(_Windows):
    """A convolution of each channel with its own kernel.

    A product for each channel: M = batch x out_h x out_w outputs, K = kernel x kernel, N = 1.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, K, N) of one channel's forward pass."""
        g = self.geometry
        return g.batch * g.out_h * g.out_w, g.kernel_h * g.kernel_w, 1

    @property
    def groups(self) -> int:
        """How many products of `shape` there are."""
        return self.geometry.channels

    @property
    def depths(self) -> tuple[int, int, int]:
        """The longest sums, in products: forward, dX, dW."""
        g = self.geometry
        taps = g.kernel_h * g.kernel_w
        return taps, taps, g.batch * g.out_h * g.out_w

    def forward(self, x: Array, w: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        return core.depthwise_forward(self.geometry, x, w, x_zero=x_zero, out=out)

    def input_grad(self, dy: Array, w: Array, *, out: Array | None = None) -> Array:
        return core.depthwise_input_grad(self.geometry, dy, w, out=out)

    def weight_grad(self, x: Array, dy: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        return core.depthwise_weight_grad(self.geometry, x, dy, x_zero=x_zero, out=out)

    def long_weight_grad(self, x: Array, dy: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array:
        return core.depthwise_weight_grad_long(self.geometry, x, dy, x_zero=x_zero, out=out)


@dataclass(frozen=True)
class BatchedProduct:
    """Products of activations, C = op(A) op(B) for each image and head; A is not transposed."""

    geometry: core.Batched

    def _left(self) -> core.Batched:
        """dA = dC op(B)^T."""
        g, (a, b, c) = self.geometry, self.geometry.wide
        return core.Batched(g.batch, g.heads, g.m, g.k, g.n, transpose_b=not g.transpose_b, wide=(c, b, a))

    def _right(self) -> core.Batched:
        """dB = A^T dC, or its transpose."""
        g, (a, b, c) = self.geometry, self.geometry.wide
        if g.transpose_b:
            return core.Batched(g.batch, g.heads, g.n, g.k, g.m, transpose_a=True, wide=(c, a, b))
        return core.Batched(g.batch, g.heads, g.k, g.n, g.m, transpose_a=True, wide=(a, c, b))

    @property
    def depth(self) -> int:
        """The longest sum of a pass, in products."""
        return max(self.geometry.k, self.geometry.n, self.geometry.m)

    def forward(self, a: Array, b: Array, *, out: Array | None = None) -> Array:
        return self.multiply(self.geometry, a, b, out)

    def left_grad(self, dc: Array, b: Array, *, out: Array | None = None) -> Array:
        return self.multiply(self._left(), dc, b, out, "dX")

    def right_grad(self, a: Array, dc: Array, *, out: Array | None = None) -> Array:
        return self.multiply(self._right(), *((dc, a) if self.geometry.transpose_b else (a, dc)), out, "dX")

    def multiply(self, g: core.Batched, a: Array, b: Array, out: Array | None, pass_: str = "forward") -> Array:
        return core.gemm_batched(g, a, b, out=out)


class Product(Protocol):
    """What Convolution, FullProduct and Depthwise have in common, and what stands in for them (registers.EmulatedProduct).

    any_length: it has `long_weight_grad`, `weight_grad` of int8 codes in int64, whose sums may be as long as they like.
    """

    @property
    def geometry(self) -> core.Conv: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def groups(self) -> int: ...

    @property
    def kernel(self) -> tuple[int, int]: ...

    @property
    def depths(self) -> tuple[int, int, int]: ...

    @property
    def any_length(self) -> bool: ...

    def forward(self, x: Array, w: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array: ...

    def input_grad(self, dy: Array, w: Array, *, out: Array | None = None) -> Array: ...

    def weight_grad(self, x: Array, dy: Array, *, x_zero: core.Whole = 0, out: Array | None = None) -> Array: ...


class Observer(Protocol):
    """What is told of a step.  The arrays are the method's own: they hold their values only until the call returns."""

    def add(self, layer: str, pass_: str, tensor: str, values: Any) -> None:
        """A tensor of a pass (see Key): an array, or codes with their meaning where a method has such between layers."""

    def means(self, layer: str, operand: str, value: Any) -> None:
        """A `core.Tensor` that a method keeps: after its forward pass, before "output", and after it made the error of a
        layer."""

    def product(self, layer: str, pass_: str, product: Product, operands: dict[str, Array], x_zero: int, sums: Array) -> None:
        """A product: its operands ("x", "w", "dy"), x's zero point and the sums, before anything overwrites them."""


def _as_it_is(product: Any) -> Any:
    return product


@dataclass
class Node:
    """A layer in a network: name, place, shapes (without the batch axis), numbers and memory.

    inputs: indices of the nodes whose outputs are the layer's inputs; -1 is the network's input.  in_shape is the shape of the
    first, in_shapes those of all.
    in_place: no other node needs the input's values, so the layer may write over them.
    normalized: the only consumer of the output is a batch normalization, which subtracts a constant of a channel.
    is_first_or_last: of the weighted layers; some methods leave these unquantized.
    observers: told of a weighted layer's passes, one after the other; the same list for all nodes of a network.
    product_hook: gives the product that runs in place of the layer's own: itself, or one in a narrower register.
    x_range, dy_range: ranges of the pass's input, where the pass before found them.  output_range: found by the layer's last
    pass, for the next.
    ranges: of parameters after the optimizer's last step, always in the same memory; known: names of those that are valid.
    zero_grad_params: parameters whose gradient is structurally zero (a bias in front of batch norm with a batch's statistics);
    the optimizer skips them.
    frozen: parameters that the run does not train.  backward: whether it takes part in the backward pass; a layer that does not
    lies before every trained one, runs as in inference and saves nothing.  running: of a normalization: it uses its running
    statistics in training too, and leaves them as they are.  rate: a factor on the learning rate.
    outputs: of a weighted layer, how many of its output channels are trained, the first ones; None: all.
    has_range: the range of its input is given (INPUT_RANGE).
    initial: given initial parameters, by name, in place of random ones; taken: names of those that the layer uses.
    params are trained, state is kept and saved but not trained (running statistics), grads belong to params by name.
    """

    name: str
    index: int
    layer: Any
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    inputs: tuple[int, ...] = (-1,)
    in_place: bool = True
    in_shapes: tuple[tuple[int, ...], ...] = ()
    normalized: bool = False
    is_first_or_last: bool = False
    observers: list[Observer] = field(default_factory=list)
    product_hook: Callable[[Any], Any] = _as_it_is
    x_range: core.Range | None = None
    dy_range: core.Range | None = None
    output_range: core.Range | None = None
    ranges: dict[str, core.Range] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    zero_grad_params: set[str] = field(default_factory=set)
    frozen: set[str] = field(default_factory=set)
    backward: bool = True
    running: bool = False
    rate: float = 1.0
    outputs: int | None = None
    has_range: bool = False
    initial: Mapping[str, Array] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    params: dict[str, Array] = field(default_factory=dict)
    state: dict[str, Array] = field(default_factory=dict)
    grads: dict[str, Any] = field(default_factory=dict)
    saved: dict[str, Any] = field(default_factory=dict)
    pool: Pool = field(default_factory=Pool)

    @property
    def trained(self) -> set[str]:
        """The parameters that the run trains."""
        return self.params.keys() - self.frozen

    @property
    def running_ranges(self) -> list[Array]:
        """The ranges of activations that inference uses: of its input, or of the operands of its products."""
        sides = SIDES if self.layer.multiplies else ()
        return [values for key, values in self.state.items() if key == RANGE or key.rpartition("_")[2] in sides]

    def given(self, key: str, shape: tuple[int, ...]) -> Array | None:
        """A copy of the float32 values that a parameter of this shape begins with, if they are given."""
        values = self.initial.get(key)
        if values is None or values.dtype != np.float32 or values.shape != shape:
            return None
        self.taken.add(key)
        return values.copy()

    def chosen(self, key: str) -> Array:
        """What of a parameter is trained: all of it, or the rows of the chosen output channels; gradients have this shape."""
        whole = self.params[key]
        return whole if self.outputs is None else whole[: self.outputs]

    def trains(self, key: str) -> bool:
        """Whether a parameter's gradient is asked for."""
        return key not in self.frozen

    def tensor(self, role: int) -> int:
        """The number of a tensor of this layer in the Philox streams; roles 0 .. 15."""
        return self.index * 16 + role

    def check_finite(self, tensors: dict[str, Array]) -> None:
        """NotFiniteError names a NaN or an infinity in tensors of the layer after a step.

        A finite loss does not tell: max(x, 0) makes a NaN 0, and an infinite variance makes all outputs of a channel equal.
        """
        for name, tensor in tensors.items():
            if tensor.dtype == np.float32:
                try:
                    core.value_range(tensor)
                except core.NotFiniteError as error:
                    raise core.NotFiniteError(f"layer {self.name}, {name} after the step: {error}") from None

    def range_of(self, key: str) -> core.Range:
        """The least and the largest value of a parameter: as the update found it, for its memory need not be read again then.

        Who changes a parameter otherwise than by the optimizer takes it out of `known`.
        """
        if key not in self.known and key in self.frozen:
            self.ranges[key] = core.value_range(self.params[key])
            self.known.add(key)
        return self.ranges[key] if key in self.known else core.value_range(self.params[key])

    def buffer(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Memory of any content, from the network's pool."""
        return self.pool.empty(shape, dtype)


ROLES = ("weights", "activations", "gradients", "errors", "update", "accumulator", "normalization")
"""The tensors of a training step whose types a method's `bits` names; gradients are dL/dW, errors dL/dY."""


class Update(Protocol):
    """The run's optimizer at one step, as a method's own `step` sees it."""

    @property
    def optimizer(self) -> Any: ...

    @property
    def lr(self) -> core.Number: ...

    def node(self, node: Node) -> None:
        """The optimizer's step on a layer's parameters; NotFiniteError names a NaN or an infinity in what they are then."""

    def rate(self, node: Node) -> core.Number:
        """The learning rate of a layer."""

    def all(self) -> None:
        """The optimizer's step on every layer."""

    def newton(
        self, node: Node, g: Array, slots: Mapping[str, Array] | None = None, *, direction: Array | None = None,
        curvature: Array | None = None, after: Mapping[str, Array] | None = None,
    ) -> None:  # fmt: skip
        """The optimizer's step on `w` for a gradient, taken apart: w - lr direction / curvature.  Changes nothing; writes these
        and the optimizer's tensors after the step into the arrays that are given.  slots: such tensors, to take the step after.
        """

    def set_slots(self, node: Node, slots: Mapping[str, Array]) -> None:
        """Makes these the optimizer's tensors of `w`."""


@dataclass(frozen=True)
class Circumstances:
    """What a method's `caveats` needs to know of a run.  epochs: begun ones.  optimizer: its name."""

    steps: int
    epochs: int
    optimizer: str


SEEN = ("input", "gradient", "gradient of w", "result")
Seen = Mapping[str, Mapping[str, Array]]
"""Copies of a weighted layer's tensors in a step, by the layer's name and those of SEEN: X, dY, dW, dX."""

Gradients = Callable[..., core.Number]
"""gradients(done=None): forward and backward on a step's batch, as often as called; returns the loss.  done: takes each layer
when its gradients are complete, the last layer first; they are forgotten then."""


class Method(Protocol):
    """The hooks of a training method; frozen dataclasses whose fields are the method's parameters.

    What has a body here is right for values between layers that are float32 arrays; a method whose values are of another type
    replaces `input`, `loss`, `accumulate_grad` and, in `layers`, the layers without a matrix product.

    A training step is recorded and made again (`core.Tape`), within a phase of the run (`phase`): it is calls of the core and
    declared segments of Python (`core.python`), which take what changes from step to step from tensors that are changed in
    place, from `core.Scalar`s and from Context.random.

    summary, paper: one line each.  bits: what type each of ROLES has.
    saves_int8: layers without a matrix product save at most 8 bits an element for the backward pass: batch normalization
               saves codes of the normalized values, see `core.batchnorm_forward`.  Not smooth activations, layer normalization
               and products of activations, which keep float32.
    batchnorm: whether it can train batch normalization.
    normalize: how bytes are normalized where the user does not say, "none" or "data" (see `train.Config`).
    inspects: whether `caveats` looks at the tensors of a step.
    random_loss: whether `loss` takes the argument random, the Philox stream of its gradient.
    by_channel: whether `weight_grad` may be given a layer's first output channels alone: parameters, whose first axis they must
               be, its error and what `for_weight_grad` names, arrays or `core.Tensor`s, are cut to them.
    covers:    the layers, by stem ("conv", "relu" ...), whose numbers it knows how to make; None: all, those without a matrix
               product in float32.  A network with another is refused, or has it in float32 where that is asked for.
    multiplies: whether it makes the products of activations (attention) by its own numbers; those that do not have them in
               float32 where that is asked for.
    unused:    settings of `train.Config` that mean nothing to it; a run that changes one from its default is refused.
    losses:    of LOSSES, those that it takes.
    values:    what the values between layers are made of, for the manifest.
    for_weight_grad: what it saves of a weighted layer for dW alone, by name: gone at once where `w` is frozen.
    counters:  tensors of node.state that `metrics` sets to 0.
    beyond:    float32 tensors of a layer's error by which the most that a step of another phase holds is more (`engine.plan`).
    layers:    its own passes of layers without a matrix product, by the layer's stem ("relu", "bn" ...): objects with `init`,
               `forward`, `weight_grad` and `input_grad`, as `layers.Unweighted` has them, which find the geometry in
               node.layer.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    bits: ClassVar[Mapping[str, str]]
    saves_int8: bool = False
    batchnorm: ClassVar[bool] = True
    normalize: ClassVar[str] = "none"
    inspects: ClassVar[bool] = False
    by_channel: ClassVar[bool] = False
    random_loss: ClassVar[bool] = False
    beyond: ClassVar[int] = 0
    covers: ClassVar[tuple[str, ...] | None] = None
    multiplies: ClassVar[bool] = False
    unused: ClassVar[tuple[str, ...]] = ()
    losses: ClassVar[tuple[str, ...]] = LOSSES
    values: ClassVar[str] = "float32"
    for_weight_grad: ClassVar[tuple[str, ...]] = ("x",)
    counters: ClassVar[tuple[str, ...]] = ()
    layers: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for old, new in (("compact", "saves_int8"), ("meet", "accumulate_grad")):  # methods written for earlier releases
            if old in vars(cls):
                setattr(cls, new, vars(cls)[old])

    def input(self, images: Array, out: Array) -> Any:
        """The network's input of uint8 images; out: float32 memory of their shape, which may be used.  Pixels in [0, 1]."""
        return core.images(images, 1 / 255, 0.0, out=out)

    def input_values(self, x: Array, limit: float) -> Any:
        """The network's input of normalized float32 values, which may be overwritten; limit: the largest magnitude in training,
        see `inputs.Input`."""
        return x

    def loss(
        self, logits: Any, labels: Array, *, smoothing: float = 0.0, gradient: bool = True
    ) -> tuple[core.Number, Any, core.Whole]:
        """Mean loss, dL/dlogits unless not asked for, and how many images are classified correctly."""
        return core.softmax_cross_entropy(logits, labels, smoothing=smoothing, gradient=gradient)

    def accumulate_grad(self, node: Node, a: Any, b: Any) -> Any:
        """The sum of two gradients of a layer's output, which may overwrite a."""
        return core.add(a, b, out=a)[0]

    def phase(self, context: Context) -> Hashable:
        """Steps of the same phase, one after the other, make the same calls; None: calls of its own, which are not recorded."""
        return 0

    def step(self, nodes: list[Node], gradients: Gradients, update: Update, context: Context) -> core.Number:
        """One training step; returns its loss."""
        return gradients(update.node)

    def update(self, node: Node, key: str, lr: Any, rule: Callable[[Any], None], context: Context) -> None:
        """Changes node.params[key] by node.grads[key].  rule(lr) lets the run's optimizer do it with that learning rate."""
        rule(lr)

    def caveats(self, nodes: Sequence[Node], run: Circumstances, seen: Seen) -> list[str]:
        """Sentences: what of the method cannot act, or did not, in a run with these layers; empty where all of it does.

        seen: {} before the run; behind it, where `inspects`, the tensors of one more step."""
        return []

    def metrics(self, nodes: list[Node]) -> dict[str, Any]:
        """What the method counted in node.state since the last call, by name; it counts from 0 again."""
        return {}

    def init_products(self, node: Node, names: tuple[str, ...]) -> None:
        """Adds what the method itself needs to the state of a layer that multiplies activations, by its products' names."""
        return None

    def multiply(
        self, node: Node, name: str, product: BatchedProduct, a: Array, b: Array, context: Context
    ) -> Array:
        """float32 C = op(A) op(B) of activations; keeps in node.saved, by the product's name, what `multiply_grads` needs."""
        node.saved[name] = a, b
        return product.forward(a, b, out=node.buffer(product.geometry.shape(2), np.float32))

    def multiply_grads(
        self, node: Node, name: str, product: BatchedProduct, dc: Array, context: Context
    ) -> tuple[Array, Array]:
        """float32 dA and dB."""
        (a, b), g = node.saved[name], product.geometry
        da, db = (node.buffer(g.shape(at), np.float32) for at in range(2))
        return product.left_grad(dc, b, out=da), product.right_grad(a, dc, out=db)

    def check(self, node: Node, batch: int) -> None:
        """Refuses, with OctosimError, a layer whose sums could overflow the accumulator at this batch size."""

    def init(self, node: Node, seed: int) -> None:
        """Adds what the method itself needs to a weighted layer's params and state (`w` and `b` are there already)."""

    def forward(self, node: Node, x: Any, context: Context) -> Any:
        """Y of a weighted layer, values or `core.LazyDequant`; keeps in node.saved what the backward passes need."""

    def error(self, node: Node, dy: Any, context: Context) -> Any:
        """dY as the two gradient passes want it, made once."""

    def weight_grad(self, node: Node, error: Any, context: Context) -> None:
        """Fills node.grads, with arrays or `core.LazyDequant`, of the parameters that node.trains."""

    def input_grad(self, node: Node, error: Any, context: Context) -> Any:
        """dX, values or `core.LazyDequant`."""
