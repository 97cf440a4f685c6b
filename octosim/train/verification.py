"""A finished run made again from its manifest, and compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from octosim.errors import OctosimError
from octosim.train.directory import read_config, read_digest, read_manifest, rebuild
from octosim.train.loop import Progress
from octosim.train.run import Run


@dataclass(frozen=True)
class Verdict:
    """What a replay found.  first_step: the first step whose record differs, None where all are equal."""

    equal: bool
    recorded: str
    replayed: str
    first_step: int | None


def _losses(folder: Path) -> Iterator[tuple[int, float]]:
    path = folder / "records.jsonl"
    try:
        for line in path.read_text().splitlines():
            record = json.loads(line)
            yield record["step"], record["loss"]
    except (OSError, ValueError, KeyError) as error:
        raise OctosimError(f"{path} cannot be read: {error}") from None


def replay(folder: Path) -> Run:
    """The run of a directory before its first step; OctosimError where its data are others now."""
    checksum = read_manifest(folder)["decides"]["data"]["sha256"]
    run = rebuild(folder, read_config(folder))
    if run.data.sha256 != checksum:
        raise OctosimError(f"{folder}: the run's data {run.data.name} had sha256 {checksum}, here it has {run.data.sha256}")
    return run


def advance_before(run: Run, step: int, progress: Callable[[int, int], None] | None = None) -> None:
    """Takes a run's steps until `step` is the next one; progress takes the step reached and the goal."""
    if not 1 <= step <= run.steps:
        raise OctosimError(f"--step must be in 1 .. {run.steps}, the run's steps, not {step}")
    run.records = True
    while run.step < step - 1:
        run.train_step()
        if progress:
            progress(run.step, step)


def verify(folder: Path, progress: Callable[[Progress], None] | None = None) -> Verdict:
    """Replays a finished run from its manifest, in memory, and compares records and digest."""
    read_config(folder)
    recorded = read_digest(folder)
    if recorded is None:
        raise OctosimError(f"{folder} has no digest.txt: the run is not finished (continue it with --resume)")
    run = replay(folder)
    first: int | None = None
    expected = dict(_losses(folder))
    while run.step < run.steps:
        record = run.advance()
        if first is None and expected.get(run.step) != record["loss"]:
            first = run.step
        if progress:
            progress(Progress(run.step, run.steps, record["epoch"], record["loss"], run.test_accuracy))
    replayed = run.digest()
    return Verdict(replayed == recorded and first is None, recorded, replayed, first)
