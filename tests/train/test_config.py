"""A configuration is data: whoever makes one in Python is told at once of an argument of another kind."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octosim import train
from octosim.errors import OctosimError
from octosim.train import Config

TYPES = {"str": str, "bool": bool, "int": int, "float": (int, float), "None": type(None), "list[float]": list,
         "list[str]": list,
         "dict[str, Any]": dict}  # fmt: skip
VALUES = ["text", True, 3, 1.5, None, [0.5], {}, b"x", object, {1}, "no", [[]], ["a"], {"a": []}]
NESTED = ([[]], ["a"], {"a": []})
TEXTS = {"list[str]": (["a"],)}
"""Lists that only some kinds take."""


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_kinds(field: dataclasses.Field, value: object) -> None:
    allowed = [TYPES[part] for part in str(field.type).split(" | ")]
    fits = any(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) for kind in allowed)
    if fits and str(field.type) in TEXTS:
        fits = all(isinstance(each, str) for each in value)
    if fits and (value not in NESTED or value in TEXTS.get(str(field.type), ())):
        assert getattr(Config(**{field.name: value}), field.name) == value
    else:
        with pytest.raises(OctosimError, match=f"^{field.name} is .*, expected "):
            Config(**{field.name: value})


@pytest.mark.parametrize(("given", "kept"), [({"seed": np.int64(3)}, 3), ({"lr": np.float32(0.5)}, 0.5),
                                             ({"milestones": (0.5, 0.75)}, [0.5, 0.75])])
def test_what_python_has_of_its_own(given: dict, kept: object) -> None:
    (value,) = (getattr(Config(**given), name) for name in given)
    assert value == kept and type(value) is type(kept)


@pytest.mark.parametrize("change", [{"limit": 0}, {"limit": -1}, {"test_share": 0.0}, {"test_share": 1.0}], ids=str)
def test_a_zero_is_told_to_the_data(change: dict[str, Any], tmp_path: Path) -> None:
    x, y = np.zeros((8, 4, 4, 1), np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y)
    with pytest.raises(OctosimError, match=f"{next(iter(change))} must be"):
        train.Run(Config(model="mlp", data=str(tmp_path / "mine.npz"), **change))
