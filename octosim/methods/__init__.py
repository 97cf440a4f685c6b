"""The training methods: one file a paper, one row a method."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from octosim import extensions
from octosim.engine.nodes import Method
from octosim.errors import OctosimError, suggest
from octosim.methods import plugins


class _Known(Mapping[str, type[Method]]):
    """octosim's own methods by name; each is imported when it is asked for: a start imports one of them, not all."""

    def __init__(self, **classes: str) -> None:
        self._classes = {module.replace("_", "-"): (module, name) for module, name in classes.items()}

    def __getitem__(self, name: str) -> type[Method]:
        module, cls = self._classes[name]
        found: type[Method] = getattr(importlib.import_module(f"octosim.methods.{module}"), cls)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __contains__(self, name: object) -> bool:
        return name in self._classes


METHODS: Mapping[str, type[Method]] = _Known(
    fp32="Fp32", octo="Octo", octo_reference="OctoReference", logbtq="Logbtq", laq="Laq", blaq="Blaq", qat="Qat",
    niti="Niti", wage="Wage", dorefa="Dorefa", banner="Banner", ui8="Ui8", dai8="Dai8", hindsight="Hindsight",
    jetfire="Jetfire", fqat="Fqat",
)  # fmt: skip


def _convert(method: str, key: str, value: Any, kind: Any) -> Any:
    """A value, perhaps a string from the command line, as the type of the field."""
    where = f"method {method}: {key}"
    if typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return value
        raise OctosimError(f"{where} must be one of {', '.join(typing.get_args(kind))}, not '{value}'")
    if kind is bool and value in (True, False, "true", "false"):
        return value in (True, "true")
    if kind is str or kind is bool:
        if kind is str and isinstance(value, str):
            return value
        raise OctosimError(f"{where} must be {'a string' if kind is str else 'true or false'}, not '{value}'")
    if kind not in (int, float):
        raise OctosimError(f"{where}: a parameter must be an int, a float, a bool, a str or a Literal, not {kind}")
    try:
        number = kind(value)
        if isinstance(value, bool) or kind is int and isinstance(value, float) and number != value:
            raise ValueError
        return number
    except (TypeError, ValueError, OverflowError):
        raise OctosimError(f"{where} must be a {'whole ' * (kind is int)}number, not '{value}'") from None


def find(name: str) -> type[Any]:
    """The class of one of METHODS, of an entry point or of an import path, module:Class."""
    if name in METHODS:
        return METHODS[name]
    if extensions.is_path(name) or name in plugins.entry_points():
        return plugins.load(name)
    raise OctosimError(f"unknown method '{name}'" + suggest(name, [*METHODS, *plugins.entry_points()]))


def available() -> tuple[list[str], dict[str, str]]:
    """The names of all methods that can be used, and of entry points that cannot the reason."""
    names, broken = list(METHODS), dict[str, str]()
    for name in plugins.entry_points():
        if name in METHODS:
            broken[name] = f"method {name} of {plugins.entry_points()[name].value}: octosim has a method of that name"
            continue
        try:
            find(name)
            names.append(name)
        except OctosimError as error:
            broken[name] = str(error)
    return names, broken


def name_of(method: Method) -> str:
    """The name by which `make` finds a method's class: its own, an entry point's or its import path."""
    cls = type(method)
    if METHODS.get(cls.name) is cls:
        return cls.name
    path = extensions.path_of("method", plugins.check(cls.__qualname__, cls))
    return next((name for name, point in plugins.entry_points().items() if point.value == path and name not in METHODS), path)


def describe(name: str, method: Method) -> dict[str, Any]:
    """A method as plain data for a manifest: name, parameters and, of another package, what identifies its code."""
    return {"name": name, "parameters": parameters(method)} | extensions.identity(type(method))


def _kinds(cls: type[Any]) -> dict[str, Any]:
    """The types of a method's parameters."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def make(name: str, parameters: dict[str, Any]) -> Method:
    """The method `name` with its parameters; OctosimError where either is unknown or a value is out of range."""
    cls = find(name)
    kinds = _kinds(cls)
    for key in parameters:
        if key not in kinds:
            raise OctosimError(f"method {name} has no parameter '{key}'" + (suggest(key, kinds) if kinds else "; it has none"))
    given = {key: _convert(name, key, value, kinds[key]) for key, value in parameters.items()}
    method: Method = cls(**given)
    for key, value in given.items():  # after the method's own ranges: a manifest holds no infinity
        if isinstance(value, float) and not math.isfinite(value):
            raise OctosimError(f"method {name}: {key} must be a finite number, not '{value}'")
    return method


def parameters(method: Method) -> dict[str, Any]:
    """The method's parameters with their values."""
    assert dataclasses.is_dataclass(method) and not isinstance(method, type | types.GenericAlias)
    return dataclasses.asdict(method)


def _parameter_docs(cls: type[Any]) -> dict[str, str]:
    """What the docstring says of each parameter, in paragraphs "name: text", several names with commas between them."""
    found: dict[str, str] = {}
    pattern = r"^((?:\w+)(?:, \w+)*): +((?:.+\n?)(?: .*\n?)*)"
    for match in re.finditer(pattern, inspect.cleandoc(cls.__doc__ or ""), re.MULTILINE):
        text = " ".join(match[2].split())
        found |= dict.fromkeys(match[1].split(", "), text)
    return found


def about(name: str) -> dict[str, Any]:
    """A method as plain data: its source, types, and parameters with their defaults and meaning."""
    cls = find(name)
    docs, kinds = _parameter_docs(cls), _kinds(cls)
    return {
        "name": name,
        "summary": cls.summary,
        "paper": cls.paper,
        "bits": cls.bits,
        "doc": inspect.cleandoc(sys.modules[cls.__module__].__doc__ or ""),
        "parameters": {
            field.name: {
                "default": field.default,
                "values": ", ".join(map(str, typing.get_args(kinds[field.name]))) or kinds[field.name].__name__,
                "doc": docs.get(field.name, ""),
            }
            for field in dataclasses.fields(cls)
        },
    }
