"""Runs: digests across instruction sets and threads, resume, kill -9, replay, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kit.cli import octosim
from kit.small import few_images, narrow
from kit.thin import diagonal

from octosim import core, data, graph, limits, methods, train
from octosim.data import batches
from octosim.engine import plan
from octosim.engine.layers import Stack
from octosim.errors import OctosimError
from octosim.report import read, states

ISAS = [name for name, supported in core.isas().items() if supported]
# Batch size and steps of a model's digests: the large networks, with tens of millions of weights, get few of both.
SIZES = {"lenet5": (50, 6), "resnet20": (5, 3), "mobilenet": (5, 3), "vgg-small-7": (2, 2), "alexnet": (2, 2), "vgg11": (2, 2)}
SHORT = dict(batch_size=50, steps=6, epochs=1)
OPTIONS = dict(  # every option of the engine away from its default
    weight_decay=1e-3, schedule="step", milestones=[0.4, 0.8], gamma=0.3, warmup=5, augment="crop-flip", label_smoothing=0.1,
    eval_every=7,
)  # fmt: skip


@pytest.fixture
def restore_core():
    """Leaves instruction set and threads as they were."""
    isa, threads = core.isa(), core.threads()
    yield
    core.set_isa(isa)
    core.set_threads(threads)


def options_of(method: str) -> dict:
    """OPTIONS without those that mean nothing to the method."""
    return {key: value for key, value in OPTIONS.items() if key not in methods.METHODS[method].unused}


def finished(config: train.Config, folder: Path, **options) -> str:
    run = train.create(config, folder, "test")
    assert train.train(run, folder, **options)
    digest = train.read_digest(folder)
    assert digest == run.digest()
    return digest


SETTINGS = [(isa, 1 + number % 3) for number, isa in enumerate(ISAS)] + [(ISAS[-1], 1)]
"""Every instruction set; one to three threads: three are more than this machine has cores, and a divisor of nothing."""


def digests_of(config: train.Config, stack: Stack | None = None) -> list[tuple[str, tuple[float, ...]]]:
    """Digest and losses of the whole run with each of SETTINGS, every second time with steps that are recorded."""
    made = []
    for isa, threads in dict.fromkeys(SETTINGS):
        core.set_isa(isa)
        core.set_threads(threads)
        run = train.Run(config, stack)
        run.allow_replay = len(made) % 2 == 1
        losses = tuple(run.train_step() for _ in range(run.steps))
        made.append((run.digest(), losses))
    assert len(made) >= 3
    return made


@pytest.mark.parametrize(("model", "method"), diagonal(list(graph.MODELS), list(methods.METHODS)))
def test_digest_of_every_method(model: str, method: str, restore_core: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model's graph, narrowed: three steps have the same bits everywhere."""
    monkeypatch.setattr(data, "load", few_images)
    batchnorm = methods.METHODS[method].batchnorm
    config = train.Config(model=model, method=method, batch_size=3, steps=3, batchnorm=batchnorm)
    assert len(set(digests_of(config, narrow(graph.layers(model, 10, batchnorm))))) == 1


@pytest.mark.parametrize("method", ["octo", "fp32", pytest.param("niti", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=[pytest.mark.slow] * model.startswith(("vgg", "alexnet"))) for model in graph.MODELS]
)
def test_digest_of_every_model(model: str, method: str, restore_core: None) -> None:
    """The models as they are, whose products take the kernels' other paths."""
    batch_size, steps = SIZES.get(model, (50, 3))
    batchnorm = methods.METHODS[method].batchnorm
    config = train.Config(model=model, method=method, batch_size=batch_size, steps=steps, batchnorm=batchnorm)
    assert len(set(digests_of(config))) == 1


@pytest.mark.parametrize(
    "parameters",
    [
        dict(lac="feature", prc="gauss", rounding="stochastic"),
        dict(lac="off", prc="off", zero_point="dropped"),
        dict(lac="feature"),
        dict(lac="feature", rounding="stochastic", keep="float32"),
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
        run.allow_replay = threads == 2
        for _ in range(4):
            run.train_step()
        digests.add(run.digest())
    assert len(digests) == 1


@pytest.mark.parametrize("method", methods.METHODS)
def test_digest_with_every_option(method: str, tmp_path: Path, restore_core: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instruction sets, threads, and batches made ahead or not: the same records and bits."""
    monkeypatch.setattr(data, "load", few_images)
    batchnorm = methods.METHODS[method].batchnorm
    config = train.Config(model="lenet5", method=method, batch_size=10, steps=9, batchnorm=batchnorm, **options_of(method))
    made = set()
    for isa, threads, prefetch in [(ISAS[0], 1, False), (ISAS[-1], 2, True), (ISAS[-1], 1, False)]:
        core.set_isa(isa)
        core.set_threads(threads)
        folder = tmp_path / f"{isa}-{threads}-{prefetch}"
        digest = finished(config, folder, prefetch=prefetch)
        made.add((digest, (folder / "records.jsonl").read_text()))
    assert len(made) == 1
    assert train.verify(folder).equal


DECIDES = (
    {}, {"seed": 1}, {"method": "fp32"}, {"parameters": {"prc": "off"}}, {"lr": 0.01}, {"batch_size": 49}, {"warmup": 3},
    {"weight_decay": 0.01}, {"augment": "crop-flip"}, {"label_smoothing": 0.1},
)  # fmt: skip


def test_what_decides_changes_the_digest() -> None:
    digests = []
    for change in DECIDES:
        run = train.Run(train.Config(**{"model": "lenet5", "batch_size": 50, **change}))
        run.train_step()
        digests.append(run.digest())
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("method", methods.METHODS)
def test_training_learns(method: str, tmp_path: Path) -> None:
    cls = methods.METHODS[method]
    config = train.Config(model="lenet5", method=method, batch_size=50, epochs=2, batchnorm=cls.batchnorm)
    finished(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/records.jsonl").read_text().splitlines()]
    assert [r["step"] for r in lines] == list(range(1, 201))
    evaluated = [r for r in lines if "test_accuracy" in r]
    assert [r["epoch"] for r in evaluated] == [1, 2] and [r["step"] for r in evaluated] == [100, 200]
    assert evaluated[-1]["test_accuracy"] > 0.65
    assert np.mean([r["loss"] for r in lines[-10:]]) < 0.5 * lines[0]["loss"]
    if "lr" in cls.unused:
        assert lines[0]["learning_rate"] is None
    else:
        assert lines[0]["learning_rate"] == 0.05 and 0 < lines[-1]["learning_rate"] < 1e-4
    timing = [json.loads(line) for line in (tmp_path / "run/timing.jsonl").read_text().splitlines()]
    assert [t["epoch"] for t in timing] == [1, 2] and all(t["wall_s"] > 0 for t in timing)


def test_manifest_says_what_decides(tmp_path: Path) -> None:
    config = train.Config(model="lenet5", parameters={"lac": "feature"}, seed=7, **SHORT, **OPTIONS)
    train.create(config, tmp_path / "run", "octosim train ...")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    decides = manifest["decides"]
    assert decides["method"]["parameters"]["lac"] == "feature" and decides["method"]["parameters"]["prc"] == "ratio"
    assert decides["data"]["sha256"] == data.load("fashion-mnist-5k").sha256
    assert decides["seed"] == 7 and decides["optimizer"]["name"] == "sgd"
    assert decides["optimizer"]["decay"] == 1e-3 and decides["optimizer"]["decayed"] == ["w"]
    assert decides["optimizer"]["schedule"] == {"name": "step", "milestones": [0.4, 0.8], "gamma": 0.3, "warmup": 5}
    assert decides["augment"] == "crop-flip" and decides["label_smoothing"] == 0.1
    assert [layer["kind"] for layer in decides["layers"]][:2] == ["Conv2d", "BatchNorm"]
    assert manifest["environment"]["isa"] == core.isa()
    assert train.read_config(tmp_path / "run") == config


@pytest.mark.parametrize("optimizer", [{"optimizer": "sgd"}, {"optimizer": "adam"}])
@pytest.mark.parametrize("method", methods.METHODS)
def test_manifest_says_what_memory_holds(method: str, optimizer: dict) -> None:
    """Weights with the codes made of them and the optimizer's tensors as they are; what is kept: tests/cost/test_cost.py."""
    cls = methods.METHODS[method]
    more = {} if "optimizer" in cls.unused else optimizer
    run = train.Run(train.Config(model="lenet5", method=method, batchnorm=cls.batchnorm, batch_size=50, **more))
    held = train.memory(run)
    assert list(held) == list(dict.fromkeys(("fp32", method)))
    for parts in held.values():
        assert parts["peak"] == sum(size for name, size in parts.items() if name != "peak")
    assert held[method]["weights"] >= sum(w.nbytes for node in run.network.nodes for w in node.params.values())
    slots = sum(v.nbytes for by_name in run.slots.values() for v in by_name.values())
    assert held[method]["optimizer"] == (0 if "optimizer" in cls.unused else slots)


def test_an_epoch_sees_every_image_once() -> None:
    run = train.Run(train.Config(method="fp32", batch_size=300))
    for epoch in (0, 1):
        assert np.array_equal(np.sort(run.order(epoch)), np.arange(5000))
    assert not np.array_equal(run.order(0), run.order(1))
    sizes = [len(run.batch(step)[1]) for step in range(1, run.steps_per_epoch + 1)]
    assert sizes == [300] * 16 + [200]


def test_batches_are_augmented_images_with_their_labels() -> None:
    plain, augmented = (
        train.Run(train.Config(method="fp32", batch_size=100, augment=augment)) for augment in ("none", "crop-flip")
    )
    for step in (1, 50, 51):
        (images, labels), (changed, same_labels) = plain.batch(step), augmented.batch(step)
        assert np.array_equal(labels, same_labels)
        assert np.array_equal(changed, batches.crop_flip(images, 0, step)) and not np.array_equal(changed, images)


@pytest.mark.parametrize(
    ("length", "steps", "epochs"),
    [({}, 150, 3), ({"epochs": 2}, 100, 2), ({"steps": 120}, 120, None), ({"steps": 30, "epochs": 2}, 30, 2),
     ({"steps": 300, "epochs": 2}, 100, 2)],
)  # fmt: skip
def test_length(length: dict, steps: int, epochs: int | None) -> None:
    """50 steps an epoch; steps alone may go beyond any number of epochs."""
    run = train.Run(train.Config(method="fp32", **length))
    assert run.steps == steps and train.manifest(run, "")["decides"]["epochs"] == epochs


def test_evaluation_after_epochs_and_where_asked(tmp_path: Path) -> None:
    finished(train.Config(model="lenet5", method="fp32", batch_size=1000, steps=12, eval_every=4), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/records.jsonl").read_text().splitlines()]
    assert [r["step"] for r in lines if "test_accuracy" in r] == [4, 5, 8, 10, 12]
    assert [r["epoch"] for r in lines] == [1] * 5 + [2] * 5 + [3] * 2
    run = train.Run(train.Config(model="lenet5", method="fp32", batch_size=1000, steps=12))
    while run.step < run.steps:
        run.advance()
    assert f"sha256:{run.digest()}" in (tmp_path / "run/digest.txt").read_text(), "evaluation changes no bit"


# ---- interruption --------------------------------------------------


class Stop(Exception):
    pass


def new_threads(before: list[threading.Thread]) -> set[threading.Thread]:
    """Threads that were not there before."""
    return set(threading.enumerate()) - set(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[train.Config], tuple[str, str]]:
    """undisturbed(config): records and digest of the run without a stop, trained once."""
    known: dict[str, tuple[str, str]] = {}

    def get(config: train.Config) -> tuple[str, str]:
        if repr(config) not in known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            digest = finished(config, folder)
            known[repr(config)] = (folder / "records.jsonl").read_text(), digest
        return known[repr(config)]

    return get


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("stop_at", [1, 7, 34, 36])
def test_resume_gives_the_same_bits(
    stop_at: int, options: dict, undisturbed: Callable[[train.Config], tuple[str, str]], tmp_path: Path
) -> None:
    """Stopped by an exception at any step, in the middle of an epoch or between checkpoints."""
    config = train.Config(model="lenet5", batch_size=150, epochs=2, steps=40, **options)  # an epoch has 34 steps
    whole, expected = undisturbed(config)

    def stop(progress: train.Progress) -> None:
        if progress.step == stop_at:
            raise Stop

    folder, before = tmp_path / "broken", threading.enumerate()
    with pytest.raises(Stop):
        train.train(train.create(config, folder, "test"), folder, stop, every=3, prefetch=bool(options))
    assert not new_threads(before)
    with open(folder / "records.jsonl", "a") as file:
        file.write('{"step": 99, "ep')  # what a kill in the middle of a write leaves
    run = train.reopen(folder)
    assert run.step <= stop_at
    assert train.train(run, folder, every=3)
    assert train.read_digest(folder) == expected
    assert (folder / "records.jsonl").read_text() == whole
    timing = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert sorted({row["step"] for row in timing}) == [row["step"] for row in timing] and timing[-1]["step"] == 40
    assert sum(row["wall_s"] * row["images_per_s"] for row in timing) == pytest.approx(5000 + 6 * 150), "33 and a third batches"


def command(*arguments: str, **variables: str) -> list[str]:
    return [sys.executable, "-m", "octosim.cli", *arguments]


TRAIN = ("train", "--model", "lenet5", "--batch-size", "50", "--steps", "80", "--checkpoint-every", "10", "--out")


def wait_for_lines(path: Path, count: int, process: subprocess.Popen) -> None:
    for _ in range(6000):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.01)
    raise AssertionError(f"{path} did not reach {count} lines")


WITH_OPTIONS = (
    "--augment", "crop-flip", "--schedule", "step", "--milestones", "0.2,0.6", "--warmup", "8", "--weight-decay", "1e-3",
    "--label-smoothing", "0.1", "--eval-every", "15",
)  # fmt: skip


@pytest.mark.parametrize(
    ("number", "options", "only_broken"),
    [(signal.SIGKILL, (), ()), (signal.SIGINT, (), ()), (signal.SIGTERM, (), ()),
     (signal.SIGKILL, WITH_OPTIONS, ("--prefetch",)), (signal.SIGINT, WITH_OPTIONS, ("--prefetch",))],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else f"{len(value)} options",
)  # fmt: skip
def test_killed_and_resumed(
    number: signal.Signals, options: tuple, only_broken: tuple, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    whole, broken = tmp_path_factory.getbasetemp() / f"uninterrupted-{len(options)}", tmp_path / "broken"
    if not whole.exists():
        assert octosim(*TRAIN, str(whole), *options).returncode == 0
    line = command(*TRAIN, str(broken), *options, *only_broken)
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_lines(broken / "records.jsonl", 10, process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert not (broken / "digest.txt").exists()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert f"octosim train --resume --out {broken}" in errors
    done = octosim("train", "--resume", "--out", str(broken))
    assert done.returncode == 0 and "resuming" in done.stderr
    assert (broken / "digest.txt").read_text() == (whole / "digest.txt").read_text()
    assert (broken / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    assert not list(broken.glob(".*.tmp"))


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = train.Config(model="lenet5", **SHORT)
    folder = tmp_path / "run"
    run = train.create(config, folder, "test")
    run.advance()
    train.save(run, folder)
    good = (folder / "checkpoint.safetensors").read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run.advance()
    with pytest.raises(OctosimError, match="checkpoint.safetensors: No space left on device"):
        train.save(run, folder)
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
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": 5001}, "batch_size 5001 is larger than the 5000 training images"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"steps": -1}, "steps must be at least 1"),
        ({"seed": -1}, "seed must be in 0 .. 2^64 - 1"),
        ({"steps": 2**32, "epochs": None}, "a run has at most 2^32 - 1 steps"),
        ({"eval_every": 0}, "eval_every must be at least 1, not 0"),
        ({"augment": "crop"}, "unknown augmentation 'crop'; did you mean 'crop-flip'?"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in [0, 1), not 1.0"),
        ({"label_smoothing": float("nan")}, "label_smoothing must be in [0, 1), not nan"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, not -1.0"),
        ({"weight_decay": float("inf")}, "weight_decay must be at least 0, not inf"),
        ({"schedule": "step"}, "schedule step and milestones go together"),
        ({"schedule": "step", "milestones": [0.5], "gamma": float("nan")}, "gamma must be a positive number, not nan"),
        ({"warmup": -1}, "warmup must be at least 0, not -1"),
        ({"warmup": 6}, "warmup must be less than the run's 6 steps, not 6"),
        ({"lr": -0.1}, "lr must be a positive number"),
        ({"lr": float("nan")}, "lr must be a positive number"),
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
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OctosimError, match="exists already"):
        train.create(train.Config(**SHORT), tmp_path, "test")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("left", [[], [".lock"], [".manifest.json.1.tmp"], [".manifest.json.0a1b2c3d.octosim.tmp", ".lock"]])
def test_a_folder_that_a_kill_left_is_taken(left: list[str], tmp_path: Path) -> None:
    for name in left:
        (tmp_path / name).write_text("{")
    train.create(train.Config(**SHORT), tmp_path, "test")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("method", "batchnorm"),
    [(m, b) for m, cls in methods.METHODS.items() if "lr" not in cls.unused for b in {cls.batchnorm, False}],
)
@pytest.mark.parametrize("lr", [1e10, 1e30])
def test_divergence_names_step_and_layer(method: str, batchnorm: bool, lr: float, tmp_path: Path) -> None:
    config = train.Config(model="lenet5", method=method, lr=lr, batchnorm=batchnorm, **SHORT)
    folder = tmp_path / "run"
    run = train.create(config, folder, "test")
    try:
        train.train(run, folder, every=1)
    except OctosimError as error:
        assert re.search(r"step \d, layer \w+, (forward|backward|\w+ after the step): .*learning rate", str(error))
        assert not (folder / "digest.txt").exists()
    else:  # a method that clips may end with a dead network instead; then no value is a NaN or an infinity
        assert lr == 1e10 or method == "logbtq"
        assert all(np.isfinite(tensor).all() for tensor in run.tensors().values())


def test_a_run_that_diverged_says_so_until_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = train.create(train.Config(model="mlp", method="fp32", **SHORT), folder, "test")

    def poison(progress: train.Progress) -> None:
        if progress.step == 3:
            next(n for n in run.network.nodes if "w" in n.params).params["w"][:] = np.nan

    with pytest.raises(OctosimError, match="step 4, layer "):
        train.train(run, folder, poison, every=2)
    (found,) = read.read_all([folder]).runs
    state = states.state_of(found)
    assert state.kind == "diverged" and re.fullmatch(r"step 4, layer \w+", state.detail)
    (folder / "failure.json").write_bytes(b"\xff{")
    (found,) = read.read_all([folder]).runs
    assert states.state_of(found).kind == "unfinished" and any("failure.json" in note for note in found.notes)
    assert train.train(train.reopen(folder), folder)
    assert not (folder / "failure.json").exists()
    (found,) = read.read_all([folder]).runs
    assert states.state_of(found).kind in ("finished", "at chance")


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_step_that_needs_more_memory_than_there_is_is_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = train.Config(model="lenet5", method=method, batchnorm=methods.METHODS[method].batchnorm, **SHORT)
    run = train.Run(config)
    dry = plan.dry(run.layers, (28, 28, 1), run.method, source=run.source)
    needed = plan.memory(plan.plan(dry, config.batch_size, run.optimizer))["peak"]
    monkeypatch.setattr(limits, "usable", lambda: needed)
    train.Run(config)
    monkeypatch.setattr(limits, "usable", lambda: needed - 1)
    words = r"^a step of lenet5 needs 0.\d+ GiB of memory, and this process may use 0\S+ GiB; batch_size (\d+) fits"
    with pytest.raises(OctosimError, match=words) as caught:
        train.Run(config)
    remedies = dict(re.findall(r"(batch_size|accumulate) (\d+)", str(caught.value).replace("and so does batch_size", "")))
    for name, value in remedies.items():  # what the sentence proposes is accepted
        train.Run(replace(config, **{name: int(value)}))
    assert method != "octo" or "accumulate" in remedies
    assert "accumulate" not in remedies or "optimizer" not in methods.METHODS[method].unused
    monkeypatch.setattr(limits, "usable", lambda: 1000)
    with pytest.raises(OctosimError, match="one image needs more, too"):
        train.Run(config)


@pytest.mark.parametrize("seed", [2**63 - 1, 2**63, 2**64 - 1])
def test_every_seed_trains_the_same_recorded_and_not(seed: int) -> None:
    digests = set()
    for records in (False, True):
        run = train.Run(train.Config(model="mlp", method="jetfire", augment="crop-flip", seed=seed, batch_size=10, steps=3))
        run.allow_replay = records
        for _ in range(3):
            run.train_step()
        digests.add(run.digest())
    assert len(digests) == 1


@pytest.mark.parametrize("where", ["w", "b", "gamma", "mean", "var"])
@pytest.mark.parametrize("records", [False, True])
def test_what_a_finite_loss_hides_is_found(records: bool, where: str) -> None:
    """max(NaN, 0) is 0 in a ReLU, and running statistics are not used in training: only the state shows it."""
    run = train.Run(train.Config(model="lenet5", method="fp32", **SHORT))
    run.allow_replay = records
    for _ in range(3):
        run.train_step()
    tensors = next(held for node in run.network.nodes for held in (node.params, node.state) if where in held)
    tensors[where].flat[0] = np.inf if where == "var" else np.nan
    words = r"step 4, layer (conv1|bn1), \w+ after the step: .*; a smaller learning rate may help"
    with pytest.raises(OctosimError, match=words):
        run.train_step()


def test_evaluation_names_step_and_layer() -> None:
    """Weights that are finite after the step and overflow on the test set."""
    run = train.Run(train.Config(model="lenet5", method="fp32", batch_size=50, steps=1))
    evaluate = run.network.evaluate

    def spoiled(*images: np.ndarray) -> tuple[float, float]:
        run.network.nodes[-1].params["w"][:] = 3e38
        return evaluate(*images)

    run.network.evaluate = spoiled
    with pytest.raises(OctosimError, match="after step 1, test set, layer fc3, forward: .*; a smaller learning rate may help"):
        run.advance()


@pytest.mark.parametrize("prefetch", [False, True])
def test_divergence_keeps_records_and_checkpoint(prefetch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records go up to the step before; the checkpoint resumes, to the same end, or to the run's where it was a fault."""
    config = train.Config(model="lenet5", method="fp32", **SHORT)
    expected = finished(config, tmp_path / "whole")
    right = train.Run.batch

    def wrong(self: train.Run, step: int) -> train.Batch:
        if step == 5:
            self.network.nodes[0].params["w"][:] = np.nan
        return right(self, step)

    folder, before = tmp_path / "run", threading.enumerate()
    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "batch", wrong)
        for run in (train.create(config, folder, "test"), None):
            with pytest.raises(OctosimError, match=r"step [345], layer (conv1|bn1), ") as caught:
                train.train(run or train.reopen(folder), folder, every=2, prefetch=prefetch)
    failed = int(re.match(r"step (\d)", str(caught.value))[1])
    lines = (folder / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, failed))
    assert not new_threads(before)
    run = train.reopen(folder)
    assert run.step in (failed - 1, failed - 2)
    assert train.train(run, folder) and train.read_digest(folder) == expected


def broken_run(folder: Path) -> None:
    run = train.create(train.Config(model="lenet5", **SHORT), folder, "test")
    run.advance()
    train.save(run, folder)


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
