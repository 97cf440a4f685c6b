"""The first page (octosim.cli.first_page): the words of the commands' own pages, without reading a command."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from typing import Any

import pytest
import typer.testing
from kit.cli import octosim

from octosim.cli.app import app, build
from octosim.cli.commands import NAMES, OPTIONS, PANELS, SUMMARY

GROUP: Any = typer.main.get_command(app)


def words(text: str) -> str:
    """A page's words, without its lines and borders."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def first_paragraph(command: Any) -> str:
    return " ".join(inspect.cleandoc(command.help).split("\n\n")[0].split())


def test_the_table_says_what_the_commands_say() -> None:
    assert GROUP.help == SUMMARY and set(GROUP.commands) == NAMES
    for panel, commands in PANELS.items():
        for name, (_, summary) in commands.items():
            command = GROUP.commands[name]
            assert command.rich_help_panel == panel and first_paragraph(command) == " ".join(summary.split()), name
    options = {each.opts[0]: each for each in GROUP.get_params(typer.Context(GROUP))}
    assert {name: each.help for name, each in options.items()} == {name: help for name, (_, help) in OPTIONS.items()}


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_page_has_typers_words_in_typers_order(width: int) -> None:
    shown = octosim("--help", COLUMNS=str(width))
    typers = typer.testing.CliRunner().invoke(app, ["--help"], env={"COLUMNS": "1000"}).output
    assert shown.returncode == 0 and not shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= width
    rest = words(typers)
    for commands in PANELS.values():
        for name, (_, summary) in commands.items():
            before, found, rest = rest.partition(f" {name} {words(summary)}")
            assert found, name
    wide = octosim("--help", COLUMNS="1000")
    assert words(wide.stdout).split() == [word for word in words(typers).split() if word not in ("<bool>", "BOOLEAN")]


def test_without_a_command_the_page_is_a_mistake_in_the_command_line() -> None:
    shown = octosim()
    assert shown.returncode == 2 and "Usage: octosim" in shown.stdout


def test_a_command_alone_is_the_same_as_among_the_others() -> None:
    for name in NAMES:
        alone: Any = typer.main.get_command(build(name))
        assert list(alone.commands) == [name]
        told = [[(each.name, each.opts) for each in group.commands[name].params] for group in (alone, GROUP)]
        assert told[0] == told[1]


def test_the_page_reads_no_command() -> None:
    code = "import sys; sys.argv = ['octosim', '--help']\nfrom octosim.cli import _run; _run()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert "octosim.cli.first_page" in loaded and not {"typer", "numpy", "octosim.settings", "octosim.cli.app"} & set(loaded)
