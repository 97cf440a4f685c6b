"""Training a run into its directory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from octosim import loader, measure
from octosim.errors import OctosimError
from octosim.files import write_atomic
from octosim.train.directory import save
from octosim.train.interrupt import Interrupt
from octosim.train.run import Run


@dataclass(frozen=True)
class Progress:
    """What a run reports after each step: total steps, this step's loss, and the latest test accuracy if there is one."""

    step: int
    steps: int
    epoch: int
    loss: float
    test_accuracy: float | None


def train(
    run: Run, folder: Path, progress: Callable[[Progress], None] | None = None, every: int = 100, prefetch: bool = False
) -> bool:
    """Trains to the end of the run, writing records and, every so many steps and after each epoch, a checkpoint.

    prefetch: make batches in a background thread, ahead of their steps; it changes no bit.  Returns False if it was interrupted
    (a checkpoint is written first).  A failing step (NaN, full disk) raises OctosimError; records and the last checkpoint stay
    good.
    """
    run.records = True
    if run.config.measure:
        run.meter = measure.Meter(run.layers, run.data.train_images.shape[1:], run.registers.accumulator)
    started, epoch_step = time.perf_counter(), run.step
    left = range(run.step + 1, run.steps + 1)
    batches = loader.ahead(run.batch, left) if prefetch else (run.batch(step) for step in left)
    try:
        with Interrupt() as interrupt, open(folder / "records.jsonl", "a") as records, closing(batches):
            for batch in batches:
                record = run.advance(batch)
                records.write(json.dumps(record) + "\n")
                for name, rows in (("overflow.jsonl", run.overflow), ("measures.jsonl", run.measures)):
                    if rows:
                        with open(folder / name, "a") as file:
                            file.writelines(json.dumps(row) + "\n" for row in rows)
                if progress:
                    progress(Progress(run.step, run.steps, record["epoch"], record["loss"], run.test_accuracy))
                epoch_ends, stop = run.step % run.steps_per_epoch == 0, interrupt.asked
                if epoch_ends or run.step % every == 0 or run.step == run.steps or stop:
                    records.flush()
                    os.fsync(records.fileno())
                    save(run, folder)
                if epoch_ends:
                    now = time.perf_counter()
                    _time_epoch(folder, record["epoch"], now - started, (run.step - epoch_step) * run.config.batch_size)
                    started, epoch_step = now, run.step
                if stop:
                    break
    except OSError as error:
        raise OctosimError(f"cannot write records in {folder}: {error.strerror}") from None
    if run.step < run.steps:
        return False
    write_atomic(folder / "digest.txt", f"sha256:{run.digest()}  step {run.step}\n".encode())
    return True


def _time_epoch(folder: Path, epoch: int, wall_s: float, images: int) -> None:
    with open(folder / "timing.jsonl", "a") as file:
        file.write(json.dumps({"epoch": epoch, "wall_s": wall_s, "images_per_s": images / wall_s}) + "\n")
