"""The command line, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def octosim(*arguments: str, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "octosim.cli", *arguments],
        capture_output=True, text=True, cwd=folder, env=os.environ | variables, timeout=300,
    )  # fmt: skip
