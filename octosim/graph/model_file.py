"""Layers as plain data: what a manifest stores and a model file holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from octosim.engine.layers import LAYERS, Item, Residual, Rule, Stack
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


KINDS: dict[str, type[Any]] = {cls.kind: cls for cls in LAYERS if cls.inputs == 1} | {"residual": Residual}
"""The kinds of a model file.  A manifest has the classes' names, which are taken too."""


def _value(where: str, key: str, rule: Rule, value: Any) -> Any:
    try:
        return rule.take(value)
    except ValueError:
        raise OctosimError(f"{where}: field '{key}' must be {rule.expected}, not {value!r}") from None


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
                expected = "a list of layers" if known[kind] is Residual else known[kind].rules[key].expected
                raise OctosimError(f"{where}: field '{key}' is missing, expected {expected}")
        elif known[kind] is Residual:
            values[key] = parse(f"{where}, {key}", given[key], empty=key == "shortcut")
        elif given[key] is not None or default is not None:  # null in a manifest is a default
            values[key] = _value(where, key, known[kind].rules[key], given[key])
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
