"""What the commands share: consoles, options, and numbers for people."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from octosim.errors import OctosimError

# Where there is no terminal to fit (a file, a pipe), tables keep their full width.
out_console = Console(width=None if sys.stdout.isatty() else 160)
err_console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)

Threads = Annotated[Optional[int], typer.Option(help="Threads of the kernels; all cores if not given.")]  # noqa: UP045
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

MODEL = typer.Option(
    help="Network: simplecnn, lenet5, mlp, alexnet, vgg11, vgg-small-7, resnet20, mobilenet, or a model file, .toml."
)


def command_line() -> str:
    """The command as the user typed it, for manifests."""
    return shlex.join(["octosim", *sys.argv[1:]])


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def time_text(value: float | None) -> str:
    """A time for people: three digits and a unit."""
    if value is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def count_text(value: float) -> str:
    """A count for people: three digits and k, M or G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def progress_bar() -> Progress:
    """A progress bar on standard error, off when that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err_console, disable=not err_console.is_terminal, transient=True)


def use_threads(threads: int | None) -> None:
    if threads is not None:
        from octosim import core

        core.set_threads(threads)


def parameters(settings: list[str], **named: str | None) -> dict[str, Any]:
    """--set key=value and the switches that stand for one."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise OctosimError(f"--set takes KEY=VALUE, not '{setting}'")
        found[key.replace("-", "_")] = value
    for key, given in named.items():
        if given is not None:
            found[key] = given
    return found
