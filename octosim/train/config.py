"""What a user chooses of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from octosim.numerics import EXACT32

EPOCHS = 3  # where neither epochs nor steps are given


@dataclass(frozen=True)
class Config:
    """Everything that a user chooses and that decides the bits of a run and of its records.

    epochs, steps: the run's length; both given, the sooner end.  lr None: the optimizer's own.  weight_decay: of the parameters
    in optim.DECAYED.  schedule, milestones, gamma, warmup: see optim.Schedule.  augment: of loader.AUGMENTATIONS.
    label_smoothing: of the training loss; the test loss is without.  eval_every: also evaluate after every so many steps.
    accumulator: the register of the int8 products, of numerics.ACCUMULATORS.  count_overflow: write what happens in it in every
    so many steps; decides no bit.  measure: write the errors of every so many steps against float32; decides no bit.
    """

    model: str = "simplecnn"
    data: str = "fashion-mnist-5k"
    method: str = "octo"
    parameters: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    lr: float | None = None
    weight_decay: float = 0.0
    schedule: str = "cosine"
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1
    warmup: int = 0
    augment: str = "none"
    label_smoothing: float = 0.0
    batch_size: int = 100
    epochs: int | None = None
    steps: int | None = None
    eval_every: int | None = None
    seed: int = 0
    batchnorm: bool = True
    accumulator: str = EXACT32.name
    count_overflow: int | None = None
    measure: int | None = None
