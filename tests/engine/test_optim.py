"""Learning-rate schedules and what weight decay applies to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octosim import core, methods, train
from octosim.engine import optimizers
from octosim.engine.nodes import Context
from octosim.engine.schedules import Schedule, check_schedule, rate
from octosim.errors import OctosimError

F = np.float32

shares = st.lists(st.floats(0.001, 0.999), min_size=1, max_size=4, unique=True).map(lambda v: tuple(sorted(v)))
epochs = st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True).map(lambda v: tuple(float(x) for x in sorted(v)))
schedules = st.one_of(
    st.builds(Schedule, st.sampled_from(["cosine", "constant"]), warmup=st.integers(0, 50)),
    st.builds(Schedule, st.just("step"), shares | epochs, st.floats(0.01, 1.0), st.integers(0, 50)),
)


def rates(schedule: Schedule, steps: int, steps_per_epoch: int = 10, lr: float = 0.1) -> list[float]:
    return [rate(lr, schedule, step, steps, steps_per_epoch) for step in range(1, steps + 1)]


@given(schedule=schedules, more=st.integers(1, 300), steps_per_epoch=st.integers(1, 60))
def test_bounds_and_direction(schedule: Schedule, more: int, steps_per_epoch: int) -> None:
    """In (0, lr]; rising to the end of the warm-up, then never rising; the last warm-up step and the next join."""
    check_schedule(schedule)
    warmup = schedule.warmup
    got = rates(schedule, warmup + more, steps_per_epoch)
    assert all(0 < rate <= 0.1 for rate in got)
    after = got[warmup:]
    assert all(b <= a for a, b in zip(after, after[1:], strict=False))
    if schedule.name != "step":
        assert after[0] == 0.1
        assert got[:warmup] == [0.1 * ((k + 1) / warmup) for k in range(warmup)]
        assert not warmup or got[warmup - 1] == after[0]


@given(schedule=schedules, steps=st.integers(60, 200))
def test_warm_up_is_a_factor(schedule: Schedule, steps: int) -> None:
    """step and constant: the same schedule without warm-up, times the rising share."""
    if schedule.name == "cosine":
        return
    without = rates(dataclasses.replace(schedule, warmup=0), steps)
    share = [min(1.0, step / schedule.warmup) if schedule.warmup else 1.0 for step in range(1, steps + 1)]
    assert rates(schedule, steps) == pytest.approx([a * b for a, b in zip(without, share, strict=True)], rel=1e-15)


@pytest.mark.parametrize("steps", [1, 7, 1000])
@pytest.mark.parametrize("warmup", [0, 5])
def test_cosine_against_libm(steps: int, warmup: int) -> None:
    """Over what is left after the warm-up, from the full rate to nearly 0."""
    got = rates(Schedule("cosine", warmup=warmup), steps + warmup)[warmup:]
    assert got == pytest.approx(0.05 * (1 + np.cos(np.pi * np.arange(steps) / steps)), abs=1e-15)


@pytest.mark.parametrize(
    ("milestones", "changes"),
    [((0.5, 0.75), [50, 75]), ((0.07, 0.29, 0.57), [7, 29, 57]), ((3.0, 8.0), [30, 80]), ((2.0, 400.0), [20])],
)
def test_step_changes_after_its_milestones(milestones: tuple[float, ...], changes: list[int]) -> None:
    """100 steps, 10 an epoch; 0.07 * 100, 0.29 * 100 and 0.57 * 100 are not whole in float64."""
    got = rates(Schedule("step", milestones, gamma=0.5), 100)
    assert [k for k in range(1, 100) if got[k] != got[k - 1]] == changes
    assert sorted(set(got), reverse=True) == [0.1 * 0.5**k for k in range(len(changes) + 1)]


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (Schedule("cosin"), "unknown schedule 'cosin'; did you mean 'cosine'?"),
        (Schedule("step"), "schedule step and milestones go together"),
        (Schedule("cosine", (0.5,)), "schedule step and milestones go together"),
        (Schedule("step", (0.5, 0.5)), "must be ascending shares of the run below 1, or ascending epochs, not 0.5,0.5"),
        (Schedule("step", (0.75, 0.5)), "not 0.75,0.5"),
        (Schedule("step", (0.5, 2.0)), "not 0.5,2"),
        (Schedule("step", (1.5,)), "not 1.5"),
        (Schedule("step", (0.0,)), "not 0"),
        (Schedule("step", (-1.0,)), "not -1"),
        (Schedule("step", (float("nan"),)), "not nan"),
        (Schedule("step", (float("inf"),)), "not inf"),
    ],
    ids=str,
)
def test_refused(schedule: Schedule, words: str) -> None:
    with pytest.raises(OctosimError) as caught:
        check_schedule(schedule)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_weight_decay_and_rate_reach_the_weights_only(name: str) -> None:
    """One step with decay moves exactly the weights elsewhere than one without; a warm-up's half rate half as far."""
    same = dict(model="lenet5", method="fp32", optimizer=name, batch_size=50, schedule="constant")
    changes = {"plain": {"lr": 0.125}, "decay": {"lr": 0.125, "weight_decay": 0.5}, "half": {"lr": 0.125, "warmup": 2}}
    runs = {key: train.Run(train.Config(**same, **change)) for key, change in changes.items()}
    before = {f"{node.name}.{key}": w.copy() for node in runs["plain"].network.nodes for key, w in node.params.items()}
    after = {}
    for key, run in runs.items():
        run.train_step()
        after[key] = run.network.tensors()
    changed = {key for key in before if not np.array_equal(after["plain"][key], after["decay"][key])}
    assert changed == {key for key in before if key.endswith(".w")} and len(changed) < len(before)
    for key in before:
        whole, half = after["plain"][key] - before[key], after["half"][key] - before[key]
        assert np.allclose(half, whole / 2, rtol=1e-3, atol=1e-6)


def test_decay_is_in_the_gradient() -> None:
    """SGD's first step: w - lr (g + decay w), in float32."""
    run = train.Run(train.Config(model="lenet5", method="fp32", batch_size=50, lr=0.125, weight_decay=0.5, schedule="constant"))
    before = run.network.nodes[0].params["w"].copy()
    run.network.gradients(*run.batch(1), Context(True, 0, 1))
    g = run.network.parameters()["conv1.w"][1].copy()
    run.train_step()
    w = run.network.nodes[0].params["w"]
    assert np.array_equal(w, before - np.float32(0.125) * (g + np.float32(0.5) * before))


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_newton_is_the_update_taken_apart(name: str) -> None:
    rng = np.random.default_rng(0)
    optimizer = optimizers.make(name, 0.01, 0.1)
    w, slots = rng.normal(size=50).astype(F), {slot: np.zeros(50, F) for slot in optimizer.slots}
    for step in (1, 2, 3):
        g = rng.normal(size=50).astype(F)
        direction, curvature, *spare = (np.empty(50, F) for _ in range(2 + len(slots)))
        after = dict(zip(slots, spare, strict=True))
        corrections = optimizer.corrections(step)
        assert [float(c) for c in optimizer.next_corrections(step - 1)] == list(corrections)
        optimizer.newton(corrections, 0.1, w, g, slots, direction=direction, curvature=curvature, after=after)
        expected = w - F(0.01) * direction / curvature
        optimizer.update(optimizer.corrections(step), 0.01, 0.1, w, g, slots)
        assert np.allclose(w, expected, rtol=1e-6, atol=1e-7)
        for key, value in after.items():
            assert np.array_equal(slots[key], value), key


@pytest.mark.parametrize("method", ["octo", "hindsight", "fp32"])
@pytest.mark.parametrize("size", [1, 1000, 1 << 24])
def test_an_update_in_pieces_is_the_update(method: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a fully connected layer's weight gradient one by one, a thousand sums at once, all at once: the same bits."""
    expected = train.Run(train.Config(model="lenet5", method=method, batch_size=20))
    run = train.Run(train.Config(model="lenet5", method=method, batch_size=20))
    expected.train_step()
    monkeypatch.setattr(optimizers, "ROWS_AT_ONCE", size)
    run.train_step()
    assert run.digest() == expected.digest()


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
@pytest.mark.parametrize("method", methods.METHODS)
def test_ranges_that_an_update_finds(method: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every parameter that the optimizer moved; none, or a true one, of one that a method moved."""
    cls = methods.METHODS[method]
    monkeypatch.setattr(optimizers, "ROWS_AT_ONCE", 1000)
    same = {} if "optimizer" in cls.unused else {"optimizer": optimizer}
    run = train.Run(train.Config(model="lenet5", method=method, batch_size=20, batchnorm=cls.batchnorm, **same))
    for _ in range(3):
        run.train_step()
        assert any(node.known for node in run.network.nodes) or "lr" in cls.unused
        for node in run.network.nodes:
            for key, values in node.params.items():
                if values.dtype == F:
                    assert node.range_of(key) == core.value_range(values), (node.name, key)


@pytest.mark.parametrize("method", methods.METHODS)
def test_still_parameters_have_no_gradient(method: str) -> None:
    """What updates pass over: biases, and octo's compensation, before batch normalization."""
    cls = methods.METHODS[method]
    run = train.Run(train.Config(model="lenet5", method=method, batch_size=20, batchnorm=cls.batchnorm))
    run.network.gradients(*run.batch(1), Context(True, 0, 1))
    still = [(node, key) for node in run.network.nodes for key in node.zero_grad_params]
    assert bool(still) == cls.batchnorm
    for node, key in still:
        assert node.grads[key].shape == node.params[key].shape and not node.grads[key].any(), (node.name, key)
