"""What a user chooses of a run."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from octosim import graph, methods
from octosim.engine import selection
from octosim.engine.nodes import Method
from octosim.errors import OctosimError
from octosim.numerics import Accumulator
from octosim.settings import Settings, kinds

NORMALIZATIONS = ("none", "data")
"""Of the network's input: as it is (bytes in [0, 1]), or to mean 0 and deviation 1 in each channel of the training images."""
EPOCHS = 3  # where neither epochs nor steps are given


@dataclass(frozen=True)
class Config(Settings):
    """The settings of a run, checked (settings.Settings).

    epochs, steps: the run's length; both given, the sooner end.  lr None: the optimizer's own.  weight_decay: of the parameters
    in optimizers.DECAYED.  schedule, milestones, gamma, warmup: see schedules.Schedule.  augment: of batches.AUGMENTATIONS.
    label_smoothing: of the training loss; the test loss is without.  accumulator: of numerics.ACCUMULATORS.

    init: where it is not given, the weights of an imported model.
    train, freeze, train_last, update, channels, batchnorm_statistics, rate, accumulate: see initial.py, selection.Selection and
    engine.accumulation.

    method and accumulator may be given as objects: a `Method` with its parameters, a `numerics.Accumulator`.
    data: a data set's name, or the path of a user's own.  image: "HEIGHTxWIDTHxCHANNELS" to which images are brought.
    test_share: of each class, put aside where the data have no test part.  skip_unreadable: leave out image files that
    cannot be decoded.  limit: training images.  normalize: of NORMALIZATIONS; None: the
    model file's [input], or else "data" for float32, "none" for bytes.

    OctosimError, naming the argument, for a value that is not of its kind; what is out of range is refused with the run.
    """

    @property
    def selection(self) -> selection.Selection:
        """The rules that choose the trained parameters; OctosimError where one cannot be read."""
        return selection.make(
            self.train, self.freeze, self.train_last, self.update, self.batchnorm_statistics, self.rate, self.channels
        )

    def __post_init__(self) -> None:
        if isinstance(self.accumulator, Accumulator):
            object.__setattr__(self, "accumulator", self.accumulator.text)
        if Method in type(self.method).__mro__:
            object.__setattr__(self, "parameters", methods.plugins.changed_parameters(self.method) | self.parameters)
            object.__setattr__(self, "method", methods.name_of(typing.cast(Method, self.method)))
        for name, kind in kinds().items():
            value = getattr(self, name)
            value = value.item() if isinstance(value, np.generic) else list(value) if isinstance(value, tuple) else value
            value = value.tolist() if isinstance(value, np.ndarray) else value
            if not _is(value, kind, bounded=False):
                expected = _name(kind).replace("null", "None")
                if isinstance(value, str):
                    expected = expected.replace("a string", "a string in UTF-8, without NUL")
                raise OctosimError(f"{name} is '{str(value)[:40]}', expected {expected}")
            object.__setattr__(self, name, value)
        if self.init is None and graph.has_weights(self.model):
            object.__setattr__(self, "init", self.model)


_NAMES = {str: "a string", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


def _is(value: Any, kind: Any, bounded: bool = True) -> bool:
    """Whether a value is of the kind of a field of Config; bounded: and a number that JSON can hold."""
    if kind is Any:  # a method's parameter
        return isinstance(value, bool) or _is(value, str | int | float, bounded)
    if isinstance(kind, types.UnionType):
        return any(_is(value, each, bounded) for each in typing.get_args(kind))
    if kind is type(None):
        return value is None
    if kind is str:
        return isinstance(value, str) and "\0" not in value and value == value.encode(errors="ignore").decode()
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        return number and (not bounded or (abs(value) < 2**64 if isinstance(value, int) else math.isfinite(value)))
    inner = typing.get_args(kind)[-1]
    held = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    return isinstance(value, typing.get_origin(kind)) and all(_is(each, inner, bounded) for each in held)


def _name(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_name(each) for each in typing.get_args(kind))
    return "null" if kind is type(None) else _NAMES[typing.get_origin(kind) or kind]


def from_json(content: Any, where: str) -> Config:
    """The Config whose fields a file holds; OctosimError, beginning with `where`, for other fields or kinds of values."""
    known = {each.name for each in fields(Config)}
    later = {each.name for each in fields(Config) if each.metadata["later"]}
    if not isinstance(content, dict) or set(content) | later != known:
        raise OctosimError(f"{where}: 'config' must have exactly the fields {', '.join(sorted(known))}")
    for name, value in content.items():
        if not _is(value, kinds()[name]):
            raise OctosimError(f"{where}: config.{name} is {str(value)[:40]!r}, expected {_name(kinds()[name])}")
    methods.plugins.admit(content["method"], where)
    return Config(**content)
