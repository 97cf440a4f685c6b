"""The command line, as a process: forked from one that has imported octosim already, which costs a tenth of a new one."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from kit import forked

AT_START = (
    "COLUMNS", "FORCE_COLOR", "GOMP_", "LANG", "LC_", "LD_", "MALLOC", "MKL_", "NO_COLOR", "OCTOSIM_ISA", "OMP_", "OPENBLAS_",
    "PATH", "PYTHON", "TERM",
)  # fmt: skip
"""Variables, by how they begin, that a process reads when it starts or imports its libraries."""
LIMIT = 300
"""Seconds that a command may take."""
VARIABLES = dict(os.environ)


def _early(variables: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in variables.items() if key.startswith(AT_START) and key != "PYTHONPATH"}


@cache
def _server(owner: int) -> subprocess.Popen[str]:
    """The process that forks, one for each process of the tests."""
    process = subprocess.Popen(
        [sys.executable, "-P", forked.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=VARIABLES,
        start_new_session=True,
    )  # fmt: skip
    atexit.register(process.communicate)  # its input ends, and so does it
    return process


def _fork(arguments: tuple[str, ...], folder: Path | None, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    process = _server(os.getpid())
    assert process.stdin and process.stdout
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        paths = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, error)]
        request: dict[str, Any] = {"arguments": arguments, "folder": str(folder or Path.cwd()), "variables": variables}
        process.stdin.write(json.dumps(request | {"paths": paths, "limit": LIMIT}) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        texts = []
        for file in (out, error):
            file.seek(0)
            texts.append(file.read().decode().replace("\r\n", "\n").replace("\r", "\n"))
    return subprocess.CompletedProcess(["octosim", *arguments], code, *texts)


def octosim(*arguments: str, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder with these environment variables."""
    whole = dict(os.environ) | variables
    if sys.platform == "linux" and _early(whole) == _early(VARIABLES):
        return _fork(arguments, folder, whole)
    return subprocess.run(
        [sys.executable, "-m", "octosim.cli", *arguments],
        capture_output=True, text=True, cwd=folder, env=whole, timeout=LIMIT,
    )  # fmt: skip
