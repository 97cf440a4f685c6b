"""`octosim show-env`: what octosim detects on this machine, and why not where something is missing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import octosim
from octosim.cli.tables import Table
from octosim.cli.terminal import AsJson, print_json

REQUIRED = ("numpy", "cffi", "pandas", "matplotlib", "pydantic", "safetensors", "typer", "rich")
OPTIONAL = {"torch": "peers", "onnx": "onnx", "onnxruntime": "peers", "apytypes": "peers", "jax": "jax", "qwix": "jax",
            "distributed": "cluster"}  # fmt: skip
"""Packages of the extras, and the extra that brings each."""
VARIABLES = ("OCTOSIM_DATA", "OCTOSIM_ISA", "OMP_NUM_THREADS", "OMP_THREAD_LIMIT")


def environment() -> dict[str, Any]:
    """Everything that show-env prints, as plain data."""
    from octosim import core, data, limits
    from octosim.hardware import detect, state

    root = Path("/")
    return {
        "octosim": {"version": octosim.__version__, "where": str(Path(octosim.__file__).parent)},
        "python": {"version": platform.python_version(), "where": sys.executable, "platform": platform.platform(terse=True)},
        "packages": {name: _version(name) for name in (*REQUIRED, *OPTIONAL)},
        "cpu": {
            "title": detect.title_of(root, platform.machine()),
            "isas": core.isas(),
            "isa": core.isa(),
            "isa_from": "OCTOSIM_ISA" if os.environ.get("OCTOSIM_ISA") else "the fastest of this processor",
        },
        "threads": _threads(core),
        "limits": {"cpus": limits.quota(), "memory_bytes": limits.memory()},
        "state": state.read(),
        "data": data.available(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _threads(core: Any) -> dict[str, Any]:
    """Threads of the kernels, whether the build has OpenMP, and where the number comes from."""
    count = core.threads()
    core.set_threads(2)  # a build without OpenMP keeps 1
    openmp = core.threads() == 2
    core.set_threads(count)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not openmp:
        source = "the core was built without OpenMP (docs/install.md)"
    elif os.environ.get("OMP_NUM_THREADS"):
        source = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"
    else:
        source = "the CPUs that this process may use"
    return {"count": count, "from": source, "openmp": openmp, "cpus": os.cpu_count(), "cpus_usable": usable}


def _rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, remark) for the table."""
    cpu, threads, limits, now = found["cpu"], found["threads"], found["limits"], found["state"]
    rows = [
        ("octosim", found["octosim"]["version"], found["octosim"]["where"]),
        ("Python", found["python"]["version"], found["python"]["where"]),
        ("system", found["python"]["platform"], ""),
        ("processor", cpu["title"], ""),
    ]
    for name, here in cpu["isas"].items():
        remark = f"in use: {cpu['isa_from']}" if name == cpu["isa"] else ""
        rows.append((f"instruction set {name}", "yes" if here else "no", remark if here else "this processor does not have it"))
    rows.append(("threads", str(threads["count"]), threads["from"]))
    rows.append(("CPUs", str(threads["cpus"]), f"usable by this process: {threads['cpus_usable']}"))
    quota = limits["cpus"]
    over = "less than the threads: pass --threads" if quota is not None and quota < threads["count"] else ""
    rows.append(("CPU quota", "none" if quota is None else f"{quota:.3g} CPUs", over))
    memory = limits["memory_bytes"]
    rows.append(("memory limit", "none" if memory is None else f"{memory / 2**30:.3g} GiB", ""))
    rows += _state_rows(now)
    for name, version in found["packages"].items():
        remedy = f"pip install 'octosim[{OPTIONAL[name]}]'" if name in OPTIONAL else f"pip install {name}"
        rows.append((name, version or "no", "" if version else remedy))
    for row in found["data"]:
        here, _, remedy = row["found"].partition("; ")
        rows.append((f"data set {row['name']}", here, remedy))
    rows += [(name, value, "environment variable") for name, value in found["variables"].items()]
    return rows


def _state_rows(now: dict[str, Any]) -> list[tuple[str, str, str]]:
    from octosim.hardware.state import throttling

    def told(name: str, text: Callable[[Any], str]) -> str:
        return text(now[name]) if name in now else "not told"

    slowed = told("throttled", lambda bits: ", ".join(throttling(bits)) or "none")
    if "throttled" not in now:
        slowed = told("throttle_events", lambda count: f"{count} times since the start" if count else "none")
    return [
        ("clock", told("clock_ghz", lambda ghz: f"{ghz[0]:.2f} .. {ghz[1]:.2f} GHz"),
         f"at most {now['clock_max_ghz']:.2f} GHz" if "clock_max_ghz" in now else ""),
        ("governor", told("governors", ", ".join), ""),
        ("temperature", told("temperature_c", lambda degrees: f"{degrees:.0f} C"), "the hottest zone"),
        ("throttling", slowed, ""),
        ("load", told("load", lambda load: f"{load:.2f}"), "running processes, mean of a minute"),
    ]  # fmt: skip


def show_env(json_: AsJson = False) -> None:
    """Show what octosim detects here: versions, instruction sets, threads, limits, clock, data sets, peers.

    Example: octosim show-env
    """
    found = environment()
    if json_:
        print_json(found)
        return
    table = Table("what", "here", "remark")
    for row in _rows(found):
        table.add_row(*row)
    table.show()
