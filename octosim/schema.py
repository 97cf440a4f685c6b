"""What the models of files share: a strict base, common types, and validation errors in plain words."""

from __future__ import annotations

import difflib
import re
import reprlib
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Frozen(BaseModel):
    """Unknown fields are refused, nothing is converted, nothing changes later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, defer_build=True)


MOST_PROBLEMS = 20
"""Problems of a file that one sentence names."""


def problems_text(error: ValidationError, root: type[BaseModel]) -> str:
    """The problems of a file of `root`, a clause each, the most telling first."""
    problems = error.errors()
    extras = [p for p in problems if p["type"] == "extra_forbidden"]
    # A misspelt field is reported twice, as unknown and as missing: keep the first, which names the mistake.
    meant = {(*p["loc"][:-1], _suggestion(root, p["loc"])) for p in extras}
    problems = extras + [
        p for p in problems if p["type"] != "extra_forbidden" and not (p["type"] == "missing" and p["loc"] in meant)
    ]
    told = list(dict.fromkeys(_describe(root, dict(problem)) for problem in problems))
    more = len(told) - MOST_PROBLEMS
    return "; ".join(told[:MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def _describe(root: type[BaseModel], problem: dict[str, Any]) -> str:
    loc, kind, given = problem["loc"], problem["type"], reprlib.repr(problem["input"])
    field, limits = _dotted(loc), problem.get("ctx", {})
    if loc[-2:] == (problem["input"], "[key]"):  # pydantic's sign for a table's key, in place of its value
        return f"field {_dotted(loc[:-2])} has the key {given}, expected {wanted(problem)}"
    if kind == "extra_forbidden":
        hint = _suggestion(root, loc)
        return f"unknown field {field}" + (f", did you mean {hint}?" if hint else "")
    if kind == "missing":
        if loc[-1] == "source":
            return f"field {field} is missing: every number needs a source"
        return f"field {field} is missing, expected {_expected(root, loc)}"
    if kind in ("model_type", "model_attributes_type"):
        return f"field {field} is {given}, expected {_expected(root, loc)}"
    if kind == "value_error":
        return f"field {field} {limits['error']}" if field else str(limits["error"])
    return f"field {field} is {given}, expected {wanted(problem)}"


def wanted(problem: Mapping[str, Any]) -> str:
    """What pydantic expected, in plain words, as "a whole number"; problem: one of a ValidationError's `errors()`."""
    kind, limits = problem["type"], problem.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return "words, not blanks" if limits["pattern"] == r"\S" else "lower-case letters, digits and hyphens"
    return {
        "greater_than": "a number greater than {gt:g}",
        "greater_than_equal": "a number of at least {ge:g}",
        "less_than_equal": "a number of at most {le:g}",
        "finite_number": "a finite number",
        "float_type": "a number",
        "float_parsing": "a number",
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_parsing_size": "a whole number of fewer digits",
        "int_from_float": "a whole number",
        "string_type": "text",
        "string_too_short": "text that is not empty",
        "bool_type": "true or false",
        "bool_parsing": "true or false",
        "literal_error": "{expected}",
        "tuple_type": "a list",
        "list_type": "a list",
        "dict_type": "a table",
        "too_short": "at least {min_length}",
    }.get(kind, str(problem["msg"]).replace("{", "{{").replace("}", "}}")).format(**limits)


def _dotted(loc: tuple[int | str, ...]) -> str:
    """engines[0].clock_ghz; a key that TOML would have to quote (it may hold a line break) is quoted."""
    keys = [part if isinstance(part, int) or re.fullmatch(r"[\w-]{1,60}", part) else reprlib.repr(part) for part in loc]
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model class inside an annotation such as `tuple[Engine, ...]` or `Figure | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_model_in, typing.get_args(annotation)) if m is not None), None)


def _model_at(root: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = root
    for part in loc:
        if isinstance(part, str):
            model = _model_in(model.model_fields[part].annotation) if model and part in model.model_fields else None
    return model


def _suggestion(root: type[BaseModel], loc: tuple[int | str, ...]) -> str | None:
    model = _model_at(root, loc[:-1])
    close = difflib.get_close_matches(str(loc[-1]), list(model.model_fields) if model else [], n=1)
    return close[0] if close else None


def _expected(root: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    model = _model_at(root, loc)
    if model is None:
        return "a value"
    required = [name for name, info in model.model_fields.items() if info.is_required()]
    if required == ["value", "kind", "source"]:
        return "a table { value, kind, source }"
    return f"a table with {', '.join(required)}" if required else "a table"
