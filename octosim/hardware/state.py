"""What a machine says of itself while it measures: clocks, governor, temperature, and whether it was slowed down."""

from __future__ import annotations

import re
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
