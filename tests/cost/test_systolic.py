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


def test_inner_loops_of_assembly():
    mca = tool("mca_arm")
    text = """
fast:
.L1:
        ldr q0, [x0], 16
        smull v1.8h, v0.8b, v0.8b
        smlal2 v1.8h, v0.16b, v0.16b
        sadalp v2.4s, v1.8h
        cmp x0, x1
        bne .L1
.L2:
        smull v1.8h, v0.8b, v0.8b   // widening
        smull2 v3.8h, v0.16b, v0.16b
        subs x2, x2, 1
        b.ne .L2
        ret
.L3:
        nop
"""
    assert [len(body) for body in mca.loops(text)] == [6, 4]
    assert mca.inner(text)[2].startswith("smlal2") and mca.inner(text, slow=True)[1].startswith("smull2")
    assert mca.products(mca.inner(text)) == 16 == mca.products(mca.inner(text, slow=True))


def test_elementwise_loops_of_assembly():
    """The loop with the fewest instructions an element, of those that compute in vectors, of this kernel alone."""
    mca = tool("mca_arm")
    loop = "\n.L{0}:\nldr q0, [x1, x4]\nfadd v0.4s, v0.4s, v1.4s\nstr q0, [x2, x4]\nadd x4, x4, {1}\nbne .L{0}\n"
    moves = "\n.L8:\nldr q0, [x1, x4]\nstr q0, [x2, x4]\nadd x4, x4, 64\nbne .L8\n"
    own, other = loop.format(1, 16) + loop.format(2, 32) + moves, loop.format(3, 64)
    text = f"\nadd_f32_ref:{own}.size\tadd_f32_ref, .\nother_ref:{other}"
    body, elements = mca.elementwise(text, "add_f32")
    assert elements == 8 and len(body) == 5 and body[-1] == "bne .L2"
