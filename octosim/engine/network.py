"""Networks with numbers: the flat list of nodes that layers become, and what runs it.  Networks as data are in `graph`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from octosim import core
from octosim.core.memory import Pool
from octosim.engine import fusion
from octosim.engine.accumulation import accumulated, micro_batch
from octosim.engine.checked import CheckedPasses, check_parameters, shape_of
from octosim.engine.graph import INPUT, Graph, as_graph
from octosim.engine.inputs import Input
from octosim.engine.layers import LAYERS, Stack
from octosim.engine.nodes import INPUT_RANGE, LOSS, RANGE, Array, Context, Method, Node, Observer
from octosim.engine.selection import ALL, Selection, apply
from octosim.errors import ArgumentError, OctosimError

QUIET = np.errstate(over="ignore", invalid="ignore")
"""Silences NumPy's overflow warnings: NaN and infinity are detected later and reported with the layer's name."""


class Network:
    """A graph of layers with numbers, trained by one method.

    A tensor that several layers take gets the sum of their gradients: the last layer's first, then the others' in descending
    order.

    Values between layers are (batch, ...), float32 unless the method's are others, in memory of the network's pool.
    """

    def __init__(
        self, graph: Graph | Stack, in_shape: tuple[int, ...], method: Method, seed: int | None, float_layers: bool = False,
        source: Input = Input(), *, selection: Selection = ALL, accumulate: int = 1,
        initial: Mapping[str, Array] | None = None,
    ):  # fmt: skip
        """seed None: a network without weights, to be priced and not trained; their memory is reserved and never touched.
        float_layers: layers that the method does not cover are in float32; otherwise they are refused, with OctosimError.
        source: what the network is given.  selection: the trained parameters.  accumulate: micro-batches of a step, whose
        gradients are added.  initial: tensors to begin with, by `tensors`' names, in place of random ones; those that do not
        fit are left out."""
        self.graph = as_graph(graph)
        self.nodes = nodes(self.graph, in_shape)
        self._check_loss(method, in_shape)
        self.method = method
        self.seed = seed or 0
        self.source = source
        self.float_layers, self.selection, self.accumulate = float_layers, selection, accumulate
        self.batch: int | None = None  # images of a full step, where `accumulate` divides smaller ones as that
        self.pool = Pool()
        self.observers: list[Observer] = []
        passes = [method.layers.get(node.layer.stem, node.layer) for node in self.nodes]
        for node, layer in zip(self.nodes, passes, strict=True):
            self._check_covered(node, float_layers)
            if node.layer.normalizes and not method.batchnorm:
                raise OctosimError(f"layer {node.name}: method {method.name} has no batch normalization; use --no-batchnorm")
            node.pool, node.observers = self.pool, self.observers
            prefix = f"{node.name}."
            node.initial = {k.removeprefix(prefix): v for k, v in (initial or {}).items() if k.startswith(prefix)}
            layer.init(node, method, seed)
            check_parameters(node)
            node.initial = {}
        self.taken = self._load(initial or {})
        apply(selection, self.nodes)
        if any(node.outputs is not None for node in self.nodes) and not method.by_channel:
            raise ArgumentError(f"{{channels}} has no meaning for method {method.name}, which makes a layer's gradient whole")
        for node, layer in zip(self.nodes, passes, strict=True):
            if node.running and not getattr(layer, "running", False):
                raise OctosimError(
                    f"layer {node.name}: the batch normalization of method {method.name} cannot be frozen behind a trained "
                    "layer; train its gamma and beta too, and leave --batchnorm-statistics at batch"
                )
        self.rates = tuple(dict.fromkeys(node.rate for node in self.nodes if node.rate != 1))
        self._users = Counter(i for node in self.nodes for i in node.inputs)
        self._last_user = {i: node.index for node in self.nodes for i in node.inputs}
        self._layers = passes
        self.fuse()

    def __repr__(self) -> str:
        names = [node.name for node in self.nodes]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        numbers = sum(values.size for node in self.nodes for values in node.params.values())
        return f"<octosim network, {self.method.name}: {', '.join(names[:8])}{more}; {numbers:,} parameters>"

    def fuse(self, poolings: bool = True) -> None:
        """Rewrites the passes, see `engine.fusion`.  poolings: into those before them, too, which other software has not."""
        self.fusion = fusion.fuse(self.nodes, self._layers, poolings)
        self.passes = [
            passes if type(node.layer) in LAYERS else CheckedPasses(passes)
            for node, passes in zip(self.nodes, self.fusion.passes, strict=True)
        ]

    def _check_loss(self, method: Method, in_shape: tuple[int, ...]) -> None:
        loss, last = self.graph.loss, self.nodes[-1]
        if loss not in method.losses or loss == "mse" and method.values != "float32":
            raise OctosimError(f"method {method.name} does not cover the loss {loss}")
        if loss == "mse" and math.prod(last.out_shape) != math.prod(in_shape):
            raise OctosimError(
                f"layer {last.name}: the output {last.out_shape} has another size than the input {in_shape}, which is the "
                "target of the loss mse"
            )

    def _load(self, initial: Mapping[str, Array]) -> set[str]:
        """Sets the tensors that are given with the names, types and shapes that this network has; the names of those that were
        taken, here or by a layer."""
        taken = {f"{node.name}.{key}" for node in self.nodes for key in node.taken}
        for name, tensor in self.tensors().items():
            given = initial.get(name)
            if given is not None and given.dtype == tensor.dtype and given.shape == tensor.shape:
                tensor[...] = given
                taken.add(name)
        for node in self.nodes:
            given = initial.get(f"{node.name}.{INPUT_RANGE}")
            if given is not None and RANGE in node.state and given.dtype == np.float32 and given.shape == (2,):
                node.state[RANGE][:], node.has_range = given, True
                taken.add(f"{node.name}.{INPUT_RANGE}")
        return taken

    @property
    def needs_calibration(self) -> bool:
        """Whether layers use ranges of activations that no training step has found: `calibrate` does."""
        return any(node.running_ranges for node in self.nodes if not node.backward)

    @QUIET
    def calibrate(self, batches: Iterable[Array], context: Context) -> None:
        """Finds the ranges of activations that inference uses, where the method has such, on batches of images.

        Layers that multiply run as in training, all others as in inference; nothing but the ranges changes, and none that is
        given (INPUT_RANGE).
        """
        ranges = [values for node in self.nodes for values in node.running_ranges]
        if not ranges:
            return
        given = [(node, node.state[RANGE].copy()) for node in self.nodes if node.has_range]
        for values in ranges:
            values[:] = 0
        inference = replace(context, training=False)

        def of(node: Node) -> Context:
            return context if node.layer.weighted or node.running_ranges else inference

        for images in batches:
            self._run(self.input(images), of, keep=False)
        for node, values in given:
            node.state[RANGE][:] = values
        self._trim()

    def _trim(self) -> None:
        """Gives the memory of other batches than a step's back to the system."""
        self.pool.trim()
        core.trim()

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
            raise ArgumentError(f"{whole}; {{float_layers}} has them in float32")

    def _needs_gradient(self, tensor: int) -> bool:
        """Whether a node's output, or -1, the input, needs one."""
        return tensor >= 0 and self.nodes[tensor].backward

    def _passes_on(self, node: Node) -> bool:
        """Whether a node makes an input gradient.  Layers without a matrix product make those of their parameters with it."""
        return any(self._needs_gradient(i) for i in node.inputs) or bool(node.trained and not node.layer.weighted)

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
        inference = replace(context, training=False)
        return self._run(x, lambda node: context if node.backward else inference, check, context.training)

    def _run(self, x: Any, of: Callable[[Node], Context], check: bool = False, keep: bool = True) -> Any:
        """The forward pass, each layer in its context.  keep: what layers save for a backward pass."""
        values = {-1: x}
        ranges: dict[int, core.Range | None] = {}
        for node in self.nodes:
            here = of(node)
            given = tuple(values[i] for i in node.inputs)
            core.at(node.name, "forward")
            node.x_range = ranges.get(node.inputs[0])
            try:
                x = self.passes[node.index].forward(node, given if len(given) > 1 else given[0], self.method, here)
                if check or node.index not in self.fusion.sums_y:
                    x = core.materialize_in_place(x)
                if check:
                    core.value_range(x)
            except core.NotFiniteError as error:
                raise core.NotFiniteError(f"layer {node.name}, forward: {error}") from None
            ranges[node.index] = node.x_range if node.index in self.fusion.aliases else node.output_range
            node.x_range = node.output_range = None
            values[node.index] = x
            del given
            for i in node.inputs:
                if self._last_user[i] == node.index:
                    values.pop(i, None)
            if not (keep and here.training):
                node.saved.clear()
            elif "w" in node.frozen:
                for key in self.method.for_weight_grad:
                    node.saved.pop(key, None)
        return x

    @QUIET
    def backward(self, dy: Any, context: Context, done: Callable[[Node], None] | None = None) -> None:
        """Fills every node's grads from dL/dlogits, which is overwritten; done: see `nodes.Gradients`."""
        sums = {len(self.nodes) - 1: dy}
        for node in reversed(self.nodes):
            if not node.backward:
                continue
            core.at(node.name, "dW" if node.layer.weighted and node.trained else "dX")
            try:
                dy = self.passes[node.index].weight_grad(node, sums.pop(node.index), self.method, context)
                node.dy_range = None
                if self._passes_on(node):
                    core.at(node.name, "dX")
                    dx = self.passes[node.index].input_grad(node, dy, self.method, context)
                    if node.index not in self.fusion.sums_dx:
                        dx = core.materialize_in_place(dx)
                    for i, part in zip(node.inputs, dx if isinstance(dx, tuple) else (dx,), strict=True):
                        if self._needs_gradient(i):
                            sums[i] = self._accumulate_grad(self.nodes[i], sums[i], part) if i in sums else part
                            self.nodes[i].dy_range = node.output_range if self._users[i] == 1 else None
                    node.output_range = None
            except core.NotFiniteError as error:
                raise core.NotFiniteError(f"layer {node.name}, backward: {error}") from None
            node.saved.clear()
            for key in node.frozen:
                node.grads.pop(key, None)
            if done:
                done(node)
                node.grads.clear()
            else:
                node.grads = {key: core.materialize_in_place(g) for key, g in node.grads.items()}

    def _accumulate_grad(self, node: Node, a: Any, b: Any) -> Any:
        """The sum of two gradients of a node's output, which may overwrite a."""
        return core.LazyAdd(a, b) if node.index in self.fusion.pairs else self.method.accumulate_grad(node, a, b)

    def gradients(
        self,
        images: Array,
        labels: Array,
        context: Context,
        smoothing: float = 0.0,
        done: Callable[[Node], None] | None = None,
    ) -> tuple[core.Number, core.Whole | None]:
        """One forward and backward pass; the mean loss and the number of images classified correctly, None of the loss mse.

        smoothing: of the labels, see `core.softmax_cross_entropy`.  done: see `nodes.Gradients`.
        With `accumulate` a pass for each micro-batch: gradients and loss are their means, the count is the last one's.
        """
        if self.accumulate > 1:
            size = micro_batch(self.batch or len(labels), self.accumulate)
            one = partial(self._pass, smoothing=smoothing)
            return accumulated(one, self.nodes, size, images, labels, context, done)
        return self._pass(images, labels, context, done, smoothing)

    def _pass(
        self, images: Array, labels: Array, context: Context, done: Callable[[Node], None] | None, smoothing: float
    ) -> tuple[core.Number, core.Whole | None]:
        x = self.input(images) if self.graph.loss == "mse" else None  # its target; else nobody keeps it
        logits = self.forward(self.input(images) if x is None else x, context)
        try:
            random: dict[str, Any] = {"random": context.random(self.nodes[-1].tensor(LOSS))} if self.method.random_loss else {}
            loss, dlogits, correct = self._loss(x, logits, labels, smoothing=smoothing, **random)
        except core.NotFiniteError:
            self.forward(self.input(images), context, check=True)  # once more, to name the first layer; it raises
            raise
        self.backward(dlogits, context, done)
        return loss, correct

    def _loss(
        self, x: Any, logits: Any, labels: Array, *, gradient: bool = True, **how: Any
    ) -> tuple[core.Number, Any, core.Whole | None]:
        """The mean loss, its gradient, and how many images are classified correctly.

        x: the first layer's input, of the loss mse.  how: of labels, see `Method.loss`.
        """
        core.at("loss", "forward")
        if self.graph.loss == "mse":
            return *core.mean_squared_error(logits, x, gradient=gradient), None
        return self.method.loss(logits, labels, gradient=gradient, **how)

    def evaluate(self, images: Array, labels: Array, batch_size: int = 500) -> tuple[float, float | None]:
        """Mean loss and accuracy in [0, 1], None of the loss mse, with running statistics.

        But for methods that take a batch's own range in inference (niti), the result does not depend on batch_size's grouping
        beyond the rounding of the loss's sum.
        """
        context = Context(training=False, seed=self.seed, step=0)
        total, right = 0.0, 0
        for i in range(0, len(labels), batch_size):
            some = labels[i : i + batch_size]
            part = images[i : i + batch_size]
            x = self.input(part) if self.graph.loss == "mse" else None
            logits = self.forward(self.input(part) if x is None else x, context)
            try:
                loss, _, correct = self._loss(x, logits, some, gradient=False)
            except core.NotFiniteError:
                self.forward(self.input(images[i : i + batch_size]), context, check=True)
                raise
            total += float(loss) * len(some)
            right += int(correct or 0)
        self._trim()
        return total / len(labels), None if correct is None else right / len(labels)

    def parameters(self) -> dict[str, tuple[Array, Array]]:
        """Every trained tensor with its gradient, by name "layer.parameter"."""
        return {f"{n.name}.{k}": (n.chosen(k), n.grads[k]) for n in self.nodes for k in n.params if k not in n.frozen}

    def tensors(self) -> dict[str, Array]:
        """Every tensor that decides what the network computes: parameters and running statistics."""
        return {f"{n.name}.{k}": v for n in self.nodes for k, v in (*n.params.items(), *n.state.items())}


def is_covered(method: Method, node: Node) -> bool:
    """Whether a method makes a layer's numbers, see `nodes.Method.covers`."""
    return (method.covers is None or node.layer.stem in method.covers) and (method.multiplies or not node.layer.multiplies)


# ---- the graph --------------------------------------------------


def nodes(network: Graph | Stack, in_shape: tuple[int, ...]) -> list[Node]:
    """Layers with their names, inputs and shapes, without numbers yet; inputs stand before their users."""
    result: list[Node] = []
    index = {INPUT: -1}
    for entry in as_graph(network).layers:
        inputs = tuple(index[source] for source in entry.inputs)
        shapes = [result[i].out_shape if i >= 0 else in_shape for i in inputs]
        try:
            out_shape = shape_of(entry.layer, entry.layer.out_shape(*shapes))
        except OctosimError as error:
            raise OctosimError(f"{entry.where}: {error}") from None
        index[entry.name] = len(result)
        result.append(Node(entry.name, len(result), entry.layer, shapes[0], out_shape, inputs, in_shapes=tuple(shapes)))
    weighted = [node for node in result if node.layer.weighted]
    for node in weighted[:1] + weighted[-1:]:
        node.is_first_or_last = True
    uses = Counter(i for node in result for i in node.inputs)
    behind: dict[int, int] = {-1: -1}  # of each node, the one whose output it or the views before it pass on
    for node in result:
        source = behind[node.inputs[0]]
        passes_on = uses[node.index] == 1 and node.layer.aliases and not node.layer.keeps
        behind[node.index] = source if passes_on else node.index
        node.in_place = source >= 0 and uses[source] == 1 and not result[source].layer.keeps
        if node.layer.normalizes and node.inputs[0] >= 0 and uses[node.inputs[0]] == 1:
            result[node.inputs[0]].normalized = True
    return result
