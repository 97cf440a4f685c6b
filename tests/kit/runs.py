"""Run directories."""

from __future__ import annotations

from pathlib import Path

from octosim import train

RUN = dict(model="lenet5", batch_size=20, steps=3)


def started(folder: Path, **change) -> Path:
    """A run directory; a replay needs no more than its manifest."""
    train.create(train.Config(**RUN | change), folder, "test")
    return folder
