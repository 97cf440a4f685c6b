"""Tensors: every format's values are the oracle's, and materializing them changes nothing, however often it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octosim import core
from octosim.errors import OctosimError
from octosim.numerics import INT8, INT8_BLOCKS, Format, formats, mu_law, mu_levels, symmetric, unsigned

F = np.float32
RNG = np.random.default_rng(0)
Q = RNG.integers(-127, 128, (70, 40)).astype(np.int8)
ACC = RNG.integers(-(2**30), 2**30, (70, 40)).astype(np.int32)
ROWS, COLUMNS = (RNG.integers(-999, 999, n).astype(np.int32) for n in Q.shape)
BLOCKS = (RNG.random((3, 2)) + 0.5).astype(F)
CHANNELS = (RNG.random(40) + 0.5).astype(F)
TABLE = RNG.integers(0, 256, (70, 40)).astype(np.uint8)


def spread(scales: np.ndarray) -> np.ndarray:
    return np.repeat(np.repeat(scales, 32, 0), 32, 1)[:70, :40]


def of_table(q: np.ndarray) -> np.ndarray:
    values = np.array(mu_levels(255), F)[q & 127] * F(3)
    return np.where(q & 128, -values, values)


CASES: dict[str, tuple[Any, np.ndarray]] = {
    "symmetric": (core.Tensor(Q, 0.3), Q * F(0.3)),
    "zero point": (core.Tensor(Q, core.scalar(0.3), 5), (Q.astype(F) - 5) * F(0.3)),
    "exponent": (core.Tensor(Q, exponent=-9), Q * F(2.0**-9)),
    "transposed": (core.Tensor(Q, 0.3).transposed, Q.T * F(0.3)),
    "channels": (core.Tensor(Q, scales=CHANNELS), Q * CHANNELS),
    "channels of rows, zero point": (core.Tensor(Q, z=-4, scales=CHANNELS[:1, None]), (Q.astype(F) + 4) * CHANNELS[0]),
    "blocks": (core.Tensor(Q, scales=BLOCKS, format=INT8_BLOCKS), Q * spread(BLOCKS)),
    "mu-law": (core.Tensor(TABLE, 3.0, format=mu_law()), of_table(TABLE)),
    "accumulators": (core.LazyDequant(ACC, COLUMNS, 0.3), (ACC + COLUMNS).astype(F) * F(0.3)),
    "accumulators by rows": (core.LazyDequant(ACC, ROWS, 0.3, True), (ACC + ROWS[:, None]).astype(F) * F(0.3)),
    "rows on demand": (
        core.LazyWeightGrad(lambda rows: core.LazyDequant(ACC[rows].copy(), ROWS[rows], 0.3, True), ACC.shape),
        (ACC + ROWS[:, None]).astype(F) * F(0.3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_materialize_destroys_nothing(name: str) -> None:
    x, expected = CASES[name]
    before = (Q.tobytes(), ACC.tobytes(), TABLE.tobytes())
    out = np.empty(x.shape, F)
    for made in (x.materialize(), core.materialize(x), core.materialize(x, out), x.materialize()):
        assert made.dtype == F and np.array_equal(made, expected)
    assert np.array_equal(out, expected) and (Q.tobytes(), ACC.tobytes(), TABLE.tobytes()) == before


def test_in_place_is_asked_for() -> None:
    acc = ACC.copy()
    x = core.LazyDequant(acc, COLUMNS, 0.3)
    made = core.materialize_in_place(x)
    assert np.shares_memory(made, acc) and np.array_equal(made, CASES["accumulators"][1])
    tensor = core.Tensor(Q, 0.3)
    assert core.materialize_in_place(tensor) is tensor and core.materialize(made) is made


@pytest.mark.parametrize("old", ["Sums", "RowSums", "Pair", "lac_fold", "product_scale", "zero_term", "follow_range", "values"])
def test_names_of_earlier_releases(old: str) -> None:
    assert callable(getattr(core, old))
    with pytest.raises(AttributeError, match="no attribute 'summs'"):
        core.summs  # noqa: B018


@given(st.integers(2, 8))
@settings(max_examples=7)
def test_ends_of_formats(bits: int) -> None:
    assert (symmetric(bits).low, symmetric(bits).high) == (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    assert (unsigned(bits).low, unsigned(bits).high) == (0, 2**bits - 1)
    whole = Format("whole", "int8", bits)
    assert (whole.low, whole.high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert INT8 == formats.symmetric(8) and mu_law() is mu_law()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: Format("f", "int4", 4), "stored must be one of int8"),
        (lambda: Format("f", "int8", 9), "bits must be in 1 .. 8, not 9"),
        (lambda: Format("f", "int8", 8, real=True), "does not go with elements of int8"),
        (lambda: Format("f", "float32", 32), "does not go with elements of float32"),
        (lambda: Format("f", "uint8", 8, signed=False, symmetric=True), "cannot be symmetric"),
        (lambda: Format("f", "uint8", 8, table=(0.0, 1.0)), "table must hold 128"),
        (lambda: core.Tensor(Q.astype(np.int32)).materialize(), "must hold int8, not int32"),
        (lambda: core.Tensor(Q, scales=CHANNELS).scale, "no one scale"),
        (lambda: core.Tensor(Q, scales=CHANNELS).reshape(-1), "cannot be reshaped"),
    ],
)
def test_refusals(bad: Callable[[], Any], words: str) -> None:
    with pytest.raises(OctosimError, match=words):
        bad()
