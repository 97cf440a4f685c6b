"""The least time of operations by a machine's limits."""

from __future__ import annotations

import json

import pytest
from kit.cli import octosim

from octosim.bench import roofline
from octosim.trace import Op

ROOF = roofline.Roof({"int8": 1e12}, ((1 << 10, 64e9), (1 << 20, 32e9), (1 << 30, 4e9)))
PRODUCT = Op("conv1", "forward", "gemm", "conv", (1000, 1000, 1000), "int8", 1 << 20, 1 << 20)
PASS = Op("conv1", "forward", "elementwise", "relu", (1 << 18,), "float32", 1 << 19, 1 << 19)


def test_products_or_memory() -> None:
    """1 ms of products move 2 MiB; a pass of 1 MiB from the second cache takes 1 MiB / 32 GB/s."""
    assert ROOF.seconds([PRODUCT]) == pytest.approx(1e-3)
    assert ROOF.seconds([PASS]) == pytest.approx((1 << 20) / 32e9)
    assert ROOF.seconds([PRODUCT, PASS]) == pytest.approx(1e-3 + (1 << 20) / 32e9)
    assert ROOF.bandwidth(1 << 15) == pytest.approx(48e9) and ROOF.bandwidth(1 << 40) == 4e9 and ROOF.bandwidth(0) == 64e9


def test_an_unknown_arithmetic_has_no_limit() -> None:
    other = Op("fc1", "forward", "gemm", "linear", (10, 10, 10), "int16", 100, 100)
    assert ROOF.seconds([PASS, other]) is None


def test_bench_shows_the_limit_of_each_pass() -> None:
    command = ("bench", "--model", "lenet5", "--batch-size", "20", "--seconds", "0.05", "--profile", "pi4")
    record = json.loads(octosim(*command, "--json").stdout)
    for part in (record, record["fp32"]):
        assert all(row["limit_s"] > 0 for row in part["layers"])
    products = record["limit"]["time_s"]
    assert products < sum(row["limit_s"] for row in record["layers"]) < record["total"]["time_s"]
    done = octosim(*command)
    assert done.returncode == 0 and "of limit" in done.stdout and "farthest above their limits: " in done.stdout, done.stderr
