"""Optimizers: float32 masters updated by the C core, state by tensor name so that a checkpoint can hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from octosim import core
from octosim.engine.nodes import Context, Method, Node
from octosim.engine.schedules import Schedule
from octosim.errors import OctosimError, suggest
from octosim.numerics import power

if TYPE_CHECKING:
    from octosim.engine.network import Network

Array = np.ndarray[Any, Any]
Numbers = tuple[core.Number, ...]


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum: v = momentum v + (g + decay w), w -= lr v.

    update, of every optimizer: a step on w in place, of a gradient that is an array or `core.LazyDequant` by rows; gives w's
    range then, in `found`, NotFiniteError where it holds a NaN or an infinity.  corrections: what it takes beside lr that
    differs from step to step; next_corrections: those of the step after.

    newton, of every optimizer: the step taken apart, w - lr direction / curvature; writes these and the slots after the step
    into the arrays that are given.
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

    def next_corrections(self, step: core.Whole) -> Numbers:
        return ()

    def newton(
        self, corrections: Numbers, decay: float, w: Array, g: Array, slots: Mapping[str, Array], *,
        direction: Array | None, curvature: Array | None, after: Mapping[str, Array],
    ) -> None:  # fmt: skip
        core.newton_sgd(
            w, g, slots["v"], momentum=self.momentum, decay=decay, direction=direction, curvature=curvature,
            after=after.get("v"),
        )


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
        return 1.0 - power(self.b1, step), 1.0 - power(self.b2, step)

    def update(
        self, corrections: Numbers, lr: core.Number, decay: float, w: Array, g: core.Values, slots: dict[str, Array],
        found: core.Range | None = None,
    ) -> core.Range:  # fmt: skip
        c1, c2 = corrections
        return core.adam(
            w, g, slots["m"], slots["v"], lr=lr, b1=self.b1, b2=self.b2, eps=self.eps, c1=c1, c2=c2, decay=decay, found=found
        )

    def next_corrections(self, step: core.Whole) -> Numbers:
        return core.bias_correction(step, 1, self.b1), core.bias_correction(step, 1, self.b2)

    def newton(
        self, corrections: Numbers, decay: float, w: Array, g: Array, slots: Mapping[str, Array], *,
        direction: Array | None, curvature: Array | None, after: Mapping[str, Array],
    ) -> None:  # fmt: skip
        c1, c2 = corrections
        core.newton_adam(
            w, g, slots["m"], slots["v"], b1=self.b1, b2=self.b2, eps=self.eps, c1=c1, c2=c2, decay=decay,
            direction=direction, curvature=curvature, m_after=after.get("m"), v_after=after.get("v"),
        )  # fmt: skip


ROWS_AT_ONCE = 1 << 20
"""Elements of dW, about, that are computed at once where the update consumes its rows lazily (`core.LazyWeightGrad`)."""

DECAYED = ("w",)
"""Parameters that weight decay pulls towards 0: the weights of convolutions and linear layers.  Not biases, not batch
normalization's gamma and beta, not what a method adds: they are few, and decay of a scale or a shift restricts the network
without making its function smoother (He et al. 2019, "Bag of Tricks", section 3.1: "no bias decay")."""


@dataclass(frozen=True)
class Update:
    """An optimizer at one step of a run: `nodes.Update`.  corrections: the optimizer's.  slots: by the parameters' names.
    rates: the learning rates of layers whose `rate` is not 1, by that factor."""

    optimizer: Sgd | Adam
    method: Method
    context: Context
    lr: core.Number
    corrections: Numbers
    nodes: list[Node]
    slots: dict[str, dict[str, Array]]
    rates: Mapping[float, core.Number] = field(default_factory=dict)

    @classmethod
    def of(
        cls, optimizer: Sgd | Adam, network: Network, context: Context, numbers: Numbers, slots: dict[str, dict[str, Array]]
    ) -> Update:
        """numbers: as `numbers` has them."""
        count = len(network.rates)
        own, rates = numbers[: len(numbers) - count], numbers[len(numbers) - count :]
        by_factor = dict(zip(network.rates, rates, strict=True))
        return cls(optimizer, network.method, context, own[0], own[1:], network.nodes, slots, by_factor)

    def node(self, node: Node) -> None:
        core.at("optimizer", "update")
        node.known &= node.frozen
        for key in node.params:
            if key in node.zero_grad_params or key in node.frozen:
                continue
            self.method.update(node, key, self.rate(node), partial(self._rule, node, key), self.context)
        node.check_finite(node.state)

    def rate(self, node: Node) -> core.Number:
        """The learning rate of a layer."""
        return self.rates.get(node.rate, self.lr)

    def all(self) -> None:
        for node in self.nodes:
            self.node(node)

    def _rule(self, node: Node, key: str, lr: core.Number) -> None:
        w, g, slots = node.chosen(key), node.grads[key], self.slots[f"{node.name}.{key}"]
        decay = self.optimizer.decay if key in DECAYED else 0.0
        w_range = node.ranges.setdefault(key, core.Range()) if node.outputs is None else None
        try:
            if isinstance(g, core.LazyWeightGrad):
                rows = max(1, ROWS_AT_ONCE * len(w) // w.size)
                parts = [
                    self.optimizer.update(self.corrections, lr, decay, w[some], g[some], {k: v[some] for k, v in slots.items()})
                    for some in (slice(first, first + rows) for first in range(0, len(w), rows))
                ]
                if w_range is not None:
                    core.join_ranges(parts, w_range)
            else:
                self.optimizer.update(self.corrections, lr, decay, w, g, slots, w_range)
        except core.NotFiniteError as error:
            raise core.NotFiniteError(f"layer {node.name}, {key} after the step: {error}") from None
        if w_range is not None:
            node.known.add(key)

    def newton(
        self, node: Node, g: Array, slots: Mapping[str, Array] | None = None, *, direction: Array | None = None,
        curvature: Array | None = None, after: Mapping[str, Array] | None = None,
    ) -> None:  # fmt: skip
        corrections = self.corrections if slots is None else self.optimizer.next_corrections(self.context.step)
        before = self.slots[f"{node.name}.w"] if slots is None else slots
        self.optimizer.newton(
            corrections, self.optimizer.decay, node.params["w"], g, before,
            direction=direction, curvature=curvature, after=after or {},
        )  # fmt: skip

    def set_slots(self, node: Node, slots: Mapping[str, Array]) -> None:
        for key, value in slots.items():
            core.copy(value, out=self.slots[f"{node.name}.w"][key])


def numbers(optimizer: Sgd | Adam, lr: float, step: int, network: Network) -> tuple[float, ...]:
    """What differs from step to step of an optimizer: the learning rate, its corrections, and the rates of `network.rates`."""
    return lr, *optimizer.corrections(step), *(lr * factor for factor in network.rates)


def slots(optimizer: Sgd | Adam, network: Network) -> dict[str, dict[str, Array]]:
    """The optimizer's tensors by the trained parameters' names, zeros."""
    names = () if "optimizer" in network.method.unused else optimizer.slots
    return {
        f"{node.name}.{key}": {slot: np.zeros(w.shape, w.dtype) for slot in names}
        for node in network.nodes for key in node.params if key not in node.frozen for w in (node.chosen(key),)
    }  # fmt: skip


# ---- by name --------------------------------------------------


OPTIMIZERS: dict[str, type[Any]] = {cls.name: cls for cls in (Sgd, Adam)}


def make(name: str, lr: float | None, decay: float = 0.0) -> Sgd | Adam:
    """The optimizer `name`, with its own learning rate unless one is given."""
    if name not in OPTIMIZERS:
        raise OctosimError(f"unknown optimizer '{name}'" + suggest(name, OPTIMIZERS))
    kind = OPTIMIZERS[name]
    optimizer: Sgd | Adam = kind(decay=decay) if lr is None else kind(lr=lr, decay=decay)
    return optimizer


def describe(optimizer: Sgd | Adam, schedule: Schedule) -> dict[str, Any]:
    """The optimizer and its schedule as plain data, for a manifest."""
    return {"name": optimizer.name, **asdict(optimizer), "decayed": list(DECAYED), "schedule": asdict(schedule)}
