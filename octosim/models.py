"""Networks as data, and what runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from octosim import core
from octosim.errors import OctosimError, suggest
from octosim.layers import BatchNorm, Conv2d, Flatten, Layer, Linear, MaxPool, ReLU
from octosim.nodes import Array, Context, Method, Node
from octosim.trace import Op

Tick = Callable[[str, str], None]
"""Called after a layer's pass with the layer's name and the pass; `bench` reads its clock there."""

MODELS: dict[str, tuple[Layer, ...]] = {
    # Octo's demo (kimihe/Octo): 30 filters 5x5, pooling, 100 units; weights N(0, 0.01^2).  Batch normalization for every
    # method alike, so that methods are compared on one network.
    "simplecnn": (
        Conv2d(30, 5, deviation=0.01), BatchNorm(), ReLU(), MaxPool(),
        Flatten(), Linear(100, deviation=0.01), ReLU(), Linear(None, deviation=0.01),
    ),
    # LeCun et al. 1998 with ReLU, max pooling and batch normalization; padding 2 keeps 28 x 28 in the first convolution.
    "lenet5": (
        Conv2d(6, 5, pad=2), BatchNorm(), ReLU(), MaxPool(), Conv2d(16, 5), BatchNorm(), ReLU(), MaxPool(),
        Flatten(), Linear(120), ReLU(), Linear(84), ReLU(), Linear(None),
    ),
}  # fmt: skip


def layers(model: str, classes: int, batchnorm: bool = True) -> tuple[Layer, ...]:
    """The layers of a named model for so many classes; OctosimError where the name is unknown."""
    if model not in MODELS:
        raise OctosimError(f"unknown model '{model}'" + suggest(model, MODELS))
    kept = [layer for layer in MODELS[model] if batchnorm or not isinstance(layer, BatchNorm)]
    sized = [Linear(classes, x.deviation) if isinstance(x, Linear) and x.units is None else x for x in kept]
    return tuple(sized)


def describe(stack: tuple[Layer, ...]) -> list[dict[str, Any]]:
    """The layers as plain data, for a manifest."""
    return [{"kind": type(layer).__name__, **dataclasses.asdict(layer)} for layer in stack]


def nodes(stack: tuple[Layer, ...], in_shape: tuple[int, ...]) -> list[Node]:
    """Layers with their names ("conv1", "bn1" ...) and shapes, without numbers yet."""
    made: list[Node] = []
    count: dict[str, int] = {}
    for index, layer in enumerate(stack):
        count[layer.stem] = count.get(layer.stem, 0) + 1
        out_shape = layer.out_shape(in_shape)
        made.append(Node(f"{layer.stem}{count[layer.stem]}", index, layer, in_shape, out_shape))
        in_shape = out_shape
    return made


class Network:
    """A stack of layers with numbers, trained by one method.

    Values between layers are float32, (batch, ...).  `forward` and `backward` reuse the layers' memory: what they return is
    good until the next call.
    """

    def __init__(self, stack: tuple[Layer, ...], in_shape: tuple[int, ...], method: Method, seed: int):
        self.nodes = nodes(stack, in_shape)
        self.method = method
        self.seed = seed
        self._pixels = np.empty(0, np.float32)
        for node in self.nodes:
            node.layer.init(node, method, seed)
        # nothing before the first trained layer needs a gradient, nor does that layer's own input
        self._first = next(i for i, node in enumerate(self.nodes) if node.params)

    def check(self, batch: int) -> None:
        """Refuses a batch with which a layer's sums could overflow; OctosimError."""
        for node in self.nodes:
            if node.layer.weighted:
                self.method.check(node, batch)

    def input(self, images: Array) -> Array:
        """float32 pixels in [0, 1] of uint8 images (batch, height, width, channels)."""
        if self._pixels.size < images.size:
            self._pixels = np.empty(images.size, np.float32)
        return core.images(images, 1 / 255, 0.0, out=self._pixels[: images.size].reshape(images.shape))

    def forward(self, x: Array, context: Context, tick: Tick | None = None, check: bool = False) -> Array:
        """The logits, float32 (batch, classes).  A NaN or infinity that a layer refuses, or with `check` returns, is reported
        with its name."""
        for node in self.nodes:
            try:
                x = node.layer.forward(node, x, self.method, context)
                if check:
                    core.value_range(x)
            except core.NotFiniteError as error:
                raise core.NotFiniteError(f"layer {node.name}, forward: {error}") from None
            if tick:
                tick(node.name, "forward")
        return x

    def backward(self, dy: Any, context: Context, tick: Tick | None = None) -> None:
        """Fills every node's grads from dL/dlogits, which is overwritten."""
        for node in reversed(self.nodes[self._first :]):
            try:
                dy = node.layer.weight_grad(node, dy, self.method, context)
                if tick and node.layer.weighted:
                    tick(node.name, "dW")
                if node.index > self._first or not node.layer.weighted:
                    dy = node.layer.input_grad(node, dy, self.method, context)
                    if tick:
                        tick(node.name, "dX")
            except core.NotFiniteError as error:
                raise core.NotFiniteError(f"layer {node.name}, backward: {error}") from None

    def gradients(
        self, images: Array, labels: Array, context: Context, tick: Tick | None = None, smoothing: float = 0.0
    ) -> tuple[float, int]:
        """One forward and backward pass; the mean loss and the number of images classified correctly.

        smoothing: of the labels, see `core.softmax_cross_entropy`.
        """
        logits = self.forward(self.input(images), context, tick)
        try:
            loss, dlogits, correct = core.softmax_cross_entropy(logits, labels, smoothing=smoothing)
        except core.NotFiniteError:
            self.forward(self.input(images), context, check=True)  # once more, to name the first layer; it raises
            raise
        if tick:
            tick("loss", "forward")
        self.backward(dlogits, context, tick)
        return loss, correct

    def evaluate(self, images: Array, labels: Array, batch_size: int = 500) -> tuple[float, float]:
        """Mean loss and accuracy in [0, 1], with running statistics: the result does not depend on batch_size's grouping
        beyond the rounding of the loss's sum."""
        context = Context(training=False, seed=self.seed, step=0)
        total, right = 0.0, 0
        for i in range(0, len(labels), batch_size):
            some = labels[i : i + batch_size]
            logits = self.forward(self.input(images[i : i + batch_size]), context)
            try:
                loss, _, correct = core.softmax_cross_entropy(logits, some, gradient=False)
            except core.NotFiniteError:
                self.forward(self.input(images[i : i + batch_size]), context, check=True)
                raise
            total += loss * len(some)
            right += correct
        return total / len(labels), right / len(labels)

    def check_finite(self) -> None:
        """NotFiniteError names the first layer with a NaN or an infinity in a parameter or a running statistic.

        A finite loss does not tell: max(x, 0) makes a NaN 0, and an infinite variance makes all outputs of a channel equal.
        """
        for node in self.nodes:
            for name, tensor in (*node.params.items(), *node.state.items()):
                if tensor.dtype == np.float32:
                    try:
                        core.value_range(tensor)
                    except core.NotFiniteError as error:
                        raise core.NotFiniteError(f"layer {node.name}, {name} after the step: {error}") from None

    def parameters(self) -> dict[str, tuple[Array, Array]]:
        """Every trained tensor with its gradient, by name "layer.parameter"."""
        return {f"{n.name}.{k}": (v, n.grads[k]) for n in self.nodes for k, v in n.params.items()}

    def tensors(self) -> dict[str, Array]:
        """Every tensor that decides what the network computes: parameters and running statistics."""
        return {f"{n.name}.{k}": v for n in self.nodes for k, v in (*n.params.items(), *n.state.items())}


def trace(network: Network, batch: int) -> list[Op]:
    """The operations of one training step: forward, gradients and update, in the order of the layers.

    The first trained layer's input gradient, which nobody needs, is not in it.
    """
    ops: list[Op] = []
    for node in network.nodes:
        made = node.layer.trace(node, network.method, batch)
        first = node.index == network._first and node.layer.weighted
        ops += [
            op for op in made if not (first and op.pass_ == "dX") and not (node.index < network._first and op.pass_ == "dX")
        ]
    classes = network.nodes[-1].out_shape[0]
    size = batch * classes
    ops.append(Op("loss", "forward", "elementwise", "softmax cross-entropy", (size,), "float32", 8 * size, 4 * size))
    count = sum(v.size for node in network.nodes for v in node.params.values())
    # SGD with momentum: weight, gradient and velocity read, weight and velocity written
    ops.append(Op("optimizer", "update", "update", "optimizer", (count,), "float32", 12 * count, 8 * count))
    return ops
