"""The kernel benchmark's record, on small products; its figures are no test's business."""

from __future__ import annotations

from pathlib import Path

import pytest

from octosim import core, hostbench, kernelbench
from octosim.errors import OctosimError

SMALL = {"fc": (32, 100, 20), "conv": (500, 25, 6)}


def test_record(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra 'peers'")
    pytest.importorskip("onnxruntime", reason="needs the extra 'peers'")
    pytest.importorskip("apytypes", reason="needs the extra 'peers'")
    record = kernelbench.kernel_bench(
        ["onnxruntime", "apytypes"], seconds=0.001, command="test", shapes=SMALL, elements=4096, cube=64
    )
    assert {(row["shape"], row["pass"]) for row in record["rows"]} == {(s, p) for s in SMALL for p in ("forward", "dX", "dW")}
    for row in record["rows"]:
        assert row["ops_s"] == pytest.approx(2 * row["m"] * row["k"] * row["n"] / row["time_s"])
        assert row["ratio"] == row["against"]["onnxruntime"]["ratio"] > 0
    products = {(r["shape"], r["pass"]): (r["m"], r["k"], r["n"]) for r in record["rows"]}
    assert products["conv", "dX"] == (500, 6, 25) and products["conv", "dW"] == (6, 500, 25)
    assert record["limits"]["peak_ops_s"] > 0 and record["limits"]["triad_bytes_s"] > 1e8
    assert {row["isa"] for row in record["isas"]} == {name for name, here in core.isas().items() if here} - {"ref"}
    assert [row["accumulator"] for row in record["accumulators"]] == [*kernelbench.COUNTED, "acc32"]
    assert record["accumulators"][-1]["ratio"] > 0 and all(row["bytes_s"] > 0 for row in record["codes"])
    assert record["codes"][0] == {"name": "copy float32", "bytes_s": record["codes"][0]["bytes_s"], "of_copy": 1.0}
    kernelbench.plot_roofline(record, tmp_path / "roof.svg")
    assert "<svg" in (tmp_path / "roof.svg").read_text()


def test_without_peers() -> None:
    record = kernelbench.kernel_bench([], seconds=0.001, command="test", shapes={"fc": (8, 16, 4)}, elements=4096, cube=64)
    assert "ratio" not in record and all(not row["against"] for row in record["rows"])


def test_peak_counts_what_it_does() -> None:
    assert core.peak(2000) == 2 * core.peak(1000) > 0


@pytest.mark.parametrize("peaks, found, calls", [([60e9], 120e9, 1), ([30e9, 61e9, 90e9], 122e9, 2), ([30e9] * 9, 60e9, 5)])
def test_a_peak_below_a_product_is_measured_again(monkeypatch, peaks, found, calls) -> None:
    """A register peak that a product of 100 GOPS beats was measured while another program held a core."""
    left = list(peaks)
    monkeypatch.setattr(kernelbench.hostbench, "peak_mac_s", lambda: left.pop(0))
    assert kernelbench.peak_ops_s(100e9) == found and len(peaks) - len(left) == calls


def test_the_peak_is_the_fastest_call(monkeypatch) -> None:
    """Calls of 1 ms, of which every second is disturbed and takes 2 ms."""
    now, macs = [0.0], []

    def peak(rounds: int) -> int:
        macs.append(rounds)
        now[0] += 0.001 * (1 + len(macs) % 2)
        return 1_000_000

    monkeypatch.setattr(hostbench.core, "peak", peak)
    monkeypatch.setattr(hostbench.time, "perf_counter", lambda: now[0])
    assert hostbench.peak_mac_s(0.02) == pytest.approx(1e9) and len(macs) >= 10


def test_unknown_peer() -> None:
    with pytest.raises(OctosimError, match="unknown peer 'mkl' for kernels"):
        kernelbench.kernel_bench(["mkl"], seconds=0.1, command="test", shapes=SMALL, elements=4096, cube=64)
