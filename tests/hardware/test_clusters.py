"""big.LITTLE: the clusters of boards, from trees as their /proc and /sys have them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octosim import hardware
from octosim.hardware import detect

A53, A55, A72, A73, A76 = "0xd03", "0xd05", "0xd08", "0xd09", "0xd0b"
OLD, DOT = "fp asimd evtstrm aes crc32", "fp asimd evtstrm aes crc32 atomics asimdhp asimddp"
BOARDS = {
    # (part, kHz) of each CPU; features; the cluster that is described: core, units, GHz, int8 MAC/clk, CPUs
    "RK3588": ([(A55, 1_800_000)] * 4 + [(A76, 2_400_000)] * 4, DOT, ("Cortex-A76", 4, 2.4, 32, "4-7")),
    "RK3399": ([(A53, 1_416_000)] * 4 + [(A72, 1_800_000)] * 2, OLD, ("Cortex-A72", 2, 1.8, 8, "4-5")),
    "Odroid N2+": ([(A53, 2_016_000)] * 2 + [(A73, 2_400_000)] * 4, OLD, ("Cortex-A73", 4, 2.4, 8, "2-5")),
    "big first": ([(A76, 2_200_000)] * 2 + [(A55, 2_000_000)] * 6, DOT, ("Cortex-A76", 2, 2.2, 32, "0-1")),
}


def tree(root: Path, cpus: list[tuple[str, int]], features: str) -> Path:
    blocks = []
    for number, (part, khz) in enumerate(cpus):
        blocks.append(f"processor\t: {number}\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n")
        folder = root / f"sys/devices/system/cpu/cpu{number}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "cpuinfo_max_freq").write_text(f"{khz}\n")
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("\n".join(blocks))
    return root


@pytest.mark.parametrize(("cpus", "features", "expected"), BOARDS.values(), ids=BOARDS)
def test_the_cluster_of_the_fastest_cores_is_described(
    cpus: list[tuple[str, int]], features: str, expected: tuple[str, int, float, float, str], tmp_path: Path
) -> None:
    device = hardware.read_host(tree(tmp_path, cpus, features), "aarch64")
    engine = device.engines[0]
    core, units, ghz, macs, numbers = expected
    rates = engine.macs_per_clock.given()
    assert (engine.core, engine.units.value, engine.clock_ghz.value, rates["int8"]) == (core, units, ghz, macs)
    assert "Clusters:" in device.note and f"describes the {core}, CPUs {numbers}" in device.note


@pytest.mark.parametrize(("allowed", "core", "units", "ghz"), [
    (range(8), "Cortex-A76", 4, 2.4), (range(4, 8), "Cortex-A76", 4, 2.4), (range(4), "Cortex-A55", 4, 1.8),
    ([0, 1, 2, 3, 7], "Cortex-A76", 1, 2.4), ([5], "Cortex-A76", 1, 2.4),
])  # fmt: skip
def test_the_affinity_mask_decides(
    allowed: list[int], core: str, units: int, ghz: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus, features, _ = BOARDS["RK3588"]
    root = tree(tmp_path, cpus, features)
    monkeypatch.setattr(detect, "_usable", lambda cpu, root: int(cpu["processor"]) in allowed)
    engine = hardware.read_host(root, "aarch64").engines[0]
    assert (engine.core, engine.units.value, engine.clock_ghz.value) == (core, units, ghz)


def test_one_kind_of_core_has_no_clusters(tmp_path: Path) -> None:
    device = hardware.read_host(tree(tmp_path, [(A76, 2_400_000)] * 4, DOT), "aarch64")
    assert device.engines[0].core is None and "Clusters" not in device.note and device.engines[0].units.value == 4


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_the_machine_at_hand_is_read() -> None:
    assert hardware.host().engines[0].units.value <= len(os.sched_getaffinity(0))
