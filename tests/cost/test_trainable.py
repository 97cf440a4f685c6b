"""`octosim cost --sweep trainable`: steps that train the last layers, priced."""

from __future__ import annotations

import csv
import json

import pytest
from cost.test_sweep import run

from octosim.errors import OctosimError

LENET = ("--model", "lenet5", "--batch-size", "8", "--profile", "pi4")


def priced(*options):
    return json.loads(run(*LENET, *options, "--json"))


def test_each_row_is_the_price_of_that_choice():
    rows = priced("--sweep", "trainable:1,3,all", "--compare", "jetson")["trainable"]
    assert [(row["train_last"], row["device"]) for row in rows] == [
        (last, device) for last in (1, 3, None) for device in ("raspberry-pi-4", "jetson-xavier-nx")
    ]
    for row, options in zip(rows[::2], (["--train-last", "1"], ["--train-last", "3"], []), strict=True):
        single = priced(*options)
        assert single["types"] == row["types"]
    assert rows[0]["first_layer"] == "fc3" and rows[0]["trained_parameters"] < 1000 < rows[2]["trained_parameters"]


def test_the_last_layer_has_a_unit_a_class():
    few, many = (priced("--classes", classes) for classes in ("10", "1000"))
    macs = {row["layer"]: row["macs"] for row in few["layers"] if row["pass"] == "forward"}
    more = {row["layer"]: row["macs"] for row in many["layers"] if row["pass"] == "forward"}
    assert more == macs | {"fc3": 100 * macs["fc3"]}
    with pytest.raises(OctosimError, match="--classes takes a number in 1 .. 16384, not 0"):
        run(*LENET, "--classes", "0")


def test_files_and_curves(tmp_path):
    table, picture = tmp_path / "rows.csv", tmp_path / "curves.svg"
    rows = priced("--sweep", "trainable", "--csv", str(table), "--plot", str(picture))["trainable"]
    assert [row["train_last"] for row in rows] == [*range(1, 5), None]
    for key in ("time_s", "peak_bytes", "energy_j"):
        values = [row["types"]["int8"][key] for row in rows]
        assert values == sorted(values) or key == "peak_bytes" and values[0] < values[-1], key
    assert [row["trained_parameters"] for row in rows] == sorted({row["trained_parameters"] for row in rows})
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert len(lines) == sum(len(row["types"]) for row in rows) and lines[-1]["train_last"] == "all"
    assert float(lines[0]["time_s"]) == rows[0]["types"]["int8"]["time_s"]
    assert "<svg" in picture.read_text()
    shown = run(*LENET, "--sweep", "trainable:1,all")
    assert "octo: predicted training step" in shown and "100 %" in shown


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--sweep", "trainable:0"], "numbers in 1 .. 5.* not '0'"),
        (["--sweep", "trainable:1,many"], "not 'many'"),
        (["--sweep", "trainable:"], "not ''"),
        (["--sweep", "trainable", "--train-last", "3"], "leave out --train-last"),
        (["--sweep", "trainable", "--train", "conv*"], "leave out --train"),
        (["--sweep", "trainable", "--inference"], "leave out --inference"),
        (["--sweep", "trainable", "--batch-size", "1,8"], "one --batch-size"),
        (["--sweep", "trainable", "--model", "net.onnx"], "octosim import net.onnx"),
        (["--sweep", "points.csv", "--csv", "rows.csv"], "--csv goes with --sweep trainable"),
        (["--sweep", "trainable", "--csv", "rows.txt"], "must end in .csv"),
    ],
)
def test_refusals(options, sentence):
    with pytest.raises(OctosimError, match=sentence):
        run(*LENET, *options)
