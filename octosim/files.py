"""Files of every command: atomic writes, and what a record says about the machine."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from octosim.errors import OctosimError


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces a file as a whole; OctosimError where the disk is full or the folder is not writable."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OctosimError(f"cannot write {path}: {error.strerror}") from None


def environment(isa: str, threads: int) -> dict[str, Any]:
    """The machine and the software around, on which no bit of a run depends.  isa, threads: those of the core."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))), cpu)
    except OSError:
        pass
    return {
        "cpu": cpu,
        "isa": isa,
        "threads": threads,
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "platform": platform.platform(terse=True),
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
