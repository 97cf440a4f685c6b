"""What the commands share: consoles, options, and numbers for people.

All output goes through `out_console`, `err_console`, `say` and `hint`.  They print names, paths and titles as they are: rich's
markup is off, and what a terminal would obey is shown as an escape.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import sys
import time
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.text import Text

from octosim.errors import OctosimError

if TYPE_CHECKING:
    from rich.progress import Progress

PIPE_WIDTH = 160
"""Columns of tables where there is no terminal to fit (a file, a pipe) and COLUMNS is not set."""
FIRST_S = 3.0
"""Seconds of work after which its end is estimated."""
WORTH_S = 10.0
"""Seconds that must be left for the estimate to be said."""
LONGEST = 2000
"""Characters of a sentence; the middle of a longer one is left out."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, line ends and marks that turn the direction of writing; and what stands for bytes that are not UTF-8."""


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else match[0].encode("unicode_escape").decode()


def plain(value: object) -> str:
    """Text on one line that no terminal takes for a command: control characters as \\n, \\x1b, other bytes as \\xff."""
    return _CONTROL.sub(_escape, str(value))


def sentence_text(sentence: str) -> str:
    """An error's sentence as it is printed: on one line, of at most LONGEST characters."""
    text = plain(" ".join(sentence.split()))
    half = LONGEST // 2 - 3
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


def shell_word(value: object) -> str:
    """A path as a word that can be typed into a shell."""
    text = str(value)
    if plain(text) == text:
        return shlex.quote(text)
    return "$'" + _CONTROL.sub(_shell_bytes, re.sub(r"[\\']", r"\\\g<0>", text)) + "'"


def _shell_bytes(match: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(match[0]))


class _PlainConsole(Console):
    """Strings are text: no markup, no emoji codes, no highlighting, no control characters."""

    def __init__(self, stderr: bool) -> None:
        stream = sys.stderr if stderr else sys.stdout
        terminal = stream is not None and stream.isatty()
        width = None if terminal or os.environ.get("COLUMNS") else PIPE_WIDTH
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **options)


out_console = _PlainConsole(stderr=False)
err_console = _PlainConsole(stderr=True)


def say(text: object) -> None:
    """Prints a line to standard output, never broken."""
    out_console.print(str(text), soft_wrap=True)


def hint(text: object) -> None:
    """Prints a line to standard error, never broken."""
    err_console.print(str(text), soft_wrap=True)


Threads = Annotated[Optional[int], typer.Option(help="Threads of the kernels; all cores if not given.")]  # noqa: UP045
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

def command_line() -> str:
    """The command as the user typed it, for manifests."""
    return shlex.join(["octosim", *sys.argv[1:]])


def print_json(value: Any) -> None:
    print_text(json.dumps(value, indent=2))


def print_text(text: str) -> None:
    """Prints lines as they are, such as a file's."""
    sys.stdout.write(text + "\n")


def plural(count: int, noun: str, nouns: str = "") -> str:
    """A count and its noun: 1 step, 2 steps, 0 benches."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def time_text(value: float | None) -> str:
    """A time for people: three digits and a unit."""
    if value is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def duration_text(seconds: float) -> str:
    """A time to wait for people: 40 s, 12 min, 3.4 h, 2.1 days."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 129600)):
        if seconds < most:
            return f"{seconds / size:.1f} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def count_text(value: float) -> str:
    """A count for people: three digits and k, M or G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def check_output(option: str, path: Path | None, *suffixes: str) -> None:
    """Refuses, before the work, a file that could not be written after it.  suffixes: those that the writer knows."""
    if path is None:
        return
    try:
        if os.path.isdir(path):
            raise OctosimError(f"{option} {path} is a folder, expected a file's name")
        if suffixes and path.suffix.lower() not in suffixes:
            raise OctosimError(f"{option} {path}: the name must end in {' or '.join(suffixes)}")
        if not os.path.exists(path):
            path = path.parent
            if not os.path.isdir(path):
                raise OctosimError(f"{option}: there is no folder {path} to write in")
        elif path.is_file():
            path = Path(os.path.realpath(path)).parent  # files are replaced as a whole
        if not os.access(path, os.W_OK):
            raise OctosimError(f"{option}: {path} is not writable")
    except (OSError, ValueError) as error:
        raise OctosimError(f"{option} {path}: {getattr(error, 'strerror', None) or error}") from None


def clock(seconds: float) -> str:
    """The time of day in so many seconds, with the day where it is another."""
    then, today = time.localtime(time.time() + seconds), time.localtime()
    return time.strftime("at %H:%M" if then[:3] == today[:3] else "on %a %d %b at %H:%M", then)


class Estimate:
    """Is told how far a command is: says once, after the first seconds, when it will end.

    first: how far it is at the beginning.  unit: what is counted, whose time is said as well.  part: which part of the
    command it is about, where it is not about the whole.
    """

    def __init__(self, first: float = 0.0, unit: str = "", part: str = "") -> None:
        self._first, self._unit, self._part, self._start = first, unit, part, time.monotonic()
        self._warm = self._told = False

    def __call__(self, done: float, total: float) -> None:
        if self._told:
            return
        now = time.monotonic()
        if not self._warm:  # the first step is slower: files are read, memory is taken, calls are written down or compiled
            self._warm, self._start, self._first = True, now, done
        elif now - self._start >= FIRST_S and done > self._first:
            self._told = True
            each = (now - self._start) / (done - self._first)
            left = (total - done) * each
            if left >= WORTH_S:
                paced = f"{time_text(each)} a {self._unit}: " if self._unit else ""
                part = f"{self._part} " if self._part else ""
                hint(f"{paced}{part}ends {clock(left)} (about {duration_text(left)} left)")


@contextmanager
def progress(text: str, quiet: bool = False) -> Iterator[Callable[[float, float], None]]:
    """A progress bar, and an Estimate unless quiet; the function that it gives takes how much is done and of how much."""
    estimate = Estimate(part=text)
    with progress_bar() as bar:
        task = bar.add_task(text, total=None)

        def follow(done: float, total: float) -> None:
            bar.update(task, completed=done, total=total)
            if not quiet:
                estimate(done, total)

        yield follow


def progress_bar() -> Progress:
    """A progress bar on standard error, off when that is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # a tenth of a start

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err_console, disable=not err_console.is_terminal, transient=True)


def use_threads(threads: int | None) -> None:
    if threads is not None:
        from octosim import core, limits

        try:
            core.set_threads(threads)
        except OctosimError as error:  # whose sentence begins with the argument's name
            raise OctosimError(f"--{error}") from None
        usable = limits.cpus()
        if threads > usable:
            hint(f"--threads {threads}: this process may use {plural(usable, 'processor')}; more threads wait for each other")


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


def parameters_of(command: Callable[..., None]) -> list[inspect.Parameter]:
    """A command's parameters, by keyword, with their annotations as objects."""
    hints = typing.get_type_hints(command, include_extras=True)
    every = inspect.signature(command).parameters.values()
    return [each.replace(annotation=hints[each.name], kind=each.KEYWORD_ONLY) for each in every]


def with_parameters(run: Callable[..., None], every: Iterable[inspect.Parameter]) -> Callable[..., None]:
    """The function, with these parameters for typer to make options of."""
    held = list(every)
    run.__signature__ = inspect.signature(run).replace(parameters=held)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in held} | {"return": types.NoneType}
    return run


def is_typed(ctx: typer.Context, option: str) -> bool:
    """Whether an option was given, not left at its default."""
    source = ctx.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"
