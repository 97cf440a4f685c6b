"""Optimizers: float32 masters updated by the C core, state by tensor name so that a checkpoint can hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.errors import OctosimError, suggest

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum: v = momentum v + (g + decay w), w -= lr v."""

    lr: float = 0.05
    momentum: float = 0.9
    decay: float = 0.0
    name: ClassVar[str] = "sgd"
    slots: ClassVar[tuple[str, ...]] = ("v",)

    def update(self, step: int, lr: float, w: Array, g: Array, slots: dict[str, Array]) -> None:
        core.sgd(w, g, slots["v"], lr=lr, momentum=self.momentum, decay=self.decay)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1)."""

    lr: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-7
    decay: float = 0.0
    name: ClassVar[str] = "adam"
    slots: ClassVar[tuple[str, ...]] = ("m", "v")

    def update(self, step: int, lr: float, w: Array, g: Array, slots: dict[str, Array]) -> None:
        c1, c2 = 1.0 - _power(self.b1, step), 1.0 - _power(self.b2, step)
        core.adam(
            w,
            g,
            slots["m"],
            slots["v"],
            lr=self.lr,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            c1=c1,
            c2=c2,
            decay=self.decay,
        )


def _power(base: float, exponent: int) -> float:
    """base^exponent by squaring: IEEE products only, so the same bits on every machine (libm's pow need not be)."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def _half_cosine(t: float) -> float:
    """(1 + cos(pi t)) / 2 for t in [0, 1] = cos(pi t / 2)^2, by cosine's series to x^18 (below 3e-15 for x <= pi / 2).

    IEEE operations only, for the same reason as `_power`.
    """
    x2, term, total = (1.5707963267948966 * t) ** 2, 1.0, 1.0
    for n in range(1, 10):
        term *= -x2 / ((2 * n - 1) * (2 * n))
        total += term
    return total * total


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": _half_cosine, "constant": lambda t: 1.0}
"""Factor on the learning rate after a share t in [0, 1) of the run's steps.  cosine: Loshchilov & Hutter 2017, no restart."""


def rate(lr: float, schedule: str, step: int, steps: int) -> float:
    """The learning rate of step (from 1) of a run of so many steps."""
    return lr * SCHEDULES[schedule]((step - 1) / steps)


def check_schedule(name: str) -> None:
    """OctosimError where the schedule is unknown."""
    if name not in SCHEDULES:
        raise OctosimError(f"unknown schedule '{name}'" + suggest(name, SCHEDULES))


OPTIMIZERS: dict[str, type[Any]] = {cls.name: cls for cls in (Sgd, Adam)}


def make(name: str, lr: float | None) -> Sgd | Adam:
    """The optimizer `name`, with its own learning rate unless one is given."""
    if name not in OPTIMIZERS:
        raise OctosimError(f"unknown optimizer '{name}'" + suggest(name, OPTIMIZERS))
    if lr is not None and not (0 < lr < float("inf")):
        raise OctosimError(f"--lr must be a positive number, not {lr}")
    optimizer: Sgd | Adam = OPTIMIZERS[name]() if lr is None else OPTIMIZERS[name](lr=lr)
    return optimizer


def describe(optimizer: Sgd | Adam) -> dict[str, Any]:
    """The optimizer as plain data, for a manifest."""
    return {"name": optimizer.name, **asdict(optimizer)}
