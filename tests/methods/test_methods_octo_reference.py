"""The released demo in integers: against its equations pass by pass, and against a float64 transcription's curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import few_levels, octo_demo, oracle
from kit import hooks as direct
from kit.examples import examples

from octosim import core, data, engine, methods, train
from octosim.engine import optimizers
from octosim.engine.layers import BatchNorm, Conv2d, DepthwiseConv2d, Dropout, Flatten, Linear, MaxPool, ReLU
from octosim.engine.nodes import Context, Node
from octosim.errors import OctosimError
from octosim.methods import octo_reference
from octosim.numerics import Rounding

F = np.float32


# ---- codes and their exact sums --------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 127, 128, 254, 255, few_levels.LARGEST_CODE]), st.integers(1, 300))
@examples(60)
def test_sums_of_parts_are_exact(seed: int, largest: int, depth: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-largest, largest + 1, shape).astype(np.int32) for shape in ((3, depth), (depth, 2)))
    a[0], b[:, 0] = largest, -largest  # the extreme sum too
    parts = []
    for codes in (a, b):
        high = (codes + 127) // 255
        parts.append(core.Parts((codes - 255 * high).astype(np.int8), high.astype(np.int8), core.number64(1.0)))
    sums = octo_reference.exact_sums(core.gemm, *parts, lambda: np.empty((3, 2), np.int32))
    exact = a.astype(np.int64) @ b.astype(np.int64)
    assert np.array_equal(core.combine_parts(sums, *(part.scale for part in parts), out=np.empty((3, 2), F)), exact.astype(F))


def in_whole(parts: core.Parts) -> tuple[np.ndarray, float]:
    return 255 * parts.high.astype(int) + parts.low, float(parts.scale)


def forward_codes(x: np.ndarray, rounding: str, stream: tuple[int, int, int]) -> tuple[np.ndarray, float]:
    return in_whole(core.forward_parts(x, Rounding(rounding), stream))


def backward_codes(x: np.ndarray, ratio: float, with_zero: bool = False) -> tuple[np.ndarray, float]:
    return in_whole(core.backward_parts(x, ratio, with_zero))


def test_codes_have_nine_bits() -> None:
    x = np.linspace(0, 3, 1021).astype(F)
    codes, scale = forward_codes(x, "half-even", (0, 1, 2))
    assert codes.min() == -255 and codes.max() == 255 and scale == 3 / 510
    codes, scale = backward_codes(x, 0.95)
    assert codes.min() == 0 and codes.max() == 254 and scale == pytest.approx(0.95 * 3 / 254)
    codes, _ = backward_codes(x + 1, 1.0, with_zero=True)
    assert codes.min() == 64 and codes.max() == 254  # padding's 0 belongs to the range
    for made, scale in (forward_codes(np.zeros(4, F), "half-even", (0, 1, 2)),
                        backward_codes(np.zeros(4, F), 0.95)):  # fmt: skip
        assert not made.any() and scale == 1
    codes, scale = forward_codes(x + 3, "half-even", (0, 1, 2))  # the zero point is clamped, codes are not
    assert codes.min() == 510 - 255 and codes.max() == 1020 - 255
    far, _ = backward_codes(np.array([1000, 1000.001], F), 1.0)
    assert np.abs(far).max() == few_levels.LARGEST_CODE


def test_stochastic_codes_are_unbiased_and_depend_on_the_stream() -> None:
    x = np.append(np.full(20000, 0.3003, F), [F(0), F(1)])
    codes = [forward_codes(x, "stochastic", (7, step, 1))[0] for step in (1, 1, 2)]
    assert np.array_equal(codes[0], codes[1]) and not np.array_equal(codes[0], codes[2])
    assert set(codes[0][:-2].tolist()) == {-102, -101}
    assert codes[0][:-2].mean() == pytest.approx(0.3003 * 510 - 255, abs=0.02)


# ---- three steps, pass by pass --------------------------------------------------


def rounded(t: np.ndarray, rounding: str, words: np.ndarray) -> np.ndarray:
    return np.around(t) if rounding == "half-even" else np.floor(t + words / 2**32)


def asymm(t: np.ndarray, rounding: str, stream: tuple[int, int, int]) -> tuple[np.ndarray, float]:
    low, high = float(t.min()), float(t.max())
    scale = (high - low) / 510
    words = core.philox(t.size, *stream).reshape(t.shape)
    return rounded(t.astype(np.float64) / scale + (255 - high / scale), rounding, words).clip(-255, 255).astype(int), scale


def symm(t: np.ndarray, ratio: float, ends: tuple[float, ...] = ()) -> tuple[np.ndarray, float]:
    low, high = min(float(t.min()), *ends, float("inf")), max(float(t.max()), *ends, float("-inf"))
    low, high = max(low, ratio * low), min(high, ratio * high)
    scale = (high - low) / 254
    return np.around(np.clip(t.astype(np.float64), low, high) / scale).astype(int), scale


@pytest.mark.parametrize("setting", [{"accumulator": "acc16"}, {"count_overflow": 1}])
def test_there_is_no_register_to_choose(setting: dict) -> None:
    with pytest.raises(OctosimError, match="has no meaning for method octo-reference"):
        train.Run(train.Config(model="lenet5", method="octo-reference", **setting))


@pytest.mark.parametrize("lac", ["sample", "off"])
@pytest.mark.parametrize("prc", ["ratio", "off"])
@pytest.mark.parametrize("rounding", ["stochastic", "half-even"])
def test_three_steps(lac: str, prc: str, rounding: str) -> None:
    parameters = dict(lac=lac, prc=prc, rounding=rounding, lac_samples=9)
    ratio = 0.95 if prc == "ratio" else 1.0
    for seen in direct.three_steps("octo-reference", parameters):
        node, context, x, w, dy = (seen[k] for k in ("node", "context", "x", "w", "dy"))
        if w.ndim == 2:  # unquantized
            assert direct.close(seen["y"], direct.forward(x, w) + seen["b"])
            assert direct.close(seen["dw"], direct.weight_grad(x, dy, w.shape))
            assert direct.close(seen["dx"], direct.input_grad(dy, w))
            assert "lac_mu" not in seen
            continue
        qx, sx = asymm(x, rounding, context.random(node.tensor(2)))
        qw, sw = asymm(w, rounding, context.random(node.tensor(3)))
        y = (direct.forward(qx, qw) * (sx * sw) + seen["b"]).astype(F)
        if lac == "sample":
            y = y + (seen["lac_alpha"] * seen["lac_mu"][:7] + seen["lac_offset"][:7])
        assert np.array_equal(seen["y"], y), node.name
        (qx, sx), (qg, sg), (qw, sw) = symm(x, ratio, (0.0,)), symm(dy, ratio), symm(w, ratio)
        assert np.array_equal(seen["dw"], (direct.weight_grad(qx, qg, w.shape) * (sx * sg)).astype(F)), node.name
        if "dx" in seen:
            assert np.array_equal(seen["dx"], (direct.input_grad(qg, qw) * (sg * sw)).astype(F)), node.name
        sums = core.column_sums(dy)
        qb, sb = symm(sums, 1.0)
        assert np.array_equal(seen["db"], (qb * sb).astype(F))
        assert np.abs(seen["db"] - direct.bias_grad(dy)).max() <= 0.51 * sb  # a fake quantization, no more
        if lac == "sample":
            # the recorder's node holds the gradients of the step until the next
            g = node.grads
            assert direct.close(g["lac_alpha"], (dy.astype(float) * seen["lac_mu"][:7]).sum(0))
            assert np.array_equal(g["lac_mu"][:7], seen["lac_alpha"] * dy + F(0.1) * seen["lac_mu"][:7])
            assert np.array_equal(g["lac_offset"][:7], dy + F(0.1) * seen["lac_offset"][:7])
            for key in ("lac_mu", "lac_offset"):  # places that the batch of 7 lacks
                assert np.array_equal(g[key][7:], F(0.1) * seen[key][7:])


def test_depthwise_convolution() -> None:
    stack = (Conv2d(6, 1), DepthwiseConv2d(3, 2, 1))
    method = methods.make("octo-reference", {"rounding": "half-even", "lac": "off", "prc": "off"})
    node = engine.Network(stack, (9, 8, 2), method, 5).nodes[1]
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(0.3, 1, (4, *shape)).astype(F) for shape in (node.in_shape, node.out_shape))
    w, stream = node.params["w"], (0, 0, 0)
    (qx, sx), (qw, sw) = asymm(x, "half-even", stream), asymm(w, "half-even", stream)
    y = oracle.depthwise(oracle.pad(qx, 1), qw[..., 0], 2)
    assert np.array_equal(method.forward(node, x, Context(True, 0, 1)), (y * (sx * sw)).astype(F))
    error = method.error(node, dy, Context(True, 0, 1))
    method.weight_grad(node, error, Context(True, 0, 1))
    (qx, sx), (qg, sg), (qw, sw) = symm(x, 1.0, (0.0,)), symm(dy, 1.0), symm(w, 1.0)
    dx, dw = oracle.depthwise_grads(oracle.pad(qx, 1), qw[..., 0], qg, 2)
    assert np.array_equal(node.grads["w"][..., 0], (dw * (sx * sg)).astype(F))
    assert np.array_equal(method.input_grad(node, error, Context(True, 0, 1)), (dx[:, 1:-1, 1:-1] * (sg * sw)).astype(F))


# ---- the demo's own layers --------------------------------------------------


def test_normalization_of_each_feature() -> None:
    layer, method = octo_reference.FeatureBatchNorm(), methods.make("octo-reference", {})
    node = Node("bn1", 0, BatchNorm(), (3, 4, 2), (3, 4, 2))
    layer.init(node, method, 0)
    rng = np.random.default_rng(0)
    node.params["gamma"][:], node.params["beta"][:] = rng.normal(1, 0.2, (2, 3, 4, 2))
    x, dy = rng.normal(1, 2, (2, 6, 3, 4, 2)).astype(F)
    y, kept = octo_demo.batchnorm(x.astype(float), node.params["gamma"], node.params["beta"])
    assert direct.close(layer.forward(node, x, method, Context(True, 0, 1)), y)
    dx = layer.input_grad(node, dy.copy(), method, Context(True, 0, 1))
    expected = octo_demo.batchnorm_grad(dy.astype(float), node.params["gamma"], kept)
    assert np.abs(dx - expected).max() < 2e-6 * np.abs(dy).max()
    assert direct.close(node.grads["beta"], dy.astype(float).sum(0), np.abs(dy).sum(0))
    assert direct.close(node.grads["gamma"], (dy * kept[0] / kept[1]).sum(0), np.abs(dy * kept[0] / kept[1]).sum(0))
    # inference normalizes by its own batch
    assert direct.close(layer.forward(node, x + 100, method, Context(False, 0, 0)).mean(0), node.params["beta"], 1000 * y)
    assert not node.state


def test_dropout_is_not_inverted() -> None:
    layer, method = octo_reference.Dropout(), methods.make("octo-reference", {})
    node = Node("dropout1", 0, Dropout(0.25), (1000,), (1000,))
    x = np.ones((4, 1000), F)
    y = layer.forward(node, x, method, Context(True, 0, 1))
    assert np.allclose(np.unique(y), [0, 1]) and 0.7 < y.mean() < 0.8
    assert np.array_equal(layer.input_grad(node, x.copy(), method, Context(True, 0, 1)), y)
    assert np.array_equal(layer.forward(node, x, method, Context(False, 0, 0)), np.full_like(x, 0.75))


# ---- places in the batch --------------------------------------------------


def test_inference_takes_compensations_in_turn() -> None:
    network = engine.Network((Conv2d(2, 3), Flatten(), Linear(2)), (5, 5, 1), methods.make("octo-reference", {}), 1)
    node, method = network.nodes[0], network.method
    node.params["lac_mu"][:] = np.random.default_rng(0).normal(0, 1, node.params["lac_mu"].shape)
    x = np.random.default_rng(1).uniform(0, 1, (3, 5, 5, 1)).astype(F)
    trained = method.forward(node, x, Context(True, 1, 1))
    bare = trained - node.params["lac_mu"][:3] - node.params["lac_offset"][:3]
    assert node.state["lac_places"] == 3
    method.forward(node, x[:2], Context(True, 1, 1))  # a smaller last batch
    assert node.state["lac_places"] == 3
    seven = np.concatenate([x, x, x[:1]])
    found = method.forward(node, seven, Context(False, 1, 1))
    added = (node.params["lac_mu"] + node.params["lac_offset"])[[0, 1, 2, 0, 1, 2, 0]]
    code = (float(x.max()) - float(x.min())) / 510 * 9  # roundings are others: another stream
    assert np.abs(found - added - np.concatenate([bare, bare, bare[:1]])).max() < code


def test_more_samples_than_places_are_refused() -> None:
    stack = (Conv2d(2, 3), Flatten(), Linear(2))
    network = engine.Network(stack, (5, 5, 1), methods.make("octo-reference", {"lac_samples": 4}), 1)
    network.check(4)
    for call in (lambda: network.check(5),
                 lambda: network.forward(np.zeros((5, 5, 5, 1), F), Context(True, 1, 1))):  # fmt: skip
        with pytest.raises(OctosimError, match="has numbers for 4 samples: --set lac_samples=5 for a batch of 5"):
            call()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"prc_ratio": 0}, "prc_ratio must be in"),
        ({"lac_decay": -1}, "lac_decay must not"),
        ({"lac_samples": 0}, "lac_samples must"),
    ],
)
def test_bad_parameters(parameters: dict, words: str) -> None:
    with pytest.raises(OctosimError, match=words):
        methods.make("octo-reference", parameters)


def test_metrics_are_what_the_demo_adds_to_its_loss() -> None:
    network = engine.Network((Conv2d(2, 3), Flatten(), Linear(2)), (5, 5, 1), methods.make("octo-reference", {}), 1)
    p = network.nodes[0].params
    expected = 0.05 * sum((p[key].astype(float) ** 2).sum() for key in ("lac_mu", "lac_offset"))
    assert network.method.metrics(network.nodes)["lac_penalty"] == pytest.approx(expected, rel=1e-6)


# ---- the demo's curve --------------------------------------------------


def test_the_curve_of_the_demo_in_float64() -> None:
    """50 steps on the same batches: equal losses to 1e-3, with rounding to nearest."""
    part, batch = data.load("fashion-mnist-5k"), 16
    stack = (Conv2d(4, 5, deviation=0.1), BatchNorm(), ReLU(), MaxPool(), Flatten(), Linear(12), ReLU(), Linear(10))
    method = methods.make("octo-reference", {"rounding": "half-even", "lac_samples": batch})
    network = engine.Network(stack, (14, 14, 1), method, 2)
    chosen = np.random.default_rng(0).integers(0, len(part.train_labels), (50, batch))
    batches = [(part.train_images[rows, ::2, ::2], part.train_labels[rows].astype(np.int32)) for rows in chosen]
    theirs = octo_demo.losses(network.nodes, batches)
    optimizer = optimizers.make("adam", None)
    slots = {f"{n.name}.{k}": {s: np.zeros_like(v) for s in "mv"} for n in network.nodes for k, v in n.params.items()}
    ours = []
    for step, (images, labels) in enumerate(batches, 1):
        context = Context(True, 2, step)
        ours.append(float(network.gradients(images, labels, context)[0]))
        optimizers.Update(optimizer, method, context, 1e-3, optimizer.corrections(step), network.nodes, slots).all()
    assert theirs[-1] < 0.8 * theirs[0]
    assert np.abs(np.subtract(ours, theirs)).max() < 1e-3
