"""Depthwise convolutions, additions and global average pooling of the core, against slow definitions."""

from __future__ import annotations

import numpy as np
import pytest
from kit import oracle

from octosim import core

F = np.float32
GEOMETRIES = [
    core.Conv(n, h, w, c, c, k, k, stride, pad)
    for n, h, w, c, k, stride, pad in [
        (1, 1, 1, 1, 1, 1, 0), (2, 5, 4, 3, 3, 1, 1), (3, 8, 8, 16, 3, 2, 1), (2, 7, 9, 33, 3, 2, 1), (1, 6, 6, 40, 5, 3, 2),
        (2, 9, 5, 8, 3, 1, 0), (1, 4, 4, 64, 4, 2, 3), (2, 3, 3, 7, 3, 3, 2), (1, 3, 3, 17, 5, 1, 4), (66, 2, 2, 33, 3, 1, 1),
        (1, 2, 130, 24, 3, 1, 1), (5, 32, 32, 20, 3, 1, 1),
    ]
]  # fmt: skip
"""The last one has more than one slice of a weight gradient."""


def operands(g: core.Conv, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, w and dy."""
    rng = np.random.default_rng(g.channels)
    shapes = g.x_shape, (g.channels, g.kernel_h, g.kernel_w, 1), g.y_shape
    if dtype == "int8":
        return tuple(rng.integers(-128, 128, shape).astype(np.int8) for shape in shapes)
    return tuple(rng.normal(size=shape).astype(F) for shape in shapes)


@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
@pytest.mark.parametrize("zero", [-128, 0, 5])
def test_int8(kernels: str, g: core.Conv, zero: int) -> None:
    x, w, dy = operands(g, "int8")
    padded, weights = oracle.pad(x.astype(np.int64), g.pad, zero), w[..., 0].astype(np.int64)
    assert np.array_equal(core.depthwise_forward(g, x, w, x_zero=zero), oracle.depthwise(padded, weights, g.stride))
    dx, dw = oracle.depthwise_grads(padded, weights, dy.astype(np.int64), g.stride)
    inner = dx[:, g.pad : g.pad + g.height, g.pad : g.pad + g.width]
    assert np.array_equal(core.depthwise_input_grad(g, dy, w), inner)
    assert np.array_equal(core.depthwise_weight_grad(g, x, dy, x_zero=zero)[..., 0], dw)


def test_the_longest_kernels_have_long_sums() -> None:
    """Their limit is the taps of a channel, not of all channels as another convolution's."""
    g = core.Conv(1, 16, 15, 120, 120, 15, 15, 1, 0)
    x, w, dy = operands(g, "int8")
    assert w.size > 24576
    assert np.array_equal(core.depthwise_weight_grad_long(g, x, dy, x_zero=3), core.depthwise_weight_grad(g, x, dy, x_zero=3))


@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_float32_in_the_documented_order(kernels: str, g: core.Conv) -> None:
    """To the bit: the oracle adds one product at a time."""
    x, w, dy = operands(g, "float32")
    padded, weights = oracle.pad(x, g.pad), w[..., 0]
    assert np.array_equal(core.depthwise_forward(g, x, w), oracle.depthwise(padded, weights, g.stride))
    dx, _ = oracle.depthwise_grads(padded, weights, dy, g.stride)
    inner = dx[:, g.pad : g.pad + g.height, g.pad : g.pad + g.width]
    assert np.array_equal(core.depthwise_input_grad(g, dy, w), inner)
    dw = oracle.depthwise_weight_grad_f32(padded, weights, dy, g.stride)
    assert np.array_equal(core.depthwise_weight_grad(g, x, dy)[..., 0], dw)


@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_against_pytorch(g: core.Conv) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
    x, w, dy = operands(g, "float32")
    tx, tw, tdy = (torch.from_numpy(v.transpose(0, 3, 1, 2).astype(np.float64)) for v in (x, w, dy))
    tx.requires_grad_()
    tw.requires_grad_()
    y = torch.nn.functional.conv2d(tx, tw, stride=g.stride, padding=g.pad, groups=g.channels)
    y.backward(tdy)
    pairs = (core.depthwise_forward(g, x, w), y.detach()), (core.depthwise_input_grad(g, dy, w), tx.grad)
    for found, expected in (*pairs, (core.depthwise_weight_grad(g, x, dy), tw.grad)):
        exact = expected.numpy().transpose(0, 2, 3, 1)
        assert np.abs(found - exact).max() <= 1e-5 * max(1, np.abs(exact).max())


def test_the_result_does_not_depend_on_threads(each_isa: list[tuple[str, int]]) -> None:
    g = core.Conv(6, 30, 31, 24, 24, 3, 3, 1, 1)
    x, w, dy = operands(g, "float32")
    found = set()
    for isa, threads in each_isa:
        core.set_isa(isa)
        core.set_threads(threads)
        made = core.depthwise_forward(g, x, w), core.depthwise_input_grad(g, dy, w), core.depthwise_weight_grad(g, x, dy)
        found.add(b"".join(v.tobytes() for v in made))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(filters=5), "5 filters for 4 channels, expected as many"),
        (dict(kernel_h=16, kernel_w=16, height=20, width=20), "a 16 x 16 kernel has more than 225 taps"),
        (dict(pad=3), "the padding must be smaller than the kernel"),
    ],
    ids=str,
)
def test_bad_geometries(change: dict, words: str) -> None:
    g = core.Conv(**{**dict(batch=1, height=6, width=6, channels=4, filters=4, kernel_h=3, kernel_w=3), **change})
    weights = np.zeros((g.channels, g.kernel_h, g.kernel_w, 1), F)
    with pytest.raises(core.CoreError, match=words):
        core.depthwise_forward(g, np.zeros(g.x_shape, F), weights)
    with pytest.raises(core.CoreError, match=words):
        core.depthwise_input_grad(g, np.zeros(g.y_shape, np.int8), weights.astype(np.int8))
    with pytest.raises(core.CoreError, match=words):
        core.depthwise_weight_grad(g, np.zeros(g.x_shape, np.int8), np.zeros(g.y_shape, np.int8))


def test_zero_points_beyond_int8_are_refused() -> None:
    g = core.Conv(1, 3, 3, 2, 2, 3, 3, 1, 1)
    x, w, _ = operands(g, "int8")
    with pytest.raises(core.CoreError, match="zero point 128 is not an int8"):
        core.depthwise_forward(g, x, w, x_zero=128)
    with pytest.raises(core.CoreError, match=r"w must have shape \(2, 3, 3, 1\)"):
        core.depthwise_forward(g, x, w[..., 0].copy())


@pytest.mark.parametrize("n", [1, 17, 16385, 50_001])
def test_add(kernels: str, n: int) -> None:
    a, b = (np.random.default_rng(s).normal(size=n).astype(F) for s in (0, 1))
    expected = a + b
    assert np.array_equal(core.add(a, b)[0], expected)
    mask = np.empty(core.sign_bytes(n), np.uint8)
    rectified, found = core.add(a, b, relu=True, relu_mask=mask, find_range=True)
    assert np.array_equal(rectified, np.maximum(expected, 0)) and found == (rectified.min(), rectified.max())
    assert np.array_equal(mask, np.packbits(expected > 0, bitorder="little"))
    assert np.array_equal(core.relu_backward(mask, core.LazyAdd(a, b)), rectified)
    assert core.add(a, b, out=a)[0] is a and np.array_equal(a, expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (700, 48), (9, 4096)], ids=str)
def test_add_of_sums(kernels: str, shape: tuple[int, ...]) -> None:
    """Sums of products on either side, in the memory of one of them."""
    rng = np.random.default_rng(0)
    codes = [rng.integers(-99, 99, shape).astype(np.int32) for _ in range(2)]
    sums = [core.LazyDequant(acc, np.full(shape[-1], i, np.int32), 0.5) for i, acc in enumerate(codes, 1)]
    values = [s.materialize() for s in sums]
    expected = values[0] + values[1]
    mask = np.packbits(expected > 3, bitorder="little")
    for a, b in ((sums[0], sums[1]), (sums[0], values[1]), (values[0], sums[1])):
        assert np.array_equal(core.add(a, b)[0], expected)
        assert np.array_equal(core.relu_backward(mask, core.LazyAdd(a, b)), np.where(expected > 3, expected, 0))
    assert np.array_equal(core.relu_backward(mask, sums[0]), np.where(expected > 3, values[0], 0))
    pair = core.LazyAdd(*sums)
    assert np.array_equal(core.relu_backward(mask, pair, out=core.reuse_buffer(pair)), np.where(expected > 3, expected, 0))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 8, 8, 64), (2, 7, 5, 33), (40, 4, 4, 600)])
def test_global_average_pooling(kernels: str, shape: tuple[int, ...]) -> None:
    """Pixels are summed one after the other; to the bit."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(1, 1, shape).astype(F), rng.normal(size=(shape[0], shape[3])).astype(F)
    inverse = F(1) / F(shape[1] * shape[2])
    total = np.zeros((shape[0], shape[3]), F)
    for pixel in range(shape[1] * shape[2]):
        total = total + x.reshape(shape[0], -1, shape[3])[:, pixel]
    assert np.array_equal(core.avgpool(x), total * inverse)
    assert np.abs(core.avgpool(x) - x.mean((1, 2), dtype=np.float64)).max() < 1e-5
    assert np.array_equal(core.avgpool_backward(dy, shape[1], shape[2]), np.broadcast_to((dy * inverse)[:, None, None], shape))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: core.avgpool(np.zeros((3, 4), F)), "needs images"),
        (lambda: core.avgpool_backward(np.zeros((1, 2, 3), F), 2, 2), "dy must be"),
        (lambda: core.add(np.zeros(3, F), np.zeros(4, F)), "b must have shape"),
    ],
)
def test_bad_calls(call, words: str) -> None:
    with pytest.raises(core.CoreError, match=words):
        call()
