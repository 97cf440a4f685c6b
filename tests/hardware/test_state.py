"""Clocks, temperature and throttling as file trees of real machines have them."""

from __future__ import annotations

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
