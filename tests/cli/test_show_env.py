"""What a machine tells about its limits and conditions, in trees of /proc and /sys; and `octosim show-env`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from octosim import core
from octosim.cli import show_env
from octosim.cli.app import app
from octosim.hardware import detect

GROUPS = {
    "nothing": ({}, None, None),
    "version 2, no limit": (
        {"proc/self/cgroup": "0::/a.slice\n", "sys/fs/cgroup/a.slice/cpu.max": "max 100000",
         "sys/fs/cgroup/a.slice/memory.max": "max"},
        None,
        None,
    ),
    "version 2, the parent's is less": (
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000",
         "sys/fs/cgroup/a/b/cpu.max": "300000 100000", "sys/fs/cgroup/a/b/memory.max": "1073741824",
         "sys/fs/cgroup/a/memory.max": "2147483648"},
        0.5,
        1 << 30,
    ),
    "version 2 in a container, the host's path": (
        {"proc/self/cgroup": "0::/docker/0123\n", "sys/fs/cgroup/cpu.max": "150000 100000"},
        1.5,
        None,
    ),
    "version 1": (
        {"proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n1:name=systemd:/x\n",
         "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "100000", "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "50000",
         "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
         "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "536870912",
         "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"},
        2.0,
        1 << 29,
    ),
    "not numbers": (
        {"proc/self/cgroup": "0::/\nnonsense", "sys/fs/cgroup/cpu.max": "x y", "sys/fs/cgroup/memory.max": ""},
        None,
        None,
    ),
}  # fmt: skip

CPU = "sys/devices/system/cpu"
PI = {
    f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "600000", f"{CPU}/cpu1/cpufreq/scaling_cur_freq": "1500000",
    f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": "1800000", f"{CPU}/cpu0/cpufreq/scaling_governor": "ondemand",
    "sys/class/thermal/thermal_zone0/temp": "84100", "sys/class/thermal/thermal_zone1/temp": "40000",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "f0006", "proc/loadavg": "0.00 0.01 0.05 1/99 1234",
}  # fmt: skip


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


@pytest.mark.parametrize("files, cpus, memory", GROUPS.values(), ids=GROUPS)
def test_limits_of_control_groups(files: dict[str, str], cpus: float | None, memory: int | None, tmp_path: Path) -> None:
    assert detect.limits(tree(tmp_path, files)) == {"cpus": cpus, "memory_bytes": memory}


def test_conditions_of_a_throttled_board(tmp_path: Path) -> None:
    found = detect.conditions(tree(tmp_path, PI))
    assert found["clock_mhz"] == [600, 1500] and found["clock_max_mhz"] == 1800 and found["governor"] == "ondemand"
    assert found["temperature_c"] == pytest.approx(84.1) and found["load"] == 0
    assert found["throttled"] == [
        "clock capped now", "throttled now", "under-voltage since the start", "clock capped since the start",
        "throttled since the start", "soft temperature limit since the start",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "files, throttled",
    [
        ({}, None),
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": "0x0"}, []),
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": "damaged"}, None),
        ({f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "0"}, []),
        ({f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "0", f"{CPU}/cpu1/thermal_throttle/package_throttle_count": "7"},
         ["slowed for heat 7 times since the start"]),
    ],
)  # fmt: skip
def test_throttling(files: dict[str, str], throttled: list[str] | None, tmp_path: Path) -> None:
    found = detect.conditions(tree(tmp_path, files))
    assert found["throttled"] == throttled
    if not files:
        assert set(found.values()) == {None}


def test_show_env_says_what_is_and_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OCTOSIM_DATA", str(tmp_path))
    monkeypatch.setattr(show_env, "OPTIONAL", {"no-such-package": "peers"})
    before = core.threads()
    done = CliRunner().invoke(app, ["show-env", "--json"])
    assert done.exit_code == 0 and core.threads() == before
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["cpu"]["isas"] == core.isas() and found["cpu"]["isa"] == core.isa() and found["threads"]["count"] == before
    assert found["packages"]["no-such-package"] is None and found["packages"]["numpy"]
    assert found["variables"]["OMP_NUM_THREADS"] == "3" and found["threads"]["from"] == "OMP_NUM_THREADS=3"
    assert {"limits", "conditions", "data", "octosim", "python"} <= set(found)
    monkeypatch.setattr(detect, "limits", lambda root: {"cpus": 0.5, "memory_bytes": 1 << 30})
    monkeypatch.setattr(detect, "conditions", lambda root: host_conditions)
    host_conditions = {"clock_mhz": [600.0, 1500.0], "clock_max_mhz": 1800.0, "governor": "ondemand", "temperature_c": 84.1,
                       "throttled": ["throttled now"], "load": 1.0}  # fmt: skip
    shown = CliRunner().invoke(app, ["show-env"]).stdout
    for text in ("pip install 'octosim[peers]'", "less than the threads: pass --threads", "1 GiB", "600 .. 1500 MHz", "84 C",
                 "throttled now", "ondemand", "octosim data fetch mnist"):  # fmt: skip
        assert text in shown, text
