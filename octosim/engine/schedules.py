"""Schedules: how the learning rate changes over a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octosim.errors import ArgumentError, OctosimError, suggest
from octosim.numerics import half_cosine, power


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes over a run.

    name: of SCHEDULES.  milestones: of "step" only, ascending; all of them shares of the run's steps, below 1, or all epochs,
    from 1 on, after whose end the rate changes.  gamma: what the rate is multiplied by at each.  warmup: steps in which the
    rate first rises linearly to its full value (Goyal et al. 2017, section 2.2).
    """

    name: str = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup: int = 0


def _cosine(schedule: Schedule, done: int, steps: int, steps_per_epoch: int) -> float:
    """Half a cosine over what is left after the warm-up (Loshchilov & Hutter 2017, without restarts)."""
    return half_cosine(max(0, done - schedule.warmup) / (steps - schedule.warmup))


def _step(schedule: Schedule, done: int, steps: int, steps_per_epoch: int) -> float:
    """gamma to the power of the milestones passed; the nearest whole step to a share is its milestone."""
    ends = [round(m * steps if m < 1 else m * steps_per_epoch) for m in schedule.milestones]
    return power(schedule.gamma, sum(done >= end for end in ends))


SCHEDULES: dict[str, Callable[[Schedule, int, int, int], float]] = {
    "cosine": _cosine,
    "constant": lambda schedule, done, steps, steps_per_epoch: 1.0,
    "step": _step,
}
"""Factor on the learning rate after so many steps are done, of so many in all, with so many an epoch; warm-up comes on top."""


def rate(lr: float, schedule: Schedule, step: int, steps: int, steps_per_epoch: int) -> float:
    """The learning rate of step (from 1) of a run of so many steps."""
    rising = min(1.0, step / schedule.warmup) if schedule.warmup else 1.0
    return lr * rising * SCHEDULES[schedule.name](schedule, step - 1, steps, steps_per_epoch)


def check_schedule(schedule: Schedule) -> None:
    """OctosimError where a schedule makes no sense; the ranges of its numbers are those of `settings`."""
    milestones = schedule.milestones
    if schedule.name not in SCHEDULES:
        raise OctosimError(f"unknown schedule '{schedule.name}'" + suggest(schedule.name, SCHEDULES))
    if (schedule.name == "step") != bool(milestones):
        raise ArgumentError("{schedule} step and {milestones} go together, as in {schedule} step {milestones} 0.5,0.75")
    shares = [m for m in milestones if 0 < m < 1]
    epochs = [m for m in milestones if m >= 1 and float(m).is_integer()]
    if milestones not in (tuple(shares), tuple(epochs)) or list(milestones) != sorted(set(milestones)):
        shown = ",".join(f"{m:g}" for m in milestones)
        raise ArgumentError(f"{{milestones}} must be ascending shares of the run below 1, or ascending epochs, not {shown}")
