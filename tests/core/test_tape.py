"""Calls that are recorded and made again: numbers and memory that change between, and steps of whole networks."""

from __future__ import annotations

import gc
import re
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octosim import core, methods, train
from octosim.bench.clock import Clock, stepper
from octosim.core import call
from octosim.core.memory import Pool
from octosim.engine.graph import Entry, Graph
from octosim.engine.layers import (
    GELU,
    Add,
    Attention,
    BatchNorm,
    Concat,
    Conv2d,
    DepthwiseConv2d,
    Flatten,
    GlobalAvgPool,
    HardSigmoid,
    HardSwish,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Positions,
    Reshape,
    Slice,
    Token,
)
from octosim.errors import OctosimError
from octosim.graph import model_file
from octosim.numerics import ACCUMULATORS, Rounding
from octosim.train import measure

F = np.float32


# ---- tapes --------------------------------------------------


def quantized(x: np.ndarray, share: float, step: core.Whole, out: np.ndarray, seed: int) -> core.Codes:
    """A pass with everything in it: a range, numbers made of it, a random stream."""
    found = core.value_range(x)
    codes = core.symmetric_codes(found.low, found.high, share)
    core.quantize(
        x, codes.inverse, low=codes.low, high=codes.high, rounding=Rounding.STOCHASTIC, random=(seed, step, 3), out=out
    )
    return codes


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 2**32 - 1), st.floats(-3, 3)), min_size=1, max_size=4),
)
def test_a_replay_is_the_calls_made_anew(stream: int, steps: list[tuple[int, int, float]]) -> None:
    """With other data, another range and another step each time."""
    x, out = np.empty(5000, F), np.empty(5000, np.int8)
    step, tape = core.step_number(1), core.Tape()
    x[:] = np.random.default_rng(0).normal(size=x.size)
    with tape.recording():
        codes = quantized(x, 0.9, step, out, stream)
    assert tape.names == ["octo_range_f32", "octo_symmetric_codes", "octo_quantize_s8"]
    for seed, number, size in steps:
        x[:] = np.random.default_rng(seed).normal(size=x.size) * 10**size
        step.at[0] = number
        assert tape.replay() is None
        expected = np.empty_like(out)
        other = quantized(x, 0.9, number, expected, stream)
        assert np.array_equal(out, expected) and float(codes.scale) == float(other.scale)
        assert [int(n) for n in (codes.low, codes.high)] == [int(n) for n in (other.low, other.high)]


def test_numbers_cannot_be_read_while_recording() -> None:
    x, tape = np.ones(9, F), core.Tape()
    with pytest.raises(core.CoreError, match="read while a step was recorded"), tape.recording():
        low, high = core.value_range(x)
    assert tuple(core.value_range(x)) == (1, 1), "afterwards they can"
    with core.Tape().recording(), pytest.raises(core.CoreError, match="recorded already"), tape.recording():
        pass


def test_a_number_of_the_wrong_type_is_refused() -> None:
    x, tape = np.ones(9, F), core.Tape()
    refused = pytest.raises(core.CoreError, match="octo_quantize_s8: .* cannot stand for a parameter of type double")
    with refused, tape.recording():
        core.quantize(x, core.symmetric_codes(-1.0, 1.0).low)


def test_a_call_that_was_refused_is_not_replayed() -> None:
    w, v, tape = np.ones(9, F), np.zeros(9, F), core.Tape()
    with tape.recording():
        for _ in range(100):
            with pytest.raises(core.CoreError, match="cannot stand for"):
                core.sgd(w, w.copy(), v, lr=core.step_number(3), momentum=0.9, decay=0.0)
        core.multiply(w, w, out=v)
    w[:] = 3
    tape.replay()
    assert tape.names == ["octo_multiply_f32"] and (v == 9).all()


@pytest.mark.parametrize("call", [
    lambda: core.gemm(np.ones((2, 3), np.uint8), np.ones((3, 2), np.int8)),
    lambda: core.gemm(np.ones((2, 3), np.int8), np.ones((3, 2), np.int8), accumulator=ACCUMULATORS["acc16"]),
    lambda: core.gemm(np.ones((3, 2), F).T, np.ones((3, 2), F)),
    lambda: core.Tensor(np.ones((3, 2), np.int8), 0.5).transposed.materialize(),
    lambda: core.mean_squared_error(np.ones(6, F), np.ones((3, 4), F)[:, :2]),
], ids=["uint8", "register", "transposed", "codes", "target"])  # fmt: skip
def test_what_numpy_computes_is_not_recorded(call: Any) -> None:
    """A replay would take what it was then."""
    call()
    with core.Tape().recording(), pytest.raises(core.CoreError, match="while a step was recorded"):
        call()
    with core.Tape(dry=True).recording():
        call()


def test_a_failing_call_ends_the_replay() -> None:
    x, y, tape = np.ones(100, F), np.zeros(100, F), core.Tape()
    with tape.recording():
        core.at("first")
        core.copy(x, out=y)
        core.at("second")
        core.value_range(x)
        core.copy(y, out=x)
    x[5], y[:] = np.nan, 3
    with pytest.raises(core.Failed) as failed:
        tape.replay()
    assert failed.value.at == 1 and isinstance(failed.value.error, core.NotFiniteError)
    assert [tape.key(at) for at in range(3)] == [("first",), ("second",), ("second",)]
    assert np.isnan(y[5]) and np.isnan(x[5]), "the first call was made, the third was not"


def test_other_threads_are_not_recorded() -> None:
    x, tape = np.ones(100, F), core.Tape()
    with tape.recording():
        thread = threading.Thread(target=lambda: core.philox(10, 1))
        thread.start()
        thread.join()
        core.copy(x, out=x.copy())
    assert tape.names == ["octo_copy_f32"]


def test_memory_stays_as_long_as_the_tape() -> None:
    """Of temporary arrays, of what the core allocates, and of a pool's blocks, which other arrays use in turn."""
    pool, tape = Pool(), core.Tape()
    x, results = np.arange(40000, dtype=F), np.empty(40000, F)
    with tape.recording():
        first = core.add(x, x, out=pool.empty(x.shape, F))[0]
        second = core.add(first, x.copy(), out=pool.empty(x.shape, F))[0]
        del first
        third = core.add(second, x, out=pool.empty(x.shape, F))[0]  # where the first was
        small = core.column_sums(np.ones((3, 4), F))
        core.affine(np.ones((2, 4), F), small, small)
        sums = core.LazyDequant(np.full(x.shape, 3, np.int32)[None], np.zeros(x.size, np.int32), 0.25)
        third = core.add(third[None], sums)[0][0]
        core.copy(third, out=results)
    held = pool.held
    del second, third, small, sums
    pool.trim()
    assert pool.used == 0 and pool.held == held > 0, "free, but not given back"
    gc.collect()
    for _ in range(20):
        pool.empty(x.shape, F).fill(np.nan)
        np.full(40000, np.nan, F)
        [core.scalar(float("nan")) for _ in range(1000)]
    results[:] = 0
    assert tape.replay() is None and np.array_equal(results, 4 * x + F(0.75))


def test_every_call_has_a_number() -> None:
    names = [name for name, function in vars(call.lib).items() if callable(function)]
    numbers = {name: call.lib.octo_function(name.encode()) for name in names}
    without = {name for name, number in numbers.items() if number < 0}
    assert sorted(n for n in numbers.values() if n >= 0) == list(range(len(names) - len(without)))
    assert {"octo_error", "octo_function", "octo_replay"} <= without
    rest = without - {"octo_error", "octo_function", "octo_replay"}
    assert all(re.search("isa|tiling|threads|float_|trim", name) for name in rest)
    assert call.lib.octo_function(b"octo_nothing") == -1


def test_a_replay_measures_each_call() -> None:
    x, tape = np.ones(1 << 20, F), core.Tape()
    with tape.recording():
        core.value_range(x)
        core.value_range(x[:10])
    for clock in core.CLOCKS.values():
        seconds = tape.replay(clock)
        assert seconds is not None and seconds.shape == (2,) and seconds[0] > seconds[1] > 0


# ---- steps --------------------------------------------------

CONFIG = dict(model="lenet5", batch_size=50)
SEGMENTED = ("fqat",)
"""Methods whose steps have segments of Python."""


def config(config: dict) -> train.Config:
    """With what a method has a use for."""
    cls = methods.METHODS[config.get("method", "octo")]
    given = {key: value for key, value in (CONFIG | config).items() if key not in cls.unused}
    if not cls.batchnorm:
        given["batchnorm"] = False
    return train.Config(**given)


def steps(options: dict, count: int, records: bool, first: int = 1) -> train.Run:
    run = train.Run(config(options))
    run.allow_replay, run.step = records, first - 1
    run.losses = [run.train_step() for _ in range(count)]
    return run


@pytest.mark.parametrize("change", [
    {"parameters": {"prc": "gauss"}}, {"parameters": {"prc": "percentile"}}, {"parameters": {"lac": "sample"}},
    {"parameters": {"lac": "feature"}}, {"method": "laq", "optimizer": "adam"},
    {"method": "laq", "parameters": {"weight_bits": 2, "ternary": "exact"}},
    {"method": "laq", "parameters": {"weight_bits": 4}}], ids=str)  # fmt: skip
def test_steps_with_segments_of_python_are_the_same(change: dict[str, Any]) -> None:
    digests = []
    for records in (False, True):
        run = steps(change, 6, records)
        assert (run.recorded.tape is not None) == records
        digests.append(run.digest())
    assert digests[0] == digests[1]


QUICK = [name for name in methods.METHODS if name != "octo-reference"]  # which is slow: test_frozen replays it


@pytest.mark.parametrize("method", QUICK)
def test_a_recorded_step_makes_one_call(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = steps({"method": method}, 2, True)
    batch, made = run.batch(3), []
    replay = call.lib.octo_replay
    for name, function in list(vars(call.lib).items()):
        if callable(function) and "float_" not in name:
            monkeypatch.setattr(call.lib, name, lambda *a, name=name: pytest.fail(name))
    monkeypatch.setattr(call.lib, "octo_replay", lambda *a: made.append(a) or replay(*a))
    run.train_step(batch=batch)
    assert run.recorded.tape
    segments = [name for name in run.recorded.tape.names if name.startswith("python:")]
    assert 1 <= len(made) <= 1 + len(segments) and bool(segments) == (method in SEGMENTED)


@pytest.mark.parametrize("method", QUICK)
@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 130},  # the last batch of an epoch, in the middle of these steps, has 60 images
        {"optimizer": "adam", "weight_decay": 0.01, "schedule": "step", "milestones": [0.001, 0.002], "warmup": 2},
        {"label_smoothing": 0.1, "augment": "crop-flip", "batchnorm": False},
        {"model": "mlp", "lr": 0.01},  # dropout
    ],
    ids=lambda options: next(iter(options)),
)
def test_recorded_or_not_the_same_bits(method: str, options: dict) -> None:
    first = 36 if "batch_size" in options else 1
    runs = [steps({"method": method} | options, 6, records, first) for records in (False, True)]
    assert runs[0].losses == runs[1].losses and runs[0].digest() == runs[1].digest()
    assert runs[1].recorded.tape and not runs[0].recorded.tape


def test_both_kinds_of_step_are_recorded() -> None:
    """blaq's first epoch has one pass a step, its second two."""
    options = {"method": "blaq", "parameters": {"weight_bits": 2, "period": 2}, "optimizer": "adam"}
    runs = [steps(options, 6, records, first=98) for records in (False, True)]
    assert runs[0].losses == runs[1].losses and runs[0].digest() == runs[1].digest() and runs[1].epoch == 2


MIXED = (
    ("stem", Conv2d(8, 3, 4, (0, 0, 1, 1), bias=False)), ("bn", BatchNorm()), ("hs", HardSwish()),
    ("dw", DepthwiseConv2d(multiplier=2)), ("pool", GlobalAvgPool()), ("r", Linear(16)),
    ("g", HardSigmoid()), ("m", Multiply(), "dw", "g"),
    ("gc", Conv2d(8, 3, pad=2, dilation=2, groups=2)), ("c", Concat(), "gc", "hs"), ("mp", MaxPool(3, 2, 1)),
    ("t", Reshape((-1, 16))), ("k", Token()), ("p", Positions()), ("n", LayerNorm()),
    ("a", Attention(2), "n", "n", "n"), ("ge", GELU()),
    ("s", Add(), "ge", "p"), ("sl", Slice(0, 1, 0)), ("f", Flatten()), ("fc", Linear()),
)  # fmt: skip
"""A layer of each way to move and multiply tensors: name, layer, inputs."""


@pytest.mark.parametrize("method", ["octo", "fp32"])
def test_layers_of_all_kinds_are_replayed(method: str, tmp_path: Path) -> None:
    entries: list[Entry] = []
    for name, layer, *inputs in MIXED:
        entries.append(Entry(name, layer, tuple(inputs) or (entries[-1].name if entries else "input",)))
    path = tmp_path / "mixed.toml"
    path.write_text(model_file.to_toml(Graph(tuple(entries))))
    options = {"method": method, "steps": 5, "batch_size": 20, "model": str(path)}
    runs = [steps(options, 5, records) for records in (False, True)]
    assert runs[0].losses == runs[1].losses and runs[0].digest() == runs[1].digest() and runs[1].recorded.tape is not None


@pytest.mark.parametrize(("method", "least"), [("niti", 3), ("wage", 3)])
def test_each_phase_is_recorded(method: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps whose calls change in the run, as its schedule has it."""
    made = []
    recording = core.Tape.recording
    monkeypatch.setattr(core.Tape, "recording", lambda self: (self.dry or made.append(self), recording(self))[1])
    runs = [steps({"method": method, "steps": 12, "batch_size": 20}, 12, records) for records in (False, True)]
    assert runs[0].losses == runs[1].losses and runs[0].digest() == runs[1].digest()
    assert len(made) == least and runs[1].recorded.tape is made[-1]


def test_steps_that_are_observed_are_not_replayed() -> None:
    """Counted and measured ones stand between recorded ones: the same bits, and what was counted."""
    plain = steps({}, 9, False)
    for options, found in (({"count_overflow": 3}, "overflow"), ({"measure": 3}, "measures")):
        run = train.Run(train.Config(**CONFIG | options))
        run.allow_replay = True
        if "measure" in options:
            run.meter = measure.Meter(run.layers, run.data.train_images.shape[1:], run.registers.accumulator)
        seen = []
        for _ in range(9):
            run.train_step()
            seen.append(bool(getattr(run, found)))
        assert seen == [False, False, True] * 3 and run.recorded.tape and run.digest() == plain.digest()


def test_evaluation_between_recorded_steps() -> None:
    runs = []
    for records in (False, True):
        run = train.Run(train.Config(**CONFIG))
        run.allow_replay = records
        seen = []
        for _ in range(6):
            run.train_step()
            seen.append(run.network.evaluate(run.data.test_images[:700], run._test_labels[:700]))
        runs.append((seen, run.digest()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("method", [name for name in methods.METHODS if "optimizer" not in methods.METHODS[name].unused])
@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize("where", ["w", "b", "images"])
def test_a_failing_step_tells_what_python_tells(method: str, batchnorm: bool, where: str) -> None:
    """An infinity in the first or in the last weighted layer, or a learning rate that makes one."""
    told = []
    for records in (False, True):
        run = steps({"method": method, "batchnorm": batchnorm}, 3, records)
        if where == "images":
            run.learning_rate = lambda step: 3e38  # type: ignore[method-assign]
        else:
            node = [node for node in run.network.nodes if "w" in node.params][0 if where == "w" else -1]
            node.params[where].flat[0] = np.inf
        with pytest.raises(OctosimError) as error:
            for _ in range(3):
                run.train_step()
        told.append(str(error.value))
    assert told[0] == told[1] and "; a smaller learning rate may help" in told[0]


@pytest.mark.parametrize("method", methods.METHODS)
def test_the_clock_sees_the_same_passes(method: str) -> None:
    """Of a step that Python makes and of a recorded one; a layer's passes and the products add up."""
    seen = []
    for count in (2, 4):
        run, clock, totals = train.Run(config({"method": method})), Clock(), []
        step = stepper(run, clock, totals)
        for _ in range(count):
            clock.forget()
            step()
        assert run.recorded.tape and len(totals) == count
        own = {"products", "around_products"} if method == "jetfire" else set()  # its products are not its layers'
        seen.append((set(clock.values), set(clock.parts) - {"python"} - own))
        assert ("python" in clock.parts) == (count == 4)
        inside = sum(values[-1] for values in clock.values.values())
        assert inside <= totals[-1] and (own or 0 < clock.parts["products"][-1] < inside)
    assert seen[0] == seen[1]


def test_a_run_goes_with_its_last_reference() -> None:
    """Its memory is large: no cycle may keep it until the garbage collector comes by."""
    gc.collect()
    gc.disable()
    try:
        run = steps({}, 4, True)
        gone = [weakref.ref(one) for one in (run, run.network.pool, run.recorded.tape)]
        del run
        assert [ref() for ref in gone] == [None] * 3
    finally:
        gc.enable()


# ---- segments of Python --------------------------------------------------


def test_a_segment_of_python_is_made_again_in_its_place() -> None:
    x, y, tape = np.zeros(50, F), np.zeros(50, F), core.Tape()
    seen: list[float] = []

    def double(given: np.ndarray, made: np.ndarray) -> None:
        seen.append(float(core.value_range(given).high))
        np.multiply(given, 2, out=made)

    with tape.recording():
        core.add(x, x, out=x)
        core.python("double", double, [x], [x])
        core.copy(x, out=y)
    assert tape.names == ["octo_add", "python:double", "octo_copy_f32"]
    assert [(o.name, o.access) for o in tape.calls[1].operands] == [("reads", "r"), ("writes", "w")]
    for value in (1, 5):
        x[:] = value
        seconds = tape.replay(core.CLOCKS[time.perf_counter])
        assert seconds is not None and (seconds > 0).all() and (y == 4 * value).all() and seen[-1] == 2 * value
    with pytest.raises(core.Failed) as failed:
        x[:] = np.nan
        tape.replay()
    assert failed.value.at == 1


def test_a_segments_own_memory_is_no_pools() -> None:
    """As when it was recorded: the blocks of a step count as free when it is replayed."""
    pool, tape = Pool(), core.Tape()
    size = 1 << 20

    def square(given: np.ndarray, made: np.ndarray) -> None:
        np.copyto(made, core.multiply(given, given))

    with core.pooled(pool), tape.recording():
        x, y = core.multiply(np.full(size, 2, F), np.full(size, 1, F)), core.multiply(np.ones(size, F), np.ones(size, F))
        core.python("square", square, [x], [y])
        z = core.multiply(y, y)
        result = np.zeros(size, F)
        core.copy(z, out=result)
        del x, y, z
    with core.pooled(pool):
        tape.replay()
    assert (result == 16).all()


def test_a_dry_tape_makes_nothing() -> None:
    x, tape = np.ones(50, F), core.Tape(dry=True)
    with tape.recording():
        core.add(x, x, out=x)
        core.python("one", lambda made: made.fill(7), [], [x])
    assert tape.names == ["octo_add", "python:one"] and (x == 1).all()


@pytest.mark.parametrize("name", ["acc16", "acc32-wrap", "exact32"])
def test_a_register_is_kept_on_the_clock(name: str) -> None:
    digests = set()
    for timed in (False, True):
        run = train.Run(train.Config(model="mlp", batch_size=20, accumulator=name))
        step = stepper(run, Clock(), []) if timed else run.train_step
        run.allow_replay = False
        for _ in range(3):
            step()
        digests.add(run.digest())
    assert len(digests) == 1
