"""What a machine says of itself while it measures: clocks, governor, temperature, and whether it was slowed down."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

THROTTLED_BITS = {
    0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "at its soft temperature limit",
    16: "under-voltage before", 17: "clock capped before", 18: "throttled before", 19: "at its soft temperature limit before",
}  # fmt: skip
"""Bits of a Raspberry Pi's get_throttled; "before" is since it was started."""


def text(path: Path) -> str:
    """A file of the system without white space around; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None


def read(root: Path = Path("/")) -> dict[str, Any]:
    """The state of a file tree's machine now; what it does not tell is absent.

    clock_ghz: (least, largest) over its CPUs; clock_max_ghz; governors; temperature_c of the hottest zone; throttled: the bits
    of a Raspberry Pi's firmware; throttle_events: how often its CPUs were slowed down since it was started; load: running
    processes, mean of a minute.
    """
    cpus = root / "sys/devices/system/cpu"
    folders = [f for f in sorted(cpus.glob("cpu*")) if re.fullmatch(r"cpu\d+", f.name)]
    clocks = [khz for f in folders if (khz := _number(text(f / "cpufreq/scaling_cur_freq")) or 0) > 0]
    if not clocks:
        lines = re.findall(r"^cpu MHz\s*:\s*(\d+)", text(root / "proc/cpuinfo"), re.MULTILINE)
        clocks = [1000 * int(mhz) for mhz in lines if int(mhz)]
    most = [khz for f in folders if (khz := _number(text(f / "cpufreq/cpuinfo_max_freq")) or 0) > 0]
    governors = sorted({g for f in folders if (g := text(f / "cpufreq/scaling_governor"))})
    zones = [_number(text(f)) for f in (root / "sys/class/thermal").glob("thermal_zone*/temp")]
    degrees = [t / 1000 for t in zones if t is not None and 0 < t < 200_000]
    counts = [_number(text(p)) for f in folders for p in sorted((f / "thermal_throttle").glob("*_throttle_count"))]
    bits = text(root / "sys/devices/platform/soc/soc:firmware/get_throttled").lower().removeprefix("0x")
    load = re.match(r"\d{1,9}\.\d+", text(root / "proc/loadavg"))
    state: dict[str, Any] = {}
    if clocks:
        state["clock_ghz"] = [min(clocks) / 1e6, max(clocks) / 1e6]
    if most:
        state["clock_max_ghz"] = max(most) / 1e6
    if governors:
        state["governors"] = governors
    if degrees:
        state["temperature_c"] = max(degrees)
    if re.fullmatch(r"[0-9a-f]{1,8}", bits):
        state["throttled"] = int(bits, 16)
    if any(count is not None for count in counts):
        state["throttle_events"] = sum(count or 0 for count in counts)
    if load:
        state["load"] = float(load[0])
    return state


def throttling(bits: int) -> list[str]:
    """What the bits of a Raspberry Pi's firmware mean."""
    return [text for bit, text in THROTTLED_BITS.items() if bits >> bit & 1]


def slowed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """In words, what slowed the machine down between two states; empty where nothing is known to have."""
    words = throttling(before.get("throttled", 0) | after.get("throttled", 0))
    events = after.get("throttle_events", 0) - before.get("throttle_events", 0)
    if events > 0:
        words.append(f"its CPUs were slowed down {events} times by their temperature")
    return words


WAITED = 0.05
"""Share of its time that a process waits for a CPU, from which on others disturb its measurements."""


def used(root: Path = Path("/")) -> dict[str, float]:
    """Seconds so far: "wall_s"; "own_s" of CPUs by this process; "all_s" by all programs, and by other guests of the hardware,
    on the "cpus" that it may use; "waited_s" that its threads were ready and had no CPU.  What the file tree does not tell is
    absent."""
    found = {"wall_s": time.perf_counter(), "own_s": time.process_time()}
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    rows = re.findall(r"^cpu(\d+)((?: \d{1,18}){8})", text(root / "proc/stat"), re.MULTILINE)
    busy = []
    for cpu, counts in rows:
        user, nice, system, _, _, *others = map(int, counts.split())
        if int(cpu) in allowed:
            busy.append(user + nice + system + sum(others))
    if busy:
        found |= {"all_s": sum(busy) / os.sysconf("SC_CLK_TCK"), "cpus": float(len(busy))}
    waits = [text(f / "schedstat").split() for f in (root / "proc/self/task").glob("*")]
    if waits and all(len(row) == 3 and row[1].isdecimal() for row in waits):
        found["waited_s"] = sum(int(row[1]) for row in waits) / 1e9
    return found


def neighbours(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What other programs took between two readings of `used`: "cpus", "others" of them that they kept busy in the mean, and
    "waited", the share of its time that this process was ready and had no CPU; what is not known is absent."""
    since = {key: after[key] - before[key] for key in after.keys() & before.keys()}
    found: dict[str, float] = {}
    if "all_s" in since and since["wall_s"] > 0:
        found |= {"cpus": after["cpus"], "others": max(0.0, since["all_s"] - since["own_s"]) / since["wall_s"]}
    if since.get("waited_s", -1) >= 0:  # less: a thread with much of it has ended
        found["waited"] = since["waited_s"] / max(since["own_s"] + since["waited_s"], 1e-9)
    return found


def busy(found: dict[str, float]) -> str:
    """A sentence where other programs took CPUs that this one was ready to use; empty where they did not, or nobody knows."""
    if found.get("waited", 0.0) <= WAITED:
        return ""
    others = f"other programs kept {found['others']:.1f} of {found['cpus']:.0f} CPUs busy; " if "others" in found else ""
    return f"{others}the process was ready and waited for a CPU for {100 * found['waited']:.0f} % of its time"
