"""What must stay: bits of training (digests.json), prices (costs.json), and run directories of earlier versions (old_runs)."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import costs, digests
from kit.cli import octosim as command
from kit.isas import ISAS

from octosim import core
from octosim.methods import METHODS

OLD_RUNS = Path(__file__).resolve().parent / "old_runs"
SLOW_PARAMETERS = {"accumulator", "block", "headroom"}  # of logbtq: sums simulated product by product
CASES, FROZEN = digests.cases(), digests.frozen()


def cases() -> Iterator[Any]:
    """Every case as it is by default, and made by Python with two threads; the default parameters with each instruction set.

    All are slow but those of the small models; of those made by Python only the default parameters are not."""
    for key, config in CASES.items():
        quick = config.model not in digests.LARGE and not SLOW_PARAMETERS & set(config.parameters)
        default = key.endswith("/default")
        ways = [(core.isa(), 1, True), (core.isa(), 2, False)]
        ways += [(isa, 1, True) for isa in ISAS if default and isa != core.isa()]
        for at, (isa, threads, records) in enumerate(ways):
            slow = not (quick and (at == 0 or default and at == 1))
            name = f"{key}-{isa}-{threads}-{'replayed' if records else 'python'}"
            yield pytest.param(key, isa, threads, records, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture
def unchanged() -> Iterator[None]:
    isa, threads = core.isa(), core.threads()
    yield
    core.set_isa(isa)
    core.set_threads(threads)


@pytest.mark.parametrize(("key", "isa", "threads", "records"), list(cases()))
def test_bits(key: str, isa: str, threads: int, records: bool, unchanged: None) -> None:
    """The digest after some steps and the loss on test images."""
    assert key in FROZEN, f"no frozen digest: run python tests/kit/digests.py to add {key}"
    core.set_isa(isa)
    core.set_threads(threads)
    assert digests.outcome(CASES[key], records) == FROZEN[key]


def test_no_entry_without_a_case() -> None:
    assert not FROZEN.keys() - CASES.keys(), "python tests/kit/digests.py removes them"


@pytest.mark.parametrize("method", sorted({config.method for config in CASES.values()}))
def test_every_parameter_changes_bits(method: str) -> None:
    """On one of the models, where the parameters before it stay; otherwise its digests would freeze nothing."""
    changed = {}
    for key in (key for key in FROZEN if key.startswith(f"{method}/") and "=" in key):
        without = key.rpartition(",")[0] if "," in key else key.replace(key.split("/")[2].split()[-1], "default")
        if without in FROZEN:
            name = key.rpartition("=")[0].rpartition(",")[2].rpartition("/")[2]
            changed[name] = changed.get(name, False) or FROZEN[key] != FROZEN[without]
    names = {field.name for field in dataclasses.fields(METHODS[method])}
    assert changed == dict.fromkeys(names, True)


# ---- prices --------------------------------------------------

COST_CASES = costs.cases()


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=[] if "/lenet5/" in key else [pytest.mark.slow]) for key in COST_CASES]
)
def test_prices(key: str) -> None:
    entries = costs.frozen()
    assert key in entries, f"no frozen price: run python tests/kit/costs.py to add {key}"
    assert costs.outcome(key, COST_CASES[key]) == entries[key]


# ---- run directories --------------------------------------------------


def octosim(*arguments: str, folder: Path) -> str:
    done = command(*arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def old_runs(tmp_path: Path) -> Path:
    """A copy without the model file, which may be gone: octo (overflow, measures), fp32 (Adam), stopped (14 of 39 steps)."""
    shutil.copytree(OLD_RUNS, tmp_path / "old", ignore=shutil.ignore_patterns("*.toml"))
    return tmp_path / "old"


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_old_runs_verify_and_resume(old_runs: Path) -> None:
    for name in ("octo", "fp32"):
        octosim("verify", name, folder=old_runs)
    octosim("train", "--resume", "--out", "stopped", folder=old_runs)
    expected = (OLD_RUNS / "stopped-whole.txt").read_text()
    assert (old_runs / "stopped" / "digest.txt").read_text() == expected
    assert records(old_runs / "stopped" / "records.jsonl")[:14] == records(OLD_RUNS / "stopped" / "records.jsonl")
    octosim("verify", "stopped", folder=old_runs)


def test_old_runs_report(old_runs: Path) -> None:
    octosim("report", "octo", "fp32", "stopped", "--out", "page.html", folder=old_runs)
    page = (old_runs / "page.html").read_text()
    assert "hindsight" in page and "acc20" in page


def test_an_old_run_again(old_runs: Path, tmp_path: Path) -> None:
    """The same command today writes the same records: losses, accumulators and measures."""
    shutil.copy(OLD_RUNS / "tiny.toml", tmp_path)
    command = json.loads((old_runs / "octo" / "manifest.json").read_text())["command"].split()[1:]
    octosim(*command, folder=tmp_path)
    for name in ("records.jsonl", "overflow.jsonl"):
        assert records(tmp_path / "octo" / name) == records(OLD_RUNS / "octo" / name)
    now, before = (records(folder / "octo" / "measures.jsonl") for folder in (tmp_path, OLD_RUNS))
    assert len(now) == len(before) > 0
    for one, other in zip(now, before, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            if isinstance(value, float):
                assert math.isclose(one[key], value, rel_tol=1e-6, abs_tol=1e-9), (key, one, other)
            else:
                assert one[key] == value
