"""The words that options take: what a shell completes, and names in any case.

What is known is read when it is asked for: a command line without capital letters costs nothing.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout, suppress
from typing import Any

import typer

DEPTH, MOST_PATHS = 3, 500
"""Folders below the one that is typed in which runs are looked for, and how many are offered."""
BREAKS = "=:"
"""Where bash parts a word in two before it asks for completions."""

# ---- what is known --------------------------------------------------


def _profiles() -> Iterable[str]:
    from octosim import hardware

    return [*hardware.names(), *hardware.aliases()]


def _runtimes() -> Iterable[str]:
    from octosim import hardware

    return [name for runtime in hardware.runtimes() for name in (runtime.name, *runtime.aliases)]


def _devices() -> list[Any]:
    from octosim import hardware

    return [hardware.load(name) for name in hardware.names() if name != "host"]


def _modes() -> Iterable[str]:
    return [mode.name for device in _devices() for mode in device.modes]


def _clusters() -> Iterable[str]:
    return [e.name for device in _devices() if len(device.engines) > 1 for e in device.engines
            if e.kind == "cpu" or e.name == "dla"]  # fmt: skip


def _studies() -> Iterable[str]:
    from octosim import study

    return ["list", *study.shipped()]


def _choices(method: str, parameter: str) -> list[str]:
    """The values of a method's parameter, none where it is a number."""
    from octosim import methods

    told = methods.about(method)["parameters"].get(parameter, {}).get("values", "")
    return {"bool": ["true", "false"], "int": [], "float": [], "str": []}.get(told, told.split(", "))


WORDS: dict[str, tuple[str, ...] | Callable[[], Iterable[str]]] = {
    "models": ("octosim.graph:model_names",),
    "data": ("octosim.data:SOURCES", "octosim.data:ALIASES"),
    "methods": ("octosim.methods:METHODS", "octosim.methods.plugins:entry_points"),
    "recipes": ("octosim.methods.recipes:names",),
    "accumulators": ("octosim.numerics:ACCUMULATORS",),
    "optimizers": ("octosim.engine.optimizers:OPTIMIZERS",),
    "schedules": ("octosim.engine.schedules:SCHEDULES",),
    "augmentations": ("octosim.data.batches:AUGMENTATIONS",),
    "normalizations": ("octosim.train.config:NORMALIZATIONS",),
    "losses": ("octosim.engine.nodes:LOSSES",),
    "updates": ("octosim.engine.selection:UPDATES",),
    "statistics": ("octosim.engine.selection:STATISTICS",),
    "dtypes": ("octosim.hardware:DTYPES", "octosim.workload:SHORT_DTYPES"),
    "formats": ("octosim.evidence.export:KINDS",),
    "requantizations": ("octosim.numerics:Requantization",),
    "roundings": ("octosim.numerics:Rounding",),
    "peers": ("octosim.bench.kernels:PEERS", "octosim.bench.steps:PEERS"),
    "tensors": ("forward", "dx", "dw", "forward_codes", "dx_codes", "dw_codes"),
    "layouts": ("NHWC", "NCHW"),
    "operands": ("random", "corners"),
    "profiles": _profiles, "runtimes": _runtimes, "modes": _modes, "clusters": _clusters, "studies": _studies,
    "lac": functools.partial(_choices, "octo", "lac"), "prc": functools.partial(_choices, "octo", "prc"),
}  # fmt: skip
"""The known words of each kind: a function, or the words, or the collections that hold them, as module:name."""
SETTINGS = {
    "model": "models", "data": "data", "method": "methods", "accumulator": "accumulators", "optimizer": "optimizers",
    "schedule": "schedules", "augment": "augmentations", "normalize": "normalizations", "update": "updates",
    "batchnorm_statistics": "statistics",
}  # fmt: skip
"""The kind of words that a setting takes (octosim.settings)."""


def known(kind: str) -> list[str]:
    places = WORDS[kind]
    if not isinstance(places, tuple):
        return list(dict.fromkeys(places()))
    found: list[str] = []
    for place in places:
        module, there, name = place.partition(":")
        if not there:
            found.append(place)
            continue
        held: Any = getattr(importlib.import_module(module), name)
        found += [getattr(word, "value", word) for word in (held() if isinstance(held, types.FunctionType) else held)]
    return found


def in_known_case(kind: str, text: str) -> str:
    """The known word that a text is, in whatever case it is typed; a path, or what is not known, as it is."""
    if os.path.lexists(text) or text == text.casefold() and kind != "layouts":
        return text
    named = {word.casefold(): word for word in known(kind)}
    return named.get(text.casefold(), text.casefold() if kind == "accumulators" else text)


# ---- options --------------------------------------------------

Completer = Callable[[typer.Context, str], Iterable[str]]
"""Of the words so far and the one that is typed, what that one can be."""


def of(kind: str, several: bool = False) -> dict[str, Any]:
    """Arguments for typer.Option or typer.Argument: the words of a kind are completed, and taken in any case.

    several: words with commas between them.
    """

    def complete(ctx: typer.Context, incomplete: str) -> Iterable[str]:
        """What is typed is kept, in its case: shells drop what does not begin with it."""
        before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
        near = [word for word in known(kind) if word.casefold().startswith(last.casefold())]
        return [before + comma + last + word[len(last) :] for word in near]

    def named(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [named(each) for each in value]
        if not isinstance(value, str):
            return value
        return ",".join(in_known_case(kind, part) for part in (value.split(",") if several else [value]))

    return {"autocompletion": _completion(complete), "callback": named}


def of_setting(name: str) -> dict[str, Any]:
    """The same for a setting."""
    if name in SETTINGS:
        return of(SETTINGS[name])
    found = {"parameters": _parameters, "init": _runs}.get(name)
    return {"autocompletion": _completion(found)} if found else {}


def of_runs(studies: bool = False) -> dict[str, Any]:
    """The same for run directories, and for those of studies."""
    return {"autocompletion": _completion(_runs_and_studies if studies else _runs)}


# ---- completion --------------------------------------------------


def _completion(completer: Completer) -> Callable[..., list[str]]:
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            return sorted({word for word in completer(ctx, incomplete) if word.startswith(incomplete)})
        except Exception:  # a tab gets no error: there is nothing to complete then
            return []

    return complete


def complete_in_bash(app: typer.Typer) -> None:
    """Answers bash, which parts runs/method=octo,seed=0 into five words: joins them, and gives the end that bash asks for."""
    joined: list[str] = []
    at = int(os.environ.get("COMP_CWORD") or 0)
    current, going_on = 0, False
    for number, word in enumerate(os.environ.get("COMP_WORDS", "").split("\n")):
        is_break = bool(word) and not word.strip(BREAKS)
        if joined and (going_on or is_break):
            joined[-1] += word
        else:
            joined.append(word)
        going_on = is_break
        current = len(joined) - 1 if number <= at else current
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(joined), str(current)
    held = joined[current][: max(map(joined[current].rfind, BREAKS)) + 1]
    with redirect_stdout(io.StringIO()) as said, suppress(SystemExit):
        app(prog_name="octosim", standalone_mode=False)
    for line in said.getvalue().splitlines():
        print(line.removeprefix(held))


def _parameters(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """KEY= of the method that is typed before, or KEY=VALUE."""
    from octosim import methods

    method = in_known_case("methods", ctx.params.get("method") or "octo")
    key, equals, _ = incomplete.partition("=")
    if equals:
        return [f"{key}={value}" for value in _choices(method, key)]
    return [f"{key}=" for key in methods.about(method)["parameters"]]


def _folders(incomplete: str, markers: tuple[str, ...]) -> Iterator[str]:
    """Folders that begin with what is typed and hold one of these files."""
    head, slash, tail = incomplete.rpartition("/")
    todo, found = [head + slash + name for name in sorted(os.listdir(head + slash or "."))], 0
    todo = [path for path in todo if path.startswith(incomplete) and (tail or not path.rpartition("/")[2].startswith("."))]
    for _ in range(DEPTH):
        further: list[str] = []
        for path in filter(os.path.isdir, todo):
            held = os.listdir(path)
            if any(marker in held for marker in markers):
                found += 1
                yield path
            if found >= MOST_PATHS:
                return
            if "manifest.json" not in held:
                further += [f"{path}/{name}" for name in sorted(held)[:MOST_PATHS] if not name.startswith(".")]
        todo = further


def run_folders(beginning: str) -> Iterator[str]:
    """Run directories whose paths begin so."""
    return _folders(beginning, ("manifest.json",))


def _runs(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    return run_folders(incomplete)


def _runs_and_studies(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    return _folders(incomplete, ("manifest.json", "study.json"))
