"""Memory where no Python runs: that of the exported C program, weights of an inference in flash or a memory of their own."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import octosim
from octosim import hardware, train
from octosim.cli.app import app
from octosim.cost import compare
from octosim.evidence import export, export_onnx, export_step
from octosim.hardware import load_runtime
from octosim.workload import CostQuery, Workload, source

OWN = load_runtime("octosim")
STM = hardware.load("stm32h743")
IMAGE = "28x28x1"


def own(model: str, inference: bool, dtype: str | None = None, **tuning: object) -> Workload:
    return source(CostQuery(model, None, dtype, inference, IMAGE, False, tuning=tuning))


def first_line(*arguments: str) -> str:
    return CliRunner().invoke(app, ["cost", *arguments], standalone_mode=False).stdout.splitlines()[0]


@pytest.mark.parametrize("model", ["lenet5", "simplecnn", "resnet20", "mobilenet"])
def test_memory_is_that_of_the_exported_program(model: str, tmp_path: Path) -> None:
    """Buffers to the byte; constants but for numbers of channels, some of which the program folds."""
    octosim.train(out=tmp_path / "run", model=model, data="fashion-mnist-5k", steps=1, limit=20, batch_size=4)
    program = export.export(tmp_path / "run", "c", tmp_path / "c", comparing=False)[0]
    found = own(model, True).memory(STM, 1, OWN)
    assert found["peak"] == found["activations"] + found["workspace"] == program["ram"]
    assert found["weights"] == 0 and found["weights apart"] == pytest.approx(program["flash"], rel=0.08)


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize("model, last", [
    ("lenet5", None), ("simplecnn", None), ("resnet20", None), ("mobilenet", None), ("lenet5", 1), ("resnet20", 2),
    ("mobilenet", 1),
])  # fmt: skip
def test_memory_of_a_training_is_that_of_the_exported_program(model: str, last: int | None, tmp_path: Path) -> None:
    """Weights that are not trained are constants in flash, where the numbers are too that the others begin with."""
    octosim.train(
        out=tmp_path / "run", model=model, data="fashion-mnist-5k", steps=1, limit=20, batch_size=4, train_last=last
    )
    program = export_step.program(train.replay(tmp_path / "run"))
    found = own(model, False, train_last=last).memory(STM, 4, OWN)
    assert found["peak"] == pytest.approx(sum(program.ram.values()), rel=0.14)
    assert found["weights apart"] == pytest.approx(program.initial, rel=0.03)
    if last:
        assert found["weights"] < 0.3 * found["weights apart"] < own(model, False).memory(STM, 4, OWN)["weights"]


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_memory_of_a_training_in_float32_is_that_of_the_exported_program(tmp_path: Path) -> None:
    """Its products pack their operands, those of codes do not."""
    run = dict(model="lenet5", method="fp32", normalize="none", data="fashion-mnist-5k", steps=1, limit=20, batch_size=4)
    octosim.train(out=tmp_path / "run", **run)
    program = export_step.program(train.replay(tmp_path / "run"))
    assert own("lenet5", False, "float32").memory(STM, 4, OWN)["peak"] == pytest.approx(sum(program.ram.values()), rel=0.08)


def test_frozen_weights_take_ram_where_no_flash_is_known() -> None:
    chip = STM.model_copy(update={"memory": STM.memory.model_copy(update={"weights_gib": None})})
    here, there = (own("lenet5", False, train_last=1).memory(device, 1, OWN) for device in (chip, STM))
    assert here["weights"] == there["weights apart"] and "weights apart" not in here
    assert here["peak"] == there["peak"] + here["weights"] - there["weights"]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_the_largest_batch_fits(inference: bool, dtype: str) -> None:
    made = own("lenet5", inference, dtype)
    capacity = hardware.Figure(value=0.0016, kind="estimate", source="a test's own number: a float32 step of two images fits")
    chip = STM.model_copy(update={"memory": STM.memory.model_copy(update={"capacity_gib": capacity})})
    room = compare.capacity_bytes(chip)
    batch = made.largest(chip, room, OWN)
    here, more = (made.memory(chip, of, OWN) for of in (batch, batch + 1))
    assert batch > 1 and here["peak"] <= room < more["peak"]
    assert compare.fits(here, chip) and not compare.fits(more, chip)


def test_weights_of_an_inference_have_a_memory_of_their_own() -> None:
    """A network that fits by its activations does not by its weights, whatever the batch; trained ones are in RAM too."""
    said = first_line("--profile", "stm32h743", "--model", "resnet18", "--inference", "--batch-size", "1")
    assert "does not fit, because it needs 0.1107 of 1.004 MiB and 10.76 of 1.997 MiB for weights" in said
    assert "no batch fits" in said
    assert "fits (37.9 KiB of 1.004 MiB and 63.89 KiB of 1.997 MiB for weights)" in first_line(
        "--profile", "stm32h743", "--model", "lenet5", "--inference", "--batch-size", "1"
    )
    advice = compare.fit({"INT8": {"peak": 2**21}}, {"INT8": lambda room: 0}, STM)["advice"]
    assert advice == "INT8 does not fit in 0.8 MiB (0.8 of the memory); no batch fits"
    step = own("lenet5", False).memory(STM, 1, OWN)
    assert step["weights apart"] > step["weights"] > 4 * 60_000


def test_an_accelerator_holds_codes(tmp_path: Path) -> None:
    """Between layers of int8 alone nothing is float32, and nothing is copied with a border."""
    chip = hardware.load("max78002")
    found = own("resnet20", True).memory(chip, 1, OWN)
    largest = 28 * 28 * 16
    assert found["workspace"] == 0 and 2 * largest <= found["peak"] <= 3 * largest


@pytest.mark.parametrize("name", ["tflite", "ncnn"])
@pytest.mark.parametrize("device", ["pi4", "stm32h743"])
def test_other_software_takes_the_same_for_a_network_and_its_file(name: str, device: str, tmp_path: Path) -> None:
    """The network is run by that software, not by the method; its own codes are a quarter of float32's."""
    pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    run = dict(model="resnet20", method="fp32", data="fashion-mnist-5k")
    octosim.train(out=tmp_path / "run", **run, steps=1, limit=20, batch_size=4)
    (tmp_path / "file.onnx").write_bytes(export_onnx.onnx_model(train.replay(tmp_path / "run"), "qdq"))
    board, software = hardware.load(device), load_runtime(name)
    made = source(CostQuery(str(tmp_path / "file.onnx"), None, "float32", True, None, True))
    theirs, ours = made.memory(board, 1, software), own("resnet20", True, "float32").memory(board, 1, software)
    for part in ("weights", "weights apart"):
        assert ours.get(part, 0) == pytest.approx(theirs.get(part, 0), rel=0.02)
    assert ours["peak"] == pytest.approx(theirs["peak"], rel=0.1)
    codes = own("resnet20", True).memory(board, 1, software)
    whole = sum(codes.get(part, 0) for part in ("weights", "weights apart"))
    assert whole < 0.3 * sum(ours.get(part, 0) for part in ("weights", "weights apart"))


def test_advice_counts_flash() -> None:
    """Of points that break it as much, the one that takes the least RAM is the nearest."""
    line = "--profile stm32h743 --model vgg11 --image 32x32x3 --advise --batch-size 1,2 --dtype float32 --train-last 1"
    assert "at batch 1 on stm32h743, takes " in (said := first_line(*line.split())) and " MiB for weights, " in said
