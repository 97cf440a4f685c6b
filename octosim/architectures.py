"""Networks as data: the table of models, model files, and the flat list of nodes that either becomes."""

from __future__ import annotations

import dataclasses
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octosim.errors import OctosimError, suggest
from octosim.layers import (
    Add,
    BatchNorm,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Item,
    Layer,
    Linear,
    MaxPool,
    ReLU,
    Residual,
)
from octosim.nodes import Node

Stack = tuple[Item, ...]


@dataclass(frozen=True)
class Model:
    """A network's layers; `small`: their form for images of less than 32 pixels a side, where that is another."""

    layers: Stack
    small: Stack | None = None


# ---- the models; batch normalization after each convolution for every method alike: methods are compared on one network


def _conv(filters: int, kernel: int = 3, stride: int = 1, pad: int = 1) -> Stack:
    return Conv2d(filters, kernel, stride, pad), BatchNorm(), ReLU()


def _separable(filters: int, stride: int) -> Stack:
    """MobileNet's block: a depthwise 3x3 and a pointwise 1x1 convolution."""
    return DepthwiseConv2d(3, stride, 1), BatchNorm(), ReLU(), *_conv(filters, 1, pad=0)


def _basic_block(filters: int, stride: int, projects: bool) -> Stack:
    """ResNet's block of two convolutions.  The shortcut is the identity or, where the shape changes, a 1x1 convolution."""
    body = (*_conv(filters, 3, stride), Conv2d(filters, 3, pad=1), BatchNorm())
    return Residual(body, (Conv2d(filters, 1, stride), BatchNorm()) if projects else ()), ReLU()


def _classifier(*units: int) -> Stack:
    """Octo's demo: fully connected layers with dropout 0.5 after each but the last, which has a unit a class."""
    hidden = [layer for size in units for layer in (Linear(size), ReLU(), Dropout(0.5))]
    return Flatten(), *hidden, Linear()


MODELS: dict[str, Model] = {
    # Octo's demo (kimihe/Octo): 30 filters 5x5, pooling, 100 units; weights N(0, 0.01^2)
    "simplecnn": Model((
        Conv2d(30, 5, deviation=0.01), BatchNorm(), ReLU(), MaxPool(),
        Flatten(), Linear(100, deviation=0.01), ReLU(), Linear(deviation=0.01),
    )),
    # LeCun et al. 1998 with ReLU and max pooling; padding 2 keeps 28 x 28 in the first convolution
    "lenet5": Model((
        *_conv(6, 5, pad=2), MaxPool(), *_conv(16, 5, pad=0), MaxPool(),
        Flatten(), Linear(120), ReLU(), Linear(84), ReLU(), Linear(),
    )),
    "mlp": Model((Flatten(), Linear(256), ReLU(), Linear(128), ReLU(), Linear())),
    # Octo's demo: one form for CIFAR-10, one for MNIST and Fashion-MNIST
    "alexnet": Model(
        (*_conv(64), MaxPool(), *_conv(192), MaxPool(), *_conv(384), *_conv(256), *_conv(256), MaxPool(),
         *_classifier(4096, 4096)),
        small=(*_conv(96, 11), MaxPool(), *_conv(256, 5), MaxPool(), *_conv(384), *_conv(384), *_conv(256), MaxPool(),
               *_classifier(4096, 4096)),
    ),
    # Octo's demo: one pooling, no padding; the first fully connected layer's size follows from the images'
    "vgg11": Model((
        *_conv(64, pad=0), *_conv(128, pad=0), *_conv(256, pad=0), *_conv(256, pad=0), MaxPool(),
        *_conv(512, pad=0), *_conv(512, pad=0), *_conv(512, pad=0), *_conv(512, pad=0), *_classifier(4096, 1000),
    )),
    # WAGE and NITI: 2x128C3-MP2-2x256C3-MP2-2x512C3-MP2-1024FC-10
    "vgg-small-7": Model((
        *_conv(128), *_conv(128), MaxPool(), *_conv(256), *_conv(256), MaxPool(), *_conv(512), *_conv(512), MaxPool(),
        Flatten(), Linear(1024), ReLU(), Linear(),
    )),
    # He et al. 2016, section 4.2, n = 3, with projection shortcuts (their option B) where the shape changes
    "resnet20": Model((
        *_conv(16),
        *_basic_block(16, 1, False), *_basic_block(16, 1, False), *_basic_block(16, 1, False),
        *_basic_block(32, 2, True), *_basic_block(32, 1, False), *_basic_block(32, 1, False),
        *_basic_block(64, 2, True), *_basic_block(64, 1, False), *_basic_block(64, 1, False),
        GlobalAvgPool(), Linear(),
    )),
    # Howard et al. 2017, table 1, width 0.5; the first convolution has stride 1, for images of 32 x 32
    "mobilenet": Model((
        *_conv(16), *_separable(32, 1), *_separable(64, 2), *_separable(64, 1), *_separable(128, 2), *_separable(128, 1),
        *_separable(256, 2), *_separable(256, 1), *_separable(256, 1), *_separable(256, 1), *_separable(256, 1),
        *_separable(256, 1), *_separable(512, 2), *_separable(512, 1), GlobalAvgPool(), Linear(),
    )),
}  # fmt: skip


def is_file(model: str) -> bool:
    """Whether a model's name is the path of a model file."""
    return model.endswith(".toml") or "/" in model


def find(model: str) -> Model:
    """A model by name or from its file; OctosimError where there is none."""
    if is_file(model):
        return Model(_read_file(Path(model)))
    if model not in MODELS:
        raise OctosimError(f"unknown model '{model}'" + suggest(model, MODELS))
    return MODELS[model]


def layers(model: str, classes: int, batchnorm: bool = True, in_shape: tuple[int, ...] = (28, 28, 1)) -> Stack:
    """The layers of a model (a name or a file) for so many classes and such images; OctosimError where they do not fit."""
    found = find(model)
    stack = found.small if found.small is not None and min(in_shape[:2]) < 32 else found.layers

    def sized(stack: Stack) -> Stack:
        made: list[Item] = []
        for item in stack:
            if isinstance(item, Residual):
                item = Residual(sized(item.body), sized(item.shortcut))
            elif isinstance(item, Linear) and item.units is None:
                item = dataclasses.replace(item, units=classes)
            if batchnorm or not isinstance(item, BatchNorm):
                made.append(item)
        return tuple(made)

    stack = sized(stack)
    if is_file(model):
        _check_shapes(model, stack, in_shape, classes)
    return stack


def _check_shapes(model: str, stack: Stack, in_shape: tuple[int, ...], classes: int) -> None:
    try:
        made = nodes(stack, in_shape)
    except OctosimError as error:
        raise OctosimError(f"{model}: {error}") from None
    if made[-1].out_shape != (classes,):
        raise OctosimError(
            f"{model}: layer {len(stack)}, the last, makes {made[-1].out_shape} of an image {in_shape}, expected one value for "
            f"each of {classes} classes: a linear layer without 'units'"
        )


# ---- descriptions: what a manifest stores and a model file holds


def describe(stack: Stack) -> list[dict[str, Any]]:
    """The layers as plain data, for a manifest."""
    return [
        {"kind": "Residual", "body": describe(item.body), "shortcut": describe(item.shortcut)}
        if isinstance(item, Residual)
        else {"kind": type(item).__name__, **dataclasses.asdict(item)}
        for item in stack
    ]


KINDS: dict[str, type[Any]] = {
    "conv": Conv2d,
    "depthwise": DepthwiseConv2d,
    "linear": Linear,
    "batchnorm": BatchNorm,
    "relu": ReLU,
    "maxpool": MaxPool,
    "avgpool": GlobalAvgPool,
    "dropout": Dropout,
    "flatten": Flatten,
    "residual": Residual,
}
"""The kinds of a model file.  A manifest has the classes' names, which are taken too."""

_Rule = tuple[type, Callable[[Any], bool], str]
_COUNT: _Rule = (int, lambda v: 1 <= v <= 2**20, "an integer in 1 .. 1048576")
_RULES: dict[str, _Rule] = {
    "filters": _COUNT,
    "units": _COUNT,
    "kernel": (int, lambda v: 1 <= v <= 32, "an integer in 1 .. 32"),
    "stride": (int, lambda v: 1 <= v <= 32, "an integer in 1 .. 32"),
    "pad": (int, lambda v: 0 <= v <= 31, "an integer in 0 .. 31"),
    "deviation": (float, lambda v: 0 < v < float("inf"), "a positive number"),
    "eps": (float, lambda v: 0 < v < 1, "a number between 0 and 1"),
    "momentum": (float, lambda v: 0 < v <= 1, "a number above 0, at most 1"),
    "rate": (float, lambda v: 0 <= v < 1, "a number of at least 0, below 1"),
}
"""Type, range and, in words, what was expected of a layer's fields."""


def _value(where: str, key: str, value: Any) -> Any:
    kind, fits, expected = _RULES[key]
    number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not number or not fits(value):
        raise OctosimError(f"{where}: field '{key}' must be {expected}, not {value!r}")
    return kind(value)


def _item(where: str, given: Any) -> Item:
    known = KINDS | {cls.__name__: cls for cls in KINDS.values()}
    if not isinstance(given, dict) or not isinstance(given.get("kind"), str):
        raise OctosimError(f"{where}: expected a table with the field 'kind', one of {', '.join(KINDS)}")
    kind = given["kind"]
    if kind not in known:
        raise OctosimError(f"{where}: field 'kind' is '{kind}', no kind of layer" + suggest(kind, KINDS))
    where = f"{where} ({kind})"
    fields = {field.name: field.default for field in dataclasses.fields(known[kind])}
    for key in given:
        if key != "kind" and key not in fields:
            raise OctosimError(f"{where}: unknown field '{key}'" + (suggest(key, fields) if fields else ": it has none"))
    values: dict[str, Any] = {}
    for key, default in fields.items():
        if key not in given:
            if default is dataclasses.MISSING:
                expected = _RULES[key][2] if key in _RULES else "a list of layers"
                raise OctosimError(f"{where}: field '{key}' is missing, expected {expected}")
        elif known[kind] is Residual:
            values[key] = parse(f"{where}, {key}", given[key], empty=key == "shortcut")
        elif given[key] is not None or default is not None:  # null in a manifest is a default
            values[key] = _value(where, key, given[key])
    made: Item = known[kind](**values)
    return made


def parse(where: str, given: Any, empty: bool = False) -> Stack:
    """Layers from plain data, a model file's or a manifest's; OctosimError with the layer, its field and what was expected.

    where: what an error's sentence begins with, before " layer 3".
    """
    if not isinstance(given, list) or not (given or empty):
        raise OctosimError(f"{where.removesuffix(':')}: expected a list of layers, each with its 'kind'")
    return tuple(_item(f"{where} layer {number}", item) for number, item in enumerate(given, 1))


def _read_file(path: Path) -> Stack:
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise OctosimError(f"{path}: there is no such model file") from None
    except OSError as error:
        raise OctosimError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OctosimError(f"{path} is not valid TOML: {error}") from None
    for key in content:
        if key != "layers":
            raise OctosimError(f"{path}: unknown field '{key}', expected [[layers]] only")
    return parse(f"{path}:", content.get("layers"))


# ---- the graph


def _expand(stack: Sequence[Item], source: int, where: str, place: Callable[[Layer, tuple[int, ...], str], int]) -> int:
    """Places layers and blocks behind a node; returns the last one.  A function of `nodes` that calls itself would be a cycle,
    and keep the nodes and all their memory."""
    for number, item in enumerate(stack, 1):
        here = f"{where}layer {number}"
        if isinstance(item, Residual):
            body = _expand(item.body, source, f"{here}, body ", place)
            shortcut = _expand(item.shortcut, source, f"{here}, shortcut ", place)
            source = place(Add(), (body, shortcut), here)
        else:
            source = place(item, (source,), here)
    return source


def nodes(stack: Sequence[Item], in_shape: tuple[int, ...]) -> list[Node]:
    """Layers with their names ("conv1", "bn1" ...), inputs and shapes, without numbers yet; inputs stand before their users.

    A residual block becomes its body, its shortcut and an `Add` of the two.
    """
    made: list[Node] = []
    count: Counter[str] = Counter()

    def place(layer: Layer, inputs: tuple[int, ...], where: str) -> int:
        count[layer.stem] += 1
        name = f"{layer.stem}{count[layer.stem]}"
        shapes = [made[i].out_shape if i >= 0 else in_shape for i in inputs]
        try:
            out_shape = layer.out_shape(*shapes)
        except OctosimError as error:
            raise OctosimError(f"{where} ({name}): {error}") from None
        made.append(Node(name, len(made), layer, shapes[0], out_shape, inputs))
        return made[-1].index

    _expand(stack, -1, "", place)
    weighted = [node for node in made if node.layer.weighted]
    for node in weighted[:1] + weighted[-1:]:
        node.edge = True
    uses = Counter(i for node in made for i in node.inputs)
    for node in made:
        source = node.inputs[0]
        while source >= 0 and uses[source] == 1 and made[source].layer.aliases:
            source = made[source].inputs[0]
        node.in_place = source >= 0 and uses[source] == 1
        if isinstance(node.layer, BatchNorm) and node.inputs[0] >= 0 and uses[node.inputs[0]] == 1:
            made[node.inputs[0]].normalized = True
    return made
