"""A run made again from its manifest: for those who look into its steps, and to compare every file of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octosim.data import Dataset
from octosim.errors import ArgumentError, OctosimError
from octosim.files import read_lines
from octosim.integrity import LINES, changed_fields, part_of
from octosim.train import directory
from octosim.train.directory import differing, plain
from octosim.train.loop import Progress
from octosim.train.run import Run

CLOSE = 2e-5
"""measures.jsonl has six digits of what NumPy computes in float64, whose last bits belong to the machine."""


def replay(folder: Path, dataset: Dataset | None = None, place: str | None = None) -> Run:
    """The run of a directory before its first step; OctosimError where its files do not agree, or its data are others now.

    dataset: its data, where they are no named set.  place: where the user's own data of the run are now.
    """
    content = directory.check(folder)
    run = directory.rebuild(folder, content, dataset, place)
    _refuse_other_data(run, folder, content)
    return run


def _refuse_other_data(run: Run, folder: Path, content: dict[str, Any]) -> None:
    checksum = content["decides"]["data"]["sha256"]
    if run.data.sha256 != checksum:
        raise OctosimError(f"{folder}: the run's data {run.data.name} had sha256 {checksum}, here it has {run.data.sha256}")


def advance_before(run: Run, step: int, progress: Callable[[int, int], None] | None = None) -> None:
    """Takes a run's steps until `step` is the next one; progress takes the step reached and the goal."""
    if not 1 <= step <= run.steps:
        raise ArgumentError(f"{{step}} must be in 1 .. {run.steps}, the run's steps, not {step}")
    run.allow_replay = True
    while run.step < step - 1:
        run.train_step()
        if progress:
            progress(run.step, step)


@dataclass(frozen=True)
class Verdict:
    """What a replay found.

    recorded, replayed: digests; replayed is empty where the manifest describes no run that could be replayed.  first_step: the
    first step whose record differs, None where all are equal.  differences: a clause for each file and field that differs.
    """

    equal: bool
    recorded: str
    replayed: str
    first_step: int | None
    differences: tuple[str, ...] = ()


def verify(
    folder: Path, progress: Callable[[Progress], None] | None = None, dataset: Dataset | None = None, place: str | None = None
) -> Verdict:
    """Replays a finished run from its manifest, in memory, and compares every file.

    dataset, place: see `replay`.
    OctosimError where the run is not finished, or a file is missing or cannot be read.
    """
    content = directory.read_manifest(folder)
    end = directory.read_end(folder)
    if end is None:
        raise OctosimError(f"{folder} has no digest.txt: the run is not finished (continue it with --resume)")
    saved = directory.load_checkpoint(folder)
    if saved is None:
        raise OctosimError(f"{folder / 'checkpoint.safetensors'} is missing")
    for name in LINES:
        for _ in read_lines(folder / name):
            pass
    changed = [f"manifest.json: {name} is not as it was written" for name in changed_fields(content)]
    if saved.about.get("manifest_sums") and "sums" not in content:
        changed.append("manifest.json: sums is missing")
    recorded = end[0]
    if any(line.startswith(("manifest.json: config", "manifest.json: decides.layers")) for line in changed):
        return Verdict(False, recorded, "", None, tuple(changed))
    run = directory.rebuild(folder, content, dataset, place)
    decides = plain(directory.decides(run))
    if decides["data"]["name"] == content["decides"]["data"].get("name") and not changed:
        _refuse_other_data(run, folder, content)
    parted = [
        f"manifest.json: {name} is {_short(was)}, its config gives {_short(now)}"
        for name, was, now in differing(directory.told(content), decides, "decides")
    ]
    if parted:
        return Verdict(False, recorded, "", None, (*changed, *parted))
    differences, first_step = _replay_and_compare(run, folder, progress)
    differences += _compare_checkpoint(run, folder, content, saved)
    replayed = run.digest()
    if end != (replayed, run.steps):
        differences.append(f"digest.txt: it says {recorded} at step {end[1]}, replayed {replayed} at step {run.steps}")
    differences = changed + differences
    return Verdict(not differences, recorded, replayed, first_step, tuple(differences))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _replay_and_compare(
    run: Run, folder: Path, progress: Callable[[Progress], None] | None
) -> tuple[list[str], int | None]:
    """Takes all steps: the first difference of each file with lines, and the first step whose record differs."""
    if run.config.measure:
        run.meter = run.new_meter()
    found: list[str] = []
    lines = {name: _Lines(folder / name) for name in LINES}
    while run.step < run.steps:
        record = run.advance()
        for name, rows in zip(LINES, ([record], run.overflow, run.measures), strict=True):
            for row in rows:
                lines[name].compare(plain(row), run.step)
        if progress:
            progress(Progress(run.step, run.steps, record["epoch"], record["loss"], run.test_accuracy, run.test_loss))
    for each in lines.values():
        each.end()
        found += each.found
    return found, lines["records.jsonl"].parted


class _Lines:
    """The lines of a file beside those of the replay.  found: the first difference; parted: its step."""

    def __init__(self, path: Path):
        self.found: list[str] = []
        self.parted: int | None = None
        self._name = path.name
        self._rows: Iterator[tuple[dict[str, Any], int]] = read_lines(path)
        self._number = 0

    def compare(self, expected: dict[str, Any], step: int) -> None:
        if self.found:
            return
        self._number += 1
        row = next(self._rows, None)
        if row is None:
            self._say(f"line {self._number} (step {step}) is missing", step)
            return
        for name, recorded, replayed in differing(row[0], expected, ""):
            if self._name == "measures.jsonl" and _close(recorded, replayed):
                continue
            self._say(f"line {self._number} (step {step}): {name} is {_short(recorded)}, replayed {_short(replayed)}", step)
            return

    def end(self) -> None:
        if not self.found and next(self._rows, None) is not None:
            self._say(f"line {self._number + 1} is one more than the replay has", None)

    def _say(self, what: str, step: int | None) -> None:
        self.found, self.parted = [f"{self._name}: {what}"], step


def _close(recorded: Any, replayed: Any) -> bool:
    return isinstance(recorded, float) and isinstance(replayed, float) and math.isclose(recorded, replayed, rel_tol=CLOSE)


def _compare_checkpoint(run: Run, folder: Path, content: dict[str, Any], saved: directory.Checkpoint) -> list[str]:
    """What differs between a checkpoint and the replayed run after its last step."""
    differences = []
    expected = run.tensors()
    for name in {**expected, **saved.tensors}:
        held, wanted = saved.tensors.get(name), expected.get(name)
        if held is None or wanted is None:
            differences.append(f"tensor {name} is {'missing' if held is None else 'none of the run'}")
        elif (held.dtype, held.shape) != (wanted.dtype, wanted.shape):
            differences.append(f"tensor {name} is {held.dtype} {held.shape}, replayed {wanted.dtype} {wanted.shape}")
        elif held.tobytes() != np.ascontiguousarray(wanted).tobytes():
            differences.append(f"tensor {name} differs from the replayed one")
    if saved.format == 1:
        about: dict[str, Any] = {"format": 1, "step": run.step, "test_accuracy": run.test_accuracy}
    else:
        parts = {name: part_of(folder / name) for name in LINES}
        about = directory.checkpoint_about(run, content["decides"], parts, "sums" in content)
        # this sum covers the others: it tells of them where it alone differs
        if any(name != "sum" for name, *_ in differing(saved.about, about, "")):
            about["sum"] = saved.about.get("sum")
    parted = differing(saved.about, about, "")
    differences += [f"its metadata's {name} is {_short(was)}, expected {_short(now)}" for name, was, now in parted]
    return [f"checkpoint.safetensors: {line}" for line in differences]
