"""Layers as plain data: what a manifest stores and a model file holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octosim.engine.layers import (
    BatchNorm,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Item,
    Linear,
    MaxPool,
    ReLU,
    Residual,
    Stack,
)
from octosim.errors import OctosimError, suggest
from octosim.textfile import read_toml


def is_file(model: str) -> bool:
    """Whether a model's name is the path of a model file."""
    return model.endswith(".toml") or "/" in model


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


def read_file(path: Path) -> Stack:
    content = read_toml(path, "model file")
    for key in content:
        if key != "layers":
            raise OctosimError(f"{path}: unknown field '{key}', expected [[layers]] only")
    return parse(f"{path}:", content.get("layers"))
