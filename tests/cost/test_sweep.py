"""Many points at once, advice under limits, and the command's answer."""

from __future__ import annotations

import csv
import json
import re
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from octosim import cost, graph, hardware, methods
from octosim.cli import answer
from octosim.cli.app import app
from octosim.cost import compare, reference, runtimes, sweep
from octosim.engine import plan
from octosim.errors import OctosimError

DEVICES = [(hardware.load(name), None, threads) for name, threads in
           (("pi4", None), ("pi5", 2), ("jetson", None), ("atlas", None), ("rk3399", 4), ("xeon-gold-6455b", None))]


def step(method, model="lenet5", shape=(28, 28, 1)):
    network = plan.dry(graph.layers(model, 10, True, in_shape=shape), shape, methods.make(method, {}))
    return lambda batch: plan.ops(plan.plan_like(network, batch))


@pytest.mark.parametrize("read", [
    step("octo"), step("fp32"), lambda b: reference.NETWORKS["mobilenet_v2"](b, "int8"),
    lambda b: runtimes.in_float16(reference.NETWORKS["resnet50"](b, "float32"))])
def test_a_sweep_equals_single_predictions(read):
    batches = [1, 3, 16, 100]
    found = sweep.times(sweep.table(read), batches, DEVICES)
    for row, (device, runtime, threads) in zip(found, DEVICES, strict=True):
        single = [sum(c.time_s for c in cost.predict(read(b), device, threads, runtime)) for b in batches]
        assert row == pytest.approx(single, rel=1e-9)


def test_small_calls_join_larger_ones_at_some_batches():
    """A network of many layers has a line for some batches alone; what lies on it is not planned."""
    read, batches = step("octo", "resnet20", (32, 32, 3)), [*range(1, 400, 3)]
    planned = []
    found = sweep.times(sweep.table(lambda batch: planned.append(batch) or read(batch)), batches, DEVICES[:1])[0]
    assert sorted(planned) == sorted(set(planned)) and len(planned) < len(batches) / 2, planned
    for at in (0, 1, 5, 21, 40, 66, 132):
        assert found[at] == pytest.approx(sum(c.time_s for c in cost.predict(read(batches[at]), DEVICES[0][0])), rel=1e-9)


def test_frameworks_in_a_sweep_and_devices_that_cannot():
    read, torch = step("fp32"), hardware.load_runtime("pytorch")
    pi, tpu = hardware.load("pi4"), hardware.load("coral-edge-tpu")

    def theirs(batch):
        return runtimes.training_ops(read(batch), torch)

    found = sweep.times(sweep.table(theirs), [8], [(pi, torch, 2), (tpu, torch, None)])
    assert found[0, 0] == pytest.approx(sum(c.time_s for c in cost.predict(theirs(8), pi, 2, torch)), rel=1e-6)
    assert np.isnan(found[1, 0])


def test_thousands_of_points_a_second():
    table = sweep.table(lambda b: reference.NETWORKS["resnet50"](b, "int8"))
    devices = [d for d in DEVICES if d[0].engines[0].kind == "cpu"] * 8
    batches = list(range(1, 65))
    sweep.times(table, batches[:2], devices)
    seconds = []
    for _ in range(3):
        before = time.process_time()
        found = sweep.times(table, batches, devices)
        seconds.append(time.process_time() - before)
    assert found.size / min(seconds) > 4000, "about 20,000 on an idle machine"


def run(*arguments):
    done = CliRunner().invoke(app, ["cost", *arguments], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.stdout


LENET = ("--model", "lenet5", "--profile", "pi4")


def test_the_command_writes_a_sweep(tmp_path):
    file = tmp_path / "points.csv"
    run(*LENET, "--compare", "pi5,jetson", "--batch-size", "1,8", "--sweep", str(file))
    rows = list(csv.DictReader(file.open()))
    assert {(r["device"], r["dtype"]) for r in rows} >= {
        ("raspberry-pi-4", "int8"), ("raspberry-pi-4", "float32"), ("jetson-xavier-nx", "float16")}
    one = next(r for r in rows if (r["device"], r["dtype"], r["batch_size"]) == ("raspberry-pi-4", "int8", "8"))
    record = json.loads(run(*LENET, "--batch-size", "8", "--json"))
    assert float(one["time_s"]) == pytest.approx(record["total"]["time_s"], rel=1e-4)
    with pytest.raises(OctosimError, match="--sweep"):
        run(*LENET, "--sweep", str(tmp_path / "points.txt"))


@pytest.mark.parametrize("devices", [("pi4", "jetson"), ("jetson", "pi4")])
def test_a_swept_framework_trains_by_each_devices_rules(devices, tmp_path):
    """PyTorch's backward pass on a GPU is not that on CPU cores, whichever device comes first."""
    file, options = tmp_path / "points.csv", ("--runtime", "pytorch", "--batch-size", "8")
    run("--model", "lenet5", "--profile", devices[0], "--compare", devices[1], *options, "--sweep", str(file))
    swept = {(row["device"], row["dtype"]): float(row["time_s"]) for row in csv.DictReader(file.open())}
    for device in devices:
        record = json.loads(run("--model", "lenet5", "--profile", device, *options, "--json"))
        for dtype, row in record["types"].items():
            assert swept[hardware.load(device).name, dtype] == pytest.approx(row["time_s"], rel=1e-4), (device, dtype)


def test_the_answer_comes_first():
    record = json.loads(run("--model", "lenet5", "--profile", "jetson", "--batch-size", "8", "--images", "100", "--json"))
    assert record["answer"].startswith("lenet5, batch 8 of 28x28x1 on NVIDIA Jetson Xavier NX")
    assert all(text in record["answer"] for text in ("hypothetical", "FP16", "an epoch of your 100 images"))
    assert record["epoch_s"] == pytest.approx(13 * record["total"]["time_s"])
    assert set(record["types"]) == {"int8", "float16", "float32"}
    assert record["types"]["int8"]["runtime"] == "octosim" and record["types"]["float16"]["runtime"] == "pytorch"
    assert run(*LENET).splitlines()[0].startswith("lenet5, batch 100 of 28x28x1 on Raspberry Pi 4")
    first = run("--model", "simplecnn", "--profile", "stm32h743").splitlines()[0]
    needed = r"[\d.]+ of 1.004 MiB and [\d.]+ of 1.997 MiB for weights \(\w+ [\d.]+ MiB, \w+ [\d.]+ MiB\)"
    assert re.search(rf"RAM\): does not fit, because it needs {needed}; ", first)
    assert "; no batch fits; if it did: INT8 " in first
    first = run("--model", "lenet5", "--profile", "stm32h743", "--batch-size", "8").splitlines()[0]
    assert re.search(r"needs 0\.8\d+ of 1.004 MiB, of which a step may take 0.8, and 0.2\d+ of 1.997 MiB for weights \(", first)


@pytest.mark.parametrize(("int8", "float32", "said"), [
    ((1.0, 0.9, 1.1), (2.0, 1.8, 2.2), "INT8 pays 2 times (1.7 to 2.3) against FP32"),
    ((1.0, 0.5, 2.0), (2.0, 1.0, 4.0), "INT8 is 2 times as fast as FP32 (0.75 to 5.3): whether it pays cannot be told"),
    ((2.0, 1.8, 2.2), (1.0, 0.9, 1.1), "INT8 does not pay against FP32: 0.5 times as fast (0.43 to 0.58)"),
])  # fmt: skip
def test_int8_pays_where_the_interval_of_the_ratio_says_so(int8, float32, said):
    rows = [dict(zip(("time_s", "time_low_s", "time_high_s"), times, strict=True)) for times in (int8, float32)]
    assert answer._verdict("FP32", compare.ratio(rows[1], rows[0])) == said


def test_epochs_have_a_time_and_an_energy():
    record = json.loads(run(*LENET, "--batch-size", "8", "--images", "100", "--epochs", "10", "--json"))
    assert record["training_s"] == pytest.approx(10 * record["epoch_s"])
    assert record["training_j"] == pytest.approx(130 * record["total"]["energy_j"]) and "10 of them" in record["answer"]
    shown = run(*LENET, "--batch-size", "8", "--images", "100", "--epochs", "10", "--compare", "pi5")
    assert "all epochs" in shown and answer.joules_text(record["training_j"]) in shown
    for wrong in (("--epochs", "3"), ("--images", "100", "--epochs", "0")):
        with pytest.raises(OctosimError, match="--epochs"):
            run(*LENET, *wrong)


@pytest.mark.parametrize(("shape", "size"), [((12, 10, 3), "12x10x3"), ((8, 9), "8x9x1"), ((7,), "1x1x7")])
def test_the_data_give_size_classes_and_images(shape, size, tmp_path):
    rng, own = np.random.default_rng(0), tmp_path / "own.npz"
    np.savez(own, x_train=rng.random((40, *shape), np.float32), y_train=np.arange(40) % 5,
             x_test=rng.random((10, *shape), np.float32), y_test=np.arange(10) % 5)  # fmt: skip
    same = [json.loads(run("--profile", "pi4", "--model", "mlp", "--batch-size", "4", "--epochs", "2", *more, "--json"))
            for more in (("--data", str(own)), ("--image", size, "--classes", "5", "--images", "40"))]
    assert same[0] == same[1] and f" of {size} on " in same[0]["answer"] and "your 40 images" in same[0]["answer"]
    for option in ("--classes", "--images"):
        with pytest.raises(OctosimError, match=f"leave out one of {option} and --data"):
            run(*LENET, "--data", str(own), option, "5")


def test_advice_under_limits():
    found = json.loads(run(*LENET, "--method", "octo", "--advise", "--batch-size", "1,8,64", "--deadline", "0.01", "--json"))
    best = found["best"]
    assert best["time_s"] <= 0.01 and not best["breaks"]
    allowed = [row for row in found["tried"] if not row["breaks"]]
    assert best["images_s"] == max(row["images_s"] for row in allowed)
    assert all(row["time_s"] > 0.01 for row in found["tried"] if row["breaks"] == "deadline")
    assert {row["train_last"] for row in found["tried"]} == {None}
    none = json.loads(run(*LENET, "--method", "octo", "--advise", "--batch-size", "1", "--max-memory", "0.01", "--json"))
    told = run(*LENET, "--method", "octo", "--advise", "--batch-size", "1,8", "--max-energy", "1e-6", "--deadline", "1")
    near = r"the nearest, [a-z0-9 ]+ of the last 1 weighted layers at batch 1 on raspberry-pi-4, takes .* MiB, .*s, .* J$"
    assert re.match(rf"nothing fits the limits \(energy\): \d+ points tried; {near}", told.splitlines()[0])
    assert none["best"] is None and {row["train_last"] for row in none["tried"]} == {None, 2, 1}


def test_advice_trains_fewer_layers_where_all_do_not_fit():
    options = *LENET, "--method", "octo", "--batch-size", "64"
    points = json.loads(run(*options, "--advise", "--json"))["tried"]
    whole = min(row["peak_bytes"] for row in points) / 2**20
    limit = ("--advise", "--max-memory", str(0.98 * whole))
    best = json.loads(run(*options, *limit, "--json"))["best"]
    assert best["train_last"] in (1, 2) and best["peak_bytes"] <= 0.98 * whole * 2**20
    assert "trains the whole network keeps the limits; one that trains the last" in run(*options, *limit)
    chosen = json.loads(run(*options, *limit, "--train-last", "1", "--json"))
    assert {row["train_last"] for row in chosen["tried"]} == {1}


def test_limits_go_with_advice():
    with pytest.raises(OctosimError, match="--deadline goes with --advise"):
        run(*LENET, "--deadline", "1")
