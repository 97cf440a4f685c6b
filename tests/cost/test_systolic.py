"""Systolic arrays: cycles by hand and by a clock-by-clock simulation; the tools' parts that need no other program."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octosim import cost, hardware
from octosim.errors import OctosimError
from octosim.hardware.device import _shipped

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def simulated(m, rows, columns):
    """Clocks of one fold, walked through: weights a row a clock, then sums that move down and inputs that move right."""
    clock = rows
    last = 0
    for i in range(m):
        for r in range(rows):
            for c in range(columns):
                last = max(last, clock + i + r + c + 1)  # input i meets row r one clock after row r - 1, column c after c - 1
    return last


@pytest.mark.parametrize("m, k, n, rows, columns, cycles", [
    (1, 1, 1, 1, 1, 2),                     # load a weight, multiply
    (4, 2, 2, 2, 2, 2 + 4 + 1 + 1),         # one fold
    (4, 3, 2, 2, 2, 2 * 8),                 # K in two folds
    (4, 3, 5, 2, 2, 2 * 3 * 8),             # and N in three
    (100, 60, 40, 16, 16, 12 * 146),        # SCALE-Sim 3.0.0 reports 1751, counted from 0
    (64, 576, 64, 16, 16, 36 * 4 * 110)])   # SCALE-Sim 15839
def test_cycles_by_hand(m, k, n, rows, columns, cycles):
    assert cost.systolic_cycles(m, k, n, rows, columns) == cycles


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 8))
def test_a_fold_walked_through(m, rows, columns):
    assert cost.systolic_cycles(m, rows, columns, rows, columns) == simulated(m, rows, columns)


def test_an_engine_with_an_array():
    compare = tool("compare_scalesim")
    device = compare.array_device(16)
    for op in compare.products("resnet20"):
        (one,) = cost.predict([op], device)
        assert one.compute_s == pytest.approx(cost.systolic_cycles(*op.shape, 16, 16) * 1e-9)


def test_tile_and_array_exclude_each_other():
    toml = (_shipped()["atlas-200dk"]).read_text()
    figure, after = "{ value = 1, kind = 'estimate', source = 'x' }", "[engines.published_peak_gmac_s]"
    text = toml.replace(after, f"[engines.array]\nrows = {figure}\ncolumns = {figure}\n\n{after}", 1)
    with pytest.raises(OctosimError, match="both a tile and an array"):
        hardware.parse(text, "x.toml")
