"""Reads the machine at hand as a hardware profile, in plain data: /proc, /sys and one copy in memory."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from octosim.hardware.state import text

# (flag, accumulator, int8 and float32 MACs per clock and core, source); the first row whose flag is present decides.
# cpufp is the GitHub repository pigirons/cpufp.
_ISA_ROWS: dict[str, tuple[tuple[str, str, float, float, str], ...]] = {
    "x86_64": (
        ("avx512_vnni", "vpdpbusd", 128, 32, "two 512-bit ports, as measured on Xeon Gold 6455B (cpufp@93e165e)"),
        ("avx_vnni", "vpdpbusd", 64, 16, "two 256-bit ports, as measured on i5-1340P P-cores (cpufp@93e165e)"),
        ("avx2", "maddubs", 32, 16, "two 256-bit FMA ports; int8 through 16-bit pairs, at most twice the float rate"),
        ("", "maddubs", 16, 8, "two 128-bit multiplies and adds a clock; int8 at most twice the float rate"),
    ),
    "aarch64": (
        ("i8mm", "acc32-wrap", 64, 8, "SMMLA, as measured on Graviton 3E (cpufp@93e165e)"),
        ("asimddp", "sdot", 32, 8, "SDOT on two pipes, as measured on Cortex-A76 (cpufp@93e165e)"),
        ("", "smlal", 8, 4, "SMLAL on one pipe, Cortex-A72 (Arm UAN 0016A; FMA rate measured, cpufp@93e165e)"),
    ),
}
_ZEN4_SOURCE = "Zen 4 runs 512-bit operations as two halves, as measured on Ryzen 7 8845HS (cpufp@93e165e)"
_COPY_BYTES = 48 << 20  # two arrays of this size exceed most last-level caches; less on small machines


def read(root: Path, machine: str) -> dict[str, Any]:
    """The profile, as plain data, of a file tree: `root`/proc and `root`/sys are read, and every file may be missing.

    machine: "x86_64" or "aarch64"; another machine gets the slowest row of x86_64, as an estimate.  The bandwidth is measured
    (about 0.2 s).
    """
    cpuinfo = _cpuinfo(root)
    title = title_of(root, machine)
    every = _clusters(cpuinfo)
    usable = [cluster for cpus in every if (cluster := [cpu for cpu in cpus if _usable(cpu, root)])] or every
    rated = [(cpus, _isa_rates(machine, _flags(cpus), cpus[0] if cpus else {}), _clock(cpus, root)) for cpus in usable]
    cpus, (accumulator, int8, float32, isa_source, guessed), clock = max(
        rated, key=lambda rate: rate[1][2] * rate[2]["value"]  # the cluster of the fastest cores, as people use them
    )
    cores = _cores(cpus, root)

    def derived(value: float | str) -> dict[str, Any]:
        return {"value": value, "kind": "estimate" if guessed else "derived", "source": isa_source}

    efficiency = {"value": 0.5, "kind": "estimate", "source": "not calibrated on this machine"}
    engine = {
        "name": "cpu",
        "accumulator": accumulator,
        "trains": True,
        "units": cores,
        "clock_ghz": clock,
        "macs_per_clock": {"int8": derived(int8), "float32": derived(float32)},
        "gemm_efficiency": {"int8": efficiency, "float32": efficiency},
    }
    note = f"Read from this machine ({machine}); not calibrated."
    if len(every) > 1:
        engine["core"] = _core_name(cpus)
        told = "; ".join(f"{len(c)} {_core_name(c)} at {_clock(c, root)['value']:.3g} GHz, CPUs {_numbers(c)}" for c in every)
        note += f" Clusters: {told}. The profile describes the {_core_name(cpus)}, CPUs {_numbers(cpus)}: run with taskset -c "
        note += f"{_numbers(cpus)} to measure them alone."
    bytes_total = _memory_bytes(root)
    memory: dict[str, Any] = {
        "bandwidth_sustained_gb_s": {
            "value": copy_bandwidth(bytes_total) / 1e9,
            "kind": "measured",
            "source": "NumPy copy of large arrays here, one thread, bytes read plus written",
        }
    }
    if bytes_total:
        memory["capacity_gib"] = {"value": bytes_total / 2**30, "kind": "measured", "source": "/proc/meminfo MemTotal"}
    return {
        "name": "host",
        "title": title,
        "note": note,
        "training": {"status": "supported", "note": "A general CPU: octosim itself trains here."},
        "overhead_us": {"value": 5, "kind": "estimate", "source": "order of one call from Python with threads"},
        "engines": [engine],
        "numerics": {"accumulator": derived(accumulator)},
        "memory": memory,
        "caches": _caches(root),
    }


def title_of(root: Path, machine: str) -> str:
    """The machine's name for people: the CPU's model, else the device tree's."""
    named = (cpu["model name"] for cpu in _cpuinfo(root) if cpu.get("model name"))
    return next(named, "") or _device_tree(root, "model") or f"unknown {machine} CPU"


def names(root: Path) -> str:
    """All that the machine calls itself, a name a line: device-tree model and compatible, models of its CPUs."""
    cpus = dict.fromkeys(cpu.get("model name", "") for cpu in _cpuinfo(root))
    return "\n".join([_device_tree(root, "model"), _device_tree(root, "compatible"), *cpus])


def _device_tree(root: Path, name: str) -> str:
    return text(root / "proc/device-tree" / name).rstrip("\0").replace("\0", "\n")


def _number(text: str) -> float | None:
    """A positive finite number, or None for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*", text)
    return float(match[1]) or None if match else None


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    """/proc/cpuinfo: one dictionary per logical CPU."""
    blocks = re.split(r"\n\s*\n", text(root / "proc/cpuinfo"))
    pairs = [[line.split(":", 1) for line in block.splitlines() if ":" in line] for block in blocks]
    cpus = [{key.strip(): value.strip() for key, value in block} for block in pairs]
    return [cpu for cpu in cpus if "processor" in cpu]


_ARM_CORES = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0d": "Cortex-A77", "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510", "0xd47": "Cortex-A710", "0xd48": "Cortex-X2",
    "0xd4d": "Cortex-A715", "0xd4e": "Cortex-X3", "0xd80": "Cortex-A520", "0xd81": "Cortex-A720",
}  # fmt: skip
"""CPU part of /proc/cpuinfo, of implementer 0x41 (Arm), as in Linux' arch/arm64/include/asm/cputype.h."""


def _clusters(cpuinfo: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """CPUs of one kind together: big.LITTLE has two or three kinds."""
    found: dict[tuple[str | None, str | None], list[dict[str, str]]] = {}
    for cpu in cpuinfo:
        found.setdefault((cpu.get("CPU implementer"), cpu.get("CPU part")), []).append(cpu)
    return list(found.values()) or [[]]


def _usable(cpu: dict[str, str], root: Path) -> bool:
    """Whether this process may run on a CPU."""
    if root != Path("/") or not hasattr(os, "sched_getaffinity") or not cpu["processor"].isdigit():
        return True
    return int(cpu["processor"]) in os.sched_getaffinity(0)


def _flags(cpus: list[dict[str, str]]) -> list[str]:
    first = cpus[0] if cpus else {}
    return (first.get("flags") or first.get("Features") or "").split()


def _core_name(cpus: list[dict[str, str]]) -> str:
    part = cpus[0].get("CPU part", "")
    arm = cpus[0].get("CPU implementer") == "0x41"
    return _ARM_CORES.get(part, f"core {part}") if arm else cpus[0].get("model name") or f"core {part}"


def _numbers(cpus: list[dict[str, str]]) -> str:
    """CPU numbers as taskset takes them: 0-3,6."""
    numbers = sorted(int(cpu["processor"]) for cpu in cpus if cpu["processor"].isdigit())
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _isa_rates(machine: str, flags: list[str], cpu: dict[str, str]) -> tuple[str, float, float, str, bool]:
    """(accumulator, int8 and float32 MACs per clock and core, source, whether it is a guess)."""
    rows = _ISA_ROWS.get({"arm64": "aarch64", "AMD64": "x86_64"}.get(machine, machine))
    if rows is None or not flags:
        rows = _ISA_ROWS["aarch64" if rows is _ISA_ROWS["aarch64"] else "x86_64"]
        _, accumulator, int8, float32, source = rows[-1]
        return accumulator, int8, float32, f"instruction set unknown; {source}", True
    flag, accumulator, int8, float32, source = next(row for row in rows if not row[0] or row[0] in flags)
    if flag == "avx512_vnni" and cpu.get("vendor_id") == "AuthenticAMD":
        newer = cpu.get("cpu family") != "25"  # some Zen 5 have full-width units: twice these rates
        return accumulator, 64, 16, "taken for Zen 4: " * newer + _ZEN4_SOURCE, newer
    if flag == "" and cpu.get("CPU part") == "0xd03":
        return accumulator, 5.3, 3.97, "Cortex-A53: one NEON operation a clock, as in profile raspberry-pi-3b-plus", True
    if flag == "asimddp" and cpu.get("CPU part") == "0xd05":
        int8, float32, source = 16, 4, "Cortex-A55, as measured on RK3588 (cpufp@93e165e)"
    return accumulator, int8, float32, source, flag in ("", "avx2")


def _cores(cpuinfo: list[dict[str, str]], root: Path) -> dict[str, Any]:
    """Physical cores that this process may use (SMT siblings share their units)."""
    try:
        usable = len(os.sched_getaffinity(0)) if root == Path("/") else len(cpuinfo)
    except AttributeError:
        usable = os.cpu_count() or 1
    ids = {(cpu.get("physical id"), cpu.get("core id")) for cpu in cpuinfo if "core id" in cpu}
    count = min(len(ids) or usable, usable) or 1
    return {"value": count, "kind": "measured", "source": "/proc/cpuinfo and the CPU affinity of this process"}


def _clock(cpuinfo: list[dict[str, str]], root: Path) -> dict[str, Any]:
    folders = [f"cpu{cpu['processor']}" for cpu in cpuinfo if cpu["processor"].isdigit()] or ["cpu0"]
    most = [_number(text(root / "sys/devices/system/cpu" / name / "cpufreq/cpuinfo_max_freq")) or 0 for name in folders]
    khz = max(most)
    if khz:
        return {"value": khz / 1e6, "kind": "measured", "source": "sysfs cpufreq cpuinfo_max_freq"}
    mhz = [_number(cpu.get("cpu MHz", "")) or 0 for cpu in cpuinfo]
    if any(mhz):
        return {"value": max(mhz) / 1e3, "kind": "measured", "source": "/proc/cpuinfo cpu MHz (turbo may differ)"}
    return {"value": 2.0, "kind": "estimate", "source": "this machine does not tell its clock"}


def _memory_bytes(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s*([1-9]\d*) kB", text(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _caches(root: Path) -> list[dict[str, Any]]:
    found = []
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = (text(folder / part) for part in ("type", "level", "size"))
        match = re.fullmatch(r"([1-9]\d*)K", size)
        if kind == "Instruction" or not level or not match:
            continue
        shared = text(folder / "shared_cpu_list")
        found.append(
            {
                "name": f"L{level}" + ("D" if kind == "Data" else ""),
                "shared_by": f"logical CPUs {shared}" if shared else "unknown",
                "size_kib": {"value": int(match[1]), "kind": "measured", "source": "sysfs cache of cpu0"},
            }
        )
    return found


def copy_bandwidth(bytes_total: int | None) -> float:
    """Bytes per second, read plus written, of the best NumPy copy within about 0.1 s."""
    size = min(_COPY_BYTES, (bytes_total or _COPY_BYTES * 16) // 16)
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)  # ones: every page is touched before timing
    best, end = float("inf"), time.perf_counter() + 0.1
    while True:
        start = time.perf_counter()
        np.copyto(target, source)
        stop = time.perf_counter()
        best = min(best, stop - start)
        if stop > end:
            return 2 * size / best
