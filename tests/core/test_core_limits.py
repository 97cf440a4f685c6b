"""Numbers at the edge of what the core's types hold: exact, or refused with a sentence."""

from __future__ import annotations

import numpy as np
import pytest

from octosim import core, data, methods, train
from octosim.engine import quantizers
from octosim.errors import OctosimError
from octosim.numerics import Requantization, Rounding

F = np.float32


# ---- the bias of a layer whose scale is small --------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-10, 1e-9, 2e-9, 1e-3])
def test_a_bias_is_kept_at_any_scale(scale: float, kernels: str) -> None:
    """To the step of the sums where int32 holds it, else to the bit; beside sums, and with a compensation of each position."""
    random = np.random.default_rng(0)
    bias = np.array([1.0, -2.5, 0.0, -0.0, 1e-3, 3e38], F)
    acc = random.integers(-1000, 1000, (50, bias.size), np.int32)
    term = random.integers(-9, 9, bias.size, np.int32)
    rest = np.empty(bias.size + 1, F)
    add = core.fold_bias(bias, term, scale, rest=rest)
    expected = ((acc + term).astype(F) * F(scale)) + bias
    fits = np.abs(bias.astype(float)) <= 2**30 * float(F(scale)) if scale > 3e-39 else bias == 0
    sums = core.LazyDequant(acc.copy(), add, scale, rest=rest)
    y = sums.materialize()
    assert np.array_equal(y[:, ~fits], expected[:, ~fits]) and bool(rest[-1]) == (not fits.all())
    assert np.all(np.abs(y - expected)[:, fits] <= scale * 0.51 + np.abs(expected[:, fits]) * 1e-6)
    added, _ = core.add(sums, np.zeros(acc.shape, F))
    assert np.array_equal(added, y + 0)
    lac = tuple(random.normal(size=(3, bias.size)).astype(F) for _ in range(3))
    rest = np.empty(lac[0].size + 1, F)
    each = core.fold_bias(bias, term, scale, lac, rest=rest)
    full = np.broadcast_to(bias, (3, bias.size)) + (lac[0] * lac[1] + lac[2])
    y = core.dequantize_sums(acc[:3].copy(), each, scale, rest=rest)
    assert np.allclose(y, (acc[:3] + term) * F(scale) + full, rtol=1e-6, atol=scale * 0.51 + 1e-30)


@pytest.mark.parametrize("method", [name for name, kind in methods.METHODS.items() if "optimizer" not in kind.unused])
def test_black_images_are_learned(method: str) -> None:
    """A layer whose input is all zero gives its bias, in every method that has one."""
    core.set_threads(1)
    d, three = data.load("fashion-mnist-5k"), (lambda n: np.full(n, 3, np.uint8))
    d = data.Dataset(
        d.name, np.zeros((200, 28, 28, 1), np.uint8), three(200), d.test_images[:50], three(50), d.classes, d.sha256
    )
    run = train.Run(train.Config(model="mlp", method=method, steps=60, batch_size=20, lr=0.5), dataset=d)
    losses = [run.train_step() for _ in range(60)]
    assert losses[-1] < 0.05 * losses[0] or not any("b" in node.params for node in run.network.nodes)


# ---- roundings and scales --------------------------------------------------


def test_stochastic_rounding_keeps_integers(kernels: str) -> None:
    codes = np.arange(-127, 128, dtype=F)
    x = np.tile(codes, 1 << 14)
    assert np.array_equal(core.quantize(x, 1.0, rounding=Rounding.STOCHASTIC, random=(1, 2, 3)), x)
    sums = x.astype(np.int32)[:, None]
    assert np.array_equal(core.requantize_float(sums, 1.0, rounding=Rounding.STOCHASTIC, random=(1, 2, 3)), sums)


NAN, INF = float("nan"), float("inf")
FAR = 2**63 - 1


def read_only(count: int) -> np.ndarray:
    made = np.zeros(count, F)
    made.flags.writeable = False
    return made


def fit(w: np.ndarray) -> None:
    core.fit_levels(w, np.ones_like(w), np.zeros(w.shape, np.int8), np.zeros(1, F), np.zeros(1, np.int64), bits=4)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: core.quantize(np.ones(3, F), NAN), "the scale is NaN"),
        (lambda: core.requantize_float(np.ones((2, 2), np.int32), np.array([1, NAN], F)), "a scale is NaN"),
        (lambda: quantizers.requantize(np.ones(2, np.int32), NAN, Requantization.FLOAT_SCALE), "a scale is NaN"),
        (lambda: quantizers.asymmetric(np.ones(2, F), 2.0, -1.0), "the low end of a range, 2, is above its high end, -1"),
        (lambda: quantizers.asymmetric(np.ones(2, F), NAN, 1.0), "an end of a range is NaN"),
        (lambda: quantizers.symmetric(np.ones(2, F), -1.0, NAN), "an end of a range is NaN"),
        (lambda: core.symmetric_codes(-INF, INF), "a range is infinite"),
        (lambda: core.symmetric_codes(0.0, 1e300), "a range is infinite"),
        (lambda: core.symmetric_codes(-1e38, 3e38, 1e300), "a range is infinite"),
        (lambda: core.asymmetric_codes(0.0, INF), "a range is infinite"),
        (lambda: core.level_errors(np.full((1, 3), 2e38, F), 3, (0, 0, 0)), "twice the largest value is infinite"),
        (lambda: fit(np.full(5, NAN, F)), "a value is NaN or infinite"),
        (lambda: core.softmax(np.ones((2, 2), F), -1.0), "softmax: the scale -1 is negative"),
        (lambda: core.softmax(np.ones((2, 2), F), NAN), "softmax: the scale .* is negative or NaN"),
        (lambda: core.conv_input_grad(core.Conv(1, 2, 2, 1, 2, 2, 2, stride=FAR), np.ones((1, 1, 1, 2), np.int8),
                                      np.ones((2, 2, 2, 1), np.int8)), r"a stride is larger than 2\^31 - 1"),
        (lambda: core.window_mean(core.Window(1, 4, 4, 1, kernel=(2**62, 1), stride=(5, 1), pads=(0, 0, 2**62, 0)),
                                  np.ones((1, 4, 4, 1), F)), r"pooling: a size is larger than 2\^20"),
        (lambda: core.stream_triad(read_only(9), np.ones(9, F), np.ones(9, F), 2.0), "a is read-only"),
        (lambda: core.ema_range(read_only(2), core.value_range(np.ones(3, F)), 0.5), "running is read-only"),
        (lambda: core.column_sums(np.full((2**24 + 200_000, 1), 127, np.int8)), "column sums: .* of column 0 is beyond"),
        (lambda: core.row_sums(np.full((1, 2**24 + 200_000), -128, np.int8)), "row sums: .* of row 0 is beyond"),
    ],
)  # fmt: skip
def test_refused(call: object, sentence: str) -> None:
    with pytest.raises(core.CoreError, match=sentence):
        call()  # type: ignore[operator]


def test_steps_of_the_least_int32(kernels: str) -> None:
    """Its magnitude is no int32."""
    w, g = np.zeros(70, np.int8), np.full(70, -(2**31), np.int32)
    core.walk_codes(w, g, 1.0, 127, (1, 2, 3))
    assert (w == 1).all()


def test_an_exponential_beyond_its_range() -> None:
    assert float(core.counteract(1.0, 15.0, -20.0, 0.1)) == 0.1


def test_sums_up_to_the_last_int32() -> None:
    x = np.full((1, 2**24), -128, np.int8)
    assert core.row_sums(x)[0] == core.column_sums(x.reshape(-1, 1))[0] == -(2**31)


def test_gemmlowp_just_below_one() -> None:
    acc = np.array([100, -100, 2**31 - 1, -(2**31), 0], np.int32)
    found = quantizers.requantize(acc, 1 - 2.0**-40, Requantization.GEMMLOWP)
    assert found.tolist() == [100, -100, 127, -128, 0]
    with pytest.raises(OctosimError, match="below 1, not 1.0"):
        quantizers.requantize(acc, 1.0, Requantization.GEMMLOWP)


@pytest.mark.parametrize(("batch", "images", "refused"), [(1, 400, True), (399, 400, True), (2, 400, False), (398, 400, False)])
def test_normalization_of_one_value(batch: int, images: int, refused: bool) -> None:
    from octosim import graph

    d = data.load("fashion-mnist-5k")
    d = data.Dataset(
        d.name, d.train_images[:images], d.train_labels[:images], d.test_images, d.test_labels, d.classes, d.sha256
    )
    kinds = [
        {"kind": "conv", "filters": 8, "kernel": 28},
        {"kind": "batchnorm"},
        {"kind": "flatten"},
        {"kind": "linear", "units": 10},
    ]
    layers = graph.parse("", kinds)
    config = train.Config(batch_size=batch)
    if refused:
        with pytest.raises(OctosimError, match="batch normalization (has one value a channel in|over a batch of one image)"):
            train.Run(config, layers, d)
    else:
        train.Run(config, layers, d)


# ---- positions that a caller gives and that the core writes at --------------------------------------------------


def _window(kernel: int, pad: int, argmax: int) -> None:
    g = core.Window(2, 4, 4, 3, (kernel, kernel), (2, 2), (pad,) * 4)
    core.window_max_backward(g, np.ones(g.y_shape, np.float32), np.full(g.y_shape, argmax, np.uint8))


@pytest.mark.parametrize(("kernel", "pad", "argmax"), [(2, 0, 4), (2, 0, 255), (1, 0, 1), (3, 1, 0), (3, 1, 9), (3, 1, 200)])
def test_positions_outside_a_window_are_refused(kernel: int, pad: int, argmax: int) -> None:
    """With padding the first window's first position lies beside the image."""
    with pytest.raises(core.CoreError, match="lies outside its window"):
        _window(kernel, pad, argmax)


def test_positions_on_the_image_are_taken() -> None:
    _window(2, 0, 3)
    _window(3, 1, 4)


@pytest.mark.parametrize("row", [-1, 2, 2**31 - 1])
def test_rows_outside_a_chunk_are_refused(row: int) -> None:
    ones, columns = np.ones((4, 3), np.float32), np.ones((3, 3), np.float32)
    saved = core.RangeNorm(ones, columns, np.zeros((2, 2, 3), np.int32), 2, 0.5)
    core.range_norm_backward(saved, ones)
    saved.extremes[1, 1, 2] = row
    with pytest.raises(core.CoreError, match="range normalization: row"):
        core.range_norm_backward(saved, ones)
    with pytest.raises(core.CoreError, match="extremes must have shape"):
        core.range_norm_backward(core.RangeNorm(ones, columns, np.zeros((2, 1, 3), np.int32), 2, 0.5), ones)


def test_signs_are_needed() -> None:
    with pytest.raises(core.CoreError, match="relu_mask must be a uint8 array"):
        core.relu_backward(None, np.ones((4, 4), np.float32))  # type: ignore[arg-type]
