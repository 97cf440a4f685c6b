"""Random calls of the core: a short form of fuzz_core.py, in a process of its own because a fault would end it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_core.py")


def fuzz(*options: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True)
    assert done.returncode == 0 and " 0 wrong" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


def test_nothing_but_core_errors() -> None:
    fuzz("--calls", "3000", "--seed", "1")


@pytest.mark.slow
def test_nothing_but_core_errors_under_sanitizers() -> None:
    fuzz("--calls", "20000", "--seed", "2", "--sanitize")
