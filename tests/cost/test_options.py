"""Options of `octosim cost`: each counts or is refused, and what cannot be priced is said with its reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
from kit.onnx_nets import Builder  # noqa: E402

from octosim.cli.app import app  # noqa: E402
from octosim.errors import OctosimError  # noqa: E402


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["cost", *arguments], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.stdout


def float_file(folder: Path, batch: int | str, channels: int = 16) -> str:
    """A convolution and a linear layer on 16x16 images."""
    b = Builder(17)
    x = b.add("Relu", b.conv("x", 3, channels))
    y = b.gemm(b.add("Flatten", b.add("GlobalAveragePool", x)), channels, 5, transB=1)
    onnx.save(b.model(y, (batch, 3, 16, 16)), folder / "net.onnx")
    return str(folder / "net.onnx")


def quantized_file(folder: Path) -> str:
    """One product of int8 codes."""
    b = Builder(17)
    scale, zero = b.constant(np.float32(0.1)), b.constant(np.uint8(3))
    codes = b.constant(np.ones((64, 10), np.uint8))
    x = b.add("QuantizeLinear", "x", scale, zero)
    y = b.add("QLinearMatMul", x, scale, zero, codes, scale, zero, scale, zero)
    onnx.save(b.model(b.add("DequantizeLinear", y, scale, zero), ("N", 64)), folder / "int8.onnx")
    return str(folder / "int8.onnx")


@pytest.mark.parametrize("options", [(), ("--batch-size", "4")])
def test_a_file_of_one_batch_is_swept_at_it(options: tuple[str, ...], tmp_path: Path) -> None:
    points, file = tmp_path / "points.csv", float_file(tmp_path, 4)
    run("--model", file, "--profile", "pi4", "--inference", "--sweep", str(points), *options)
    rows = {row["dtype"]: row for row in csv.DictReader(points.open())}
    assert {row["batch_size"] for row in rows.values()} == {"4"}
    types = json.loads(run("--model", file, "--profile", "pi4", "--inference", "--json"))["types"]
    assert {name: float(row["time_s"]) for name, row in rows.items()} == {
        name: pytest.approx(row["time_s"], rel=1e-4) for name, row in types.items()
    }


def test_shapes_give_the_batch(tmp_path: Path) -> None:
    asked = "--model", float_file(tmp_path, "N"), "--profile", "pi4", "--shape", "x=2x3x16x16", "--inference"
    assert json.loads(run(*asked, "--batch-size", "2", "--json"))["batch_size"] == 2
    assert json.loads(run(*asked, "--json"))["batch_size"] == 2
    with pytest.raises(OctosimError, match="^--batch-size must be 2, as --shape x=2x3x16x16 has it, not 4$"):
        run(*asked, "--batch-size", "4")
    with pytest.raises(OctosimError, match="^--shape is for ONNX files"):
        run("--model", "lenet5", "--shape", "x=1x3x64x64")


@pytest.mark.parametrize("option", [
    ("--update", "bias"), ("--accumulate", "4"), ("--batchnorm-statistics", "running"), ("--train-last", "0"),
    ("--train", "fc"), ("--freeze", "fc"), ("--channels", "fc=2")])  # fmt: skip
def test_fine_tuning_of_a_file_is_refused(option: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(OctosimError, match=f"^{option[0]} is for octosim's own networks; `octosim import "):
        run("--model", float_file(tmp_path, "N"), "--profile", "pi4", *option)


def test_a_quantized_file_has_no_float32(tmp_path: Path) -> None:
    asked = "--model", quantized_file(tmp_path), "--profile", "pi4", "--inference"
    record = json.loads(run(*asked, "--json"))
    assert record["reason"] == "the file is quantized and has no float32 products, so there is nothing to compare"
    with pytest.raises(OctosimError, match=r"^--dtype float32: .* is quantized, so its inference has int8 products alone$"):
        run(*asked, "--dtype", "float32")
    assert json.loads(run(*asked, "--dtype", "int8", "--json"))["total"] == record["total"]


def test_a_fixed_batch_that_is_too_large(tmp_path: Path) -> None:
    asked = "--model", float_file(tmp_path, 64, 64), "--profile", "stm32h743", "--inference"
    first = run(*asked).splitlines()[0]
    assert "does not fit, because" in first and "; the batch is fixed at 64 in the file; if it did" in first
