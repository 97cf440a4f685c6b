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


@pytest.mark.parametrize("own", [False, True])
def test_a_batch_of_a_chip_that_takes_one_image_at_a_time(own: bool, tmp_path: Path) -> None:
    """In time and in memory, point by point and in a sweep."""
    network = ["--model", "lenet5" if own else float_file(tmp_path, "N", 64)]
    line = [*network, "--profile", "coral-edge-tpu", "--inference", "--dtype", "int8", "--runtime", "vendor-npu"]
    one, many = (json.loads(run(*line, "--batch-size", size, "--json"))["total"] for size in ("1", "64"))
    assert many["time_s"] == pytest.approx(64 * one["time_s"]) and many["peak_bytes"] == one["peak_bytes"]
    run(*line, "--compare", "rk3588-npu", "--sweep", str(tmp_path / "points.csv"), "--batch-size", "1,4,64")
    rows = csv.DictReader((tmp_path / "points.csv").open())
    found = {row["batch_size"]: float(row["time_s"]) for row in rows if row["device"] == "coral-edge-tpu"}
    assert found["64"] == pytest.approx(many["time_s"], rel=1e-4) and found["4"] == pytest.approx(found["64"] / 16, rel=1e-4)


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


LENET = ("--model", "lenet5", "--batch-size", "8")


@pytest.mark.parametrize(("main", "options"), [
    ("--advise", [("--plot", "x.png"), ("--roofline", "x.png")]),
    ("--sweep trainable", [("--roofline", "x.png"), ("--images", "10"), ("--epochs", "2"), ("--advise",)]),
    ("--sweep x.csv", [("--plot", "x.png"), ("--roofline", "x.png"), ("--images", "10"), ("--advise",)]),
])  # fmt: skip
def test_what_would_say_nothing_is_refused(main: str, options: list[tuple[str, ...]]) -> None:
    for option in options:
        with pytest.raises(OctosimError, match=f"^{option[0]} does not go with {main}; leave out one of them$"):
            run(*LENET, *main.split(), *option)


def test_advice_keeps_to_the_memory_of_the_device_and_to_the_limit() -> None:
    asked = "--model", "simplecnn", "--profile", "stm32h743", "--method", "octo", "--advise", "--json"
    found = json.loads(run(*asked, "--max-memory", "0.01"))
    assert found["best"] is None and {row["breaks"] for row in found["tried"]} == {"memory"}
    taken = [row["peak_bytes"] for row in found["tried"]]
    assert taken == sorted(taken), "nearest first: no other limit is broken"
    found = json.loads(run(*asked, "--max-memory", "200"))
    best, room = found["best"], 0.8 * 1.004 * 2**20
    assert best["train_last"] == 1 and best["peak_bytes"] < room, "the other weights lie in flash"
    assert {row["breaks"] for row in found["tried"] if row["peak_bytes"] > room} == {"memory of the device"}


def test_advice_prices_each_device_in_its_own_types(tmp_path: Path) -> None:
    file = float_file(tmp_path, "N")
    asked = "--model", file, "--profile", "pi4", "--compare", "hailo,coral", "--inference", "--advise", "--batch-size", "1"
    tried = json.loads(run(*asked, "--json"))["tried"]
    assert {(row["device"], row["dtype"]) for row in tried} == {
        ("raspberry-pi-4", "float32"), ("raspberry-pi-4", "int8"), ("hailo-8", "int8"), ("coral-edge-tpu", "int8")
    }  # fmt: skip


def test_advice_says_why_nothing_can_be_tried(tmp_path: Path) -> None:
    with pytest.raises(OctosimError, match="^runtime tflite does not train; --inference prices its forward pass$"):
        run(*LENET, "--profile", "pi4", "--advise", "--runtime", "tflite")
    asked = "--model", float_file(tmp_path, 4), "--profile", "pi4", "--inference", "--advise"
    with pytest.raises(OctosimError, match="the batch of input x is fixed at 4"):
        run(*asked, "--batch-size", "2")
    assert {row["batch_size"] for row in json.loads(run(*asked, "--json"))["tried"]} == {4}
    found = json.loads(run(*LENET, "--profile", "pi4", "--compare", "coral", "--method", "octo", "--advise", "--json"))
    assert list(found["skipped"]) == ["coral-edge-tpu"] and {row["device"] for row in found["tried"]} == {"raspberry-pi-4"}


def test_advice_says_what_is_hypothetical_and_what_an_epoch_takes() -> None:
    asked = *LENET, "--profile", "jetson", "--advise", "--images", "100", "--epochs", "3"
    best = json.loads(run(*asked, "--json"))["best"]
    assert best["hypothetical"] and best["epoch_s"] == pytest.approx(13 * best["time_s"])
    assert best["training_s"] == pytest.approx(3 * best["epoch_s"])
    first, reason, real = run(*asked).splitlines()[:3]
    assert first.startswith("best: int8") and " a step (hypothetical), " in first and ", an epoch " in first
    assert reason == best["hypothetical"]
    assert real.startswith("best with software that exists there: float16 with pytorch, batch 8 on jetson-xavier-nx: ")


@pytest.mark.parametrize("what", [(), ("--sweep", "trainable:1"), ("--sweep", "FILE")])
def test_all_devices_but_those_that_cannot(what: tuple[str, ...], tmp_path: Path) -> None:
    """`--compare all` leaves out with the reason; a device that is named ends the comparison."""
    what = tuple(str(tmp_path / "points.csv") if part == "FILE" else part for part in what)
    asked = "--model", "mlp", "--profile", "pi4", "--batch-size", "8", *what
    found = json.loads(run(*asked, "--compare", "all", "--json"))
    assert {"coral-edge-tpu", "hailo-8"} <= set(found["skipped"]) and "dW" in found["skipped"]["coral-edge-tpu"]
    assert "\nleft out coral-edge-tpu: no engine has trains = true" in run(*asked, "--compare", "all")
    with pytest.raises(OctosimError, match="^profile coral-edge-tpu: no engine has trains = true"):
        run(*asked, "--compare", "all, coral")
    found = json.loads(run(*asked, "--compare", "all", "--mode", "10W", "--profile", "jetson", "--json"))
    assert found["skipped"]["raspberry-pi-4"] == "profile raspberry-pi-4 has no power modes, so --mode 10W says nothing"


def test_each_device_is_compared_once() -> None:
    found = json.loads(run(*LENET, "--profile", "pi4", "--compare", "pi4, raspberry-pi-4 ,jetson,", "--json"))
    assert [record["device"] for record in found["devices"]] == ["raspberry-pi-4", "jetson-xavier-nx"]
    with pytest.raises(OctosimError, match="^unknown profile ''"):
        run(*LENET, "--profile", "")


def test_training_in_float16_on_cpu_cores_is_hypothetical() -> None:
    record = json.loads(run(*LENET, "--profile", "pi5", "--dtype", "float16", "--json"))
    told = "hypothetical: octosim has no kernels in float16; its operations are priced at the rates of the hardware"
    assert record["types"]["float16"]["hypothetical"] == told and told in record["notes"] and "hypothetical" in record["answer"]
    assert not record["types"]["float32"]["hypothetical"]
    record = json.loads(run(*LENET, "--profile", "pi5", "--dtype", "float16", "--runtime", "pytorch", "--json"))
    assert record["types"]["float16"]["hypothetical"].startswith("hypothetical: pytorch is not known to train in float16")


def test_a_step_bound_by_calls_has_that_reason() -> None:
    """On a GPU the products run while calls are made: no time of theirs is left to be compared."""
    network = ("--model", "resnet20", "--image", "32x32x3", "--batch-size", "16")
    told = json.loads(run("--profile", "jetson-orin-nano", *network, "--json"))
    assert told["gain"] > 2 and told["reason"].startswith("calls take ") and "no faster" not in told["reason"]
