"""Convolutions of every geometry, int8 and float32, against products of windows gathered in NumPy and against PyTorch."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from kit import oracle

from octosim import core
from octosim.engine.nodes import Convolution
from octosim.engine.registers import AccumulatorModel, EmulatedProduct, dy_windows, x_windows
from octosim.numerics import ACCUMULATORS

GEOMETRIES = {
    "rectangular": core.Conv(2, 7, 9, 3, 5, 3, 1),
    "a line": core.Conv(3, 1, 20, 4, 6, 1, 5, (1, 2), (0, 2, 0, 2)),
    "strides": core.Conv(2, 9, 8, 3, 4, 3, 2, (2, 3), (1, 0, 1, 0)),
    "asymmetric padding": core.Conv(2, 8, 8, 3, 4, 3, 3, 2, (0, 0, 1, 1)),
    "padding on one side": core.Conv(1, 5, 6, 2, 3, 4, 3, 1, (3, 0, 0, 2)),
    "dilation": core.Conv(2, 9, 10, 3, 4, 3, 3, 1, 2, 2),
    "dilation, padding beyond the kernel": core.Conv(1, 9, 9, 2, 3, 3, 3, 1, 4, 4),
    "dilation and strides": core.Conv(2, 11, 9, 3, 4, 3, 2, (2, 3), (2, 1, 1, 0), (2, 3)),
    "groups": core.Conv(2, 6, 5, 6, 9, 3, 3, 1, 1, 1, 3),
    "depthwise, multiplier": core.Conv(2, 6, 5, 5, 15, 3, 3, 2, 1, 1, 5),
    "groups of a pixel": core.Conv(3, 4, 4, 8, 8, 1, 1, 1, 0, 1, 4),
    "all at once": core.Conv(2, 10, 11, 4, 6, 2, 3, (2, 1), (1, 2, 0, 1), (3, 2), 2),
    "many rows": core.Conv(40, 17, 16, 2, 4, 3, 3, 1, 1, 1, 2),
}


def operands(g: core.Conv, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = g.x_shape, g.w_shape, g.y_shape
    if kind == "int8":
        return tuple(rng.integers(-128, 128, shape).astype(np.int8) for shape in shapes)  # type: ignore[return-value]
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)  # type: ignore[return-value]


def expected(g: core.Conv, x: np.ndarray, w: np.ndarray, dy: np.ndarray, zero: int, multiply) -> list[np.ndarray]:
    """Y, dX and dW by matrix products of each group's windows; multiply(a, b): of (m, k) and (k, n)."""
    seen, back = x_windows(g, x, zero), dy_windows(g, dy)
    kind = np.float32 if x.dtype == np.float32 else np.int64
    y, dx, dw = (np.zeros(shape, kind) for shape in (g.y_shape, g.x_shape, g.w_shape))
    for i in range(g.groups):
        c, f = (slice(i * n // g.groups, (i + 1) * n // g.groups) for n in (g.channels, g.filters))
        a, of_dy = seen[..., c].reshape(g.batch * g.out_h * g.out_w, -1), dy[..., f].reshape(g.batch * g.out_h * g.out_w, -1)
        y[..., f] = multiply(a, w[f].reshape(len(w[f]), -1).T).reshape(*g.y_shape[:3], -1)
        turned = w[f].transpose(1, 2, 0, 3).reshape(-1, g.w_shape[3])
        dx[..., c] = multiply(back[..., f].reshape(-1, len(turned)), turned).reshape(*g.x_shape[:3], -1)
        dw[f] = multiply(of_dy.T, a).reshape(dw[f].shape)
    return [y, dx, dw]


@pytest.mark.parametrize("name, isa", list(product(GEOMETRIES, [name for name, here in core.isas().items() if here])))
def test_int8_is_exact(name: str, isa: str) -> None:
    g, zero, before = GEOMETRIES[name], -77, core.isa()
    x, w, dy = operands(g, "int8")
    core.set_isa(isa)
    try:
        made = [core.conv_forward(g, x, w, x_zero=zero), core.conv_input_grad(g, dy, w)]
        made.append(core.conv_weight_grad(g, x, dy, x_zero=zero))
        long = core.conv_weight_grad_long(g, x, dy, x_zero=zero)
    finally:
        core.set_isa(before)
    wanted = expected(g, x, w, dy, zero, oracle.gemm)
    assert all(np.array_equal(a, b) for a, b in zip(made, wanted, strict=True))
    assert np.array_equal(long, wanted[2])


@pytest.mark.parametrize("kind", ["int8", "float32"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_strides_beyond_the_image(name: str, kind: str) -> None:
    """Are all alike, however large, and take no longer."""
    given = GEOMETRIES[name]
    for down, across in ((1, 0), (0, 1), (1, 1)):
        found = []
        for far in (40, 2**31 - 1):
            g = replace(given, stride=(far if down else given.strides[0], far if across else given.strides[1]))
            x, w, dy = operands(g, kind)
            made = core.conv_forward(g, x, w), core.conv_input_grad(g, dy, w), core.conv_weight_grad(g, x, dy)
            found.append([array.tobytes() for array in made])
        assert found[0] == found[1]


@pytest.mark.parametrize("name", [name for name, g in GEOMETRIES.items() if g.is_grouped])
def test_float32_of_groups_and_dilation_is_its_definition(name: str) -> None:
    g = GEOMETRIES[name]
    x, w, dy = operands(g, "float32")
    made = core.conv_forward(g, x, w), core.conv_input_grad(g, dy, w), core.conv_weight_grad(g, x, dy)
    for found, wanted in zip(made, expected(g, x, w, dy, 0, oracle.gemm_f32), strict=True):
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    "g", [core.Conv(2, 4, 5, 300, 270, 3, 3, 1, 1), core.Conv(1, 3, 9, 160, 150, 3, 3, 1, 1)], ids=["gathered", "in place"]
)
def test_float32_sums_of_many_shares_are_their_definition(g: core.Conv) -> None:
    """A kernel takes long sums in shares; dX is the convolution of dY with the kernel turned."""
    x, w, dy = operands(g, "float32")
    back = replace(g, channels=g.filters, filters=g.channels)
    turned = np.ascontiguousarray(w[:, ::-1, ::-1].transpose(3, 1, 2, 0))
    for found, of, seen, weights in ((core.conv_forward(g, x, w), g, x, w), (core.conv_input_grad(g, dy, w), back, dy, turned)):
        rows = x_windows(of, seen, 0).reshape(of.batch * of.out_h * of.out_w, -1)
        assert np.array_equal(found, oracle.gemm_f32(rows, weights.reshape(len(weights), -1).T).reshape(found.shape))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_float32_is_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
    g = GEOMETRIES[name]
    x, w, dy = operands(g, "float32")
    tx, tw = (torch.from_numpy(v.transpose(0, 3, 1, 2).astype(np.float64)).requires_grad_() for v in (x, w))
    top, left, bottom, right = g.pads
    padded = torch.nn.functional.pad(tx, (left, right, top, bottom))
    y = torch.nn.functional.conv2d(padded, tw, None, g.strides, 0, g.dilations, g.groups)
    y.backward(torch.from_numpy(dy.transpose(0, 3, 1, 2).astype(np.float64)))
    wanted = [v.detach().numpy().transpose(0, 2, 3, 1) for v in (y, tx.grad, tw.grad)]
    made = core.conv_forward(g, x, w), core.conv_input_grad(g, dy, w), core.conv_weight_grad(g, x, dy)
    for found, right_one in zip(made, wanted, strict=True):
        assert np.abs(found - right_one).max() <= 1e-5 * np.abs(right_one).max()


@pytest.mark.parametrize("register", ("acc16", "maddubs"))
@pytest.mark.parametrize("name", ("all at once", "depthwise, multiplier", "strides"))
def test_narrow_registers(name: str, register: str) -> None:
    """Each group's product in the register, its k as octosim.engine.registers says."""
    g, how = GEOMETRIES[name], ACCUMULATORS[register]
    x, w, dy = operands(g, "int8")
    product = EmulatedProduct("conv", Convolution(g), AccumulatorModel(how))

    def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = np.ascontiguousarray(a.astype(np.int8)), np.ascontiguousarray(b.astype(np.int8))
        if not how.unsigned:
            return core.gemm(a, b, accumulator=how)
        sums = core.gemm(a.view(np.uint8) ^ np.uint8(128), b, accumulator=how)
        return sums - np.int32(128) * b.sum(0, dtype=np.int32)

    y, dx, _ = expected(g, x, w, dy, 5, multiply)
    assert np.array_equal(product.forward(x, w, x_zero=5), y)
    assert np.array_equal(product.input_grad(dy, w), dx)
    _, _, dw = expected(g, x, w, dy, 5, lambda a, b: multiply(b.T, a.T).T)  # data are the first operand
    assert np.array_equal(product.weight_grad(x, dy, x_zero=5), dw)


@pytest.mark.parametrize(
    "g",
    [core.Conv(1, 400, 400, 1, 2, 3, 3, 1, 1), core.Conv(2, 380, 401, 2, 1, 3, 2, 1, (2, 1, 0, 1)),
     core.Conv(3, 260, 300, 1, 1, 1, 1), core.Conv(1, 800, 401, 2, 2, 3, 3, 2, 1, 1, 2)],
)  # fmt: skip
def test_long_weight_gradients(g: core.Conv) -> None:
    """More products than 32 bits can sum, of the largest codes: images that are cut, and several."""
    x, dy = np.full(g.x_shape, -128, np.int8), np.full(g.y_shape, 127, np.int8)
    rng = np.random.default_rng(1)
    x[rng.random(x.shape) < 0.01], dy[rng.random(dy.shape) < 0.01] = 3, -5
    wanted = expected(g, x, np.zeros(g.w_shape, np.int8), dy, -128, lambda a, b: a.astype(float) @ b.astype(float))[2]
    assert g.groups > 1 or np.abs(wanted).max() > 2**31
    assert np.array_equal(core.conv_weight_grad_long(g, x, dy, x_zero=-128), wanted)
    if g.channels == g.filters == 1:
        assert np.array_equal(core.depthwise_weight_grad_long(g, x, dy, x_zero=-128), wanted)


def test_long_sums_are_rounded_once() -> None:
    acc = np.array([[2**53 + 1, -(2**40) - 7], [5, 2**24 + 1]], np.int64)
    sums, scale = np.array([2**30, -3], np.int32), 0.3
    exact = np.array([[int(a) - 100 * int(s) for a in row] for row, s in zip(acc, sums, strict=True)], object)
    wanted = np.array([[np.float32(int(v)) * np.float32(scale) for v in row] for row in exact], np.float32)
    assert np.array_equal(core.dequantize_long_rows(acc, sums, 100, scale), wanted)
