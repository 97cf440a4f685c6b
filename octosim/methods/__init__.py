"""The training methods: one file a paper, one row a method."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from octosim.errors import OctosimError, suggest
from octosim.methods.banner import Banner
from octosim.methods.dai8 import Dai8
from octosim.methods.fp32 import Fp32
from octosim.methods.hindsight import Hindsight
from octosim.methods.niti import Niti
from octosim.methods.octo import Octo
from octosim.methods.ui8 import Ui8
from octosim.methods.wage import Wage
from octosim.nodes import Method

METHODS: dict[str, type[Any]] = {cls.name: cls for cls in (Fp32, Octo, Niti, Banner, Ui8, Dai8, Wage, Hindsight)}


def _convert(method: str, key: str, value: Any, kind: Any) -> Any:
    """A value, perhaps a string from the command line, as the type of the field."""
    where = f"method {method}: {key}"
    if typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return value
        raise OctosimError(f"{where} must be one of {', '.join(typing.get_args(kind))}, not '{value}'")
    assert kind in (int, float), f"{where}: no conversion to {kind}"
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise OctosimError(f"{where} must be a number, not '{value}'") from None


def make(name: str, parameters: dict[str, Any]) -> Method:
    """The method `name` with its parameters; OctosimError where either is unknown or a value is out of range."""
    if name not in METHODS:
        raise OctosimError(f"unknown method '{name}'" + suggest(name, METHODS))
    cls = METHODS[name]
    kinds = {k: v for k, v in typing.get_type_hints(cls).items() if typing.get_origin(v) is not typing.ClassVar}
    for key in parameters:
        if key not in kinds:
            raise OctosimError(f"method {name} has no parameter '{key}'" + suggest(key, kinds))
    method: Method = cls(**{k: _convert(name, k, v, kinds[k]) for k, v in parameters.items()})
    return method


def parameters(method: Method) -> dict[str, Any]:
    """The method's parameters with their values."""
    assert dataclasses.is_dataclass(method) and not isinstance(method, type | types.GenericAlias)
    return dataclasses.asdict(method)
