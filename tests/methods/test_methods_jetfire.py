"""Jetfire against a direct transcription of its equations, block by block and pass by pass on the passes' own inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import oracle
from kit import passes as direct

from octosim import core, engine, methods, train
from octosim.engine import plan
from octosim.engine.layers import (
    Add,
    BatchNorm,
    Conv2d,
    DepthwiseConv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    ReLU,
    Residual,
)
from octosim.engine.nodes import Context, Node
from octosim.errors import OctosimError
from octosim.methods import jetfire

F = np.float32
STACK = (
    Conv2d(36, 3, pad=1), BatchNorm(), ReLU(), MaxPool(), DepthwiseConv2d(3),
    Residual((Conv2d(36, 1), ReLU())), Conv2d(5, 3, stride=2, pad=1), Flatten(), Dropout(), Linear(34), ReLU(), Linear(3),
)  # fmt: skip


def real(x: np.ndarray, half: bool, words: np.ndarray | None = None) -> np.ndarray:
    rows = x.reshape(-1, x.shape[-1])
    q, scales = oracle.quantize_blocks(rows, half, None if words is None else words.reshape(rows.shape))
    return (q.astype(F) * scales).reshape(x.shape)


def turned(a: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return a[0].T, a[1].T


def plain(node: Node, x: np.ndarray, context: Context) -> np.ndarray:
    """The float32 result of a layer without a product, before it becomes codes."""
    match node.layer:
        case ReLU():
            return np.maximum(x, 0)
        case Dropout():
            return core.dropout(x, 0.5, context.random(node.tensor(15)))
        case MaxPool():
            return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))
        case BatchNorm():
            ones, zeros = np.ones(x.shape[-1], F), np.zeros(x.shape[-1], F)
            return core.batchnorm_forward(
                x, node.params["gamma"], node.params["beta"], zeros, ones, eps=node.layer.eps, momentum=0.1
            )[0]
        case Add():
            return x[0] + x[1]
    raise AssertionError(node.name)


@pytest.mark.parametrize("scales", ["float32", "float16"])
def test_three_steps(scales: str) -> None:
    half = scales == "float16"
    network = engine.Network(STACK, (8, 8, 3), methods.make("jetfire", {"scales": scales}), 3)
    seen = direct.spied(network)
    rng = np.random.default_rng(0)
    checked = set()
    for step in (1, 2, 3):
        context = Context(True, 3, step)
        images, labels = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, 3).astype(np.int32)
        before = {node.name: {key: value.copy() for key, value in node.params.items()} for node in network.nodes}
        network.gradients(images, labels, context)
        for node in network.nodes:
            name, layer, kept = node.name, node.layer, before[node.name]
            (x, y), (dy, _) = seen[name, "forward"], seen[name, "dy"]
            if isinstance(layer, Flatten):
                continue
            checked.add(layer.stem)
            draws = [
                core.philox(int(np.prod(shape)), 3, step, node.tensor(role)).reshape(-1, shape[-1])
                for role, shape in ((0, dy.shape), (1, (len(dy), *node.in_shape)))
            ]
            if not layer.weighted:
                assert np.array_equal(y, real(plain(node, x, context), half)), (step, name)
                dx = seen[name, "dx"][1]
                if not isinstance(layer, Add):
                    again = oracle.quantize_blocks(dx.reshape(-1, dx.shape[-1]), half)
                    assert np.abs(again[0] * again[1] - dx.reshape(again[0].shape)).max() <= 2e-3 * np.abs(dx).max()
                continue
            rows = dy.reshape(-1, dy.shape[-1])
            qe = oracle.quantize_blocks(rows, half, draws[0])
            qw = oracle.quantize_blocks(kept["w"].reshape(len(kept["w"]), -1), half)
            e = qe[0] * qe[1].astype(np.float64)
            if isinstance(layer, DepthwiseConv2d):
                x_real, w_real = real(x, half), (qw[0].astype(F) * qw[1]).reshape(kept["w"].shape)
                g = core.Conv(len(x), *node.in_shape, node.out_shape[-1], 3, 3, 1, 1)
                assert np.array_equal(y, real(core.depthwise_forward(g, x_real, w_real) + kept["b"], half)), name
                e_real = e.astype(F).reshape(dy.shape)
                assert np.array_equal(node.grads["w"], core.depthwise_weight_grad(g, x_real, e_real)), (step, name)
                dx = core.depthwise_input_grad(g, e_real, w_real)
            else:
                matrix = oracle.windows(x, layer.kernel, layer.stride, layer.pad) if isinstance(layer, Conv2d) else x
                qx = oracle.quantize_blocks(matrix, half)
                expected = (oracle.gemm_blocks(qx, qw) + kept["b"]).reshape(y.shape)
                assert np.array_equal(y, real(expected, half)), (step, name)
                dw = oracle.gemm_blocks(turned(qe), turned(qx)).reshape(kept["w"].shape)
                assert np.array_equal(node.grads["w"], dw), (step, name)
                dx = oracle.gemm_blocks(qe, turned(qw))
                dx = oracle.add_windows(dx, x.shape, layer.kernel, layer.stride, layer.pad) if isinstance(layer, Conv2d) else dx
            bias = e.sum(0) * (0 if node.normalized else 1)
            assert np.abs(node.grads["b"] - bias).max() <= 1e-6 * np.abs(e).sum(0).max(), (step, name)
            if name != "conv1":
                assert np.array_equal(seen[name, "dx"][1], real(dx, half, draws[1])), (step, name)
            for key, value in node.params.items():
                value -= F(0.01) * node.grads[key]
    assert checked == {"conv", "dw", "fc", "bn", "relu", "pool", "dropout", "add"}


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=30, deadline=None)
def test_products_of_any_shape(m: int, n: int, k: int, seed: int, half: bool) -> None:
    """To the bit the definition's, and near the true product; the values of codes have the same codes again."""
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(0, 10.0 ** rng.integers(-3, 3), (rows, k)).astype(F) for rows in (m, n))
    scales = "float16" if half else "float32"
    qa, qb = jetfire.cut(a, scales), jetfire.cut(b, scales)
    slow = oracle.quantize_blocks(a, half), oracle.quantize_blocks(b, half)
    assert np.array_equal(qa.q, slow[0][0]) and np.array_equal(qa.materialize(), slow[0][0].astype(F) * slow[0][1])
    y = jetfire.product(qa, qb)
    assert np.array_equal(y, oracle.gemm_blocks(*slow))
    exact = qa.materialize().astype(np.float64) @ qb.materialize().astype(np.float64).T
    terms = np.abs(qa.materialize().astype(np.float64)) @ np.abs(qb.materialize().astype(np.float64)).T
    assert np.abs(y - exact).max() <= 1e-6 * terms.max() + 1e-30
    if not half:
        assert np.array_equal(jetfire.cut(qa.materialize()).q, qa.q)
    for left, right in ((jetfire.cut(a.T.copy(), scales).transposed, qb), (qa, jetfire.cut(b.T.copy(), scales).transposed)):
        assert np.array_equal(jetfire.product(left, right), y)  # a transpose has the same blocks


def test_an_outlier_stays_in_its_block() -> None:
    x = np.random.default_rng(0).normal(0, 1, (64, 64)).astype(F)
    x[40, 3] = 1e4
    error = np.abs(jetfire.cut(x).materialize() - x)
    assert error[32:, :32].max() > 1  # this block's codes cannot show the rest
    error[32:, :32] = 0
    assert error.max() <= np.abs(x[:32]).max() / 254 * 1.001


@pytest.mark.parametrize(
    ("value", "expected"), [(127 * 2.0**-26, 0), (127 * 2.0**-24, 127 * 2.0**-24), (1e10, 127 * 65504.0), (0.0, 0.0)]
)
def test_scales_that_float16_lacks(value: float, expected: float) -> None:
    x = np.full((2, 3), value, F)
    assert np.array_equal(jetfire.cut(x, "float16").materialize(), np.full((2, 3), expected, F))
    assert jetfire.cut(x).materialize() == pytest.approx(x, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_has_no_code(bad: float) -> None:
    with pytest.raises(core.NotFiniteError):
        jetfire.cut(np.array([[1, bad]], F))


def test_average_pooling_gives_codes() -> None:
    network = engine.Network((GlobalAvgPool(), Linear(3)), (5, 5, 40), methods.make("jetfire", {}), 3)
    x = np.random.default_rng(0).normal(0, 1, (35, 5, 5, 40)).astype(F)
    y = network.passes[0].forward(network.nodes[0], x, network.method, Context(True, 0, 1))
    assert np.array_equal(y, real(core.avgpool(x), False))
    assert np.abs(y - x.mean((1, 2))).max() < np.abs(y).max() / 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"accumulator": "acc16"}, "accumulator has no meaning for method jetfire"),
        ({"count_overflow": 1}, "count_overflow has no meaning for method jetfire"),
        ({"parameters": {"scales": "float8"}}, "scales must be one of float32, float16, not 'float8'"),
    ],
)
def test_refused(change: dict, words: str) -> None:
    with pytest.raises(OctosimError) as caught:
        train.Run(train.Config(model="lenet5", method="jetfire", **change))
    assert words in str(caught.value)


def test_layers_values_become_codes() -> None:
    """Each pass of a layer without a product is followed by one that rounds to blocks; an addition's gradient is codes."""
    ops = plan.trace(plan.dry(STACK, (8, 8, 3), methods.make("jetfire", {})), 4)
    rounded = {(op.layer, op.pass_) for op in ops if op.function.startswith("octo_quantize_blocks_s8")}
    known = {key for key in rounded if key[0] in ("add1", "pool1")}
    assert known == {("add1", "forward"), ("pool1", "forward"), ("pool1", "dX")}


def test_a_convolutions_windows_are_priced() -> None:
    """Rows x columns of the windows' matrix, once to cut it and once to add its gradient up; a linear layer has none."""
    network = engine.Network((Conv2d(4, 3), Conv2d(5, 3), Flatten(), Linear(3)), (8, 8, 2), methods.make("jetfire", {}), None)
    ops = {(op.layer, op.function): op for op in plan.trace(network, 4)}
    assert ops["conv2", "octo_quantize_windows_s8"].shape == (4 * 4 * 4 * 3 * 3 * 4,)
    assert ops["conv2", "octo_conv_input_grad_blocks_s8"].macs == ops["conv2", "octo_gemm_blocks_s8"].macs
    assert ("fc1", "octo_quantize_windows_s8") not in ops and ("conv1", "octo_conv_input_grad_blocks_s8") not in ops
