"""A reader of the documentation, who types its commands: blocks of a page, commands of all pages, smaller settings for tests.

A page that is a walk (tutorial.md, tasks/*.md) is read in one folder from its start to its end: blocks with a title are files,
those of `python` are run, and of the others every line that is a command.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
WALKS = [DOCS / "tutorial.md", *sorted((DOCS / "tasks").glob("*.md"))]
PAGES = [ROOT / "README.md", *sorted(set(DOCS.rglob("*.md")) - set(WALKS)), *sorted(ROOT.glob("reports/*/README.md"))]
RUN = ("octosim ", "cc ", "./")
"""How a line begins that is a command; others (pip, make, cd) change the machine or the folder."""

SMALL = [  # what of a command is made small, in this order
    (r"--data (mnist|cifar10)\b", "--data fashion-mnist-5k"),
    (r"--epochs (3|4|5|15|20)\b", "--steps 6"),
    (r"--steps (100|200|400|800|1200)\b", "--steps 6"),
    (r"--model resnet20 --data photos", "--model lenet5 --data photos"),
    (r"--step (100|11)\b", "--step 4"),
    (r"--step 10\b", "--step 4"),
    (r"--(measure|count-overflow|eval-every) (20|50)\b", r"--\1 2"),
    (r"--seconds 3", "--seconds 0.2"),
    (r"^octosim train (?!.*(--steps|--resume|--epochs))", "octosim train --steps 6 "),
    (r"^octosim train (?!.*(--model|--resume))", "octosim train --model lenet5 "),
    (r"^octosim train (?!.*(--resume|--batch-size))", "octosim train --batch-size 20 "),
    (r"^octosim train (?!.*--resume)(.*) --batch-size (?!20\b|4\b)\d+", r"octosim train \1 --batch-size 20"),
    (r"studies/rounding", "runs"),
    (r"^octosim bench (?!.*--seconds)", "octosim bench --seconds 0.2 "),
    (r",?(onnxruntime|apytypes)", ""),
]
SMALL_FILES = [(r"\b(epochs) = \d+", "steps = 4"), (r"\bsteps = \d+", "steps = 4"), (r"batch_size = \d+", "batch_size = 20")]
"""The same of files and of Python on a page."""


@dataclass(frozen=True)
class Block:
    """A fenced block.  language: "" if none is named; title: the file that it is, "" if it is run."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```[ ]*(\w*)(?: title=\"(.*?)\")?\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(*each) for each in found]


def lines(text: str) -> list[str]:
    """The commands of a block: continued lines joined, without the remarks behind two spaces."""
    text = re.sub(r"\s*\\\n\s*", " ", text)
    text = re.sub(r"(?<=\S) {2,3}(?=--)|\n +(?=--)", " ", text)
    return [re.split(r" {2,}", line)[0].strip() for line in text.splitlines() if line.startswith(RUN)]


def commands(page: Path) -> list[str]:
    """Every octosim command of a page, in its blocks and its lines."""
    text = page.read_text()
    inline = re.findall(r"`(octosim (?:--plugin |[a-z])[^`|]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    inline = [" ".join(each.split()) for each in inline]
    return sorted({line for b in blocks(page) for line in lines(b.text) if line.startswith("octosim ")} | set(inline))


def small(command: str, table: list[tuple[str, str]] = SMALL) -> str:
    for pattern, replacement in table:
        command = re.sub(pattern, replacement, command)
    return command


def parse(command: str) -> None:
    """Parses a command without running it: AssertionError with the parser's sentence where it would be refused."""
    import typer

    from octosim.cli.app import app

    group, words = typer.main.get_command(app), shlex.split(command)[1:]
    name = "octosim"
    if words[:1] == ["--plugin"]:  # of octosim itself; the command follows
        words = words[2:]
    while words and words[0] in getattr(group, "commands", {}):
        name, group = words[0], group.commands[words[0]]
        words = words[1:]
    assert name != "octosim" or not words or words[0].startswith("-"), f"{command}: there is no command {words[:1]}"
    try:
        group.make_context(name, words)
    except typer.Exit:
        pass  # --help, or a group by itself
    except Exception as error:
        named = type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError") and "--" not in command
        named |= "requires an argument" in str(error) and command.split()[-1].startswith("--")  # "`octosim bench --against`"
        assert named, f"{command}: {error}"


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def octosim(command: str) -> tuple[int, str]:
    """Runs a command in this process: its exit code, and what it printed."""
    from octosim import cli, core

    out, argv, state = io.StringIO(), sys.argv, (core.threads(), core.isa())
    sys.argv = shlex.split(command)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = cli._run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        sys.argv = argv
        core.set_threads(state[0])
        core.set_isa(state[1])
    return code, out.getvalue()


def walk(page: Path, folder: Path, reduced: bool = True) -> str:
    """Reads a page in a folder: AssertionError at the first command that fails.  Returns what was printed.

    A line `octosim diff` or `octosim check` may end with 1: it compares.
    """
    told, names = "", dict[str, Any](__name__="__page__")
    with inside(folder):
        for block in blocks(page):
            text = small(block.text, SMALL_FILES) if reduced and block.language != "" else block.text
            if block.title:
                Path(block.title).parent.mkdir(parents=True, exist_ok=True)
                Path(block.title).write_text(text)
            elif block.language == "python":
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(text, f"{page.name}, python", "exec"), names)
                told += out.getvalue()
            elif block.language in ("", "sh"):
                for path in re.findall(r"^export PYTHONPATH=(\S+)", block.text, re.MULTILINE):
                    sys.path.insert(0, str(Path(path).resolve()))
                for line in lines(block.text):
                    line = small(line) if reduced else line
                    code, said = octosim(line) if line.startswith("octosim ") else _shell(line)
                    accepted = (0, 1) if line.startswith(("octosim diff", "octosim check")) else (0,)
                    assert code in accepted, f"{page.name}: {line}\n{said}"
                    told += f"$ {line}\n{said}"
    return told


def _shell(line: str) -> tuple[int, str]:
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def pictures(page: Path) -> list[str]:
    """The pictures that a page shows."""
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
