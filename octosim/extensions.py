"""What other packages add by entry points: methods, device profiles (modules whose folder holds .toml files) and data."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from typing import Any

from octosim.errors import OctosimError

GROUPS = ("octosim.methods", "octosim.profiles", "octosim.data")


@cache
def entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """The installed entry points of a group by name; none is loaded."""
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def load(group: str, name: str) -> Any:
    """The object of an entry point; OctosimError where it cannot be imported, whatever went wrong."""
    point = entry_points(group)[name]
    try:
        return point.load()
    except Exception as error:  # a plug-in may fail in any way
        raise OctosimError(f"{group} {name} ({point.value}) cannot be imported: {type(error).__name__}: {error}") from None


def loaded(group: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The objects of a group that can be imported, by name, and of the others the reason."""
    found, broken = dict[str, Any](), dict[str, str]()
    for name in entry_points(group):
        try:
            found[name] = load(group, name)
        except OctosimError as error:
            broken[name] = str(error)
    return found, broken
