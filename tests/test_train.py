"""Runs: digests across instruction sets and threads, resume, kill -9, replay, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from octosim import core, data, methods, models, optim, train
from octosim.errors import OctosimError

ISAS = [name for name, supported in core.isas().items() if supported]
# Batch size and steps of a model's digests: the large networks, with tens of millions of weights, get few of both.
SIZES = {"lenet5": (50, 6), "resnet20": (5, 3), "mobilenet": (5, 3), "vgg-small-7": (2, 2), "alexnet": (2, 2), "vgg11": (2, 2)}
SHORT = dict(batch_size=50, steps=6, epochs=1)


@pytest.fixture
def restore_core():
    """Leaves instruction set and threads as they were."""
    isa, threads = core.isa(), core.threads()
    yield
    core.set_isa(isa)
    core.set_threads(threads)


def finished(config: train.Config, folder: Path, **options) -> str:
    run = train.create(config, folder, "test")
    assert train.train(run, folder, **options)
    digest = train.read_digest(folder)
    assert digest == run.digest()
    return digest


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("model", models.MODELS)
def test_digest_on_every_instruction_set_and_thread_count(model: str, method: str, tmp_path: Path, restore_core: None) -> None:
    """Three threads too: more than this machine has cores, and a divisor of nothing."""
    batch_size, steps = SIZES.get(model, (50, 3))
    config = train.Config(model=model, method=method, batch_size=batch_size, steps=steps)
    digests, records = {}, {}
    for isa in ISAS:
        for threads in (1, 2, 3) if isa == ISAS[-1] else (2,):
            core.set_isa(isa)
            core.set_threads(threads)
            folder = tmp_path / f"{isa}-{threads}"
            run = train.create(config, folder, "test")
            while run.step < run.steps:
                records.setdefault((isa, threads), []).append(run.train_step())
            digests[isa, threads] = run.digest()
    assert len(digests) >= 3 and len(set(digests.values())) == 1, digests
    assert len({tuple(r) for r in records.values()}) == 1


@pytest.mark.parametrize(
    "parameters",
    [
        dict(lac="feature", prc="gauss", rounding="stochastic"),
        dict(lac="off", prc="off", zero_point="dropped"),
        dict(lac="feature"),
    ],
    ids=lambda p: "-".join(p.values()),
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_digest_of_octos_variants(parameters: dict, optimizer: str, restore_core: None) -> None:
    digests = set()
    for isa, threads in [(ISAS[0], 1), (ISAS[-1], 2)]:
        core.set_isa(isa)
        core.set_threads(threads)
        run = train.Run(train.Config(model="lenet5", parameters=parameters, optimizer=optimizer, batch_size=50))
        for _ in range(3):
            run.train_step()
        digests.add(run.digest())
    assert len(digests) == 1


def test_what_decides_changes_the_digest() -> None:
    digests = []
    for change in ({}, {"seed": 1}, {"method": "fp32"}, {"parameters": {"prc": "off"}}, {"lr": 0.01}, {"batch_size": 49}):
        run = train.Run(train.Config(**{"model": "lenet5", "batch_size": 50, **change}))
        run.train_step()
        digests.append(run.digest())
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("method", methods.METHODS)
def test_training_learns(method: str, tmp_path: Path) -> None:
    config = train.Config(model="lenet5", method=method, epochs=2)
    finished(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/records.jsonl").read_text().splitlines()]
    assert [r["step"] for r in lines] == list(range(1, 101))
    evaluated = [r for r in lines if "test_accuracy" in r]
    assert [r["epoch"] for r in evaluated] == [1, 2] and [r["step"] for r in evaluated] == [50, 100]
    assert evaluated[-1]["test_accuracy"] > 0.70
    assert np.mean([r["loss"] for r in lines[-10:]]) < 0.5 * lines[0]["loss"]
    timing = [json.loads(line) for line in (tmp_path / "run/timing.jsonl").read_text().splitlines()]
    assert [t["epoch"] for t in timing] == [1, 2] and all(t["wall_s"] > 0 for t in timing)


def test_manifest_says_what_decides(tmp_path: Path) -> None:
    config = train.Config(model="lenet5", parameters={"lac": "feature"}, seed=7, **SHORT)
    train.create(config, tmp_path / "run", "octosim train ...")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    decides = manifest["decides"]
    assert decides["method"]["parameters"]["lac"] == "feature" and decides["method"]["parameters"]["prc"] == "ratio"
    assert decides["data"]["sha256"] == data.load("fashion-mnist-5k").sha256
    assert decides["seed"] == 7 and decides["optimizer"]["name"] == "sgd"
    assert [layer["kind"] for layer in decides["layers"]][:2] == ["Conv2d", "BatchNorm"]
    assert manifest["environment"]["isa"] == core.isa()
    assert train.read_config(tmp_path / "run") == config


def test_an_epoch_sees_every_image_once() -> None:
    run = train.Run(train.Config(method="fp32", batch_size=300))
    for epoch in (0, 1):
        assert np.array_equal(np.sort(run.order(epoch)), np.arange(5000))
    assert not np.array_equal(run.order(0), run.order(1))
    sizes = [len(run.batch(step)[1]) for step in range(1, run.steps_per_epoch + 1)]
    assert sizes == [300] * 16 + [200]


def test_schedules() -> None:
    """The cosine against libm's, over a whole run; every schedule starts at the full rate."""
    for t in np.linspace(0, 1, 1001):
        assert optim.SCHEDULES["cosine"](float(t)) == pytest.approx((1 + np.cos(np.pi * t)) / 2, abs=1e-14)
    for name in optim.SCHEDULES:
        assert optim.rate(0.1, name, 1, 50) == 0.1


# ---- interruption --------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 7, 34, 36])
def test_resume_gives_the_same_bits(stop_at: int, tmp_path: Path) -> None:
    """Stopped by an exception at any step, in the middle of an epoch or between checkpoints."""
    config = train.Config(model="lenet5", batch_size=150, epochs=2, steps=40)  # an epoch has 34 steps
    expected = finished(config, tmp_path / "whole")

    def stop(progress: train.Progress) -> None:
        if progress.step == stop_at:
            raise Stop

    folder = tmp_path / "broken"
    with pytest.raises(Stop):
        train.train(train.create(config, folder, "test"), folder, stop, every=3)
    with open(folder / "records.jsonl", "a") as file:
        file.write('{"step": 99, "ep')  # what a kill in the middle of a write leaves
    run = train.reopen(folder)
    assert run.step <= stop_at
    assert train.train(run, folder, every=3)
    assert train.read_digest(folder) == expected
    assert (folder / "records.jsonl").read_text() == (tmp_path / "whole/records.jsonl").read_text()


def command(*arguments: str, **variables: str) -> list[str]:
    return [sys.executable, "-m", "octosim.cli", *arguments]


TRAIN = ("train", "--model", "lenet5", "--batch-size", "50", "--steps", "80", "--checkpoint-every", "10")


def wait_for_lines(path: Path, count: int, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.01)
    raise AssertionError(f"{path} did not reach {count} lines")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_killed_and_resumed(number: signal.Signals, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(*TRAIN, "--out", str(whole)), check=True, capture_output=True)
    process = subprocess.Popen(command(*TRAIN, "--out", str(broken)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_lines(broken / "records.jsonl", 10, process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert not (broken / "digest.txt").exists()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert f"octosim train --resume --out {broken}" in errors
    done = subprocess.run(command("train", "--resume", "--out", str(broken)), capture_output=True, text=True, check=True)
    assert "resuming" in done.stderr
    assert (broken / "digest.txt").read_text() == (whole / "digest.txt").read_text()
    assert (broken / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    assert not list(broken.glob(".*.tmp"))


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = train.Config(model="lenet5", **SHORT)
    folder = tmp_path / "run"
    run = train.create(config, folder, "test")
    run.advance()
    train._save(run, folder)
    good = (folder / "checkpoint.safetensors").read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run.advance()
    with pytest.raises(OctosimError, match="checkpoint.safetensors: No space left on device"):
        train._save(run, folder)
    assert (folder / "checkpoint.safetensors").read_bytes() == good
    assert not list(folder.glob(".*.tmp"))


# ---- replay --------------------------------------------------


def test_verify(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finished(train.Config(model="lenet5", **SHORT), folder)
    assert train.verify(folder).equal

    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    lines = (changed / "records.jsonl").read_text().splitlines()
    record = json.loads(lines[3])
    record["loss"] = float(np.nextafter(np.float32(record["loss"]), np.float32(9)))
    lines[3] = json.dumps(record)
    (changed / "records.jsonl").write_text("\n".join(lines) + "\n")
    verdict = train.verify(changed)
    assert not verdict.equal and verdict.first_step == 4

    forged = tmp_path / "forged"
    shutil.copytree(folder, forged)
    (forged / "digest.txt").write_text("sha256:" + "0" * 64 + "  step 6\n")
    verdict = train.verify(forged)
    assert not verdict.equal and verdict.first_step is None


# ---- what goes wrong --------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "lenet"}, "unknown model 'lenet'; did you mean 'lenet5'?"),
        ({"method": "okto"}, "unknown method 'okto'; did you mean 'octo'?"),
        ({"data": "mnits"}, "unknown data set 'mnits'; did you mean 'mnist'?"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg'; did you mean 'sgd'?"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'?"),
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"batch_size": 5001}, "--batch-size 5001 is larger than the 5000 training images"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"steps": -1}, "--steps must be at least 1"),
        ({"seed": -1}, "--seed must be in 0 .. 2^64 - 1"),
        ({"lr": -0.1}, "--lr must be a positive number"),
        ({"lr": float("nan")}, "--lr must be a positive number"),
        ({"parameters": {"lac": "x"}}, "lac must be one of"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_configurations_write_nothing(change: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(OctosimError) as caught:
        train.create(train.Config(**{**SHORT, **change}), tmp_path / "run", "test")
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_existing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OctosimError, match="exists already"):
        train.create(train.Config(**SHORT), tmp_path, "test")
    assert not list(tmp_path.iterdir())


def test_divergence_names_step_and_layer(tmp_path: Path) -> None:
    config = train.Config(model="lenet5", lr=1e30, **SHORT)
    folder = tmp_path / "run"
    with pytest.raises(OctosimError, match=r"step \d, (layer \w+, (forward|backward)|loss): .*--lr"):
        train.train(train.create(config, folder, "test"), folder, every=1)
    assert not (folder / "digest.txt").exists()


def broken_run(folder: Path) -> None:
    run = train.create(train.Config(model="lenet5", **SHORT), folder, "test")
    run.advance()
    train._save(run, folder)


def test_truncated_checkpoint(tmp_path: Path) -> None:
    broken_run(tmp_path / "run")
    path = tmp_path / "run/checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OctosimError, match="checkpoint.safetensors cannot be read"):
        train.reopen(tmp_path / "run")


@pytest.mark.parametrize("edit", ["version", "format", "json", "config", "gone"])
def test_broken_manifest(edit: str, tmp_path: Path) -> None:
    broken_run(tmp_path / "run")
    path = tmp_path / "run/manifest.json"
    content = json.loads(path.read_text())
    if edit == "version":
        content["decides"]["octosim"] = "0.0.1"
        words = "'octosim' was 0.0.1"
    elif edit == "format":
        content["format"] = 99
        words = "format"
    elif edit == "config":
        del content["config"]["seed"]
        words = "'config' must have exactly the fields"
    else:
        words = "cannot be read" if edit == "json" else "has no manifest.json"
    path.write_text("{" if edit == "json" else json.dumps(content))
    if edit == "gone":
        path.unlink()
    with pytest.raises(OctosimError, match=words):
        train.reopen(tmp_path / "run")


def test_unfinished_run_is_not_verified(tmp_path: Path) -> None:
    broken_run(tmp_path / "run")
    with pytest.raises(OctosimError, match="not finished"):
        train.verify(tmp_path / "run")
