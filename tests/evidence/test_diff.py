"""octosim diff: where two runs part, and by how much."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from kit.cli import octosim
from kit.runs import RUN, started

from octosim import train
from octosim.engine import probes, registers
from octosim.errors import OctosimError
from octosim.evidence import diff


def parting(tmp_path: Path, one: dict, other: dict, **options) -> dict:
    return diff.diff(started(tmp_path / "one", **one), started(tmp_path / "other", **other), **options)


def first_layer_with_a_saturated_pair() -> tuple[str, str, int]:
    """In a run with exact sums: the first product of which a pair, data shifted to uint8, passes 16 bits; its sums' size."""
    run = train.Run(train.Config(**RUN))
    observed = probes.watch(run.network)
    run.train_step()
    for (layer, pass_), (product, x_zero) in observed.products.items():
        x, w, dy = (observed.tensors.get((layer, pass_, name)) for name in ("x", "w", "dy"))
        g = product.geometry
        if pass_ == "forward":
            a, b = registers.x_windows(g, x, x_zero).reshape(-1, product.shape[1]), w.reshape(g.filters, -1).T
        elif pass_ == "dX":
            a = registers.dy_windows(g, dy).reshape(g.batch * g.height * g.width, -1)
            b = w.reshape(g.w_shape).transpose(1, 2, 0, 3).reshape(-1, g.channels)
        else:
            a, b = registers.x_windows(g, x, x_zero).reshape(-1, product.shape[1]).T, dy.reshape(-1, g.filters)
        a, b = a.astype(np.int32) + 128, b.astype(np.int32)
        for k in range(0, a.shape[1] - 1, 2):
            pairs = a[:, k, None] * b[k] + a[:, k + 1, None] * b[k + 1]
            if pairs.max() > 32767 or pairs.min() < -32768:
                return layer, pass_, observed.tensors[layer, pass_, "sums"].size
    raise AssertionError("no pair saturates")


def test_registers(tmp_path: Path) -> None:
    """maddubs saturates pairs, vpdpbusd and sdot are the same arithmetic."""
    a, b, c = (started(tmp_path / name, accumulator=name) for name in ("vpdpbusd", "maddubs", "sdot"))
    found = diff.diff(a, b)
    layer, pass_, elements = first_layer_with_a_saturated_pair()
    assert not found["equal"] and found["step"] == 1
    assert (found["layer"], found["pass"], found["tensor"]) == (layer, pass_, "sums")
    row = next(r for r in found["tensors"] if (r["layer"], r["pass"], r["tensor"]) == (layer, pass_, "sums"))
    assert row["elements"] == elements == sum(row["off_by"].values()) and row["dtype"] == "int32"
    assert 0 < row["differ"] == row["elements"] - row["off_by"]["0"] and row["sqnr_db"] > 0
    first = found["tensors"][0]
    assert (first["pass"], first["tensor"], first["differ"], first["sqnr_db"]) == ("input", "images", 0, None)
    same = diff.diff(a, c)
    assert same["equal"] and same["compared_steps"] == 3


def test_simplecnn_parts_in_the_first_convolution(tmp_path: Path) -> None:
    """Its small weights are scaled to use all codes, and its pixels are wide."""
    change = dict(model="simplecnn", batch_size=10, steps=1)
    found = parting(tmp_path, change | {"accumulator": "vpdpbusd"}, change | {"accumulator": "maddubs"})
    assert (found["step"], found["layer"], found["pass"]) == (1, "conv1", "forward")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({}, {"seed": 1}, (0, "conv1", "start", "w")),
        ({}, {"augment": "crop-flip"}, (1, "batch", "input", "images")),
        ({"parameters": {"lac": "off"}}, {}, (1, "conv1", "forward", "output")),
        ({"parameters": {"rounding": "stochastic"}}, {}, (1, "fc3", "dW", "dy")),
        ({"parameters": {"prc": "gauss"}}, {}, (1, "fc3", "dW", "dy")),
        ({"parameters": {"zero_point": "dropped"}}, {}, (1, "conv1", "forward", "output")),
        ({"weight_decay": 1e-3}, {}, (1, "conv1", "update", "w")),
        ({"method": "fp32"}, {"parameters": {"lac": "off"}}, (1, "conv1", "forward", "x")),
        ({"accumulator": "acc16"}, {"accumulator": "acc16-wrap"}, (1, "conv1", "forward", "sums")),
        ({"batch_size": 10}, {}, (1, "batch", "input", "images")),
    ],
    ids=lambda value: str(value),
)
def test_what_parts_runs(one: dict, other: dict, expected: tuple, tmp_path: Path) -> None:
    found = parting(tmp_path, one, other)
    assert (found["step"], found["layer"], found["pass"], found["tensor"]) == expected


def test_a_later_step(tmp_path: Path) -> None:
    """The warm-up's rate changes the second update only; the index is that of the first element in another bit."""
    found = parting(tmp_path, {"schedule": "constant"}, {"schedule": "cosine"})
    assert (found["step"], found["pass"]) == (2, "update")
    runs = [train.Run(train.Config(**RUN, schedule=s)) for s in ("constant", "cosine")]
    for run in runs:
        run.train_step()
        run.train_step()
    a, b = (run.tensors()["conv1.w"] for run in runs)
    index = tuple(found["index"])
    assert index == tuple(np.argwhere(a != b)[0]) and found["values"] == [a[index], b[index]]
    assert parting(tmp_path / "again", {"schedule": "constant"}, {}, steps=1)["equal"]


def test_measures() -> None:
    a, b = np.array([3, -4, 7, 0], np.int8), np.array([3, -3, 0, 0], np.int8)
    assert diff.off_by(a, b) == {"0": 2, "1": 1, "4..7": 1}
    assert diff.off_by(np.int32([-(2**31)]), np.int32([2**31 - 1])) == {"0": 0, f"{2**31}..{2**32 - 1}": 1}
    assert diff.sqnr_db(a, b) == pytest.approx(10 * np.log10(74 / 50))
    assert diff.sqnr_db(a, a) is None and diff.sqnr_db(0 * a, b) is None
    zeros = np.float32([0.0, -0.0, np.nan])
    assert diff._differs(zeros, np.float32([0.0, 0.0, np.nan])).tolist() == [False, True, False]


def test_runs_that_diverge(tmp_path: Path) -> None:
    """Equal up to the NaN that ends both; where one parts in the step that fails, the tensors before tell where.

    What JSON cannot hold is a word.
    """
    hot = {"method": "fp32", "lr": 1e30}
    found = parting(tmp_path / "a", hot, hot)
    assert found["equal"] and found["compared_steps"] == 2
    assert all(reason.startswith("step 2, layer ") and "NaN" in reason for reason in found["failures"])
    zeros = np.float32([0, np.nan, np.inf, 1])
    row = diff._compared(("a", "b", "c"), zeros, np.float32([0, np.nan, np.inf, np.nan]))
    assert (row["differ"], row["largest"], row["sqnr_db"]) == (1, "nan", None)
    both = diff._parting(1, {("a", "b", "c"): zeros}, {("a", "b", "c"): np.float32([0, np.nan, -np.inf, 1])})
    assert both["values"] == ["inf", "-inf"] and json.dumps(both, allow_nan=False)
    done = octosim("diff", "a/one", "a/other", folder=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "no difference in 2 steps\na/one ends there: step 2, layer " in done.stdout


def test_different_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OctosimError, match="train different networks: bn1 .* is relu1"):
        parting(tmp_path, {}, {"batchnorm": False})
    with pytest.raises(OctosimError, match="train different networks"):
        parting(tmp_path / "again", {}, {"model": "mlp"})


def test_command_line(tmp_path: Path) -> None:
    a, b, c = (str(started(tmp_path / name, accumulator=name)) for name in ("vpdpbusd", "maddubs", "sdot"))
    done = octosim("diff", a, b)
    assert done.returncode == 1 and "the runs part at step 1, fc3, dW: sums at [" in done.stdout, done.stderr
    assert "SQNR" in done.stdout and "off by" in done.stdout
    record = json.loads(octosim("diff", a, b, "--json").stdout)
    assert record["layer"] == "fc3" and len(record["index"]) == 2 and record["runs"] == [a, b]
    done = octosim("diff", a, c)
    assert done.returncode == 0 and done.stdout == "no difference in 3 steps\n", done.stderr
