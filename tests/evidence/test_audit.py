"""octosim audit: float32 sums beside exact ones, against slow loops, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.cli import octosim
from kit.examples import examples
from kit.registers import PRODUCTS, operands, slow_passes
from kit.runs import started

from octosim.engine.nodes import FullProduct
from octosim.errors import OctosimError
from octosim.evidence import audit
from octosim.numerics import ACCUMULATORS

PASSES = {"forward": ("x", "w"), "dX": ("dy", "w"), "dW": ("x", "dy")}


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda p: f"{type(p).__name__}{p.shape}")
@pytest.mark.parametrize("x_zero", [0, -127, 13])
def test_sums_without_zero_point(product: Any, x_zero: int) -> None:
    """The exact sums are of q - zero, padding being 0; float32 makes all of these small ones right."""
    x, w, dy = operands(product)
    three = {"x": x, "w": w, "dy": dy}
    shifted = x.astype(int) - x_zero
    slow = slow_passes(product, shifted, w, dy, 0, ACCUMULATORS["exact32"])
    for pass_, names in PASSES.items():
        found = audit.compare(product, pass_, {name: three[name] for name in names}, x_zero)
        sums = [row[0] for row in slow[pass_]]
        assert found["largest_sum"] == max(map(abs, sums)) and found["sums"] == len(sums)
        largest = {"x": int(np.abs(shifted).max())} | {name: int(np.abs(three[name].astype(int)).max()) for name in ("w", "dy")}
        a, b = (largest[name] for name in names)
        assert found["largest"] == {name: largest[name] for name in names}
        assert found["bound"] == found["k"] * a * b >= found["largest_sum"]
        assert found["worst_bound"] == found["k"] * 127 * (127 + (abs(x_zero) if "x" in names else 0)) >= found["bound"]
        assert found["proven"] == (found["bound"] < 2**24) and found["differ"] == found["largest_difference"] == 0
        assert found["scaled_differ"] is None


def in_blocks(a: np.ndarray, b: np.ndarray) -> np.float32:
    """A dot product in octosim's float32 order (OCTO_BLOCK_F32 of cext/kernels.h), one operation after the other."""
    total = None
    for i in range(0, len(a), 256):
        block = np.float32(0)
        for p, q in zip(a[i : i + 256], b[i : i + 256], strict=True):
            block = np.float32(block + np.float32(p * q))
        total = block if total is None else np.float32(total + block)
    return total


def test_wrong_sums_are_counted() -> None:
    """Long sums of large codes: each float32 sum in its order, and the exact one in Python integers."""
    rng = np.random.default_rng(0)
    product = FullProduct(2, 3001, 4)
    x, w = (rng.integers(90, 128, shape).astype(np.int8) for shape in ((2, 3001), (4, 3001)))
    scales = {"x": float(np.float32(0.0137)), "w": float(np.float32(0.0021))}
    found = audit.compare(product, "forward", {"x": x, "w": w}, -127, scales)
    differ, scaled = [], []
    for i in range(2):
        for j in range(4):
            exact = sum((int(a) + 127) * int(b) for a, b in zip(x[i], w[j], strict=True))
            integers = in_blocks((x[i].astype(np.float32) + 127), w[j].astype(np.float32))
            differ.append(abs(int(integers) - exact))
            xr = (x[i].astype(np.float32) + 127) * np.float32(scales["x"])
            real = in_blocks(xr, w[j].astype(np.float32) * np.float32(scales["w"]))
            scaled.append(abs(round(float(real) / (scales["x"] * scales["w"])) - exact))
    assert found["differ"] == np.count_nonzero(differ) > 0 and found["largest_difference"] == max(differ) > 0
    assert found["scaled_differ"] == np.count_nonzero(scaled) > 0 and found["scaled_largest_difference"] == max(scaled)
    assert not found["proven"] and found["bound"] >= found["largest_sum"] > 2**24


@examples(60)
@given(st.integers(1, 3000), st.integers(1, 127), st.integers(1, 127), st.integers(0, 2**32))
def test_what_is_proven_is_exact(k: int, a: int, b: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (a * rng.choice([-1, 1, 1, 1], (2, k))).astype(np.int8)
    w = np.full((3, k), b, np.int8)
    found = audit.compare(FullProduct(2, k, 3), "forward", {"x": x, "w": w})
    assert found["proven"] == (k * a * b < 2**24) and (found["differ"] == 0 or not found["proven"])
    assert found["proven"] or not found["always_proven"]


def test_a_run(tmp_path: Path) -> None:
    """Text and JSON of the command; every layer and pass is there, and the first layer's dW is not proven."""
    folder = started(tmp_path / "run", batch_size=100)
    done = octosim("audit", str(folder), "--step", "2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = {(row["layer"], row["pass"]): row for row in result["rows"]}
    assert len(rows) == 14 and result["step"] == 2 and ("conv1", "dX") not in rows
    assert not rows["conv1", "dW"]["proven"] and rows["conv1", "dW"]["k"] == 100 * 28 * 28
    assert rows["fc3", "forward"]["proven"] and all(row["scaled_differ"] is not None for row in rows.values())
    assert list(rows)[:3] == [("conv1", "forward"), ("conv1", "dW"), ("conv2", "forward")]
    assert audit.audit(folder, 2) == result["rows"]
    text = octosim("audit", str(folder))
    assert text.returncode == 0 and "of 14 products, float32 is not proven exact for" in text.stdout
    assert "2^24" in text.stdout and "exact here" in text.stdout


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(OctosimError, match=r"^step must be in 1 \.\. 3, the run's steps, not 4"):
        audit.audit(started(tmp_path / "octo"), 4)
    with pytest.raises(OctosimError, match="method fp32 has no int8 products to audit"):
        audit.audit(started(tmp_path / "fp32", method="fp32"), 1)
