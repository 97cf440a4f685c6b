"""ONNX networks as graphs of layers to train, with their weights.

Tensors of ONNX are (batch, channels, height, width) in most files; here channels are last.  A `Value` says which axis of the
ONNX tensor each axis here is, so a Transpose there is nothing here.  A flattened image's features stand in another order, which
the weights of the layer behind it take over.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from octosim import onnxfile
from octosim.engine.graph import INPUT, Entry, Graph, InputSpec
from octosim.engine.layers import Conv2d, DepthwiseConv2d, Flatten, Layer, Linear, Reshape, Transpose
from octosim.engine.layers.base import Weighted
from octosim.engine.nodes import INPUT_RANGE, LOSSES
from octosim.errors import OctosimError
from octosim.graph.names import layer_name
from octosim.onnxfile import OnnxModel

Array = np.ndarray[Any, Any]
Pads = tuple[int, int, int, int]


MOVES, PASSES = ("Transpose", "MatMul"), ("Unsqueeze", "Mul", "Add", "Sub", "Div", "Cast", "Identity", "Pad")
"""Operators behind an input whose channels are last, and those that may stand between: constants, axes of size 1."""
UNKNOWN = "?"
"""The layer of what a node makes that cannot be trained."""
ASIDE = ("Shape", "Size", "ConstantOfShape", "Equal", "Where", "Expand", "Range")
"""Operators that compute shapes: no layer is missing where these are not constants, but the shape in front of them."""
WORDS = {"w": "weights", "b": "biases"}
SMALL_SCALE = 0.02
"""Factors of an input below it bring bytes to about 1: 1 / 255, 1 / 127.5, or 1 / 58 of ImageNet's deviation."""


class Unsupported(Exception):
    """What of a node cannot be trained, in words."""


@dataclass(frozen=True)
class Imported:
    """A network and its tensors, by the names of `Network.tensors`.  notes: what a reader should know."""

    graph: Graph
    weights: dict[str, Array]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """What a tensor of ONNX is here.

    layer: whose output it is.  shape: of ONNX, with the batch.  axes: the ONNX axis of each axis here, None for one of size 1
    that ONNX does not have; ONNX axes of size 1 may be missing.  order: of a flattened tensor, which feature of ONNX each one
    here is; None: the same.  pad: zeros around an image, (top, left, bottom, right), that the layer behind has to add.
    batch: the batch's axis of ONNX.  scale: a factor that the product behind takes over.  product: of what scores or weights of
    an attention, which have no layer, are made: queries and keys.  weighs: these are weights.  joined: axes of `shape` that
    ONNX has as one: the batch and the one beside it.
    """

    layer: str
    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    order: Array | None = None
    pad: Pads | None = None
    batch: int = 0
    scale: float = 1.0
    product: tuple[Value, Value] | None = None
    weighs: bool = False
    joined: tuple[int, ...] = ()

    @property
    def own(self) -> tuple[int, ...]:
        """The shape here, without the batch."""
        return tuple(1 if axis is None else self.shape[axis] for axis in self.axes)

    @property
    def is_vector(self) -> bool:
        return len(self.axes) == 1


def standard(layer: str, shape: tuple[int, ...]) -> Value:
    """A tensor whose channels are ONNX's second axis, of an image or a signal, or whose features are the last."""
    axes: dict[int, tuple[int | None, ...]] = {2: (1,), 3: (1, 2), 4: (2, 3, 1)}
    if len(shape) not in axes:
        raise Unsupported(f"a tensor with {len(shape)} dimensions")
    return Value(layer, shape, axes[len(shape)])


class Importer:
    """Makes layers of nodes, one node after the other.  What cannot be trained is collected and told at the end."""

    def __init__(self, model: OnnxModel):
        self.model = model
        self.values: dict[str, Value] = {}
        self.entries: dict[str, Entry] = {}  # by name, in their order
        self.numbers: dict[str, int] = {}
        self.weights: dict[str, Array] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}  # of layers' outputs here
        self.affines: dict[str, str] = {}  # by what `affine` gives, the layer that has the weights
        self.flattened: dict[str, Value] = {}  # by a flattening layer, what it takes
        self.shared: dict[str, list[str]] = {}  # by a tensor of weights in the file, the layers that have copies of it
        self.ranges: dict[str, tuple[float, float]] = {}  # of quantized tensors of ONNX
        self.notes: list[str] = []
        self.problems: list[tuple[Any, str]] = []
        self.unmade: set[str] = set()  # outputs of nodes that cannot be trained
        self.loss = LOSSES[0]
        self.users: dict[str, list[Any]] = {}
        for node in model.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        for name in model.outputs[:1]:
            self.users.setdefault(name, []).append(None)

    # ---- what handlers use

    def value(self, node: Any, at: int = 0, pad: bool = False, heads: bool = False, joined: bool = False) -> Value:
        """The value of a node's input; `pad`: the node's layer can add zeros around it; `heads`: take scores and a scale;
        `joined`: take one whose batch is one with another axis."""
        name = node.input[at]
        if name not in self.values:
            raise Unsupported("its input is a constant" if name in self.model.constants else f"its input {name!r} is not known")
        value = self.values[name]
        if value.pad and not pad:
            raise Unsupported("zeros are padded in front of it, which only convolutions and pooling can add")
        if value.product and not heads:
            raise Unsupported("of scores of an attention")
        if value.joined and not joined:
            raise Unsupported(f"of a tensor of shape {self.model.shapes.get(name)} whose batch is one with another axis")
        if value.scale != 1 and not heads:
            row = np.full(value.own[-1], value.scale, np.float32)
            value = self.values[name] = self.affine(node, replace(value, scale=1.0), row, None)
        return value

    def plain(self, node: Any, at: int = 0) -> Value:
        """A node's input whose first axis is the batch, in no order of its own."""
        value = self.value(node, at)
        if value.batch:
            raise Unsupported("of a tensor whose first axis is not the batch")
        return value

    def constant(self, node: Any, at: int) -> Array | None:
        """A constant input in float32 where it is float; None where there is none."""
        if len(node.input) <= at or not node.input[at]:
            return None
        if node.input[at] not in self.model.constants:
            raise Unsupported(f"its input {node.input[at]!r} is not constant")
        value = self.model.value(node.input[at])
        return value.astype(np.float32) if value.dtype.kind == "f" else value

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.model.shapes:
            raise Unsupported(f"the shape of {name!r} cannot be inferred")
        return self.model.shapes[name]

    def emit(
        self, node: Any, layer: Layer, inputs: Iterable[Value], weights: dict[str, Array] | None = None, at: int | None = None
    ) -> str:
        """Adds a layer; returns its name.  at: the input whose name, of a weight, is the layer's too."""
        inputs = tuple(inputs)
        try:
            shape = layer.out_shape(*(value.own for value in inputs))
        except OctosimError as error:
            raise Unsupported(str(error)) from None
        for key, tensor in (weights or {}).items():
            wanted = _weight_shape(layer, inputs, key)
            if tensor.shape != wanted:
                raise Unsupported(f"its {WORDS.get(key, key)} here are {tensor.shape}, the layer takes {wanted}")
        hint = node.input[at] if at is not None and len(node.input) > at else ""
        name = layer_name(hint, node.name, layer.stem, ChainMap[str, Any](self.entries, {INPUT: None}), self.numbers)
        self.entries[name] = Entry(name, layer, tuple(value.layer for value in inputs))
        self.shapes[name] = shape
        for key, tensor in (weights or {}).items():
            with np.errstate(over="ignore"):
                self.weights[f"{name}.{key}"] = np.ascontiguousarray(tensor, np.float32)
        if hint and layer.weighted:
            self.shared.setdefault(hint, []).append(name)
        if layer.weighted and node.input[0] in self.ranges:
            self.weights[f"{name}.{INPUT_RANGE}"] = np.array(self.ranges[node.input[0]], np.float32)
        return name

    def alone(self, name: str) -> bool:
        """Whether one node takes a tensor, and nobody outside."""
        return len(self.users.get(name, [])) == 1 and self.users[name][0] is not None

    def turn(self, node: Any, value: Value, axes: tuple[int | None, ...]) -> Value:
        """A value whose axes here are these, by a transpose where it is needed."""
        if value.axes == axes:
            return value
        if value.order is not None or sorted(map(str, value.axes)) != sorted(map(str, axes)):
            raise Unsupported(f"of a tensor of shape {value.shape} whose axes do not fit here")
        order = tuple(value.axes.index(axis) for axis in axes)
        return replace(value, layer=self.emit(node, Transpose(order), [value]), axes=axes)

    def shaped(self, node: Any, layer: str, shape: tuple[int, ...]) -> str:
        """The layer that gives a layer's output in another shape, of the same elements."""
        if layer == UNKNOWN:
            return layer
        entry = self.entries.get(layer)
        while entry is not None and entry.layer.kind == "reshape":
            layer = entry.inputs[0]
            entry = self.entries.get(layer)
        source = self.shapes.get(layer)
        if source == shape:
            return layer
        given = Value(layer, (1, *(source or self.values[self.model.inputs[0]].own)), ())
        given = replace(given, axes=tuple(range(1, len(given.shape))))
        return self.emit(node, Reshape(shape), [given])

    def affine(self, node: Any, x: Value, scale: Array, shift: Array | None) -> Value:
        """x times a factor and plus a summand of each channel, here the last axis, in a layer of its shape: a depthwise 1x1
        convolution."""
        shape = x.own
        image = shape if len(shape) == 3 else (1, math.prod(shape[:-1]), shape[-1])
        given = Value(x.layer if shape == image else self.shaped(node, x.layer, image), (1, *image), (1, 2, 3))
        weights = {"w": scale.reshape(-1, 1, 1, 1)} | ({} if shift is None else {"b": shift})
        name = self.emit(node, DepthwiseConv2d(1, 1, 0, bias=shift is not None), [given], weights)
        made = name if shape == image else self.shaped(node, name, shape)
        self.affines[made] = name
        return replace(x, layer=made)

    # ---- the walk

    def run(
        self, spec: InputSpec | None, handlers: dict[str, Callable[[Importer, Any], Value | None]], loss: str = LOSSES[0]
    ) -> Imported:
        """loss: of LOSSES, which an ONNX file does not say."""
        model, self.loss = self.model, loss
        inputs = [name for name in model.inputs if name in self.users] if len(model.inputs) > 1 else model.inputs
        if len(inputs) != 1:
            raise OctosimError(f"{model.path}: a network to train has one input, not {', '.join(inputs) or 'none'}")
        name = inputs[0]
        shape = model.shapes.get(name)
        if shape is None or len(shape) not in (2, 3, 4):
            raise OctosimError(f"{model.path}: input {name} has shape {shape}, not (batch, channels, height, width)")
        if math.prod(shape) > onnxfile.LARGEST:
            raise OctosimError(f"{model.path}: input {name} has shape {shape}, expected at most {onnxfile.LARGEST:,} elements")
        self.values[name], layout = self._input(name, shape)
        for node in model.nodes:
            handler = handlers.get(node.op_type) if node.domain in ("", "ai.onnx", onnxfile.MICROSOFT) else None
            try:
                if handler is None:
                    raise Unsupported("")
                value = handler(self, node)
                if value is not None:
                    self.values[node.output[0]] = value
            except Unsupported as problem:
                if handler is None and node.op_type not in ASIDE or not self._is_behind_unknown(node):
                    self.problems.append((node, str(problem)))
                self._go_on(node)
            except (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
                text = " ".join(str(error).split())[:100]
                self.problems.append((node, "not as ONNX has it" + (f" ({text})" if text else "")))
                self._go_on(node)
        if self.problems:
            raise OctosimError(f"{model.path}: {_told(self.problems)}")
        if not model.outputs or model.outputs[0] not in self.values:
            told = f"its output {model.outputs[0]} does not depend on its input" if model.outputs else "it has no output"
            raise OctosimError(f"{model.path}: {told}")
        out = self._output(model.outputs[0])
        if loss == "mse":
            out = self._as_input(out, self.values[name])
        else:
            out = self._in_order(self._as_vector(out))
        entries, spec = (list(self.entries.values()), spec) if spec else self._spec(name, layout)
        graph = replace(_pruned(entries, out.layer, spec, model.path), loss=loss)
        names = {entry.name for entry in graph.layers}
        weights = {key: value for key, value in self.weights.items() if key.rpartition(".")[0] in names}
        for key, tensor in weights.items():
            if not np.isfinite(tensor).all():
                raise OctosimError(f"{model.path}: {key} has a NaN or an infinity in float32, expected finite numbers")
        if len(model.outputs) > 1:
            self.notes.append(f"outputs {', '.join(model.outputs[1:])} are left out")
        for source, layers in self.shared.items():
            layers = [layer for layer in layers if layer in names]
            if len(layers) > 1:
                self.notes.append(f"{source} is shared by {', '.join(layers)}: here each trains its own copy")
        return Imported(graph, weights, tuple(self.notes))

    def _spec(self, name: str, layout: str) -> tuple[list[Entry], InputSpec]:
        """The layers, and what the input is: pixels of 0 .. 255 where the file takes bytes, normalized as its first node does;
        else those in 0 .. 1 that it gets here."""
        from onnx import TensorProto

        shape, entries = self._image_shape(name), list(self.entries.values())
        first = [entry for entry in entries if INPUT in entry.inputs]
        scales = [self.weights[f"{entry.name}.w"] for entry in first if entry.name in self.affines.values()]
        if self.model.types.get(name) == TensorProto.UINT8:
            if first and len(scales) == len(first) and entries[-1] not in first and self._alike(first):
                return self._normalized(entries, first, shape, layout)
            return entries, InputSpec(shape, (0.0,) * shape[-1], (1 / 255,) * shape[-1], layout)
        if first and len(scales) == len(first) and max(np.abs(w).max() for w in scales) < SMALL_SCALE:
            self.notes.append(
                f"{first[0].name} divides its input as if pixels were 0 .. 255, which are 0 .. 1 here: to train on images, "
                f"write deviation = {[0.003921569] * shape[-1]} below [input] of model.toml"
            )
        return entries, InputSpec(shape, layout=layout)

    def _factors(self, name: str) -> tuple[Array, Array]:
        """What a layer of `affine` multiplies each channel by, and adds."""
        scale = self.weights[f"{name}.w"].astype(np.float64).reshape(-1)
        return scale, self.weights.get(f"{name}.b", np.zeros(scale.size)).astype(np.float64)

    def _alike(self, entries: list[Entry]) -> bool:
        """Whether layers of `affine` make the same of each channel, and its range is not turned around."""
        scale, shift = self._factors(entries[0].name)
        others = (self._factors(entry.name) for entry in entries)
        return bool((scale > 0).all()) and all(np.array_equal(a, scale) and np.array_equal(b, shift) for a, b in others)

    def _normalized(
        self, entries: list[Entry], first: list[Entry], shape: tuple[int, ...], layout: str
    ) -> tuple[list[Entry], InputSpec]:
        """The layers without those that bring bytes to the range of the others, and their numbers as the input's."""
        scale, shift = self._factors(first[0].name)
        names = {entry.name for entry in first}
        behind = [
            replace(entry, inputs=tuple(INPUT if source in names else source for source in entry.inputs))
            for entry in entries if entry.name not in names
        ]  # fmt: skip
        if (scale.astype(np.float32) == np.float32(1 / 255)).all() and not shift.any():
            return behind, InputSpec(shape, layout=layout)
        deviation = 1 / (255 * scale)
        return behind, InputSpec(shape, tuple((-shift * deviation).tolist()), tuple(deviation.tolist()), layout)

    def _output(self, name: str) -> Value:
        """The network's output, with a factor that no product behind it takes over."""
        out = self.values[name]
        if out.pad or out.product or out.batch or out.joined:
            raise OctosimError(f"{self.model.path}: its output {name} of shape {out.shape} cannot be trained")
        if out.scale == 1:
            return out
        row = np.full(out.own[-1], out.scale, np.float32)
        return self.affine(self.users[name][0] or self.model.nodes[-1], replace(out, scale=1.0), row, None)

    def _as_vector(self, out: Value) -> Value:
        """The output without axes of size 1 that it has here."""
        wide = [axis for axis in out.axes if axis is not None and out.shape[axis] != 1]
        if out.is_vector:
            return out
        if len(wide) != 1 or out.order is not None:
            raise OctosimError(f"{self.model.path}: its output has shape {out.shape}, expected a value for each class")
        return replace(out, layer=self.shaped(self.model.nodes[-1], out.layer, (out.shape[wide[0]],)), axes=(wide[0],))

    def _in_order(self, out: Value) -> Value:
        """Classes in the order that the file has them."""
        if out.order is None:
            return out
        image = self.flattened.get(out.layer)
        if image is None:
            raise OctosimError(
                f"{self.model.path}: its output is a flattened image of shape {out.shape}, whose values have another order here"
            )
        last = self.model.nodes[-1]
        image = self.turn(last, image, tuple(sorted(axis for axis in image.axes if axis is not None)))
        return replace(out, layer=self.emit(last, Flatten(), [image]), order=None)

    def _as_input(self, out: Value, given: Value) -> Value:
        """The output with its axes, or its features, in the order of the input that it is compared with."""
        path = self.model.path
        axes = [sorted(map(str, value.axes)) for value in (out, given)]
        if out.shape[1:] == given.shape[1:] and out.order is None and axes[0] == axes[1]:
            return self.turn(self.model.nodes[-1], out, given.axes)
        entry = self.entries.get(out.layer)
        if not out.is_vector or out.own != (math.prod(given.own),) or entry is None or entry.layer.kind != "linear":
            raise OctosimError(f"{path}: its output has shape {out.shape}, expected that of its input, {given.shape}")
        features = np.arange(math.prod(given.own)).reshape(given.shape[1:])
        order = features.transpose(*(axis - 1 for axis in given.axes if axis is not None)).reshape(-1)
        for key in (f"{out.layer}.w", f"{out.layer}.b"):
            if key in self.weights:
                self.weights[key] = np.ascontiguousarray(self.weights[key][order])
        return out

    def _input(self, name: str, shape: tuple[int, ...]) -> tuple[Value, str]:
        """The network's input, and its layout: channels last where a Transpose, or few channels at the end, say so."""
        if len(shape) == 4:
            if self._has_channels_last(name) or shape[1] > 4 >= shape[3]:
                return Value(INPUT, shape, (1, 2, 3)), "nhwc"
            return Value(INPUT, shape, (2, 3, 1)), "nchw"
        if len(shape) == 3:  # a signal (batch, channels, length) or (batch, length, channels): an image of one line
            if self._has_channels_last(name):
                return Value(INPUT, shape, (None, 1, 2)), "nhwc"
            return Value(INPUT, shape, (None, 2, 1)), "nchw"
        return Value(INPUT, shape, (1,)), "nhwc"

    def _has_channels_last(self, name: str) -> bool:
        """Whether all that takes a tensor brings its last axis to the front, or multiplies it."""
        todo, seen = [name], {name}  # a list, not recursion: chains may be thousands of nodes long, and branches may meet
        while todo:
            users = self.users.get(todo.pop(), [])
            if not users or any(user is None or user.op_type not in (*MOVES, *PASSES) for user in users):
                return False
            further = {user.output[0] for user in users if user.op_type in PASSES} - seen
            seen |= further
            todo += further
        return True

    def _image_shape(self, name: str) -> tuple[int, ...]:
        own = self.values[name].own
        return own if len(own) in (1, 3) else (1, 1, *own)

    def _is_behind_unknown(self, node: Any) -> bool:
        """Whether a node takes what one that cannot be trained makes: what is wrong with it may be only that."""
        return any(
            self.values[name].layer == UNKNOWN if name in self.values else name in self.unmade for name in node.input
        )

    def _go_on(self, node: Any) -> None:
        """Gives the outputs of a node that cannot be trained their shape, so that what is behind it is looked at too."""
        self.unmade.update(node.output)
        for name in node.output:
            shape = self.model.shapes.get(name)
            if name and shape is not None and 2 <= len(shape) <= 4:
                self.values[name] = standard(UNKNOWN, shape)


def _weight_shape(layer: Layer, inputs: Iterable[Value], key: str) -> tuple[int, ...]:
    own = next(iter(inputs)).own
    if isinstance(layer, Weighted):
        shape = layer.weight_shape(own)
        return shape if key == "w" else shape[:1]
    return own if key == "positions" else (1, own[-1]) if key == "token" else own[-1:]


def _told(problems: list[tuple[Any, str]]) -> str:
    """A sentence that names every node, those of one kind together."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for node, reason in problems:
        operator = (node.domain + "." if node.domain else "") + node.op_type
        grouped.setdefault((operator, reason), []).append(node.name or (node.output[0] if node.output else "?"))
    parts = [
        f"{operator} ({', '.join(names)})" + (f": {reason}" if reason else "") for (operator, reason), names in grouped.items()
    ]
    count = sum(map(len, grouped.values()))
    hint = ""
    if any(_is_integer(node) for node, _ in problems):
        hint = "; of quantized files those in the form QDQ are taken"
    elif any(node.domain == onnxfile.MICROSOFT for node, _ in problems):
        hint = f"; {onnxfile.MICROSOFT} is what onnxruntime's optimization puts together: import the file from before it"
    return f"{count} node{'s' * (count != 1)} cannot be trained: {'; '.join(parts)}{hint}"


def _is_integer(node: Any) -> bool:
    """Whether a node is of a quantized file in the form QOperator, or of one that is quantized while it runs."""
    return node.op_type.startswith(("QLinear", "QGemm", "DynamicQuantize")) or "Integer" in node.op_type


def _pruned(entries: list[Entry], output: str, spec: InputSpec, path: Path) -> Graph:
    """The graph of what the output depends on."""
    needed = {output}
    kept: list[Entry] = []
    for entry in reversed(entries):
        if entry.name in needed:
            kept.append(entry)
            needed.update(entry.inputs)
    if not kept:
        raise OctosimError(f"{path}: it has no layers")
    return Graph(tuple(reversed(kept)), spec)


# ---- files --------------------------------------------------


def read(path: Path, shapes: dict[str, tuple[int, ...]] | None = None, loss: str = LOSSES[0]) -> Imported:
    """The network of an ONNX file and its weights; OctosimError with every node that cannot be trained."""
    return convert(onnxfile.read(path, None, shapes), loss=loss)


def convert(model: OnnxModel, spec: InputSpec | None = None, loss: str = LOSSES[0]) -> Imported:
    from octosim.graph.operators import HANDLERS
    from octosim.graph.patterns import join

    model.nodes[:] = _needed(model)
    join(model)
    return Importer(model).run(spec, HANDLERS, loss)


def _needed(model: OnnxModel) -> list[Any]:
    """The nodes that the first output depends on: others need no layer."""
    names = set(model.outputs[:1])
    kept: list[Any] = []
    for node in reversed(model.nodes):
        if names.intersection(node.output):
            kept.append(node)
            names.update(node.input)
    return kept[::-1]


def with_classes(imported: Imported, classes: int) -> Imported:
    """The network with a head for so many classes, which begins as in a new run where its size changes; OctosimError where its
    last weighted layer makes no classes."""
    graph = head_for(imported.graph, classes)
    if graph == imported.graph:
        return imported
    changed = {a.name for a, b in zip(graph.layers, imported.graph.layers, strict=True) if a.layer != b.layer}
    weights = {key: value for key, value in imported.weights.items() if key.rpartition(".")[0] not in changed}
    return Imported(graph, weights, (*imported.notes, f"{', '.join(sorted(changed))}: new, for {classes} classes"))


def head_for(graph: Graph, classes: int) -> Graph:
    """The graph whose last weighted layer makes so many values."""
    at = next((i for i in reversed(range(len(graph.layers))) if graph.layers[i].layer.weighted), None)
    layer = None if at is None else graph.layers[at].layer
    if at is None or not isinstance(layer, Linear | Conv2d):
        raise OctosimError("the last layer with weights is no linear layer or convolution, which --classes could replace")
    head: Layer = replace(layer, units=classes) if isinstance(layer, Linear) else replace(layer, filters=classes)
    if head == layer:
        return graph
    entries = list(graph.layers)
    entries[at] = replace(entries[at], layer=head)
    return replace(graph, layers=tuple(entries))

