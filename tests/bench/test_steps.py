"""A training step measured here beside FP32's: every method's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kit.cli import octosim

from octosim import hardware, methods
from octosim.bench.steps import step_bench
from octosim.train import Config


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_is_measured(method: str) -> None:
    """Those too that have a rate of their own, or none."""
    config = Config(model="mlp", method=method, batch_size=10, batchnorm=methods.METHODS[method].batchnorm)
    record = step_bench(config, hardware.load("pi4"), against=[], seconds=0.01, command="test")
    parts = [record["total"], *([record["fp32"]["total"]] if method != "fp32" else [])]
    assert all(part["time_s"] > 0 and part["predicted_time_s"] > 0 and part["n"] > 1 for part in parts)


def test_a_method_of_another_package_is_measured(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom octosim.methods.niti import Niti\n\n"
        '@dataclass(frozen=True)\nclass Mine(Niti):\n    summary = "integers"\n'
    )
    command = ("bench", "--model", "lenet5", "--method", "mine:Mine", "--seconds", "0.01", "--profile", "pi4", "--json")
    done = octosim(*command, folder=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["method"] == "mine:Mine", done.stderr
