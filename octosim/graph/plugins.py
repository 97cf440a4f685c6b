"""Layers of other packages: by import path, module:Class, by the kind of a class that --layer names, or by the name of an entry
point of the group `octosim.layers`."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from octosim import extensions
from octosim.engine.layers import LAYERS, Layer, Residual, Weighted
from octosim.engine.layers.base import RULES
from octosim.errors import OctosimError, suggest

GROUP = "octosim.layers"
GIVEN = "OCTOSIM_LAYERS"
"""The environment variable with the import paths of --layer, with commas between them, for processes that start later too."""
OWN: dict[str, type[Any]] = {cls.kind: cls for cls in LAYERS} | {"residual": Residual}
"""octosim's kinds, by their names in a model file."""
CLASSES: dict[str, type[Any]] = {cls.__name__: cls for cls in OWN.values()}
"""The same by the names of manifests."""
CALLS = ("out_shape", "init", "forward", "weight_grad", "input_grad")


def give(path: str) -> None:
    """Makes a layer known by its kind, here and in processes that this one starts; OctosimError where it is none."""
    if not extensions.is_path(path):
        raise OctosimError(f"--layer takes an import path, module:Class, not '{path}'")
    _at_path(path)
    os.environ[GIVEN] = ",".join(dict.fromkeys([*_given(), path]))


def _given() -> list[str]:
    return [path for path in os.environ.get(GIVEN, "").split(",") if path]


def find(where: str, kind: str) -> type[Any]:
    """The class of a kind; OctosimError, beginning with `where`, where there is none or it cannot be imported.

    kind: a name in a model file, a class's name in a manifest, or an import path.
    """
    if kind in OWN or kind in CLASSES:
        return OWN.get(kind) or CLASSES[kind]
    if extensions.is_path(kind):
        extensions.admit("layer", kind, where)
        return _at_path(kind)
    given = {cls.kind: cls for cls in map(_at_path, _given())}
    if kind in given:
        return given[kind]
    if kind in extensions.entry_points(GROUP):
        return check(kind, extensions.load(GROUP, kind))
    known = [*OWN, *given, *extensions.entry_points(GROUP)]
    raise OctosimError(f"{where}: field 'kind' is '{kind}', no kind of layer" + suggest(kind, known))


def _at_path(path: str) -> type[Layer]:
    return check(path, extensions.at_path("layer", path))


def check(name: str, cls: Any) -> type[Layer]:
    """The class, if it is a layer; OctosimError with what it lacks."""
    if not isinstance(cls, type) or not issubclass(cls, Layer):
        raise OctosimError(f"layer {name}: expected a subclass of octosim.engine.layers.Layer, not {str(cls)[:60]}")
    if "__dataclass_fields__" not in cls.__dict__ or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise OctosimError(f"layer {name}: {cls.__qualname__} must be a frozen dataclass, whose fields a model file has")
    for attribute in ("stem", *CALLS):
        if not hasattr(cls, attribute):
            raise OctosimError(f"layer {name}: {cls.__qualname__} has no attribute '{attribute}'")
    if issubclass(cls, Weighted):
        for attribute, base in (("weight_shape", Weighted), ("product", None)):
            if not hasattr(cls, attribute) or base and getattr(cls, attribute) is getattr(base, attribute):
                raise OctosimError(
                    f"layer {name}: {cls.__qualname__} has no method '{attribute}', as engine.layers.Linear has it"
                )
    if cls not in LAYERS and cls.kind in OWN:
        raise OctosimError(f"layer {name}: octosim has a kind '{cls.kind}'; give {cls.__qualname__} a 'kind' of its own")
    for field in dataclasses.fields(cls):
        if field.name not in cls.rules and field.type not in RULES:
            raise OctosimError(
                f"layer {name}: field '{field.name}' of {cls.__qualname__} has no rule; expected one in 'rules', or int, "
                "float, bool or str as its type"
            )
    return cls


def name_of(layer: Layer) -> str:
    """The name of a layer's class in a manifest: octosim's own, or an import path."""
    cls = type(layer)
    return cls.__name__ if cls in LAYERS else extensions.path_of("layer", check(cls.__qualname__, cls))


def identities(layers: Any) -> dict[str, Any]:
    """What a manifest says of the code of the layers of other packages, by their import paths; see `extensions.identity`."""
    found = {name_of(layer): extensions.identity(type(layer)) for layer in layers if type(layer) not in LAYERS}
    return {name: held["plugin"] for name, held in sorted(found.items()) if held}
