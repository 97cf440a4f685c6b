"""Peak memory of training steps, measured in processes of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from kit.cli import octosim
from safetensors.numpy import save_file

from octosim import core, graph, methods
from octosim.bench import memory
from octosim.engine import plan
from octosim.errors import OctosimError
from octosim.methods import METHODS
from octosim.train import Config, Run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_what_a_step_takes() -> None:
    found = memory.measure(Config(model="simplecnn", batch_size=50), [], 1)
    assert list(found) == ["octo", "fp32"]
    for held in found.values():
        assert held["peak_bytes"] > held["weights"] > 1e6 and held["optimizer"] < held["weights"] < 1.1 * held["optimizer"]
        assert held["kept"] < held["pool"] < held["peak_bytes"]
    # codes of 1 byte for float32 values, twice, beside argmax and codes of the weights
    assert 0.2 < found["octo"]["kept"] / found["fp32"]["kept"] < 0.45
    assert found["octo"]["peak_bytes"] < found["fp32"]["peak_bytes"]


FINE_TUNED = [
    pytest.param(method, rules, marks=[] if (method, rules) == ("octo", {"train_last": 3}) else pytest.mark.slow)
    for method in ("octo", "fp32", "qat", "ui8")
    for rules in ({"update": "head"}, {"train_last": 3}, {"train_last": 6, "channels": ["*=0.25"]}, {})
]


@pytest.mark.parametrize(("method", "rules"), FINE_TUNED)
def test_a_plan_says_what_fine_tuning_takes(method, rules, tmp_path) -> None:
    """A pretrained network, where the weights that it began with and the first step's calibration are gone."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (256, 32, 32, 3), np.uint8)  # whole batches: a smaller one takes blocks of other sizes
    labels = np.arange(256, dtype=np.uint8) % 5
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    weights = Run(Config(model="resnet20", data=str(tmp_path / "a.npz"), method="fp32", batch_size=5)).network.tensors()
    save_file(weights, tmp_path / "w.safetensors")
    config = Config(
        model="resnet20", data=str(tmp_path / "a.npz"), init=str(tmp_path / "w.safetensors"), method=method, batch_size=64,
        **rules,
    )  # fmt: skip
    run = Run(config)
    planned = plan.memory(plan.plan_like(run.network, 64, run.optimizer))["peak"]
    measured = memory.measure_one(config, method, 1)["peak_bytes"]
    assert abs(planned / measured - 1) < 0.05, (planned, measured)


@pytest.mark.parametrize("method", [pytest.param(name, marks=[] if name == "niti" else pytest.mark.slow) for name in METHODS])
def test_a_plan_says_what_a_step_takes(method: str, tmp_path: Path) -> None:
    """niti takes least, so what the plan does not know weighs most there."""
    images, labels = np.zeros((256, 32, 32, 3), np.uint8), np.arange(256, dtype=np.uint8) % 10
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    config = Config(
        model="resnet20", data=str(tmp_path / "a.npz"), method=method, batch_size=64, batchnorm=METHODS[method].batchnorm
    )
    measured = memory.measure_one(config, method, 1)
    made = methods.make(method, {})
    layers = graph.layers("resnet20", 10, made.batchnorm, (32, 32, 3))
    planned = plan.memory(plan.plan(plan.dry(layers, (32, 32, 3), made), 64))["peak"]
    assert abs(planned / measured["peak_bytes"] - 1) < 0.05, (planned, measured)


def test_what_fails_is_told_in_a_sentence() -> None:
    with pytest.raises(OctosimError, match="measuring the memory of octo: .*unknown model 'lenet6'"):
        memory.measure(Config(model="lenet6"), [], 1)


def test_command_line() -> None:
    command = ("bench", "--model", "lenet5", "--seconds", "0.1", "--memory")
    done = octosim(*command, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert set(record["memory"]) == {"octo", "fp32"} and 0 < record["limit"]["share"] < 1
    for part in (record, record["fp32"]):
        parts = part["parts"]
        assert all(seconds > 0 for seconds in parts.values())
        assert parts["products"] < parts["forward"] + parts["backward"]
    done = octosim(*command)
    assert done.returncode == 0 and "kept for the backward pass: 0." in done.stdout and "register peak" in done.stdout


def test_trim_gives_scratch_memory_back() -> None:
    """A convolution's copy with its padding has the size of the largest batch so far; results stay, with any threads."""
    g = core.Conv(16, 130, 130, 8, 2, 3, 3, pad=1)
    x = np.random.default_rng(1).integers(-127, 128, (16, 130, 130, 8)).astype(np.float32)
    w = np.ones((2, 3, 3, 8), np.float32)
    before = core.threads()
    try:
        for threads in (1, 2):
            core.set_threads(threads)
            core.trim()
            y = core.conv_forward(g, x, w)
            memory._forget_peak()
            held = memory._resident("VmRSS")
            core.trim()
            memory._forget_peak()  # malloc keeps what was freed for the next call
            assert held - memory._resident("VmRSS") > x.nbytes / 2
            np.testing.assert_array_equal(core.conv_forward(g, x, w), y)
    finally:
        core.set_threads(before)
