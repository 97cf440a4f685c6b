"""FQAT's three clipping batch normalizations against a direct transcription of their equations; the folded one in integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import passes as direct

from octosim import core, engine, methods
from octosim.engine import plan
from octosim.engine.layers import Add, BatchNorm, Conv2d, Dropout, Flatten, GlobalAvgPool, Linear, MaxPool, ReLU, Residual
from octosim.engine.nodes import Context
from octosim.errors import OctosimError
from octosim.methods import fqat

F, D = np.float32, np.float64
STACK = (Conv2d(4, 3, pad=1), BatchNorm(), ReLU(), Conv2d(5, 3), BatchNorm(), Flatten(), Linear(6), ReLU(), Linear(3))
PADS = {"conv1": 1, "conv2": 0, "fc1": 0, "fc2": 0}
Z = 1.5  # so that much is clipped


def near(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max() + 1e-12)


def steps_of(variant: str, params: dict) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """The clip's ends for each channel and S."""
    gamma, beta = np.abs(params["gamma"]), params["beta"]
    if variant == "c":
        return -params["clip"], params["clip"], F(float(params["clip"][0]) / 127)
    reach = F(Z) * gamma
    return beta - reach, beta + reach, F(float(reach.max() + np.abs(beta).max()) / 127)


def clipped(y: np.ndarray, low: np.ndarray, high: np.ndarray, step: np.float32) -> np.ndarray:
    """Codes of clip(y): rounded half to even, the ends too."""
    inverse = F(1 / float(step))
    ends = [np.rint((end * inverse).astype(F)) for end in (low, high)]
    return np.clip(np.rint((y * inverse).astype(F)), *ends).astype(np.int64)


@pytest.mark.parametrize("rounding", ["half-even", "stochastic"])
@pytest.mark.parametrize("variant", ["a", "b", "c"])
def test_three_steps(variant: str, rounding: str) -> None:
    method = methods.make("fqat", {"variant": variant, "z": Z, "rounding": rounding})
    network = engine.Network(STACK, (7, 7, 2), method, 3)
    seen = direct.spied(network)
    rng = np.random.default_rng(0)
    for node in network.nodes:
        for name, value in node.params.items():
            if name != "w" and name != "clip" and not node.normalized:
                value += rng.normal(0, 0.3, value.shape).astype(F)
    bounds, running, shares = {}, {}, []
    for step in (1, 2, 3):
        context = Context(True, 3, step)
        images, labels = rng.integers(0, 256, (8, 7, 7, 2), dtype=np.uint8), rng.integers(0, 3, 8).astype(np.int32)
        before = {node.name: {key: value.copy() for key, value in node.params.items()} for node in network.nodes}
        network.gradients(images, labels, context)
        bounds.update(conv1=F(1), fc2=None)
        for node in network.nodes:
            name, kept = node.name, before[node.name]
            (x, y), (dy, _) = (tuple(np.asarray(v) for v in seen[name, "forward"]), seen[name, "dy"])
            if name in PADS:
                w, pad = kept["w"], PADS[name]
                if bounds[name] is None:  # behind a layer without a normalization
                    own = np.array(direct.extremes(x), F)
                    running[name] = running[name] + F(0.1) * (own - running[name]) if name in running else own
                    assert near(node.state["x_range"], running[name]), (step, name)
                low, high = direct.extremes(x) if bounds[name] is None else (-bounds[name], bounds[name])
                (qx, sx), (qw, sw) = direct.codes(x, low, high), direct.codes(w, *direct.extremes(w))
                scale = F(float(sx) * float(sw))
                add = np.rint((kept["b"] * F(1 / float(scale))).astype(F)).astype(np.int64)
                assert np.array_equal(y, (direct.forward(qx, qw, pad) + add).astype(F) * scale), (step, name)
                words = core.philox(dy.size, 3, step, node.tensor(0)).reshape(dy.shape)
                qg, sg = direct.codes(dy, *direct.extremes(dy), rounding, words)
                dw = direct.weight_grad(qx, qg, w, pad).astype(F) * F(float(sx) * float(sg))
                assert np.array_equal(node.grads["w"], dw), (step, name)
                db = 0 if node.normalized else qg.reshape(-1, qg.shape[-1]).sum(0).astype(F) * sg
                assert np.all(node.grads["b"] == db), (step, name)
                if name != "conv1":
                    dx = direct.input_grad(qg, qw, pad).astype(F) * F(float(sw) * float(sg))
                    assert np.array_equal(seen[name, "dx"][1], dx), (step, name)
            elif isinstance(node.layer, BatchNorm):
                low, high, s = steps_of(variant, kept)
                rows = x.reshape(-1, x.shape[-1]).astype(D)
                deviation = np.sqrt(rows.var(0) + 1e-5)
                normal = (x - rows.mean(0)) / deviation
                real = kept["gamma"] * normal + kept["beta"]
                if variant == "b":
                    inner = np.clip(np.rint(normal * 127 / Z), -127, 127) * Z / 127
                    real = kept["gamma"] * inner + kept["beta"]
                expected, found = clipped(real.astype(F), low, high, s), y / s
                # float64 here, float32 there: where a real value lies between two codes, either is right
                wide = np.abs(kept["gamma"]).max() * Z / 127 / s + 1 if variant == "b" else 1
                assert np.abs(found - expected).max() < wide + 1e-3 and (np.rint(found) != expected).mean() < 2e-3, name
                assert np.abs(found - np.rint(found)).max() < 1e-4 and np.abs(found).max() < 127.001
                bounds["conv2" if name == "bn1" else "fc1"] = F(float(s) * 127)
                inside = (kept["gamma"] * normal + kept["beta"] >= low) & (kept["gamma"] * normal + kept["beta"] <= high)
                shares.append(inside.mean())
                g = (dy * inside).reshape(rows.shape).astype(D)
                n, h = len(rows), normal.reshape(rows.shape)
                dx = kept["gamma"] / (n * deviation) * (n * g - g.sum(0) - h * (g * h).sum(0))
                assert near(node.grads["gamma"], (g * h).sum(0)) and near(node.grads["beta"], g.sum(0)), (step, name)
                assert near(seen[name, "dx"][1].reshape(rows.shape), dx), (step, name)
                if variant == "c":
                    flat, out = dy.reshape(rows.shape), (kept["gamma"] * normal + kept["beta"]).reshape(rows.shape)
                    dc = flat[out > kept["clip"]].sum(dtype=D) - flat[out < -kept["clip"]].sum(dtype=D)
                    assert node.grads["clip"] == pytest.approx([dc], rel=1e-5)
            for key, value in node.params.items():
                value -= F(0.1) * node.grads[key]
    assert min(shares) < 0.95 and max(shares) < 1, "the clip was at work"


def exact_codes(acc: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """round(M (sign acc + add)) in rationals: M the 31-bit fixed-point number nearest to |scale|, add to shift / |scale|."""
    made = np.empty(acc.shape, np.int64)
    for c in range(acc.shape[1]):
        s, b = float(scale[c]), float(shift[c])
        if abs(s) <= 2**-31 or abs(b) >= abs(s) * 2**30:
            made[:, c] = math.floor(Fraction(round(min(max(b, -127), 127) * 65536), 65536) + Fraction(1, 2))
            continue
        mantissa, exponent = math.frexp(min(abs(s), 2.0**30))
        multiplier = Fraction(round(mantissa * 2**31)) * Fraction(2) ** (exponent - 31)
        add = round(b / min(abs(s), 2.0**30))
        values = [multiplier * ((1 if s > 0 else -1) * int(v) + add) for v in acc[:, c]]
        made[:, c] = [math.floor(v + Fraction(1, 2)) for v in values]
    return np.clip(made, -127, 127)


@given(st.integers(0, 2**32 - 1), st.integers(-40, 3), st.integers(0, 29))
@settings(max_examples=60, deadline=None)
def test_folded_codes_are_exact(seed: int, exponent: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    acc = rng.integers(-(2**bits), 2**bits, (20, 7), endpoint=True).astype(np.int32)
    scale = rng.normal(0, 1, 7) * 2.0**exponent
    scale[0] = 0
    shift = rng.normal(0, 100, 7)
    found = fqat.affine_codes(acc, scale, shift)
    assert found.dtype == np.int8 and np.array_equal(found, exact_codes(acc, scale, shift))


@pytest.mark.parametrize("variant", ["a", "b", "c"])
def test_inference_is_one_requantization(variant: str) -> None:
    """With the batch's statistics as running ones, inference in integers is training's result to a code of each rounding."""
    method = methods.make("fqat", {"variant": variant, "z": Z})
    network = engine.Network((Conv2d(6, 3, pad=1), BatchNorm(momentum=1.0), Flatten(), Linear(3)), (9, 9, 2), method, 3)
    conv, bn = network.nodes[:2]
    rng = np.random.default_rng(0)
    bn.params["gamma"][:] = [1, -0.5, 2, 0, 1e-3, 0.7]  # negative, and none
    bn.params["beta"][:] = [0, 0.3, -0.2, 0.4, 0.1, 0]
    images = rng.integers(0, 256, (400, 9, 9, 2), dtype=np.uint8)
    x = network.input(images)
    codes, steps = [], []
    for training in (True, False):
        context = Context(training, 0, 1)
        y = core.materialize_in_place(method.forward(conv, x, context))
        made = network.passes[1].forward(bn, y, method, context)
        steps.append(float(made.bound) / 127)
        codes.append(np.rint(np.asarray(made) / steps[-1]).astype(np.int64))
    assert isinstance(y, fqat.Ranged) and y.sums is not None and y.sums[0].dtype == np.int32
    assert np.array_equal(y.sums[0].astype(F) * F(float(y.sums[1])), y)
    apart = np.abs(codes[0] - codes[1])
    once = np.abs(bn.params["gamma"]).max() * Z / 127 / steps[0] if variant == "b" else 0  # what a code of b's first step is
    assert steps[0] == steps[1] and apart.max() <= math.ceil(1 + once) and apart.mean() < 0.02
    assert np.all(codes[1][..., 3] == np.rint(0.4 / steps[0])), "gamma 0: beta alone"
    assert codes[1][..., 1].std() > 5


def test_no_range_is_taken_of_normalized_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only weights and dY are read for their range, in front of the last fully connected layer x too."""
    network = engine.Network(STACK, (7, 7, 2), methods.make("fqat", {}), 3)
    read: list[int] = []
    monkeypatch.setattr(core, "value_range", lambda x, plain=core.value_range: (read.append(x.size), plain(x))[1])
    network.forward(network.input(np.zeros((4, 7, 7, 2), np.uint8)), Context(True, 0, 1))
    sizes = [node.params["w"].size for node in network.nodes if "w" in node.params]
    assert sorted(read) == sorted([*sizes, 4 * 6])


@pytest.mark.parametrize(
    ("layer", "factor"), [(ReLU(), 1), (MaxPool(), 1), (GlobalAvgPool(), 1), (Flatten(), 1), (Dropout(0.75), 4)]
)
def test_bounds_hold(layer: object, factor: float) -> None:
    flat = () if isinstance(layer, Flatten | GlobalAvgPool) else (Flatten(),)
    network = engine.Network((layer, *flat, Linear(3)), (4, 4, 3), methods.make("fqat", {}), 3)
    node, context = network.nodes[0], Context(True, 0, 1)
    x = np.random.default_rng(0).uniform(-2, 2, (50, 4, 4, 3)).astype(F)
    y = network.passes[0].forward(node, fqat.ranged(x.copy(), 2.0), network.method, context)
    assert fqat.bound_of(y) == 2 * factor and np.abs(y).max() <= 2 * factor
    assert fqat.bound_of(network.passes[0].forward(node, x.copy(), network.method, context)) is None


def test_the_bound_of_a_sum() -> None:
    network = engine.Network((Residual((ReLU(),)), Flatten(), Linear(3)), (4, 4, 3), methods.make("fqat", {}), 3)
    node = next(node for node in network.nodes if isinstance(node.layer, Add))
    a, b = (np.full((2, 4, 4, 3), value, F) for value in (2, -3))
    forward = network.passes[node.index].forward
    y = forward(node, (fqat.ranged(a, 2.0), fqat.ranged(b, 3.0)), network.method, Context(True, 0, 1))
    assert fqat.bound_of(y) == 5 and np.all(y == -1)
    assert fqat.bound_of(forward(node, (fqat.ranged(a, 2.0), b), network.method, Context(True, 0, 1))) is None


@pytest.mark.parametrize("variant", ["a", "b", "c"])
def test_a_normalization_behind_a_pooling(variant: str) -> None:
    """Float32 in inference, and near what training gives with the same statistics."""
    method = methods.make("fqat", {"variant": variant})
    network = engine.Network((MaxPool(), BatchNorm(momentum=1.0), Flatten(), Linear(3)), (8, 8, 3), method, 3)
    x = np.random.default_rng(0).normal(1, 2, (100, 4, 4, 3)).astype(F)
    forward, node = network.passes[1].forward, network.nodes[1]
    results = [np.array(forward(node, x, method, Context(training, 0, 1))) for training in (True, False)]
    assert np.abs(results[0]).max() > 1 and np.abs(results[0] - results[1]).max() <= 1.01 * 2 * 2.576 / 127
    assert (results[0] != results[1]).mean() < 0.03  # the running variance is that of n - 1


def test_a_clip_that_fell_to_nothing() -> None:
    """c is kept above 0, and its gradient still moves it."""
    method = methods.make("fqat", {"variant": "c"})
    network = engine.Network((Conv2d(2, 1), BatchNorm(), Flatten(), Linear(2)), (4, 4, 1), method, 3)
    network.nodes[1].params["clip"][:] = -3
    logits = network.forward(network.input(np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1)), Context(True, 0, 1))
    network.backward(np.random.default_rng(0).normal(0, 1, logits.shape).astype(F), Context(True, 0, 1))
    assert np.isfinite(logits).all() and network.nodes[1].grads["clip"][0] != 0


@pytest.mark.parametrize("gamma", [0.0, 1e-44, 1e-38])
def test_a_scale_of_nothing(gamma: float) -> None:
    """No codes but 0, and no division by it."""
    method = methods.make("fqat", {})
    network = engine.Network((Conv2d(2, 1), BatchNorm(), Flatten(), Linear(2)), (4, 4, 1), method, 3)
    network.nodes[1].params["gamma"][:] = gamma
    for training in (True, False):
        images = np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1)
        assert not network.forward(network.input(images), Context(training, 0, 1)).any()


def test_refused() -> None:
    for bad in (0.05, 101.0, float("nan")):
        with pytest.raises(OctosimError, match=r"fqat: z must be in 0.1 .. 100, not"):
            methods.make("fqat", {"z": bad})
    network = engine.Network((Flatten(), Linear(2), BatchNorm(), Linear(2)), (300, 300, 1), methods.make("fqat", {}), None)
    with pytest.raises(OctosimError, match="fc1, forward: a sum of 90000 int8 products, with what its normalization adds"):
        network.check(1)


def test_trace_reads_activations_once() -> None:
    reads = {}
    for name in ("fqat", "hindsight"):
        network = engine.Network(STACK, (7, 7, 2), methods.make(name, {}), None)
        reads[name] = {op.layer: op.reads for op in plan.trace(network, 4) if op.name == "range" and op.pass_ == "forward"}
    assert len(reads["hindsight"]) == 4 and set(reads["fqat"]) == {"fc2"}, "which has no normalization in front"
