"""Training a run into its directory."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from octosim import outcome
from octosim.data.batches import ahead
from octosim.errors import OctosimError
from octosim.files import parse_json, write_atomic
from octosim.integrity import LINES, Part
from octosim.train import directory
from octosim.train.interrupt import Interrupt
from octosim.train.run import Batch, Run
from octosim.train.twin import Twin


@dataclass(frozen=True)
class Progress:
    """What a run reports after each step: total steps, this step's loss, and the latest test loss and accuracy if there are."""

    step: int
    steps: int
    epoch: int
    loss: float
    test_accuracy: float | None
    test_loss: float | None = None

    @property
    def score(self) -> str:
        """The latest evaluation in words."""
        return outcome.score(self.test_accuracy, self.test_loss)


class Records:
    """The .jsonl files of a run while it trains: appended to, and hashed as they grow.

    parts: what is on disk and belongs to the run's steps; whatever lies behind is cut off.
    """

    def __init__(self, folder: Path, parts: dict[str, Part], files: ExitStack):
        self.parts = parts
        self._folder, self._files = folder, files
        self._open: dict[str, IO[bytes]] = {}
        for name, part in parts.items():
            with contextlib.suppress(FileNotFoundError):
                if (folder / name).stat().st_size > part.size:
                    os.truncate(folder / name, part.size)

    def add(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if not content:
            return
        if name not in self._open:
            self._open[name] = self._files.enter_context(open(self._folder / name, "ab"))
        self._open[name].write(content)
        self._open[name].flush()  # `octosim watch` reads it
        self.parts[name].add(content)

    def sync(self) -> None:
        """All rows are on disk: a checkpoint may follow."""
        for file in self._open.values():
            file.flush()
            os.fsync(file.fileno())


def _begin(run: Run, folder: Path) -> dict[str, Part]:
    """The records' parts that belong to the run's step; OctosimError where the directory is at another."""
    if directory.read_end(folder):
        raise OctosimError(f"{folder} is finished already")
    saved = directory.load_checkpoint(folder)
    if (saved.step if saved else 0) != run.step:
        raise OctosimError(
            f"{folder} is at step {saved.step if saved else 0}, not {run.step}: another process worked on it; try again"
        )
    if saved:
        directory.check_sums(saved, directory.read_manifest(folder))
    parts = directory.check_parts(run, folder, saved)
    directory.sweep_run(folder)
    return parts


def train(
    run: Run, folder: Path, progress: Callable[[Progress], None] | None = None, every: int = 100, prefetch: bool = False
) -> bool:
    """Trains to the end of the run, writing records and, every so many steps and after each epoch, a checkpoint.

    prefetch: make batches in a background thread, ahead of their steps; it changes no bit.  Returns False if it was interrupted
    (a checkpoint is written first).  A failing step (NaN, full disk) raises OctosimError; records and the last checkpoint stay
    good, and failure.json says why.
    """
    try:
        with directory.alone(folder), ExitStack() as files:
            records = Records(folder, _begin(run, folder), files)
            (folder / "failure.json").unlink(missing_ok=True)
            _cut_timing(folder / "timing.jsonl", run.step)
            if not _steps(run, folder, records, progress, every, prefetch):
                return False
            directory.write_outcome(folder, run.look_back())
            write_atomic(folder / "digest.txt", directory.digest_text(run.digest(), run.step).encode())
    except OSError as error:
        raise OctosimError(f"cannot write records in {folder}: {error.strerror}") from None
    return True


def _steps(
    run: Run, folder: Path, records: Records, progress: Callable[[Progress], None] | None, every: int, prefetch: bool
) -> bool:
    """Takes the steps that are left; False where Ctrl-C or SIGTERM came before the last."""
    run.allow_replay = True
    if run.config.measure:
        run.meter = run.new_meter()
    twin = Twin(run, folder)
    started, images = time.perf_counter(), 0
    left = range(run.step + 1, run.steps + 1)
    batches = ahead(run.batch, left) if prefetch else (run.batch(step) for step in left)
    with Interrupt() as interrupt, closing(batches):
        for batch in batches:
            record = _advance(run, folder, batch, twin)
            images += len(batch[1])
            for name, rows in zip(LINES, ([record], run.overflow, run.measures), strict=True):
                records.add(name, rows)
            if progress:
                progress(Progress(run.step, run.steps, record["epoch"], record["loss"], run.test_accuracy, run.test_loss))
            epoch_ends, stop = run.step % run.steps_per_epoch == 0, interrupt.asked
            if epoch_ends or run.step % every == 0 or run.step == run.steps or stop:
                now = time.perf_counter()
                _add_timing(folder, run, now - started, images)
                started, images = now, 0
                records.sync()
                directory.save(run, folder, records.parts)
            if stop:
                break
    return run.step == run.steps


def _advance(run: Run, folder: Path, batch: Batch, twin: Twin) -> dict[str, Any]:
    try:
        record = run.advance(batch)
        twin.step(run, batch)
        return record
    except OctosimError as error:
        with contextlib.suppress(OctosimError):
            write_atomic(folder / "failure.json", (json.dumps({"step": run.step, "reason": str(error)}) + "\n").encode())
        raise


def _add_timing(folder: Path, run: Run, wall_s: float, images: int) -> None:
    line = {"step": run.step, "epoch": run.epoch, "wall_s": wall_s, "images_per_s": images / wall_s}
    with open(folder / "timing.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def _cut_timing(path: Path, last: int) -> None:
    """Keeps the lines up to step `last`, and none that a kill cut short."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = []
    for line in lines:
        with contextlib.suppress(OctosimError):
            row = parse_json(line, path.name)
            step = row.get("step") if isinstance(row, dict) else None
            if line.endswith(b"\n") and isinstance(step, int) and step <= last:
                kept.append(line)
    if kept != lines:
        write_atomic(path, b"".join(kept))
