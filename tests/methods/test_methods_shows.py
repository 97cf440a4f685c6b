"""tools/methods_shows.py: its counts against direct ones, on short runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from kit.small import few_images

from octosim import core, data, train

PATH = Path(__file__).resolve().parents[2] / "tools" / "methods_shows.py"


@pytest.fixture
def shows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "load", few_images)
    spec = importlib.util.spec_from_file_location("methods_shows", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    isa = core.isa()
    yield module
    core.set_isa(isa)


def test_overflow_of_a_layer(shows) -> None:
    """Running sums of the codes' products, in int64: a register overflows where one leaves its range."""
    config = train.Config(model="lenet5", method="logbtq", batch_size=20, steps=4, parameters={"activation_bound": 2.0})
    run = shows.trained(config)
    images = run.data.test_images[:3]
    rates = shows.overflow(run, images)
    assert list(rates) == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    x, w = shows.inputs(run, images)["fc3"], next(node for node in run.network.nodes if node.name == "fc3").params["w"]
    codes = [np.clip(np.rint(t * np.float32(127 / bound)), -127, 127).astype(np.int64) for t, bound in ((x, 2.0), (w, 1.0))]
    sums = np.cumsum(codes[0][:, None] * codes[1], axis=-1)
    for bits in shows.BITS:
        left = ((sums < -(2 ** (bits - 1))) | (sums >= 2 ** (bits - 1))).any(-1)
        assert rates["fc3"][f"{bits} bits"] == left.mean()
    assert all(1 >= r["8 bits"] >= r["12 bits"] >= r["16 bits"] >= 0 and 0 <= r["mu8"] < 1 for r in rates.values())
    assert rates["conv2"]["8 bits"] > 0.5 > rates["conv2"]["16 bits"]


def test_a_table_of_each(shows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = {}
    for name, steps in (("logbtq", "2"), ("blaq", "2"), ("niti", "2")):
        out = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", ["x", name, "--data", "fashion-mnist-5k", "--steps", steps, "--json", str(out)])
        shows.main()
        rows[name] = json.loads(out.read_text())
        assert len(capsys.readouterr().out.splitlines()) == len(rows[name]) + 2
    assert len(rows["logbtq"]) == 20 and len(rows["niti"]) >= 2
    assert [(row["bits"], row["method"]) for row in rows["blaq"]] == [(1, "laq"), (1, "blaq"), (2, "laq"), (2, "blaq")]
    assert all(0 < row["level_changes"] <= 1 and 0 < row["sign_flips"] <= 0.5 for row in rows["blaq"])
