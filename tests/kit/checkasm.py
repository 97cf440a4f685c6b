"""The C core's own test program: its sources, and what it says."""

from __future__ import annotations

import subprocess
from pathlib import Path

CEXT = Path(__file__).resolve().parents[2] / "cext"
SOURCES = sorted(str(path) for path in CEXT.glob("*.c"))


def passed(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of a run that checked something and found nothing wrong; an AssertionError of any other."""
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("checkasm: ") and lines[-1].endswith(" 0 failed") and not lines[-1].startswith("checkasm: 0 ")
    return lines
