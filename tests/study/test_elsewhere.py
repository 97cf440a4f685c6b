"""Systems without Unix's own modules: everything imports, and a run trains, stops and is verified."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

UNIX = ("fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty", "pty")
BLOCKED = f"""
import sys
for name in {UNIX}:
    sys.modules[name] = None  # an import raises ModuleNotFoundError
"""
EVERYTHING = """
import importlib, pkgutil
import octosim
for module in pkgutil.walk_packages(octosim.__path__, "octosim."):
    if module.name.rpartition(".")[2] not in ("__main__", "_core"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name in UNIX:
                raise
"""
TRAIN = """
import types
from pathlib import Path
locked = []
windows = types.ModuleType("msvcrt")  # what Windows has in place of fcntl
windows.LK_LOCK, windows.LK_NBLCK, windows.LK_UNLCK = 1, 2, 0
windows.locking = lambda fd, mode, size: locked.append(mode)
sys.modules["msvcrt"] = windows
from octosim import train
folder = Path(sys.argv[1])
run = train.create(train.Config(model="mlp", batch_size=20, steps=3), folder, "test")
assert train.train(run, folder)
assert train.verify(folder).equal and locked
"""


def python(code: str, *arguments: str) -> None:
    command = [sys.executable, "-c", BLOCKED + code.replace("UNIX", repr(UNIX)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", ["import octosim.study", "import octosim.cli.app", EVERYTHING], ids=["study", "cli", "all"])
def test_imports(code: str) -> None:
    python(code)


def test_a_run(tmp_path: Path) -> None:
    python(TRAIN, str(tmp_path / "run"))


def test_the_modules_are_blocked() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED + "import fcntl"], capture_output=True, text=True)
    assert "ModuleNotFoundError" in done.stderr
