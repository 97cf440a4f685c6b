"""What octosim train says before and after a run: steps, its end, chance, registers that are too narrow; and --dry-run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from kit.cli import octosim
from kit.pages import lines, make_run, records

from octosim.cli import outlook, terminal

SMALL = ("train", "--model", "lenet5", "--data", "fashion-mnist-5k", "--limit", "200", "--batch-size", "20", "--steps", "4")


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = octosim(*SMALL, "--dry-run", "--json", folder=tmp_path)
    told = json.loads(done.stdout)
    assert (told["steps"], told["steps_per_epoch"], told["batch_size"]) == (4, 10, 20)
    assert 0 < told["step_s"] * 4 <= told["seconds"]
    assert told["memory"]["octo"]["peak"] > 0 and told["parameters"]["w"] == 61_470
    assert list(tmp_path.iterdir()) == []
    text = octosim(*SMALL, "--dry-run", folder=tmp_path)
    assert text.returncode == 0 and "4 steps of 20 images, 0.4 epochs of 10" in text.stdout
    assert text.stdout.endswith("nothing was written\n")
    assert octosim(*SMALL, "--dry-run", "--resume", folder=tmp_path).returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps, epoch, every", [(12, 8, 8), (16, 8, 7), (16, 8, 16), (5, 8, 8), (24, 8, 6), (24, 8, 12)])
def test_evaluations_are_counted(steps: int, epoch: int, every: int) -> None:
    expected = [step for step in range(1, steps + 1) if step == steps or step % epoch == 0 or step % every == 0]
    assert outlook._evaluations(steps, {epoch, every}) == len(expected)


def test_a_run_in_a_narrow_register(tmp_path: Path) -> None:
    done = octosim(*SMALL, "--accumulator", "acc12", "--count-overflow", "2", "--out", "run", folder=tmp_path)
    assert done.returncode == 0
    assert "run: 4 steps of 20 images" in done.stderr and "step 2: " in done.stderr and "overflowed acc12" in done.stderr
    assert "overflowed acc12; try --accumulator acc24" in done.stdout


@pytest.mark.parametrize("accumulator, counted, accuracy, expected", [
    ("exact32", None, 0.9, []),
    ("exact32", None, 0.1, ["at chance: guessing reaches up to 10.90 % on these test images"]),
    ("float32", None, 0.1, ["at chance:"]),
    ("acc16", None, 0.9, []),
    ("acc16", None, 0.1, ["at chance:", "acc16 may be too narrow; --count-overflow 10 counts what it loses"]),
    ("acc16", 100, 0.9, ["100 % of conv2's sums (dW) overflowed acc16; try --accumulator acc24"]),
    ("acc16", 31, 0.1, ["at chance:", "31 % of conv2's sums (dW) overflowed acc16; try --accumulator acc24"]),
    ("acc24", 31, 0.9, ["31 % of conv2's sums (dW) overflowed acc24; try --accumulator exact32"]),
    ("acc24", 0, 0.1, ["at chance:"]),
])  # fmt: skip
def test_last_lines(tmp_path: Path, accumulator: str, counted: int | None, accuracy: float, expected: list[str]) -> None:
    run = make_run(tmp_path / "run", records(accuracies=(accuracy, accuracy)))
    manifest = (run / "manifest.json").read_text().replace('"out": 10', '"units": 10').replace("exact32", accumulator)
    (run / "manifest.json").write_text(manifest)
    if counted is not None:
        row = {"step": 10, "layer": "conv2", "pass": "dW", "inexact": counted, "outputs": 100}
        (run / "overflow.jsonl").write_text(lines([row | {"step": 5, "inexact": 50}, row]))
    said = outlook.ending(run)
    assert len(said) == len(expected) and all(line.startswith(text) for line, text in zip(said, expected, strict=True))


@pytest.mark.parametrize("step_s, steps, after", [
    (0.5, 1000, 7), (40.0, 100, 1), (0.002, 10**6, 1502), (0.5, 10, None), (5.0, 2, None),
])  # fmt: skip
def test_the_end_is_told_once(monkeypatch: pytest.MonkeyPatch, step_s: float, steps: int, after: int | None) -> None:
    """As early as it can be known, where it is worth a line."""
    now, said = [0.0], []
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminal, "hint", lambda text: said.append((step, text)))
    told = outlook.Outlook(SimpleNamespace(step=0, overflow=[]))  # type: ignore[arg-type]
    for step in range(1, min(steps, 4000) + 1):
        now[0] += step_s
        told(SimpleNamespace(step=step, steps=steps))  # type: ignore[arg-type]
    assert [at for at, _ in said] == pytest.approx([after] if after else [], abs=2)
    assert all(text.startswith(outlook.time_text(step_s)) for _, text in said)


def test_clock() -> None:
    assert terminal.clock(3 * 86400).startswith("on ")
    assert time.strftime("%H:%M") in (terminal.clock(0)[-5:], terminal.clock(-60)[-5:])
