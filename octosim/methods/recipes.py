"""Recipes: for each method the settings of a run in which all of it acts, with their source (recipes.toml)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, create_model

from octosim import settings
from octosim.errors import OctosimError, suggest
from octosim.schema import Frozen, problems_text
from octosim.textfile import read_toml

FILE = Path(__file__).with_name("recipes.toml")

_fields: dict[str, Any] = {name: (kind, None) for name, kind in settings.kinds().items() if name != "method"}
_Settings: Any = create_model("Settings", __base__=Frozen, **_fields | {"parameters": (dict[str, str | int | float], None)})


class Recipe(Frozen):
    """source: where the settings come from.  wants: what a network must have for the method to act.  like: the recipe whose
    settings these replace."""

    source: str
    wants: str
    like: str = ""
    settings: _Settings = Field(default_factory=_Settings)


@functools.cache
def _all() -> dict[str, Recipe]:
    """Recipes by name; OctosimError where the file is wrong."""
    found = {}
    for name, table in read_toml(FILE, "recipes").items():
        try:
            found[name] = Recipe.model_validate(table)
        except ValidationError as error:
            raise OctosimError(f"{FILE.name}: [{name}] {problems_text(error, Recipe)}") from None
    return found


def names() -> list[str]:
    """The names of the recipes, which are those of their methods."""
    return list(_all())


def find(name: str) -> Recipe:
    """A recipe by its method's name; OctosimError where there is none."""
    if name not in _all():
        raise OctosimError(f"there is no recipe '{name}'" + suggest(name, names()))
    return _all()[name]


def settings_of(name: str) -> dict[str, Any]:
    """The settings of a recipe that differ from a run's defaults, the method included."""
    recipe = find(name)
    inherited = settings_of(recipe.like) if recipe.like else {}
    return inherited | recipe.settings.model_dump(exclude_unset=True) | {"method": name}


def with_recipe(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """A recipe's settings, which given ones replace; of another method than the recipe's its parameters are left out."""
    found = settings_of(name)
    parameters = found.pop("parameters", {}) if given.get("method", name) == name else {}
    found.pop("parameters", None)
    return found | given | {"parameters": parameters | given.get("parameters", {})}


def command(name: str) -> str:
    """The options that `octosim train --recipe` stands for, on one line."""
    parts = []
    for key, value in settings_of(name).items():
        if key == "parameters":
            parts += [f"--set {parameter}={each}" for parameter, each in value.items()]
        elif isinstance(value, bool):
            word = settings.spelling(key)
            parts.append(word if value else word.replace("--", "--no-", 1))
        else:
            parts.append(f"{settings.spelling(key)} {value}")
    return "octosim train " + " ".join(parts)
