"""The kernel benchmark's record, on small products; its figures are no test's business."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from octosim import core
from octosim.bench import calibrate, kernels
from octosim.cli.app import app
from octosim.errors import OctosimError

SMALL = {"fc": (32, 100, 20), "conv": (500, 25, 6)}


def test_record(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra 'peers'")
    pytest.importorskip("onnxruntime", reason="needs the extra 'peers'")
    pytest.importorskip("apytypes", reason="needs the extra 'peers'")
    record = kernels.kernel_bench(
        ["onnxruntime", "apytypes"], seconds=0.001, command="test", shapes=SMALL, elements=4096, cube=64
    )
    assert {(row["shape"], row["pass"]) for row in record["rows"]} == {(s, p) for s in SMALL for p in ("forward", "dX", "dW")}
    for row in record["rows"]:
        assert row["ops_s"] == pytest.approx(2 * row["m"] * row["k"] * row["n"] / row["time_s"])
        assert row["ratio"] == row["against"]["onnxruntime"]["ratio"] > 0
        assert bool(row["wrong"]) == (row["against"]["onnxruntime"]["operands"] != "uint8 x int8")
    products = {(r["shape"], r["pass"]): (r["m"], r["k"], r["n"]) for r in record["rows"]}
    assert products["conv", "dX"] == (500, 6, 25) and products["conv", "dW"] == (6, 500, 25)
    assert record["limits"]["peak_ops_s"] > 0 and record["limits"]["triad_bytes_s"] > 1e8
    assert {row["isa"] for row in record["isas"]} == {name for name, here in core.isas().items() if here} - {"ref"}
    assert [row["accumulator"] for row in record["accumulators"]] == [*kernels.COUNTED, "acc32"]
    assert record["accumulators"][-1]["ratio"] > 0 and all(row["bytes_s"] > 0 for row in record["codes"])
    assert record["codes"][0] == {"name": "copy float32", "bytes_s": record["codes"][0]["bytes_s"], "of_copy": 1.0}
    kernels.plot_roofline(record, tmp_path / "roof.svg")
    assert "<svg" in (tmp_path / "roof.svg").read_text()


@pytest.mark.parametrize("right", [("int8 x int8",), ()], ids=["second-is-right", "none-is-right"])
def test_a_peer_that_is_wrong_here_is_named(right: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime's uint8 x int8 on x86 without VNNI: sums of pairs saturate in 16 bits."""

    def maker(types):
        def call(a, b, transposed, threads):
            exact = core.gemm(a, b, transpose_a=transposed == "a", transpose_b=transposed == "b")
            return lambda: exact if types in right else exact - (exact > 0) * 7

        return call

    monkeypatch.setitem(kernels.PRODUCTS, "onnxruntime", {types: maker(types) for types in ("uint8 x int8", "int8 x int8")})
    monkeypatch.setattr(kernels, "version", lambda peer: "1.0")
    record = kernels.kernel_bench(["onnxruntime"], seconds=0.001, command="test", shapes=SMALL, elements=4096, cube=64)
    for row in record["rows"]:
        assert row["wrong"][0]["operands"] == "uint8 x int8" and row["wrong"][0]["largest"] == 7
        assert 0 < row["wrong"][0]["wrong"] < row["wrong"][0]["sums"] == row["m"] * row["n"]
        assert [peer["operands"] for peer in row["against"].values()] == list(right) and ("ratio" in row) == bool(right)
    assert ("ratio" in record) == bool(right)
    said = kernels.wrong_peers(record)
    assert len(said) == 2 - len(right)
    assert said[0].startswith("onnxruntime 1.0 is wrong here (uint8 x int8) in 6 products, most in ")
    assert said[0].endswith("int8 x int8 is timed there" if right else "nothing of it is timed there")
    monkeypatch.setattr(kernels, "kernel_bench", lambda *_, **__: record)
    done = CliRunner().invoke(app, ["bench", "--kernels", "--against", "onnxruntime"])
    assert done.exit_code == 0 and said[0] in done.output
    assert ("(int8 x int8)" if right else "wrong") in done.output.split("\n")[4]


def test_a_slow_peer_is_not_repeated() -> None:
    """A product that took over LONG_S in the comparison of results has its time; the others take turns."""
    calls = {"ours": 0, "slow": 0}

    def count(name: str) -> None:
        calls[name] += 1

    counted = {name: functools.partial(count, name) for name in calls}
    times = kernels._median_seconds(counted, 0.001, {"slow": 2 * kernels.LONG_S})
    assert times["slow"] == 2 * kernels.LONG_S and calls["slow"] == 0
    assert 0 < times["ours"] < 0.1 and calls["ours"] >= 9


@pytest.mark.slow  # the whole of Python under emulation
def test_onnxruntime_on_a_processor_without_vnni() -> None:
    """An emulated Haswell: uint8 x int8 is wrong there, int8 x int8 is right, and so are we."""
    pytest.importorskip("onnxruntime", reason="needs the extra 'peers'")
    qemu = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if platform.machine() != "x86_64" or not qemu:
        pytest.skip("needs qemu-x86_64 (Debian: qemu-user)")
    program = (
        "from octosim import core\n"
        "from octosim.bench import kernels\n"
        "a, b = kernels._operands((64, 256, 32), '')\n"
        "exact = core.gemm(a, b)\n"
        "assert (exact == a.astype('i8') @ b.astype('i8')).all()\n"
        "operands, call, took, wrong = kernels._right_call('onnxruntime', a, b, '', exact)\n"
        "print(core.isa(), operands, [each['operands'] for each in wrong])"
    )
    done = subprocess.run([qemu, "-cpu", "Haswell", sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "avx2 int8 x int8 ['uint8 x int8']\n", done.stderr[-2000:]


def test_without_peers() -> None:
    record = kernels.kernel_bench([], seconds=0.001, command="test", shapes={"fc": (8, 16, 4)}, elements=4096, cube=64)
    assert "ratio" not in record and all(not row["against"] for row in record["rows"])


def test_peak_counts_what_it_does() -> None:
    assert core.peak(2000) == 2 * core.peak(1000) > 0


@pytest.mark.parametrize("peaks, found, calls", [([60e9], 120e9, 1), ([30e9, 61e9, 90e9], 122e9, 2), ([30e9] * 9, 60e9, 5)])
def test_a_peak_below_a_product_is_measured_again(monkeypatch, peaks, found, calls) -> None:
    """A register peak that a product of 100 GOPS beats was measured while another program held a core."""
    left = list(peaks)
    monkeypatch.setattr(calibrate, "peak_mac_s", lambda: left.pop(0))
    assert kernels.peak_ops_s(100e9) == found and len(peaks) - len(left) == calls


def test_the_peak_is_the_fastest_call(monkeypatch) -> None:
    """Calls of 1 ms, of which every second is disturbed and takes 2 ms."""
    now, macs = [0.0], []

    def peak(rounds: int) -> int:
        macs.append(rounds)
        now[0] += 0.001 * (1 + len(macs) % 2)
        return 1_000_000

    monkeypatch.setattr(calibrate.core, "peak", peak)
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: now[0])
    assert calibrate.peak_mac_s(0.02) == pytest.approx(1e9) and len(macs) >= 10


def test_unknown_peer() -> None:
    with pytest.raises(OctosimError, match="unknown peer 'mkl' for kernels"):
        kernels.kernel_bench(["mkl"], seconds=0.1, command="test", shapes=SMALL, elements=4096, cube=64)
