"""NITI against a slow transcription of its equations in Python integers: equal to the bit."""

from __future__ import annotations

import ast
import inspect
import itertools
import math

import numpy as np
import pytest
from kit import passes as direct

from octosim import core, engine, methods, train
from octosim.engine.layers import Add, Conv2d, Dropout, Flatten, GlobalAvgPool, Linear, MaxPool, ReLU, Residual
from octosim.engine.nodes import LOSS, Context, Node
from octosim.errors import OctosimError
from octosim.methods import niti
from octosim.methods.niti import scaled
from octosim.numerics import Rounding

STACK = (Conv2d(4, 3, pad=1), ReLU(), MaxPool(), Conv2d(5, 3), Dropout(), Flatten(), Linear(3))


def codes(q) -> core.Tensor:
    return scaled(np.array(q, np.int8), 0)


# ---- transcription --------------------------------------------------


def half_away(v: int, shift: int) -> int:
    return (abs(v) + (1 << shift >> 1) >> shift) * (1 if v > 0 else -1)


def pseudo(v: int, shift: int) -> int:
    """As the card writes it: a division that truncates, then the dropped bits' upper half against their lower half."""
    t = int(math.copysign(abs(v) // 2**shift, v))
    p = abs(v - t * 2**shift)
    high = p >> (shift // 2)
    low = p - (high << (shift // 2))
    if shift % 2:
        low *= 2
    return t + (high > low) * ((v > 0) - (v < 0))


def shifted(acc: np.ndarray, bits: int, rule) -> tuple[np.ndarray, int]:
    shift = max(0, int(np.abs(acc).max()).bit_length() - bits)
    made = [min(max(rule(int(v), shift) if shift else int(v), -127), 127) for v in acc.flat]
    return np.array(made, np.int64).reshape(acc.shape), shift


def loss_gradient(q: np.ndarray, e: int, labels: np.ndarray, random: core.Stream) -> np.ndarray:
    """StoShift by 4: up where the dropped bits are above a random number, here by the core's requantization."""
    rows = []
    for row, label in zip(q.tolist(), labels, strict=True):
        if e > -7:
            s = [math.floor(v * 47274 * 2.0 ** (e - 15)) for v in row]
            p = [2 ** max(v - (max(s) - 10), 0) - 1 for v in s]
        else:
            p = [2 ** (1 - 2 * e) + v * 2 ** (1 - e) + v * v for v in row]
        grad = [v * 2**11 // sum(p) for v in p]
        grad[label] -= sum(grad)
        rows.append(grad)
    acc = np.array(rows, np.int32)
    return core.requantize(acc, 1, 4, rounding=Rounding.STOCHASTIC, low=-127, high=127, random=random).astype(np.int64)


def direct_step(params, exponents, images, labels, mask, mu, random):
    """One step; returns the updated weights and the logits."""
    (w1, w2, w3), (e1, e2, e3) = params, exponents
    x, ex = images.astype(np.int64) >> 1, -7
    y1, s = shifted(direct.forward(x, w1, 1), 7, half_away)
    ey1 = ex + e1 + s
    r = np.maximum(y1, 0)
    windows = [r[:, i::2, j::2] for i, j in itertools.product(range(2), range(2))]
    pool, argmax = np.max(windows, 0), np.argmax(windows, 0)
    y2, s = shifted(direct.forward(pool, w2), 7, half_away)
    ey2 = ey1 + e2 + s
    flat = (y2 * mask).reshape(len(y2), -1)
    logits, s = shifted(direct.forward(flat, w3), 7, half_away)
    e_logits = ey2 + 1 + e3 + s
    dlogits = loss_gradient(logits, e_logits, labels, random)
    g3, _ = shifted(direct.weight_grad(flat, dlogits, w3), mu, pseudo)
    d3, _ = shifted(direct.input_grad(dlogits, w3), 7, half_away)
    d2 = d3.reshape(y2.shape) * mask
    g2, _ = shifted(direct.weight_grad(pool, d2, w2), mu, pseudo)
    dpool, _ = shifted(direct.input_grad(d2, w2), 7, half_away)
    d1 = np.zeros_like(r)
    for number, (i, j) in enumerate(itertools.product(range(2), range(2))):
        d1[:, i::2, j::2] = dpool * (argmax == number)
    d1 *= r > 0
    g1, _ = shifted(direct.weight_grad(x, d1, w1, 1), mu, pseudo)
    updated = [np.clip(w - g, -127, 127) for w, g in ((w1, g1), (w2, g2), (w3, g3))]
    return updated, (logits, e_logits)


@pytest.mark.parametrize("mu", [5, 3, 7])
def test_three_steps(mu: int) -> None:
    network = engine.Network(STACK, (8, 8, 2), methods.make("niti", {"mu": mu}), 3)
    weighted = [node for node in network.nodes if node.layer.weighted]
    assert [list(node.params) for node in weighted] == [["w"]] * 3
    rng = np.random.default_rng(0)
    params = [node.params["w"].astype(np.int64) for node in weighted]
    exponents = [int(node.state["exponent"][0]) for node in weighted]
    kept = []
    for step in (1, 2, 3):
        images, labels = rng.integers(0, 256, (6, 8, 8, 2), dtype=np.uint8), rng.integers(0, 3, 6).astype(np.int32)
        drop = network.nodes[4]
        mask = (core.philox(math.prod(drop.in_shape), 3, step, drop.tensor(15)) >> 31 == 0).reshape(drop.in_shape)
        kept.append(mask.mean())
        random = (3, step, network.nodes[-1].tensor(LOSS))
        params, logits = direct_step(params, exponents, images, labels, mask, mu, random)
        context = Context(True, 3, step)
        before = network.forward(network.input(images), context)
        assert np.array_equal(before.q, logits[0]) and int(before.exponent) == logits[1]
        network.gradients(images, labels, context)
        for node in weighted:
            network.method.update(node, "w", 0.0, lambda lr: pytest.fail("no optimizer"), context)
        for node, expected in zip(weighted, params, strict=True):
            assert node.params["w"].dtype == np.int8 and np.array_equal(node.params["w"], expected), (step, node.name)
    assert [int(node.state["exponent"][0]) for node in weighted] == exponents, "weights keep their exponents"
    assert 0.3 < np.mean(kept) < 0.7


# ---- its parts --------------------------------------------------


def test_both_traps() -> None:
    """max|acc| = 128 takes a shift, and never becomes -128; negative values are not biased by the pseudo-stochastic shift."""
    for extreme in (127, 128, -128, 129, 255, -255, 256, 2**30, -(2**31) + 1):
        t = niti.rounded(np.array([extreme, 3, -3], np.int32), 0)
        assert int(t.exponent) == max(0, abs(extreme).bit_length() - 7)
        assert np.sign(t.q[0]) == np.sign(extreme) and abs(int(t.q[0])) <= 127
        assert abs(int(t.q[0]) * 2 ** int(t.exponent) - extreme) <= 2 ** int(t.exponent)  # one code may be clipped
    assert niti.rounded(np.array([127, -5], np.int32), -3).q.tolist() == [127, -5]
    assert int(niti.rounded(np.zeros(4, np.int32), -3).exponent) == -3
    acc = np.random.default_rng(0).integers(-(2**15), 2**15, 50_000).astype(np.int32)
    q, shift = core.narrow(acc, 5, Rounding.PSEUDO_STOCHASTIC)
    assert int(shift) == 11 and q.tolist() == [pseudo(int(v), 11) for v in acc]
    negative = acc < 0
    assert abs((q - acc / 2**11)[negative].mean()) < 0.03


def test_initial_weights() -> None:
    network = engine.Network((Conv2d(64, 3), Flatten(), Linear(10)), (8, 8, 3), methods.make("niti", {}), 1)
    node = network.nodes[0]
    w, exponent = node.params["w"], int(node.state["exponent"][0])
    limit = math.sqrt(6 / (9 * (3 + 64)))
    assert w.dtype == np.int8 and w.shape == (64, 3, 3, 3) and np.abs(w).max() == 127
    assert exponent == math.ceil(math.log2(limit)) - 7
    assert abs(w.mean()) < 5 and w.std() == pytest.approx(127 / math.sqrt(3), rel=0.05)


def test_loss_gradient_is_right_on_average() -> None:
    """A pseudo-stochastic shift takes the same dropped bits for random bits in each step; a stochastic one does not."""
    q, labels = np.array([[5, -3, 2, 0]], np.int8), np.array([1], np.int32)
    drawn = [core.softmax_codes_gradient(q, -3, labels, (0, step, 0)) for step in range(2000)]
    assert len(np.unique(np.stack(drawn), axis=0)) > 2
    grad = np.mean(drawn, axis=0)
    assert grad.sum() == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("exponent", [-40, -21, -20, -9, -7, -6, -3, 0, 2, 30, 500])
def test_loss_gradient(exponent: int) -> None:
    rng = np.random.default_rng(exponent & 7)
    q, labels = rng.integers(-127, 128, (50, 10)).astype(np.int8), rng.integers(0, 10, 50).astype(np.int32)
    found = core.softmax_codes_gradient(q, exponent, labels, (1, 2, 3))
    if -20 <= exponent <= 20:
        assert np.array_equal(found, loss_gradient(q, exponent, labels, (1, 2, 3)))
    rows = np.arange(50)
    assert (found[rows, labels] <= 0).all() and (np.delete(found, 3, 1)[labels == 3] >= 0).all()
    real = q * 2.0 ** min(exponent, 8)
    p = np.exp(real - real.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[rows, labels] -= 1
    # whole powers of two of the logits: within a factor of 2 of the true probabilities
    assert np.abs(found - 128 * p).max() < (4 if exponent <= -7 else 50)
    assert (found * p).sum() > 0.9 * np.linalg.norm(found.astype(float)) * np.linalg.norm(p)


def test_pooling_averages_and_sums() -> None:
    method = methods.make("niti", {})
    node = Node("pool1", 0, MaxPool(3, 2), (5, 5, 1), (2, 2, 1))
    x = np.arange(25, dtype=np.int8).reshape(1, 5, 5, 1)
    pool = method.layers["pool"]
    assert pool.forward(node, scaled(x, -2), method, Context(True, 0, 1)).q.ravel().tolist() == [12, 14, 22, 24]
    assert pool.forward(node, scaled(-x, -2), method, Context(True, 0, 1)).q.ravel().tolist() == [0, -2, -10, -12]
    x[0, 2, 2] = 99  # all four windows' largest: 4 x 100 needs two bits more
    pool.forward(node, scaled(x, -2), method, Context(True, 0, 1))
    dx = pool.input_grad(node, scaled(np.full((1, 2, 2, 1), 100, np.int8), 3), method, Context(True, 0, 1))
    assert int(dx.exponent) == 5 and dx.q[0, 2, 2, 0] == 100 and np.count_nonzero(dx.q) == 1

    node = Node("avgpool1", 0, GlobalAvgPool(), (3, 3, 1), (1,))
    average = method.layers["avgpool"]
    y = average.forward(node, scaled(np.full((1, 3, 3, 1), 100, np.int8), 0), method, Context(True, 0, 1))
    assert y.q.tolist() == [[113]] and int(y.exponent) == 0  # 900 / 8, one shift by three bits
    assert int(average.input_grad(node, codes([[64]]), method, Context(True, 0, 1)).exponent) == -3

    for a, ea, b, eb in [(100, 0, 100, 0), (127, 5, -127, 0), (3, -4, 120, 2), (1, 0, 127, -23), (-127, 22, 127, 0)]:
        made = niti.aligned_sum(node, scaled(np.array([a], np.int8), ea), scaled(np.array([b], np.int8), eb))
        exact = a * 2.0**ea + b * 2.0**eb
        e = int(made.exponent)
        assert abs(made.q[0] * 2.0**e - exact) <= 2.0 ** (e - 1)
    block = Residual((Conv2d(3, 3, pad=1), ReLU(), Conv2d(3, 3, pad=1)))
    network = engine.Network((Conv2d(3, 1), ReLU(), block, ReLU(), GlobalAvgPool(), Linear(3)), (6, 6, 2), method, 0)
    assert any(isinstance(node.layer, Add) for node in network.nodes)
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 2), dtype=np.uint8)
    network.gradients(images, np.zeros(4, np.int32), Context(True, 0, 1))
    assert all(node.grads["w"].any() for node in network.nodes if node.layer.weighted)


def test_mu_falls_with_the_run() -> None:
    method = methods.make("niti", {})
    assert [method.phase(Context(True, 0, step, 8)) for step in range(1, 9)] == [5, 5, 5, 5, 4, 4, 3, 3]
    assert method.phase(Context(True, 0, 100)) == 5
    constant = methods.make("niti", {"schedule": "constant"})
    assert constant.phase(Context(True, 0, 8, 8)) == 5


# ---- no floating point --------------------------------------------------


class Spy(np.ndarray):
    """An array that refuses floating-point operations of NumPy, and whose results do too."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        plain = [np.asarray(v) if isinstance(v, np.ndarray) else v for v in inputs]
        options = {k: np.asarray(v) if isinstance(v, Spy) else v for k, v in options.items()}
        if out:
            options["out"] = tuple(np.asarray(v) for v in out)
        result = getattr(ufunc, method)(*plain, **options)
        for value in (*plain, result):
            assert np.asarray(value).dtype.kind in "iub", (ufunc, np.asarray(value).dtype)
        return result.view(Spy) if isinstance(result, np.ndarray) else result


def test_a_step_has_no_floating_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array that NumPy or the core takes or gives in a step is of integers; the record's loss is the one exception."""
    method = methods.make("niti", {})
    network = engine.Network(STACK, (8, 8, 2), method, 0)
    weighted = [node for node in network.nodes if node.layer.weighted]
    for node in weighted:
        node.params["w"] = node.params["w"].view(Spy)
    plain = Node.buffer
    monkeypatch.setattr(Node, "buffer", lambda self, shape, dtype: plain(self, shape, dtype).view(Spy))
    called: list[str] = []

    def watched(name: str, function):
        def call(*arguments, **named):
            result = function(*arguments, **named)
            called.append(name)
            for value in (*arguments, *named.values(), *(result if isinstance(result, tuple) else (result,))):
                if isinstance(value, np.ndarray):
                    assert value.dtype.kind in "iub", name
                assert not isinstance(value, float), name
            return result.view(Spy) if isinstance(result, np.ndarray) else result

        return call

    reported = []
    for name in core.__all__:
        function = getattr(core, name)
        if name in ("dequantize", "softmax_cross_entropy", "power_of_two"):
            monkeypatch.setattr(core, name, lambda *a, f=function, n=name, **k: (reported.append(n), f(*a, **k))[1])
        elif inspect.isfunction(function) and name not in ("at", "materialize_in_place"):
            monkeypatch.setattr(core, name, watched(name, function))
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 2), dtype=np.uint8).view(Spy)
    context = Context(True, 0, 1, 4)
    network.gradients(images, np.zeros(6, np.int32), context)
    for node in weighted:
        method.update(node, "w", 0.0, lambda lr: pytest.fail("no optimizer"), context)
    assert reported == ["power_of_two", "dequantize", "softmax_cross_entropy"]
    assert {
        "conv_forward", "conv_input_grad", "conv_weight_grad", "gemm", "narrow", "add_exponents", "images_as_codes",
        "relu_codes", "relu_codes_backward", "maxpool_codes", "maxpool_codes_backward", "dropout_codes",
        "softmax_codes_gradient", "subtract_codes",
    } == set(called)  # fmt: skip
    with pytest.raises(AssertionError):
        images * 0.5  # the spy sees


def test_its_source_has_no_floating_point() -> None:
    """No float literal and no true division outside what comes in, weights and float32 data, and the record's loss."""

    class Without(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef | None:
            return None if node.name in ("init", "_set_exponent", "input_values", "loss") else node

    for node in ast.walk(Without().visit(ast.parse(inspect.getsource(niti)))):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), node.lineno
        assert not (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)), node.lineno


# ---- what it refuses --------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "layer bn1: method niti has no batch normalization; use --no-batchnorm"),
        ({"batchnorm": False, "lr": 0.1}, "lr has no meaning for method niti"),
        ({"batchnorm": False, "weight_decay": 0.1}, "weight_decay has no meaning for method niti"),
        ({"batchnorm": False, "optimizer": "adam"}, "optimizer has no meaning for method niti"),
        ({"batchnorm": False, "parameters": {"mu": 8}}, "niti: mu must be in 1 .. 7, not 8"),
        ({"batchnorm": False, "parameters": {"schedule": "step"}}, "schedule must be one of paper, constant, not 'step'"),
    ],
)
def test_refused(change: dict, words: str) -> None:
    with pytest.raises(OctosimError) as caught:
        train.Run(train.Config(model="lenet5", method="niti", **change))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "pool", [MaxPool(16, 16), MaxPool((2, 3)), MaxPool(2, (2, 1)), MaxPool(2, 2, 1), MaxPool(2, 2, ceil=True)]
)
def test_poolings_that_the_kernels_of_codes_do_not_take(pool: MaxPool) -> None:
    with pytest.raises(OctosimError, match="layer pool1: method niti does not cover this form of it"):
        engine.Network((pool, Flatten(), Linear(3)), (20, 20, 1), methods.make("niti", {}), 0)


@pytest.mark.parametrize(("rate", "doublings"), [(0.0, 0), (0.5, 1), (0.75, 2), (0.3, None), (0.9999999, None)])
def test_dropout_rates(rate: float, doublings: int | None) -> None:
    stack = (Dropout(rate), Flatten(), Linear(3))
    if doublings is None:
        with pytest.raises(OctosimError, match="layer dropout1: niti takes dropout rates 1 - 2"):
            engine.Network(stack, (20, 20, 1), methods.make("niti", {}), 0)
        return
    network = engine.Network(stack, (20, 20, 1), methods.make("niti", {}), 0)
    x = scaled(np.full((9, 20, 20, 1), 7, np.int8), 0)
    y = network.passes[0].forward(network.nodes[0], x, network.method, Context(True, 0, 1))
    assert int(y.exponent) == doublings and (y.q == 7).mean() == pytest.approx(1 - rate, abs=0.03)
    assert network.passes[0].forward(network.nodes[0], x, network.method, Context(False, 0, 1)) is x
