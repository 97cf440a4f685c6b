"""Octo against a slow, direct transcription of its equations, in float64 and Python integers where the result is exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import hooks as direct
from kit.examples import examples

from octosim import core, engine, graph, methods
from octosim.engine import fusion, plan, quantizers
from octosim.engine.layers import Conv2d, DepthwiseConv2d, Flatten, Linear, ReLU
from octosim.engine.nodes import ROLES, Context
from octosim.errors import OctosimError
from octosim.methods import int8, octo

F = np.float32
TRAIN = Context(True, 5, 1)


def test_every_method_has_its_row() -> None:
    for name, cls in methods.METHODS.items():
        assert methods.make(name, {}).name == name == cls.name
        assert cls.summary and cls.paper and cls.__doc__ and list(cls.bits) == list(ROLES)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("octa", {}, "unknown method 'octa'; did you mean 'octo'?"),
        ("octo", {"prc_ration": 1}, "has no parameter 'prc_ration'; did you mean 'prc_ratio'?"),
        ("octo", {"lac": "sometimes"}, "lac must be one of off, channel, feature, sample, not 'sometimes'"),
        ("octo", {"prc_ratio": "x"}, "prc_ratio must be a number, not 'x'"),
        ("octo", {"prc_ratio": 0}, "prc_ratio must be in (0, 1], not 0"),
        ("octo", {"prc_z": float("nan")}, "prc_z must be positive, not nan"),
        ("octo", {"prc_z": float("inf")}, "prc_z must be a finite number, not 'inf'"),
        ("octo", {"lac_decay": "inf"}, "lac_decay must be a finite number, not 'inf'"),
        ("octo", {"prc_z": 0}, "prc_z must be positive"),
        ("octo", {"prc_z": True}, "prc_z must be a number, not 'True'"),
        ("ui8", {"period": float("inf")}, "period must be a whole number, not 'inf'"),
        ("ui8", {"period": 1.7}, "period must be a whole number, not '1.7'"),
        ("ui8", {"period": "1.5"}, "period must be a whole number, not '1.5'"),
        ("octo", {"prc_percentile": 101}, "prc_percentile must be in (0, 100], not 101"),
        ("octo", {"lac_decay": -1}, "lac_decay must not be negative"),
        ("octo", {"lac_samples": 0}, "lac_samples must be at least 1, not 0"),
        ("fp32", {"lac": "off"}, "method fp32 has no parameter 'lac'"),
    ],
)
def test_bad_parameters(name: str, parameters: dict, words: str) -> None:
    with pytest.raises(OctosimError) as caught:
        methods.make(name, parameters)
    assert words in str(caught.value)


# ---- quantizers --------------------------------------------------


@pytest.mark.parametrize(
    "low, high", [(-1.0, 1.0), (0.0, 3.0), (-0.1, 5.0), (-7.0, 0.0), (2.0, 4.0), (0.0, 0.0), (-1e-40, 1e-40)]
)
def test_asymmetric_codes(low: float, high: float) -> None:
    x = np.linspace(low, high, 999).astype(F)
    t = quantizers.asymmetric(x, low, high)
    assert t.q.dtype == np.int8 and t.q.min() >= -127 and -127 <= t.zero <= 127
    assert quantizers.asymmetric(np.zeros(3, F), low, high).q.tolist() == [t.zero] * 3  # real 0 has its exact code
    if high - low > 1e-30:
        real = t.scale * (t.q.astype(np.float64) - t.zero)
        assert np.abs(real - x).max() <= t.scale * 0.5001 + 1e-7


def test_symmetric_clips_before_it_scales() -> None:
    x = np.array([-3, -1, -0.5, 0, 0.25, 1, 9], F)
    t = quantizers.symmetric(x, -1.0, 0.5)
    assert t.scale == float(F(1 / 127)) and t.zero == 0
    assert t.q.tolist() == [-127, -127, -64, 0, 32, 64, 64]  # 0.5 / scale = 63.5 -> 64, 0.25 -> 31.75


def test_tiny_tensors_become_zero_codes() -> None:
    assert not quantizers.symmetric(np.full(5, 1e-44, F), -1e-44, 1e-44).q.any()


# ---- Octo's three passes --------------------------------------------------


def direct_forward(x, w, b, lac, kernel, pad, dropped):
    """Y, and the real values that the codes of x and w stand for."""
    qx = quantizers.asymmetric(x, float(x.min()), float(x.max()))
    qw = quantizers.symmetric(w, float(w.min()), float(w.max()))
    codes = np.pad(qx.q.astype(np.int64), ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=qx.zero)
    weights = qw.q.astype(np.int64)
    zero = 0 if dropped else qx.zero
    n, height, width, _ = codes.shape
    out = np.zeros((n, height - kernel + 1, width - kernel + 1, len(w)), np.int64)
    for y, z in itertools.product(range(out.shape[1]), range(out.shape[2])):
        window = codes[:, y : y + kernel, z : z + kernel] - zero
        out[:, y, z] = np.einsum("nabc,fabc->nf", window, weights)
    scale = F(F(qx.scale) * F(qw.scale))
    added = b if lac is None else b + (lac[0] * lac[1] + lac[2])
    inverse = F(1.0 / float(scale))
    term = np.rint((added * inverse).astype(F)).astype(np.int64)
    total = out + term
    assert np.abs(total).max() < 2**31
    return total.astype(F) * scale, qx, qw


CASES = [
    dict(lac=lac, prc=prc, zero_point=zero, rounding=rounding)
    for lac, prc, zero, rounding in itertools.product(
        ("off", "channel", "feature"), ("off", "ratio", "gauss"), ("exact", "dropped"), ("half-even", "stochastic")
    )
] + [
    dict(lac="sample", prc=prc, zero_point=zero, rounding="half-even")
    for prc, zero in itertools.product(("ratio", "percentile"), ("exact", "dropped"))
]


@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(c.values()))
def test_octo_convolution(case: dict, pad: int) -> None:
    stack = (Conv2d(4, 3, pad=pad), Conv2d(5, 3, pad=pad), Flatten(), Linear(3))
    method = methods.make("octo", case | dict(lac_samples=4, prc_percentile=90))
    network = engine.Network(stack, (8, 7, 2), method, 5)
    node = network.nodes[1]
    rng = np.random.default_rng(2)
    x = rng.normal(0.4, 1, (3, *node.in_shape)).astype(F)
    node.params["b"][:] = rng.normal(0, 0.2, 5)
    lac = None
    if case["lac"] != "off":
        lac = tuple(node.params[f"lac_{k}"] for k in ("alpha", "mu", "offset"))
        lac[1][:] = rng.normal(0, 0.3, lac[1].shape)
    if case["lac"] == "sample":  # a batch of 3 with numbers for 4
        lac = (lac[0], lac[1][:3], lac[2][:3])
    expected, qx, qw = direct_forward(x, node.params["w"], node.params["b"], lac, 3, pad, case["zero_point"] == "dropped")
    y = core.materialize_in_place(method.forward(node, x, TRAIN))
    assert y.dtype == F and np.array_equal(y, expected)

    dy = rng.normal(0.01, 1, y.shape).astype(F)
    dy_before = dy.copy()
    error = method.error(node, dy, TRAIN)
    assert np.array_equal(dy, dy_before)
    low, high = float(dy.min()), float(dy.max())
    if case["prc"] == "ratio":
        low, high = 0.95 * low, 0.95 * high
    elif case["prc"] == "gauss":
        mean, deviation = core.moments(dy)
        assert mean == pytest.approx(dy.mean(dtype=np.float64), abs=1e-6)
        assert deviation == pytest.approx(dy.std(dtype=np.float64), rel=1e-5)
        low, high = max(low, mean - 2.576 * deviation), min(high, mean + 2.576 * deviation)
    elif case["prc"] == "percentile":
        limit = float(np.sort(np.abs(dy).ravel())[int(np.ceil(0.9 * dy.size)) - 1])
        low, high = max(low, -limit), min(high, limit)
        assert high < dy.max() and low > dy.min()
    clipped = np.clip(dy, low, high)
    assert error.scale == float(F(max(-low, high) / 127))
    exact = clipped / error.scale
    limit = 0.5001 if case["rounding"] == "half-even" else 1.0001
    assert np.abs(error.q - exact).max() <= limit
    assert np.abs(error.q).max() <= 127

    method.weight_grad(node, error, TRAIN)
    g = error.q.astype(np.int64)
    zero = 0 if case["zero_point"] == "dropped" else qx.zero
    padded = np.pad(qx.q.astype(np.int64), ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=qx.zero) - zero
    dw = np.zeros(node.params["w"].shape, np.int64)
    for i, j in itertools.product(range(3), range(3)):
        dw[:, i, j] = np.einsum("nyzf,nyzc->fc", g, padded[:, i : i + y.shape[1], j : j + y.shape[2]])
    assert np.array_equal(core.materialize_in_place(node.grads["w"]), dw.astype(F) * F(F(qx.scale) * F(error.scale)))
    sums = g.sum((0, 1, 2))
    assert np.array_equal(node.grads["b"], sums.astype(F) * F(error.scale))
    if case["lac"] == "sample":
        each = g.astype(F) * F(error.scale)
        exact = (each.astype(float) * lac[1]).sum(0)
        assert np.abs(node.grads["lac_alpha"] - exact).max() <= 1e-6 * np.abs(exact).max()
        rest = [F(0.1) * node.params[f"lac_{k}"][3:] for k in ("mu", "offset")]
        expected = np.concatenate([each * lac[0] + F(0.1) * lac[1], rest[0]])
        assert np.array_equal(node.grads["lac_mu"], expected)
        assert np.array_equal(node.grads["lac_offset"], np.concatenate([each + F(0.1) * lac[2], rest[1]]))
    elif lac:
        each = (sums if case["lac"] == "channel" else g.sum(0)).astype(F) * F(error.scale)
        assert np.array_equal(node.grads["lac_alpha"], each * lac[1])
        assert np.array_equal(node.grads["lac_mu"], each * lac[0] + F(0.1) * lac[1])
        assert np.array_equal(node.grads["lac_offset"], each + F(0.1) * lac[2])

    dx = core.materialize_in_place(method.input_grad(node, error, TRAIN))
    full = np.zeros((3, 8 + 2 * (pad - 1) if False else padded.shape[1], padded.shape[2], 4), np.int64)
    for i, j in itertools.product(range(3), range(3)):
        full[:, i : i + y.shape[1], j : j + y.shape[2]] += np.einsum("nyzf,fc->nyzc", g, qw.q[:, i, j].astype(np.int64))
    inner = full[:, pad : full.shape[1] - pad, pad : full.shape[2] - pad]
    assert np.array_equal(dx, inner.astype(F) * F(F(qw.scale) * F(error.scale)))


def test_three_steps_with_a_compensation_a_sample_and_a_percentile() -> None:
    parameters = dict(lac="sample", lac_samples=9, prc="percentile", prc_percentile=95)
    for seen in direct.three_steps("octo", parameters):
        node, x, w, dy, b = (seen[k] for k in ("node", "x", "w", "dy", "b"))
        lac = seen["lac_alpha"], seen["lac_mu"][:7], seen["lac_offset"][:7]
        qx = quantizers.asymmetric(x, float(x.min()), float(x.max()))
        qw = quantizers.symmetric(w, float(w.min()), float(w.max()))
        scale = F(qx.scale * qw.scale)
        term = np.rint(((b + (lac[0] * lac[1] + lac[2])) * F(1 / float(scale))).astype(F)).astype(np.int64)
        codes = qx.q.astype(np.int64) - qx.zero
        assert np.array_equal(seen["y"], (direct.forward(codes, qw.q) + term).astype(F) * scale), node.name
        sizes = np.sort(np.abs(dy[dy != 0]))
        limit = sizes[int(np.ceil(0.95 * sizes.size)) - 1]
        low, high = max(dy.min(), -limit), min(dy.max(), limit)
        sg = F(max(-float(low), float(high)) / 127)
        g = np.rint(np.clip(dy, low, high) * F(1 / float(sg))).astype(np.int64)
        assert np.array_equal(seen["error"].q, g) and seen["error"].scale == float(sg)
        dw = direct.weight_grad(codes, g, w.shape).astype(F) * F(qx.scale * float(sg))
        assert np.array_equal(seen["dw"], dw), node.name
        assert np.array_equal(seen["db"], direct.bias_grad(g).astype(F) * sg)
        each = g.astype(F) * sg
        for key, expected in (("lac_mu", each * lac[0] + F(0.1) * lac[1]), ("lac_offset", each + F(0.1) * lac[2])):
            assert np.array_equal(node.grads[key], np.concatenate([expected, F(0.1) * seen[key][7:]]))
        assert direct.close(node.grads["lac_alpha"], (each.astype(float) * lac[1]).sum(0))
        if "dx" in seen:
            assert np.array_equal(seen["dx"], direct.input_grad(g, qw.q).astype(F) * F(qw.scale * float(sg))), node.name


@pytest.mark.parametrize(
    ("name", "parameters"), [("octo", dict(lac="sample", prc="percentile", prc_percentile=90)), ("octo-reference", {})]
)
def test_the_same_bits_on_every_instruction_set(each_isa: list, name: str, parameters: dict) -> None:
    found = set()
    for isa, threads in each_isa:
        core.set_isa(isa)
        core.set_threads(threads)
        network, images, labels = direct.network_and_batch(name, parameters, batch=20)
        loss = float(network.gradients(images, labels, TRAIN)[0])
        found.add((loss, *(v.tobytes() for node in network.nodes for _, v in sorted(node.grads.items()))))
    assert len(found) == 1 and len(each_isa) > 1


@given(
    st.lists(st.floats(-8, 8, width=32).map(lambda v: v if abs(v) > 1 else 0.0), min_size=1, max_size=60),
    st.sampled_from([1, 50, 90, 99.9, 100]),
)
@examples(100)
def test_percentile_is_a_rank_of_what_is_not_zero(values: list[float], percent: float) -> None:
    sizes = sorted(abs(v) for v in values if v)
    found = octo.percentile(np.array(values, F), percent)
    if not sizes:
        assert found == 0
        return
    assert found in sizes
    within, less = (sum(condition) for condition in ([s <= found for s in sizes], [s < found for s in sizes]))
    assert 100 * within >= percent * len(sizes) > 100 * less - 1e-9
    assert found == octo.percentile(np.array(values[::-1], F), percent)


@pytest.mark.parametrize("percent", [0.01, 50, 99.9, 100])
@pytest.mark.parametrize("power", [1, 9])
def test_percentile_of_many(percent: float, power: int) -> None:
    x = (np.random.default_rng(0).normal(size=20001) ** power).astype(F)
    x[::2] = 0
    sizes = np.sort(np.abs(x[x != 0]))
    assert octo.percentile(x, percent) == sizes[int(np.ceil(sizes.size * percent / 100)) - 1]
    assert octo.percentile(x * F(1e-44), 100) == np.abs(x * F(1e-44)).max()  # too small for codes


def test_percentile_of_sparse_gradients_is_not_zero() -> None:
    dy = np.zeros(10000, F)
    dy[:100] = np.arange(1, 101)
    assert octo.percentile(dy, 95) == 95


def test_a_compensation_a_sample_in_inference_is_the_mean_of_those_used() -> None:
    network = engine.Network((Conv2d(2, 3), Flatten(), Linear(2)), (5, 5, 1), methods.make("octo", dict(lac="sample")), 1)
    node, method = network.nodes[0], network.method
    p = node.params
    p["lac_mu"][:] = np.random.default_rng(0).normal(0, 1, p["lac_mu"].shape)
    x = np.random.default_rng(1).uniform(0, 1, (6, 5, 5, 1)).astype(F)
    for batch in (6, 2):  # the last batch may be smaller
        method.forward(node, x[:batch], TRAIN)
    assert node.state["lac_places"] == 6
    y = core.materialize_in_place(method.forward(node, x, Context(False, 0, 0)))
    mean = (p["lac_mu"][:6] + p["lac_offset"][:6]).mean(0)
    for key in ("lac_mu", "lac_offset"):
        p[key][:] = 0
    scale = node.saved["x"].scale * node.saved["w"].scale
    assert np.abs(y - core.materialize_in_place(method.forward(node, x, Context(False, 0, 0))) - mean).max() <= 0.51 * scale


def test_more_samples_than_compensations_are_refused() -> None:
    method = methods.make("octo", dict(lac="sample", lac_samples=4))
    network = engine.Network((Flatten(), Linear(2)), (5, 5, 1), method, 1)
    network.check(4)
    for call in (lambda: network.check(5), lambda: network.forward(np.zeros((5, 5, 5, 1), F), TRAIN)):
        with pytest.raises(OctosimError, match="has numbers for 4 samples: --set lac_samples=5 for a batch of 5"):
            call()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("fp32", {}), ("octo", {}), ("octo", dict(lac="feature", zero_point="dropped", rounding="stochastic"))],
)
def test_depthwise_is_a_convolution_with_diagonal_weights(name: str, parameters: dict, stride: int) -> None:
    """All passes of both layers, from the same numbers: codes, zero points and compensation are the same to the bit."""
    channels, batch = 6, 4
    stack = (Conv2d(channels, 1), DepthwiseConv2d(3, stride, 1)), (Conv2d(channels, 1), Conv2d(channels, 3, stride, 1))
    made = [engine.Network(layers, (9, 8, 2), methods.make(name, parameters), 5) for layers in stack]
    own, dense = (network.nodes[1] for network in made)
    diagonal = np.arange(channels)
    dense.params["w"][:] = 0
    dense.params["w"][diagonal, :, :, diagonal] = own.params["w"][..., 0]
    rng = np.random.default_rng(1)
    for key in own.params:
        if key != "w":
            own.params[key][:] = dense.params[key][:] = rng.normal(0, 0.2, own.params[key].shape)
    x = rng.normal(0.4, 1, (batch, *own.in_shape)).astype(F)
    dy = rng.normal(0, 1, (batch, *own.out_shape)).astype(F)
    results = []
    for network, node in zip(made, (own, dense), strict=True):
        y = core.materialize_in_place(network.method.forward(node, x, TRAIN)).copy()
        error = network.method.error(node, dy.copy(), TRAIN)
        network.method.weight_grad(node, error, TRAIN)
        dx = core.materialize_in_place(network.method.input_grad(node, error, TRAIN)).copy()
        dw = core.materialize_in_place(node.grads["w"])
        dw = dw if node is own else dw[diagonal, :, :, diagonal][..., None]
        results.append({"y": y, "dx": dx, **node.grads, "w": dw})
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        if name == "fp32":
            assert np.allclose(value, results[1][key], rtol=1e-4, atol=1e-5), key
        else:
            assert np.array_equal(value, results[1][key]), key


def test_exact_zero_point_makes_a_true_convolution() -> None:
    """With exact zero points the result is the float convolution up to the codes' resolution; dropped ones are far off."""
    errors = {}
    for zero_point in ("exact", "dropped"):
        network = engine.Network(
            (Flatten(), Linear(8)), (6, 6, 4), methods.make("octo", dict(lac="off", zero_point=zero_point)), 1
        )
        node = network.nodes[1]
        x = np.random.default_rng(0).uniform(0, 1, (10, 144)).astype(F)  # one-sided, as after ReLU
        expected = x.astype(np.float64) @ node.params["w"].T.astype(np.float64)
        y = core.materialize_in_place(network.method.forward(node, x, TRAIN))
        errors[zero_point] = np.linalg.norm(y - expected) / np.linalg.norm(expected)
    assert errors["exact"] < 0.02
    assert errors["dropped"] > 0.2


def test_running_range_is_what_inference_uses() -> None:
    network = engine.Network((Flatten(), Linear(3)), (2, 2, 1), methods.make("octo", {}), 1)
    node = network.nodes[1]
    first, second = np.array([[-1, 0, 1, 3]], F), np.array([[-2, 0, 1, 5]], F)
    network.method.forward(node, first, TRAIN)
    assert node.state["x_range"].tolist() == [-1, 3]
    network.method.forward(node, second, TRAIN)
    assert np.allclose(node.state["x_range"], [-1.1, 3.2])
    before = node.state["x_range"].copy()
    network.method.forward(node, 100 * second, Context(False, 0, 0))
    assert np.array_equal(node.state["x_range"], before)


def test_sums_that_could_overflow_are_refused() -> None:
    network = engine.Network((Flatten(), Linear(2)), (2, 2, 1), methods.make("niti", {}), 0)
    network.check(133144)
    with pytest.raises(
        OctosimError, match=r"layer fc1, dW: a sum of 140000 int8 products could overflow .* 133144.*smaller batch size"
    ):
        network.check(140000)


@pytest.mark.parametrize("name", ["octo", "hindsight", "ui8", "fqat", "niti", "wage", "dai8"])
def test_long_weight_gradients_are_the_short_ones_where_both_are_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = (Conv2d(4, 3, pad=1), DepthwiseConv2d(3), Conv2d(6, 3, 2, 1), Flatten(), Linear(3))
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 12, 11, 2), dtype=np.uint8), np.arange(5, dtype=np.int32) % 3
    found = []
    for safe in (int8.SAFE, 100):
        monkeypatch.setattr(int8, "SAFE", safe)
        network = engine.Network(stack, (12, 11, 2), methods.make(name, {}), 0)
        network.gradients(images, labels, Context(True, 0, 1))
        found.append({f"{node.name}.{key}": g.copy() for node in network.nodes for key, g in node.grads.items()})
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(found[0][key], found[1][key]) for key in found[0])


def test_ordinary_image_sizes_are_not_refused() -> None:
    for size, batch in ((64, 128), (224, 32)):
        shape = (size, size, 3)
        plan.dry(graph.layers("resnet20", 10, in_shape=shape), shape, methods.make("octo", {})).check(batch)


@pytest.mark.parametrize("name", methods.METHODS)
def test_inference_before_training_tells_images_apart(name: str) -> None:
    method = methods.make(name, {})
    network = engine.Network((Conv2d(8, 3), ReLU(), Flatten(), Linear(4)), (6, 6, 1), method, 0)
    images = np.random.default_rng(0).integers(0, 256, (6, 6, 6, 1), dtype=np.uint8)
    logits = network.forward(network.input(images), Context(False, 0, 0))
    logits = logits.q if hasattr(logits, "q") else logits
    assert len(np.unique(logits, axis=0)) > 1


def test_stochastic_rounding_depends_on_the_step_only() -> None:
    method = methods.make("octo", {"rounding": "stochastic"})
    network = engine.Network((Flatten(), Linear(3)), (2, 2, 1), method, 1)
    dy = np.random.default_rng(0).normal(size=(50, 3)).astype(F)
    codes = [method.error(network.nodes[1], dy, Context(True, 1, step)).q.copy() for step in (1, 1, 2)]
    assert np.array_equal(codes[0], codes[1]) and not np.array_equal(codes[0], codes[2])


@pytest.mark.parametrize("name", methods.METHODS)
def test_trace_counts_the_work(name: str) -> None:
    method = methods.make(name, {"lac_samples": 128} if name == "octo-reference" else {})
    network = engine.Network(graph.layers("lenet5", 10, method.batchnorm), (28, 28, 1), method, 0)
    ops = plan.trace(network, 128)
    gemms = {(op.layer, op.pass_): op for op in ops if op.kind == "gemm"}
    assert gemms["conv1", "forward"].shape == (100352, 25, 6)  # the shapes of LeNet-5 at batch 128
    assert gemms["conv2", "forward"].shape == (12800, 150, 16)
    assert gemms["fc1", "forward"].shape == (128, 400, 120)
    assert gemms["conv2", "dW"].shape == (16, 12800, 150)
    assert ("conv1", "dX") not in gemms
    passes = dict.fromkeys(("octo", "niti", "ui8", "dai8", "wage", "hindsight", "jetfire", "fqat"), ("forward", "dW", "dX"))
    passes |= {"qat": ("forward",), "banner": ("forward", "dX")}
    passes |= {"octo-reference": ("forward", "dW", "dX")}  # 9-bit codes are two of 8 bits, where they are larger
    codes = passes.get(name, ())  # those whose operands are 8-bit
    for (layer, pass_), op in gemms.items():
        float32 = pass_ not in codes or name == "octo-reference" and layer.startswith("fc")
        assert op.dtype == ("float32" if float32 else "int8")
    assert name == "niti" or {(op.layer, op.pass_) for op in ops} >= {  # much of niti is NumPy, which no plan sees
        *([("bn1", "forward"), ("bn1", "dX")] if method.batchnorm else []),
        *([] if isinstance(network.passes[2], fusion.Done) else [("relu1", "forward")]),
        *([] if isinstance(network.passes[3], fusion.Done) else [("pool1", "dX")]),
        ("loss", "forward"),
        ("optimizer", "update"),
    }
    assert all(op.bytes > 0 for op in ops)
