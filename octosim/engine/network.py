"""Networks with numbers: the flat list of nodes that layers become, and what runs it.  Networks as data are in `graph`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from octosim import core
from octosim.core.memory import Pool
from octosim.engine import fusion
from octosim.engine.graph import INPUT, Graph, as_graph
from octosim.engine.inputs import Input
from octosim.engine.layers import BatchNorm, Stack
from octosim.engine.nodes import Array, Context, Method, Node, Observer
from octosim.errors import OctosimError

QUIET = np.errstate(over="ignore", invalid="ignore")
"""A method's NumPy need not warn of infinities and NaNs: they are found, and told with the layer's name."""


class Network:
    """A graph of layers with numbers, trained by one method.

    A tensor that several layers take gets the sum of their gradients: the last layer's first, then the others' in descending
    order.

    Values between layers are (batch, ...), float32 unless the method's are others, in memory of the network's pool.
    """

    def __init__(
        self, graph: Graph | Stack, in_shape: tuple[int, ...], method: Method, seed: int | None, float_layers: bool = False,
        source: Input = Input(),
    ):  # fmt: skip
        """seed None: a network without weights, to be priced and not trained; their memory is reserved and never touched.
        float_layers: layers that the method does not cover are in float32; otherwise they are refused, with OctosimError.
        source: what the network is given."""
        self.graph = as_graph(graph)
        self.nodes = nodes(self.graph, in_shape)
        self.method = method
        self.seed = seed or 0
        self.source = source
        self.pool = Pool()
        self.observers: list[Observer] = []
        passes = [method.layers.get(node.layer.stem, node.layer) for node in self.nodes]
        for node, layer in zip(self.nodes, passes, strict=True):
            self._check_covered(node, float_layers)
            if isinstance(node.layer, BatchNorm) and not method.batchnorm:
                raise OctosimError(f"layer {node.name}: method {method.name} has no batch normalization; use --no-batchnorm")
            node.pool, node.observers = self.pool, self.observers
            layer.init(node, method, seed)
        self._users = Counter(i for node in self.nodes for i in node.inputs)
        self._last_user = {i: node.index for node in self.nodes for i in node.inputs}
        self.fusion = fusion.fuse(self.nodes, passes)
        self.passes = self.fusion.passes
        # only tensors that depend on something trained need a gradient
        self._trained: list[bool] = []
        for node in self.nodes:
            self._trained.append(bool(node.params) or any(self._needs_gradient(i) for i in node.inputs))

    def _check_covered(self, node: Node, float_layers: bool) -> None:
        usual = node.layer.usual and len(set(node.in_shapes)) == 1
        if node.layer.stem in self.method.layers and not usual:
            raise OctosimError(f"layer {node.name}: method {self.method.name} does not cover this form of it: {node.layer}")
        if node.layer.stem == "bn" and not self.method.batchnorm or is_covered(self.method, node):
            return
        whole = f"layer {node.name}: method {self.method.name} does not cover layers of the kind '{node.layer.stem}'"
        if node.layer.weighted or self.method.values != "float32":
            raise OctosimError(f"{whole}, and cannot have them in float32")
        if not float_layers:
            raise OctosimError(f"{whole}; float_layers (--float-layers) has them in float32")

    def _needs_gradient(self, tensor: int) -> bool:
        """Whether a node's output, or -1, the input, needs one."""
        return tensor >= 0 and self._trained[tensor]

    def _passes_on(self, node: Node) -> bool:
        """Whether a node makes an input gradient.  Layers without a matrix product make those of their parameters with it."""
        return any(self._needs_gradient(i) for i in node.inputs) or bool(node.params and not node.layer.weighted)

    def check(self, batch: int) -> None:
        """Refuses a batch with which a layer's sums could overflow; OctosimError."""
        for node in self.nodes:
            if node.layer.weighted:
                self.method.check(node, batch)

    def input(self, images: Array) -> Any:
        """The method's input of images (batch, height, width, channels) or vectors (batch, values), of source.dtype."""
        core.at(self.nodes[0].name, "forward")
        out = self.pool.empty(images.shape, np.float32)
        if self.source.is_plain:
            return self.method.input(images, out)
        return self.method.input_values(self.source.values(images, out), self.source.limit)

    @QUIET
    def forward(self, x: Any, context: Context, check: bool = False) -> Any:
        """The logits (batch, classes).  A NaN or infinity that a layer refuses, or with `check` returns, is reported
        with its name."""
        values = {-1: x}
        ranges: dict[int, core.Range | None] = {}
        for node in self.nodes:
            given = tuple(values[i] for i in node.inputs)
            core.at(node.name, "forward")
            node.x_range = ranges.get(node.inputs[0])
            try:
                x = self.passes[node.index].forward(node, given if len(given) > 1 else given[0], self.method, context)
                if check or node.index not in self.fusion.sums_y:
                    x = core.values(x)
                if check:
                    core.value_range(x)
            except core.NotFiniteError as error:
                raise core.NotFiniteError(f"layer {node.name}, forward: {error}") from None
            ranges[node.index] = node.x_range if node.index in self.fusion.aliases else node.found
            node.x_range = node.found = None
            values[node.index] = x
            del given
            for i in node.inputs:
                if self._last_user[i] == node.index:
                    values.pop(i, None)
            if not context.training:
                node.saved.clear()
        return x

    @QUIET
    def backward(self, dy: Any, context: Context, done: Callable[[Node], None] | None = None) -> None:
        """Fills every node's grads from dL/dlogits, which is overwritten; done: see `nodes.Gradients`."""
        sums = {len(self.nodes) - 1: dy}
        for node in reversed(self.nodes):
            if not self._trained[node.index]:
                continue
            core.at(node.name, "dW" if node.layer.weighted else "dX")
            try:
                dy = self.passes[node.index].weight_grad(node, sums.pop(node.index), self.method, context)
                node.dy_range = None
                if self._passes_on(node):
                    core.at(node.name, "dX")
                    dx = self.passes[node.index].input_grad(node, dy, self.method, context)
                    if node.index not in self.fusion.sums_dx:
                        dx = core.values(dx)
                    for i, part in zip(node.inputs, dx if isinstance(dx, tuple) else (dx,), strict=True):
                        if self._needs_gradient(i):
                            sums[i] = self._meet(self.nodes[i], sums[i], part) if i in sums else part
                            self.nodes[i].dy_range = node.found if self._users[i] == 1 else None
                    node.found = None
            except core.NotFiniteError as error:
                raise core.NotFiniteError(f"layer {node.name}, backward: {error}") from None
            node.saved.clear()
            if done:
                done(node)
                node.grads.clear()
            else:
                node.grads = {key: core.values(g) for key, g in node.grads.items()}

    def _meet(self, node: Node, a: Any, b: Any) -> Any:
        """The sum of two gradients of a node's output, which may overwrite a."""
        return core.Pair(a, b) if node.index in self.fusion.pairs else self.method.meet(node, a, b)

    def gradients(
        self,
        images: Array,
        labels: Array,
        context: Context,
        smoothing: float = 0.0,
        done: Callable[[Node], None] | None = None,
    ) -> tuple[core.Number, core.Whole]:
        """One forward and backward pass; the mean loss and the number of images classified correctly.

        smoothing: of the labels, see `core.softmax_cross_entropy`.  done: see `nodes.Gradients`.
        """
        logits = self.forward(self.input(images), context)
        core.at("loss", "forward")
        try:
            loss, dlogits, correct = self.method.loss(logits, labels, smoothing=smoothing)
        except core.NotFiniteError:
            self.forward(self.input(images), context, check=True)  # once more, to name the first layer; it raises
            raise
        self.backward(dlogits, context, done)
        return loss, correct

    def evaluate(self, images: Array, labels: Array, batch_size: int = 500) -> tuple[float, float]:
        """Mean loss and accuracy in [0, 1], with running statistics: but for methods that take a batch's own range in inference
        (niti), the result does not depend on batch_size's grouping beyond the rounding of the loss's sum."""
        context = Context(training=False, seed=self.seed, step=0)
        total, right = 0.0, 0
        for i in range(0, len(labels), batch_size):
            some = labels[i : i + batch_size]
            logits = self.forward(self.input(images[i : i + batch_size]), context)
            try:
                loss, _, correct = self.method.loss(logits, some, gradient=False)
            except core.NotFiniteError:
                self.forward(self.input(images[i : i + batch_size]), context, check=True)
                raise
            total += float(loss) * len(some)
            right += int(correct)
        self.pool.trim()
        return total / len(labels), right / len(labels)

    def parameters(self) -> dict[str, tuple[Array, Array]]:
        """Every trained tensor with its gradient, by name "layer.parameter"."""
        return {f"{n.name}.{k}": (v, n.grads[k]) for n in self.nodes for k, v in n.params.items()}

    def tensors(self) -> dict[str, Array]:
        """Every tensor that decides what the network computes: parameters and running statistics."""
        return {f"{n.name}.{k}": v for n in self.nodes for k, v in (*n.params.items(), *n.state.items())}


def is_covered(method: Method, node: Node) -> bool:
    """Whether a method makes a layer's numbers, see `nodes.Method.covers`."""
    return (method.covers is None or node.layer.stem in method.covers) and (method.multiplies or not node.layer.multiplies)


# ---- the graph --------------------------------------------------


def nodes(network: Graph | Stack, in_shape: tuple[int, ...]) -> list[Node]:
    """Layers with their names, inputs and shapes, without numbers yet; inputs stand before their users."""
    made: list[Node] = []
    index = {INPUT: -1}
    for entry in as_graph(network).layers:
        inputs = tuple(index[source] for source in entry.inputs)
        shapes = [made[i].out_shape if i >= 0 else in_shape for i in inputs]
        try:
            out_shape = entry.layer.out_shape(*shapes)
        except OctosimError as error:
            raise OctosimError(f"{entry.where}: {error}") from None
        index[entry.name] = len(made)
        made.append(Node(entry.name, len(made), entry.layer, shapes[0], out_shape, inputs, in_shapes=tuple(shapes)))
    weighted = [node for node in made if node.layer.weighted]
    for node in weighted[:1] + weighted[-1:]:
        node.edge = True
    uses = Counter(i for node in made for i in node.inputs)
    for node in made:
        source = node.inputs[0]
        while source >= 0 and uses[source] == 1 and made[source].layer.aliases and not made[source].layer.keeps:
            source = made[source].inputs[0]
        node.in_place = source >= 0 and uses[source] == 1 and not made[source].layer.keeps
        if isinstance(node.layer, BatchNorm) and node.inputs[0] >= 0 and uses[node.inputs[0]] == 1:
            made[node.inputs[0]].normalized = True
    return made
