"""Layers as plain data: what a manifest stores and a model file holds."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from octosim.engine.graph import INPUT, LAYOUTS, Entry, Graph, InputSpec, arity, of_stack
from octosim.engine.layers import LAYERS, Item, Residual, Rule, Stack
from octosim.engine.nodes import LOSSES
from octosim.errors import OctosimError, suggest
from octosim.files import is_onnx
from octosim.graph import plugins
from octosim.textfile import read_toml


def is_file(model: str) -> bool:
    """Whether a model's name is the path of a model file, of an ONNX file, or of a folder with an imported network."""
    return model.casefold().endswith(".toml") or is_onnx(model) or "/" in model


def describe(network: Graph | Stack) -> list[dict[str, Any]] | dict[str, Any]:
    """The layers as plain data, for a manifest: a stack's are a list, a graph's a table like its model file."""
    if isinstance(network, Graph):
        spec = {key: value for key, value in dataclasses.asdict(network.input).items() if value is not None}
        spec = {key: list(value) if isinstance(value, tuple) else value for key, value in spec.items()}
        layers = [
            {"name": e.name, "kind": plugins.name_of(e.layer), **dataclasses.asdict(e.layer), "inputs": list(e.inputs)}
            for e in network.layers
        ]
        return {"input": spec, "layers": layers} | ({"loss": network.loss} if network.loss != LOSSES[0] else {})
    return [
        {"kind": "Residual", "body": describe(item.body), "shortcut": describe(item.shortcut)}
        if isinstance(item, Residual)
        else {"kind": plugins.name_of(item), **dataclasses.asdict(item)}
        for item in network
    ]


def to_toml(graph: Graph) -> str:
    """The model file of a graph."""
    content: Any = describe(graph)
    for entry, table in zip(graph.layers, content["layers"], strict=True):
        table["kind"] = entry.layer.kind if type(entry.layer) in LAYERS else table["kind"]
    plain = [{key: value for key, value in table.items() if value is not None} for table in content["layers"]]
    import tomli_w  # by who writes a file: training needs none

    loss = {"loss": content["loss"]} if "loss" in content else {}
    return tomli_w.dumps({**loss, "input": content["input"], "layers": plain})


KINDS = plugins.OWN
"""octosim's kinds of a model file.  A manifest has the classes' names, which are taken too; layers of other packages
have more."""


def _value(where: str, key: str, rule: Rule, value: Any) -> Any:
    try:
        return rule.take(value)
    except ValueError:
        raise OctosimError(f"{where}: field '{key}' must be {rule.expected}, not {value!r}") from None


def _item(where: str, given: Any, in_graph: bool = False) -> Item:
    if not isinstance(given, dict) or not isinstance(given.get("kind"), str):
        raise OctosimError(f"{where}: expected a table with the field 'kind', one of {', '.join(KINDS)}")
    kind = given["kind"]
    known = plugins.find(where, kind)
    if in_graph and known is Residual:
        raise OctosimError(f"{where}: a residual block is for layers without names; use an 'add' with two inputs")
    if not in_graph and known is not Residual and arity(known)[0] > 1:
        raise OctosimError(f"{where}: a layer '{kind}' takes several inputs; name the layers, and its inputs = [...]")
    where = f"{where} ({kind})"
    fields = {field.name: field for field in dataclasses.fields(known)}
    for key in given:
        if key != "kind" and key not in fields:
            raise OctosimError(f"{where}: unknown field '{key}'" + (suggest(key, fields) if fields else ": it has none"))
    values: dict[str, Any] = {}
    for key, field in fields.items():
        if key not in given:
            if field.default is dataclasses.MISSING:
                expected = "a list of layers" if known is Residual else known.rule(field).expected
                raise OctosimError(f"{where}: field '{key}' is missing, expected {expected}")
        elif known is Residual:
            values[key] = parse(f"{where}, {key}", given[key], empty=key == "shortcut")
        elif given[key] is not None or field.default is not None:  # null in a manifest is a default
            values[key] = _value(where, key, known.rule(field), given[key])
    made: Item = known(**values)
    return made


def parse(where: str, given: Any, empty: bool = False) -> Stack:
    """Layers from plain data, a model file's or a manifest's; OctosimError with the layer, its field and what was expected.

    where: what an error's sentence begins with, before " layer 3".
    """
    if not isinstance(given, list) or not (given or empty):
        raise OctosimError(f"{where.removesuffix(':')}: expected a list of layers, each with its 'kind'")
    return tuple(_item(f"{where} layer {number}", item) for number, item in enumerate(given, 1))


def parse_network(where: str, given: Any) -> Graph | Stack:
    """A manifest's layers, see `describe`, or the tables of a model file; OctosimError as `parse`.

    A list of layers without names and inputs is a stack.
    """
    content = given if isinstance(given, dict) else {"layers": given}
    for key in content:
        if key not in ("layers", "input", "loss"):
            raise OctosimError(f"{where} unknown field '{key}', expected [[layers]], [input] and loss only")
    loss = content.get("loss", LOSSES[0])
    if loss not in LOSSES:
        raise OctosimError(f"{where} field 'loss' must be one of {', '.join(LOSSES)}, not {loss!r}")
    layers = content.get("layers")
    if not isinstance(layers, list) or not any(isinstance(item, dict) and NAMED & set(item) for item in layers):
        stack = parse(where, layers)
        if set(content) == {"layers"}:
            return stack
        return replace(of_stack(stack, _input(where, content.get("input", {}))), loss=loss)
    entries: list[Entry] = []
    for number, item in enumerate(layers, 1):
        place = f"{where} layer {number}"
        if not isinstance(item, dict):
            raise OctosimError(f"{place}: expected a table with the field 'kind', one of {', '.join(KINDS)}")
        layer = _item(place, {key: value for key, value in item.items() if key not in NAMED}, in_graph=True)
        assert not isinstance(layer, Residual)
        name = item.get("name", f"{layer.stem}{number}")
        inputs = item.get("inputs", [entries[-1].name if entries else INPUT])
        if not isinstance(name, str):
            raise OctosimError(f"{place}: field 'name' must be a string, not {name!r}")
        if not isinstance(inputs, list) or not inputs or not all(isinstance(source, str) for source in inputs):
            expected = f"a list of names, of layers before it or '{INPUT}'"
            raise OctosimError(f"{place}: field 'inputs' must be {expected}, not {inputs!r}")
        entries.append(Entry(name, layer, tuple(inputs)))
    try:
        return Graph(tuple(entries), _input(where, content.get("input", {})), loss)
    except OctosimError as error:
        raise OctosimError(f"{where} {error}") from None


NAMED = {"name", "inputs"}
"""Fields of a layer in a graph, beside its own."""


def _input(where: str, given: Any) -> InputSpec:
    """The table [input]."""
    where = f"{where} [input]"
    if not isinstance(given, dict):
        raise OctosimError(f"{where}: expected a table, not {given!r}")
    fields = [field.name for field in dataclasses.fields(InputSpec)]
    for key in given:
        if key not in fields:
            raise OctosimError(f"{where}: unknown field '{key}'" + suggest(key, fields))
    shape, layout = given.get("shape"), given.get("layout", "nhwc")
    if shape is not None and not (
        isinstance(shape, list) and len(shape) in (1, 3) and all(type(n) is int and 1 <= n <= 1 << 14 for n in shape)
    ):
        expected = "[height, width, channels] or [values], each in 1 .. 16384"
        raise OctosimError(f"{where}: field 'shape' must be {expected}, not {shape!r}")
    if layout not in LAYOUTS:
        raise OctosimError(f"{where}: field 'layout' must be one of {', '.join(LAYOUTS)}, not {layout!r}")

    def channels(key: str, positive: bool) -> tuple[float, ...] | None:
        values = given.get(key)
        if values is None:
            return None
        numbers = isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)
        if not numbers or not values or positive and min(values) <= 0 or shape is not None and len(values) != shape[-1]:
            kind = "positive numbers" if positive else "numbers"
            raise OctosimError(f"{where}: field '{key}' must be a list of {kind}, one for each channel, not {values!r}")
        return tuple(map(float, values))

    mean, deviation = channels("mean", False), channels("deviation", True)
    if mean is not None and deviation is not None and len(mean) != len(deviation):
        raise OctosimError(f"{where}: fields 'mean' and 'deviation' have {len(mean)} and {len(deviation)} channels")
    return InputSpec(None if shape is None else tuple(shape), mean, deviation, layout)


def read_file(path: Path) -> Graph | Stack:
    return parse_network(f"{path}:", read_toml(path, "model file"))
