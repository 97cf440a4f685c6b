"""Clocks, temperature and throttling as file trees of real machines have them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octosim.hardware import state


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CPU = "sys/devices/system/cpu/cpu"
PI = {
    f"{CPU}0/cpufreq/scaling_cur_freq": "600000\n", f"{CPU}3/cpufreq/scaling_cur_freq": "1500000\n",
    f"{CPU}0/cpufreq/scaling_governor": "ondemand\n", f"{CPU}0/cpufreq/cpuinfo_max_freq": "1800000\n",
    "sys/class/thermal/thermal_zone1/temp": "40000\n", "proc/loadavg": "0.00 0.01 0.05 1/99 1234\n",
    "sys/class/thermal/thermal_zone0/temp": "81234\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "f0006\n",
}  # fmt: skip


def test_a_hot_raspberry_pi(tmp_path: Path) -> None:
    found = state.read(tree(tmp_path, PI))
    assert found == {"clock_ghz": [0.6, 1.5], "clock_max_ghz": 1.8, "governors": ["ondemand"], "temperature_c": 81.234,
                     "throttled": 0xF0006, "load": 0.0}  # fmt: skip
    assert state.slowed({}, found)[:2] == ["clock capped", "throttled"]
    cool = tree(tmp_path / "cool", PI | {"sys/devices/platform/soc/soc:firmware/get_throttled": "0\n"})
    assert state.slowed(state.read(cool), state.read(cool)) == []


@pytest.mark.parametrize("kind", ["core", "package"])
def test_events_between_two_states(kind: str, tmp_path: Path) -> None:
    name = f"{CPU}0/thermal_throttle/{kind}_throttle_count"
    before, after = (state.read(tree(tmp_path / n, {name: n})) for n in ("5", "9"))
    assert state.slowed(before, after) == ["its CPUs were slowed down 4 times by their temperature"]
    assert state.slowed(before, before) == []


def test_clock_of_cpuinfo(tmp_path: Path) -> None:
    found = state.read(tree(tmp_path, {"proc/cpuinfo": "cpu MHz\t\t: 2500.123\n\nprocessor: 1\ncpu MHz : 3100.0\n"}))
    assert found == {"clock_ghz": [2.5, 3.1]}


@pytest.mark.parametrize("text", ["", "x", "\0", "-5", "9" * 30, "\udcff".encode("utf-8", "surrogatepass").decode("latin-1")])
def test_what_no_machine_says_is_absent(text: str, tmp_path: Path) -> None:
    assert set(state.read(tree(tmp_path, dict.fromkeys(PI, text)))) <= {"governors"}
    assert state.read(tmp_path / "none") == {}


def used(folder: Path, own: str, idle: int, waited: int) -> dict[str, float]:
    """A reading of a machine with two CPUs, whose times in jiffies are these, the process's times as the test sets them."""
    rows = "".join(f"cpu{cpu} {own} 0 0 {idle} 7 0 0 {5 * cpu} 0 0\n" for cpu in (0, 1))
    files = {"proc/stat": f"cpu 1 1 1 1\n{rows}", "proc/self/task/7/schedstat": f"12 {waited} 3\n"}
    return state.used(tree(folder, files))


def test_what_others_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds on two CPUs, of which all took 18 seconds and this process 8; it waited two seconds more."""
    now = {"perf_counter": 100.0, "process_time": 3.0}
    monkeypatch.setattr(state.time, "perf_counter", lambda: now["perf_counter"])
    monkeypatch.setattr(state.time, "process_time", lambda: now["process_time"])
    monkeypatch.setattr(state.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(state.os, "sysconf", lambda _: 100)
    before = used(tmp_path / "before", "1000", 500, 0)
    now = {"perf_counter": 110.0, "process_time": 11.0}
    after = used(tmp_path / "after", "1900", 600, 2_000_000_000)
    found = state.neighbours(before, after)
    assert found == pytest.approx({"cpus": 2.0, "others": 1.0, "waited": 0.2})
    assert state.busy(found) == (
        "other programs kept 1.0 of 2 CPUs busy; the process was ready and waited for a CPU for 20 % of its time"
    )
    assert state.busy(found | {"waited": 0.02}) == "", "others had CPUs of their own"
    monkeypatch.setattr(state.os, "sched_getaffinity", lambda _: {1}, raising=False)
    assert used(tmp_path / "before", "1000", 500, 0)["all_s"] == pytest.approx(10.05), "CPUs that it may not use do not count"


def test_what_others_took_is_absent_where_nobody_tells(tmp_path: Path) -> None:
    found = state.neighbours(state.used(tmp_path), state.used(tmp_path))
    assert found == {} and state.busy(found) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_busy_machine_is_told() -> None:
    """This process waits while it runs on one CPU beside a busy one."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        before, end = state.used(), time.perf_counter() + 0.6
        while time.perf_counter() < end:
            pass
        found = state.neighbours(before, state.used())
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, allowed)
    assert found["cpus"] == 1 and 0.2 < found["others"] <= 1.05 and found["waited"] > 0.2 and state.busy(found)
