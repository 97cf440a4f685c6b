"""Optimizers: float32 masters updated by the C core, state by tensor name so that a checkpoint can hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from octosim import core
from octosim.errors import OctosimError, suggest
from octosim.nodes import Context, Method, Node

Array = np.ndarray[Any, Any]
Numbers = tuple[core.Number, ...]
Newton = tuple[Array, Array, dict[str, Array]]
"""A step taken apart, w - lr direction / curvature: direction, curvature and the optimizer's tensors after the step."""


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum: v = momentum v + (g + decay w), w -= lr v.

    update, of every optimizer: a step on w in place, of a gradient that is an array or `core.Sums` by rows; returns w's range
    then, in `found`, NotFiniteError where it holds a NaN or an infinity.  corrections: what it takes beside lr that differs
    from step to step.
    """

    lr: float = 0.05
    momentum: float = 0.9
    decay: float = 0.0
    name: ClassVar[str] = "sgd"
    slots: ClassVar[tuple[str, ...]] = ("v",)

    def corrections(self, step: int) -> tuple[float, ...]:
        return ()

    def update(
        self, corrections: Numbers, lr: core.Number, decay: float, w: Array, g: core.Values, slots: dict[str, Array],
        found: core.Range | None = None,
    ) -> core.Range:  # fmt: skip
        return core.sgd(w, g, slots["v"], lr=lr, momentum=self.momentum, decay=decay, found=found)

    def newton(self, step: int, decay: float, w: Array, g: Array, slots: dict[str, Array]) -> Newton:
        v = np.float32(self.momentum) * slots["v"] + (g + np.float32(decay) * w)
        return v, np.ones_like(w), {"v": v}


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1); decay w is added to the gradient, as an L2 term of the loss."""

    lr: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-7
    decay: float = 0.0
    name: ClassVar[str] = "adam"
    slots: ClassVar[tuple[str, ...]] = ("m", "v")

    def corrections(self, step: int) -> tuple[float, ...]:
        """1 - b^t of both, which correct the bias."""
        return 1.0 - _power(self.b1, step), 1.0 - _power(self.b2, step)

    def update(
        self, corrections: Numbers, lr: core.Number, decay: float, w: Array, g: core.Values, slots: dict[str, Array],
        found: core.Range | None = None,
    ) -> core.Range:  # fmt: skip
        c1, c2 = corrections
        return core.adam(
            w, g, slots["m"], slots["v"], lr=lr, b1=self.b1, b2=self.b2, eps=self.eps, c1=c1, c2=c2, decay=decay, found=found
        )

    def newton(self, step: int, decay: float, w: Array, g: Array, slots: dict[str, Array]) -> Newton:
        b1, b2, g = np.float32(self.b1), np.float32(self.b2), g + np.float32(decay) * w
        m = b1 * slots["m"] + (np.float32(1) - b1) * g
        v = b2 * slots["v"] + (np.float32(1) - b2) * (g * g)
        c1, c2 = (np.float32(c) for c in self.corrections(step))
        return m / c1, np.sqrt(v / c2) + np.float32(self.eps), {"m": m, "v": v}


MADE = 1 << 20
"""About how many sums are made at once where an update takes rows that are made for it, each time from packed operands."""

DECAYED = ("w",)
"""Parameters that weight decay pulls towards 0: the weights of convolutions and linear layers.  Not biases, not batch
normalization's gamma and beta, not what a method adds: they are few, and decay of a scale or a shift restricts the network
without making its function smoother (He et al. 2019, "Bag of Tricks", section 3.1: "no bias decay")."""


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


@dataclass(frozen=True)
class Update:
    """An optimizer at one step of a run: `nodes.Update`.  corrections: the optimizer's.  slots: by the parameters' names."""

    optimizer: Sgd | Adam
    method: Method
    context: Context
    lr: core.Number
    corrections: Numbers
    nodes: list[Node]
    slots: dict[str, dict[str, Array]]

    def node(self, node: Node) -> None:
        node.known.clear()
        for key in node.params:
            if key in node.still:
                continue
            self.method.update(node, key, self.lr, partial(self._rule, node, key), self.context)
        node.check_finite(node.state)

    def all(self) -> None:
        for node in self.nodes:
            self.node(node)

    def _rule(self, node: Node, key: str, lr: core.Number) -> None:
        w, g, slots = node.params[key], node.grads[key], self.slots[f"{node.name}.{key}"]
        decay = self.optimizer.decay if key in DECAYED else 0.0
        found = node.ranges.setdefault(key, core.Range())
        try:
            if isinstance(g, core.RowSums):
                rows = max(1, MADE * len(w) // w.size)
                parts = [
                    self.optimizer.update(self.corrections, lr, decay, w[some], g[some], {k: v[some] for k, v in slots.items()})
                    for some in (slice(first, first + rows) for first in range(0, len(w), rows))
                ]
                core.join_ranges(parts, found)
            else:
                self.optimizer.update(self.corrections, lr, decay, w, g, slots, found)
        except core.NotFiniteError as error:
            raise core.NotFiniteError(f"layer {node.name}, {key} after the step: {error}") from None
        node.known.add(key)

    def newton(self, node: Node, g: Array, slots: dict[str, Array] | None = None) -> Newton:
        step = int(self.context.step)
        step, before = (step, self.slots[f"{node.name}.w"]) if slots is None else (step + 1, slots)
        return self.optimizer.newton(step, self.optimizer.decay, node.params["w"], g, before)

    def set_slots(self, node: Node, slots: dict[str, Array]) -> None:
        for key, value in slots.items():
            self.slots[f"{node.name}.w"][key][:] = value


# ---- schedules --------------------------------------------------


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
    return _half_cosine(max(0, done - schedule.warmup) / (steps - schedule.warmup))


def _step(schedule: Schedule, done: int, steps: int, steps_per_epoch: int) -> float:
    """gamma to the power of the milestones passed; the nearest whole step to a share is its milestone."""
    ends = [round(m * steps if m < 1 else m * steps_per_epoch) for m in schedule.milestones]
    return _power(schedule.gamma, sum(done >= end for end in ends))


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
    """OctosimError, in the command line's words, where a schedule makes no sense."""
    milestones = schedule.milestones
    if schedule.name not in SCHEDULES:
        raise OctosimError(f"unknown schedule '{schedule.name}'" + suggest(schedule.name, SCHEDULES))
    if (schedule.name == "step") != bool(milestones):
        raise OctosimError("--schedule step and --milestones go together, as in --schedule step --milestones 0.5,0.75")
    shares = [m for m in milestones if 0 < m < 1]
    epochs = [m for m in milestones if m >= 1 and float(m).is_integer()]
    if milestones not in (tuple(shares), tuple(epochs)) or list(milestones) != sorted(set(milestones)):
        shown = ",".join(f"{m:g}" for m in milestones)
        raise OctosimError(f"--milestones must be ascending shares of the run below 1, or ascending epochs, not {shown}")
    if not 0 < schedule.gamma < 1e30:
        raise OctosimError(f"--gamma must be a positive number, not {schedule.gamma}")
    if schedule.warmup < 0:
        raise OctosimError(f"--warmup must be at least 0, not {schedule.warmup}")


# ---- by name --------------------------------------------------


OPTIMIZERS: dict[str, type[Any]] = {cls.name: cls for cls in (Sgd, Adam)}


def make(name: str, lr: float | None, decay: float = 0.0) -> Sgd | Adam:
    """The optimizer `name`, with its own learning rate unless one is given."""
    if name not in OPTIMIZERS:
        raise OctosimError(f"unknown optimizer '{name}'" + suggest(name, OPTIMIZERS))
    if lr is not None and not (0 < lr < float("inf")):
        raise OctosimError(f"--lr must be a positive number, not {lr}")
    if not 0 <= decay < float("inf"):
        raise OctosimError(f"--weight-decay must be a number from 0 on, not {decay}")
    kind = OPTIMIZERS[name]
    optimizer: Sgd | Adam = kind(decay=decay) if lr is None else kind(lr=lr, decay=decay)
    return optimizer


def describe(optimizer: Sgd | Adam, schedule: Schedule) -> dict[str, Any]:
    """The optimizer and its schedule as plain data, for a manifest."""
    return {"name": optimizer.name, **asdict(optimizer), "decayed": list(DECAYED), "schedule": asdict(schedule)}
