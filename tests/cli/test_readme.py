"""What the README shows is what the program takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).resolve().parents[2] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
BLOCKS = "".join(re.findall(r"```\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = sorted(
    set(re.findall(r"^octosim [a-z].*$", BLOCKS, re.MULTILINE)) | set(re.findall(r"`(octosim [a-z][^`|]*)`", TEXT))
)


def test_there_is_something_to_test() -> None:
    assert PYTHON and len(COMMANDS) >= 8


@pytest.mark.parametrize("code", PYTHON)
def test_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_their_options_exist(command: str) -> None:
    words = command.split()[1:]
    names = words[:2] if words[0] in ("profiles", "data") else words[:1]
    done = subprocess.run([sys.executable, "-m", "octosim.cli", *names, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for option in re.findall(r"--?[a-z][a-z-]*", " ".join(words[len(names) :])):
        assert option in done.stdout, f"{option} is no option of octosim {' '.join(names)}"
