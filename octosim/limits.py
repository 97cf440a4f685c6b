"""What the system lets this process use of the machine: CPUs and memory, by affinity and control groups (versions 1 and 2)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

UNLIMITED = 1 << 60
"""Bytes from which a limit of version 1 means none."""


def cpus(root: str | os.PathLike[str] = "/") -> int:
    """CPUs that this process may keep busy: by its affinity and by the quota of its control groups, rounded up; at least 1.

    root: the root of the file system; another one for tests, with proc/self/cgroup, proc/self/mountinfo and sys/fs/cgroup.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = quota(root)
    return affinity if allowed is None else max(1, min(affinity, math.ceil(allowed)))


def quota(root: str | os.PathLike[str] = "/") -> float | None:
    """CPUs that the control groups of this process allow it to keep busy; None where they set no quota."""
    return min(_quotas(Path(root)), default=None)


def memory(root: str | os.PathLike[str] = "/") -> int | None:
    """Bytes that the control groups of this process allow it; None where they set no limit."""
    limits = [_number(folder / name) for folder, name in _files(Path(root), "memory", "memory.max", "memory.limit_in_bytes")]
    return min((limit for limit in limits if limit is not None and limit < UNLIMITED), default=None)


def usable(root: str | os.PathLike[str] = "/") -> int | None:
    """Bytes of memory and swap that this process may fill: all of the machine's, or what its control groups allow."""
    found = re.findall(r"^(?:MemTotal|SwapTotal):\s*(\d+) kB", _text(Path(root) / "proc/meminfo"), re.MULTILINE)
    machine = 1024 * sum(map(int, found)) if found else None
    return min((limit for limit in (machine, memory(root)) if limit), default=None)


def _quotas(root: Path) -> Iterator[float]:
    """CPUs of each group that has a quota."""
    for folder, name in _files(root, "cpu", "cpu.max", "cpu.cfs_quota_us"):
        if name == "cpu.max":
            quota, _, period = _text(folder / name).partition(" ")
        else:
            quota, period = _text(folder / name), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0 and int(quota) > 0:
            yield int(quota) / int(period)


def _files(root: Path, controller: str, second: str, first: str) -> Iterator[tuple[Path, str]]:
    """The folder of each control group that this process is in, from its own up to the mounted one, and the name of its file:
    `second` of version 2, `first` of version 1."""
    mounts = list(_mounts(root))
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        unified = number == "0" and not controllers
        if not unified and controller not in controllers.split(","):
            continue
        for at, top, options in mounts:
            if unified != (options is None) or (options is not None and controller not in options):
                continue
            inside = path.removeprefix(top) if path == top or path.startswith(top.rstrip("/") + "/") else ""
            folder = at / inside.strip("/")
            while True:
                yield folder, second if unified else first
                if folder == at:
                    break
                folder = folder.parent


def _mounts(root: Path) -> Iterator[tuple[Path, str, set[str] | None]]:
    """Where control groups are mounted, the group that is mounted there, and the controllers of version 1 (None: version 2)."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) >= 5 and len(kinds) >= 3 and kinds[0] in ("cgroup", "cgroup2"):
            place = fields[4].encode().decode("unicode_escape").lstrip("/")
            yield root / place, fields[3], None if kinds[0] == "cgroup2" else set(kinds[2].split(","))


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """A file's text without blanks around it; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except (OSError, ValueError):
        return ""
