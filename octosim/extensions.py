"""What other packages add: methods, layers, device profiles (modules whose folder holds .toml files) and data, by entry points;
methods and layers by an import path, module:Class, too."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import inspect
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octosim.errors import OctosimError

if TYPE_CHECKING:
    import importlib.metadata

GROUPS = ("octosim.methods", "octosim.layers", "octosim.profiles", "octosim.data")


@cache
def entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """The installed entry points of a group by name; none is loaded."""
    import importlib.metadata  # takes as long as a tenth of all that a price needs

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


# ---- by an import path --------------------------------------------------


def is_path(name: str) -> bool:
    """Whether a name is an import path, module:Class."""
    return ":" in name


def top_of(path: str) -> str:
    """The package, or the module, that an import path lies in."""
    return path.partition(":")[0].partition(".")[0]


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Which installed distributions have a top module; reading the metadata of all takes half a second."""
    import importlib.metadata

    return importlib.metadata.packages_distributions()


def at_path(what: str, name: str) -> Any:
    """The object of an import path; OctosimError where it cannot be imported.  what: "method" or "layer", for sentences.

    Modules are found as Python finds them, and in the current folder.  A name out of a file has to pass `admit` before.
    """
    module_name, _, qualified = name.partition(":")
    top, here = top_of(name), os.getcwd()
    if here not in sys.path and not _is_installed(top):
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in qualified.split("."):
            found = getattr(found, part)
    except Exception as error:  # a plug-in may fail in any way
        raise OctosimError(f"{what} {name} cannot be imported: {type(error).__name__}: {error}") from None
    if not _is_installed(top):
        trust(top)  # who asked for it once, by --method or --layer, need not ask again: a study's processes read its runs
    return found


TRUSTED = "OCTOSIM_PLUGINS"
"""The environment variable with the modules that may be imported from anywhere, with commas between them."""


def trust(module: str) -> None:
    """Lets files name methods and layers of this module or package, wherever Python finds it, in this process and in those that
    it starts."""
    os.environ[TRUSTED] = ",".join(dict.fromkeys([*trusted(), module]))


def trusted() -> list[str]:
    """The modules that may be imported from anywhere."""
    return [module for module in os.environ.get(TRUSTED, "").split(",") if module]


def _is_installed(top: str) -> bool:
    """Whether Python finds a module or package elsewhere than in the current folder; it is not imported."""
    here = os.path.realpath(os.getcwd())
    elsewhere = [folder for folder in sys.path if folder and os.path.realpath(folder) != here]
    try:
        found = importlib.machinery.PathFinder.find_spec(top, elsewhere)
    except (ImportError, ValueError):
        found = None
    return found is not None or top in _distributions()  # those are editable installations


def admit(what: str, name: Any, where: str) -> None:
    """OctosimError, beginning with `where`, where a file names a method or a layer whose code lies in the current folder only
    and nobody asked for it: such a file may come from a stranger."""
    if not isinstance(name, str) or not is_path(name):
        return
    module, top = name.partition(":")[0], top_of(name)
    if {module, top} & set(trusted()) or module in sys.modules or _is_installed(top):
        return
    raise OctosimError(
        f"{where}: {what} {name} is code that is not installed; if it is yours, set {TRUSTED}={top} in the environment, "
        "and it is imported from the current folder"
    )


def path_of(what: str, cls: type[Any]) -> str:
    """The import path of a class; OctosimError where no other process could import it by that."""
    if "<locals>" in cls.__qualname__:
        raise OctosimError(f"{what} {cls.__qualname__}: define the class at the top of a module, where it can be imported from")
    return f"{cls.__module__}:{cls.__qualname__}"


def identity(cls: type[Any]) -> dict[str, Any]:
    """What a manifest says of a class's code: {} of octosim's own, else its package, that package's version and the SHA-256
    of its source.

    The source is the Python files of the top package, in the order of their paths, or the one module; of a class without a file
    (a notebook's cell) its own text.
    """
    top = top_of(cls.__module__)
    if top == "octosim":
        return {}
    import importlib.metadata

    package = _distributions().get(top, [top])[0]
    try:
        version: str | None = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = getattr(sys.modules.get(top), "__version__", None)
    return {"plugin": {"package": package, "version": version and str(version), "sha256": _source_digest(cls, top)}}


def _source_digest(cls: type[Any], top: str) -> str | None:
    """SHA-256 of a class's source, None where there is none."""
    total = hashlib.sha256()
    module = sys.modules.get(top)
    folders = [Path(folder) for folder in getattr(module, "__path__", [])]
    try:
        if folders:
            for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
                total.update(path.name.encode() + b"\n" + path.read_bytes())
        elif getattr(module, "__file__", None) and top != "__main__":
            total.update(Path(inspect.getsourcefile(cls) or "").read_bytes())
        else:
            total.update(inspect.getsource(cls).encode())
    except (OSError, TypeError):
        return None
    return total.hexdigest()
