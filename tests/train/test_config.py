"""A configuration is data: whoever makes one in Python is told at once of an argument of another kind."""

import dataclasses

import numpy as np
import pytest

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
