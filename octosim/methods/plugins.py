"""Methods of other packages: by import path, module:Class, or by the name of an entry point of the group `octosim.methods`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

from octosim import extensions
from octosim.engine.nodes import Method
from octosim.errors import OctosimError
from octosim.extensions import is_path

GROUP = "octosim.methods"


def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """The installed entry points by name; none is loaded."""
    return extensions.entry_points(GROUP)


def load(name: str) -> type[Any]:
    """The class of an entry point, or of an import path; OctosimError where it cannot be imported or is no method.

    A name out of a file has to pass `admit` before.
    """
    return check(name, extensions.at_path("method", name) if is_path(name) else extensions.load(GROUP, name))


def admit(name: Any, where: str) -> None:
    """As `extensions.admit`, of the method that a run directory names."""
    extensions.admit("method", name, where)


def check(name: str, cls: Any) -> type[Any]:
    """The class, if it is a method; OctosimError with what it lacks."""
    if not isinstance(cls, type) or Method not in cls.__mro__:
        raise OctosimError(f"method {name}: expected a subclass of octosim.engine.nodes.Method, not {str(cls)[:60]}")
    if "__dataclass_fields__" not in cls.__dict__ or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise OctosimError(f"method {name}: {cls.__qualname__} must be a frozen dataclass, whose fields are its parameters")
    for attribute in ("name", "summary", "paper", "bits"):
        if not hasattr(cls, attribute):
            raise OctosimError(f"method {name}: {cls.__qualname__} has no attribute '{attribute}'")
    return cls


def changed_parameters(method: Any) -> dict[str, Any]:
    """The parameters of a method that are not the defaults."""
    fields = dataclasses.fields(method)
    return {f.name: value for f in fields if (value := getattr(method, f.name)) != f.default}
