"""LogBTQ: the barrier against its formula, the passes against a direct transcription, overflow with and without the barrier."""

from __future__ import annotations

import numpy as np
import pytest
from kit import hooks as direct
from kit.mu_law import mu_product

from octosim import core, engine, methods, train
from octosim.engine.layers import DepthwiseConv2d, Flatten, Linear
from octosim.engine.nodes import Context
from octosim.errors import OctosimError
from octosim.numerics import MuLaw

F = np.float32
ISAS = [name for name, supported in core.isas().items() if supported]


# ---- the barrier --------------------------------------------------


def barrier(z: float, t: float) -> tuple[float, float]:
    """psi and dpsi/dz, in float64."""
    if z <= -1 / t**2:
        return -np.log(-z) / t, -1 / (t * z)
    return t * z - np.log(1 / t**2) / t + 1 / t, t


def psi(z, t):
    """The log-barrier extension in float32."""
    tight, edge = F(t), F(1) / (F(t) * F(t))
    inside = -core.log(np.ascontiguousarray(np.maximum(-z, edge))) / tight
    return np.where(z <= -edge, inside, tight * z - core.log(np.array([edge]))[0] / tight + F(1) / tight)


def slope_at(z, t):
    """dpsi/dz in float32, which test_method_kernels.py holds `core.barrier` to."""
    tight, edge = F(t), F(1) / (F(t) * F(t))
    return np.where(z <= -edge, F(1) / (tight * np.maximum(-z, edge)), tight)


@pytest.mark.parametrize("t", [0.5, 1.0, 5.0, 33.0, 100.0])
def test_barrier(t: float) -> None:
    z = np.concatenate([-np.logspace(-6, 2, 500), [0], np.logspace(-6, 2, 500), -1 / t**2 * np.linspace(0.99, 1.01, 101)])
    z = z.astype(F)
    expected = np.array([barrier(float(v), t) for v in z])
    assert np.abs(psi(z, t) - expected[:, 0]).max() <= 2e-6 * np.abs(expected[:, 0]).max()
    assert np.allclose(slope_at(z, t), expected[:, 1], rtol=1e-6)


@pytest.mark.parametrize("t", [0.5, 1.0, 5.0, 33.0, 100.0])
def test_barrier_is_continuous_with_its_derivative(t: float) -> None:
    """Both sides of z = -1/t^2, a float32 apart: psi differs by no more than t times that, the slope is t."""
    edge = F(-1) / (F(t) * F(t))
    sides = np.array([np.nextafter(edge, F(-np.inf)), edge, np.nextafter(edge, F(0))], F)
    value, slope = psi(sides, t), slope_at(sides, t)
    assert np.ptp(value) <= 4e-6 * max(1, np.abs(value).max()) and np.allclose(slope, t, rtol=1e-6)
    x = np.sort(np.concatenate([-np.logspace(-5, 1, 400), np.linspace(0, 3, 100)])).astype(F)
    assert (np.diff(slope_at(x, t)) >= 0).all()  # convex
    difference = np.diff([barrier(float(v), t)[0] for v in x]) / np.diff(x.astype(float))
    made = slope_at(x, t)
    assert (difference >= made[:-1] * (1 - 1e-5)).all() and (difference <= made[1:] * (1 + 1e-5)).all()


def test_pull_points_inwards_and_is_zero_at_zero() -> None:
    w = np.array([-2, -0.5, 0, 0.5, 2], F)
    pull = core.barrier(np.zeros_like(w), w, 1.0, 5.0, 0.1 / w.size)
    assert np.sign(pull).tolist() == [-1, -1, 0, 1, 1]  # a gradient: it is subtracted
    assert pull[4] == pytest.approx(0.1 / 5 * 5.0) and pull[3] == pytest.approx(0.1 / 5 / (5 * 0.5))


def test_schedule() -> None:
    method = methods.make("logbtq", {"t": 5, "growth": 1.5, "t_max": 20})
    assert [method.tightness(epoch) for epoch in (1, 2, 3, 4, 5, 100)] == pytest.approx([5, 7.5, 11.25, 16.875, 20, 20])


# ---- the passes --------------------------------------------------


def encode(x, bound):
    """Sign and round(127 ln(1 + 255 |x| / bound) / ln 256), and how many lie outside."""
    m = np.floor(127 * np.log1p(255 * np.abs(x.astype(float)) / bound) / np.log(256) + 0.5)
    return (np.minimum(m, 127) + 128 * (x < 0)).astype(np.uint8), int((np.abs(x) > bound).sum())


def decode(q, bound):
    value = bound * (256.0 ** ((q & 127) / 127) - 1) / 255
    return np.where(q & 128, -value, value)


def rows(x, shape):
    """A convolution's windows, 3x3 with padding 1, or a linear layer's input."""
    if len(shape) == 2:
        return x
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    n, height, width, _ = x.shape
    return np.array([padded[i, y : y + 3, z : z + 3].ravel() for i in range(n) for y in range(height) for z in range(width)])


@pytest.mark.parametrize(("accumulator", "headroom", "block"), [("exact", 4, 32), ("blocked", 2, 16), ("strict", -4, 32)])
def test_three_steps(accumulator: str, headroom: int, block: int) -> None:
    parameters = dict(accumulator=accumulator, headroom=headroom, block=block)
    parameters |= dict(weight_bound=0.5, activation_bound=1.5, barrier=0.3)
    expected: dict[str, np.ndarray] = {}
    names, saturations = [], 0
    for seen in direct.three_steps("logbtq", parameters):
        node, x, w, t = seen["node"], seen["x"], seen["w"], 5 * 1.1 ** (seen["context"].epoch - 1)
        names.append(node.name)
        (qx, x_outside), (qw, w_outside) = encode(x, 1.5), encode(w, 0.5)
        x_real, w_real = decode(qx, 1.5), decode(qw, 0.5)
        counts = [0, 0, x_outside, x.size, w_outside, w.size]
        if accumulator == "exact":
            assert direct.close(seen["y"], direct.forward(x_real, w_real) + seen["b"])
        else:
            how = MuLaw(headroom=headroom, group=block if accumulator == "blocked" else 1)
            a, b = rows(qx, w.shape), qw.reshape(len(qw), -1).T
            codes, saturated = mu_product(a, b, how)
            y = decode(codes, 0.75 * 2.0**headroom).reshape(seen["y"].shape) + seen["b"]
            assert direct.close(seen["y"], y)
            counts[:2] = saturated, 2 * codes.size * -(-a.shape[1] // how.group)
            saturations += saturated
        expected[node.name] = expected.get(node.name, 0) + np.array(counts)
        assert node.state["counts"].tolist() == expected[node.name].tolist()

        def pull(v, bound, t=t):
            z = np.abs(v.astype(float)) - bound
            slopes = np.vectorize(lambda value: barrier(value, t)[1])(z)
            return 0.3 / v.size * np.sign(v) * slopes

        dy = seen["dy"]
        dw = direct.weight_grad(x_real, dy, w.shape) * (np.abs(w) <= F(0.5)) + pull(w, 0.5)
        assert direct.close(seen["dw"], dw, np.abs(direct.weight_grad(np.abs(x_real), np.abs(dy), w.shape)))
        if "dx" in seen:
            assert direct.close(seen["dx"], direct.input_grad(dy, w_real) * (np.abs(x) <= F(1.5)) + pull(x, 1.5))
    assert len(names) == 12 and (saturations > 0) == (accumulator == "strict")


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(stride: int) -> None:
    network = engine.Network(
        (DepthwiseConv2d(3, stride, 1), Flatten(), Linear(2)), (7, 6, 3), methods.make("logbtq", {"accumulator": "blocked"}), 1
    )
    node, how = network.nodes[0], MuLaw(group=32)
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(F)
    y = network.method.forward(node, x, Context(True, 0, 1))
    (qx, _), (qw, _) = encode(x, 4.0), encode(node.params["w"], 1.0)
    for c in range(3):
        a = rows(qx[..., c : c + 1], (1, 3, 3, 1)).reshape(2, 7, 6, 9)[:, ::stride, ::stride].reshape(-1, 9)
        codes, _ = mu_product(a, qw[c].reshape(9, 1), how)
        assert direct.close(y[..., c].ravel(), decode(codes, 64.0).ravel())


# ---- runs --------------------------------------------------


def test_the_barrier_lowers_overflow() -> None:
    """Small bounds, so that much lies outside without it; the rates stand in the record and count one epoch only."""
    rates = {}
    for weight in (0.0, 20.0):
        parameters = {"barrier": weight, "activation_bound": 1.0, "weight_bound": 0.1, "t": 20}
        run = train.Run(train.Config(model="mlp", method="logbtq", parameters=parameters, batch_size=100, epochs=1))
        records = [run.advance() for _ in range(run.steps)]
        assert not any("metrics" in record for record in records[:-1])
        rates[weight] = records[-1]["metrics"]["overflow_rates"]
        assert not any(node.state["counts"].any() for node in run.network.nodes if node.layer.weighted)
    for kind in ("weights", "activations"):
        last = list(rates[0.0][kind])[-1]
        assert rates[20.0][kind][last] < 0.7 * rates[0.0][kind][last], (kind, rates)


@pytest.mark.parametrize("accumulator", ["blocked", "strict"])
def test_simulated_accumulators_are_the_same_everywhere(accumulator: str) -> None:
    before, digests = (core.isa(), core.threads()), set()
    for isa, threads in [(ISAS[0], 2), (ISAS[-1], 1), (ISAS[-1], 3)]:
        core.set_isa(isa)
        core.set_threads(threads)
        config = train.Config(model="lenet5", method="logbtq", parameters={"accumulator": accumulator}, batch_size=5, steps=3)
        run = train.Run(config)
        for _ in range(3):
            run.train_step()
        digests.add(run.digest())
    core.set_isa(before[0])
    core.set_threads(before[1])
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"t": 0}, "logbtq: t must be in"),
        ({"weight_bound": -1}, "weight_bound must be in"),
        ({"barrier": -1}, "barrier must not be negative"),
        ({"growth": 0.5}, "growth must be in"),
        ({"block": 33}, "group must be in 1 .. 32"),
        ({"headroom": 17}, "headroom must be in"),
        ({"accumulator": "int8"}, "accumulator must be one of exact, blocked, strict"),
    ],
)
def test_refusals(parameters: dict, words: str) -> None:
    with pytest.raises(OctosimError) as caught:
        methods.make("logbtq", parameters)
    assert words in str(caught.value)
