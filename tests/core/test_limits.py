"""The share of the machine that a process has: affinity, quotas and limits of control groups, OpenMP's variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octosim import limits

V2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1 = (
    "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
)

# mounts, groups, files, CPUs (of 64), bytes
TREES = {
    "none": ("", "", {}, 64, None),
    "v2": (V2, "0::/user/app", {"user/app/cpu.max": "150000 100000", "user/app/memory.max": "2000000"}, 2, 2_000_000),
    "v2-of-a-parent": (V2, "0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000", "a/memory.max": "7"}, 3, 7),
    "v2-in-a-container": (V2, "0::/", {"cpu.max": "50000 100000", "memory.max": "max"}, 1, None),
    "v2-other-period": (V2, "0::/", {"cpu.max": "20000 5000"}, 4, None),
    "v1": (
        V1.format(top="/"), "4:cpu,cpuacct:/x\n5:memory:/y",
        {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000",
         "memory/y/memory.limit_in_bytes": "12345678", "memory/memory.limit_in_bytes": "9223372036854771712"}, 3, 12345678,
    ),
    "v1-in-a-container": (
        V1.format(top="/docker/abc"), "4:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc",
        {"cpu,cpuacct/cpu.cfs_quota_us": "100000", "cpu,cpuacct/cpu.cfs_period_us": "100000",
         "memory/memory.limit_in_bytes": "4096"}, 1, 4096,
    ),
    "v1-no-quota": (
        V1.format(top="/"), "4:cpu,cpuacct:/\n5:memory:/",
        {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000",
         "memory/memory.limit_in_bytes": "9223372036854771712"}, 64, None,
    ),
    "hybrid": (
        V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified") + "\n" + V1.format(top="/"), "4:cpu,cpuacct:/\n0::/",
        {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2, None,
    ),
    "damaged": (V2 + "\n\x00 - \n1 2", "0::/\n::\nxx", {"cpu.max": "lots of 1", "memory.max": "-5"}, 64, None),
    "more-than-there-are": (V2, "0::/", {"cpu.max": "9900000 100000"}, 64, None),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_trees(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts, groups, files, cpus, memory = TREES[name]
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    for path, text in {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")
    for path, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert (limits.cpus(tmp_path), limits.memory(tmp_path)) == (cpus, memory)


def test_usable(tmp_path: Path) -> None:
    assert limits.usable(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       1000 kB\nMemFree: 5 kB\nSwapTotal:      24 kB\n")
    assert limits.usable(tmp_path) == 1 << 20
    (tmp_path / "proc/self/mountinfo").write_text(V2)
    (tmp_path / "proc/self/cgroup").write_text("0::/")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("4096")
    assert limits.usable(tmp_path) == 4096


def test_no_tree(tmp_path: Path) -> None:
    assert limits.cpus(tmp_path) >= 1 and limits.memory(tmp_path) is None
    assert limits.cpus() >= 1


def threads(**environment: str) -> int:
    program = "import os\nif 'ONE' in os.environ: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    program += "from octosim import core\nprint(core.threads())"
    plain = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=plain | environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_the_default_of_threads() -> None:
    if threads(OMP_NUM_THREADS="3") == 1:
        pytest.skip("the core is built without OpenMP")
    allowed = limits.cpus()
    assert threads() == allowed and threads(OMP_NUM_THREADS="x") == allowed
    assert threads(OMP_NUM_THREADS="3") == 3 and threads(OMP_NUM_THREADS="5,2") == 5
    assert threads(OMP_THREAD_LIMIT="1") == threads(OMP_NUM_THREADS="4", OMP_THREAD_LIMIT="1") == 1
    if hasattr(os, "sched_setaffinity"):
        assert threads(ONE="") == 1
