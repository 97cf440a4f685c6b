"""BLAQ: loss-aware weight quantization that tries each step and steps back.

Ma et al., "One-Step Forward and Backtrack: Overcoming Zig-Zagging in Loss-Aware Quantization Training", AAAI 2024
(arXiv 2401.16760), from the paper's technical appendix: algorithm 1 (steps below), algorithm 2 (the fit, as in `laq`).

    g_t at alpha_t beta_t;  D_t from the optimizer                                       one pass
    w* = w_t - g_t / D_t, quantized with D_t;  g* and D* at these weights                the trial, on the same batch
    g = a g_t + (1 - a) g*;  D = a D_t + (1 - a) D*
    w_{t+1} = w_t - g / D, quantized with D                                              the backtrack

Differs from the paper in: the optimizer's first moment stands in the place of g in both updates, as algorithm 1 has it "with
Adam"; these are reconstructions, as the appendix does not say: the moments that are carried on are those of the blended
gradient; biases and batch normalization take the first pass's gradients, and neither they nor running statistics move in the
trial; a period of m has the two-stage step in epochs m, 2 m ...  What `laq` says of its own differences holds here.  With SGD
D is 1 / learning rate for all weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Circumstances, Context, Gradients, Node, Seen, Update
from octosim.errors import OctosimError
from octosim.methods.laq import Laq, trained

F = np.float32


@dataclass(frozen=True)
class Blaq(Laq):
    """Parameters of the method.

    weight_bits: 1, 2 (ternary), 3, 4 or 8; levels lie evenly in alpha [-1, 1], alpha of each layer.
    ternary:     how 2 bits are fitted: "iterated" as all others, or "exact", the best of all thresholds.
    blend:       a, the first pass's share in gradient and curvature (appendix: 0.6 for small networks, 0.9 for ResNet-18).
    period:      m: every m-th epoch has the two-stage step, the others are `laq` (appendix: 5, and 10 for ResNet-18).
    """

    blend: float = 0.6
    period: int = 5

    name: ClassVar[str] = "blaq"
    summary: ClassVar[str] = "loss-aware quantization with a trial step and a backtrack"
    paper: ClassVar[str] = "Ma et al., AAAI 2024"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.blend <= 1:
            raise OctosimError(f"blaq: blend must be in [0, 1], not {self.blend}")
        if self.period < 1:
            raise OctosimError(f"blaq: period must be at least 1, not {self.period}")

    def caveats(self, nodes: Sequence[Node], run: Circumstances, seen: Seen) -> list[str]:
        found = super().caveats(nodes, run, seen)
        if run.epochs < self.period:
            found.append(f"no epoch of two-stage steps: the first is epoch {self.period} (period), the run has {run.epochs}")
        return found

    def phase(self, context: Context) -> Hashable:
        """Steps of two stages, or of one."""
        return context.epoch % self.period == 0

    def _blended(self, first: Array, trial: Array) -> Array:
        return F(self.blend) * first + F(1 - self.blend) * trial

    def step(self, nodes: list[Node], gradients: Gradients, update: Update, context: Context) -> core.Number:
        """The two-stage step in every `period`-th epoch, else `laq`'s."""
        if context.epoch % self.period:
            return super().step(nodes, gradients, update, context)
        loss = gradients()
        weighted = [_Stages(self, node, update) for node in trained(nodes)]
        grads = [dict(node.grads) for node in nodes]
        state = [[node.buffer(value.shape, value.dtype) for value in node.state.values()] for node in nodes]
        for node, kept in zip(nodes, state, strict=True):
            core.at(node.name, "update")
            core.python("keep state", _copy, list(node.state.values()), kept)
        for stages in weighted:
            stages.trial()
        gradients()
        for stages in weighted:
            stages.look()
        for node, first, kept in zip(nodes, grads, state, strict=True):
            node.grads.update(first)
            core.at(node.name, "update")
            core.python("restore state", _copy, kept, list(node.state.values()))
        for stages in weighted:
            stages.blend()
        update.all()  # biases and batch normalization; the weights' own step follows
        for stages in weighted:
            stages.backtrack()
        return loss


def _copy(*arrays: Array) -> None:
    """Copies the first half of arrays into the second."""
    half = len(arrays) // 2
    for source, target in zip(arrays[:half], arrays[half:], strict=True):
        np.copyto(target, source)


def _move(lr: core.Number, w: Array, before: Array, direction: Array, d: Array) -> None:
    np.copyto(w, before - F(float(lr)) * direction / d)


class _Stages:
    """The two-stage step of a layer's weights, in the order of its functions.

    before: the weights.  direction, d: of the step, w - lr direction / d; first_d, trial_d, trial_g: of the first pass and the
    trial's.  slots: the optimizer's tensors behind the first pass's gradient, then behind the blended one.
    """

    def __init__(self, method: Blaq, node: Node, update: Update):
        self.method, self.node, self.update = method, node, update
        self.w = node.params["w"]
        self.before, self.direction, self.first_d, self.trial_d = (node.buffer(self.w.shape, F) for _ in range(4))
        self.trial_g = self.before
        self.slots = {name: node.buffer(self.w.shape, F) for name in update.optimizer.slots}

    def _python(self, name: str, function: Callable[..., None], reads: list[Array], writes: list[Array]) -> None:
        core.at(self.node.name, "update")
        core.python(name, function, reads, writes)

    def _state(self) -> list[Array]:
        return [self.node.state[key] for key in ("codes", "alpha", "sign", "counts")]

    def trial(self) -> None:
        """The weights after the first pass's step, quantized."""
        method, node, update, names = self.method, self.node, self.update, list(self.slots)

        def trial(g: Array, w: Array, before: Array, d: Array, codes: Array, alpha: Array, sign: Array, counts: Array,
                  *slots: Array) -> None:  # fmt: skip
            direction, curvature, after = update.newton(node, g)
            _copy(w, curvature, *(after[name] for name in names), before, d, *slots)
            _move(update.rate(node), w, before, direction, d)
            method._settle(before, d, w, codes, alpha, sign, counts)

        node.known.discard("w")
        self._python("trial step", trial, [node.grads["w"]],
                     [self.w, self.before, self.first_d, *self._state(), *self.slots.values()])  # fmt: skip

    def look(self) -> None:
        """The trial's gradient and curvature."""
        node, update, names = self.node, self.update, list(self.slots)

        def look(g: Array, *arrays: Array) -> None:
            *slots, d = arrays
            np.copyto(d, update.newton(node, g, dict(zip(names, slots, strict=True)))[1])

        self.trial_g = node.grads["w"]
        self._python("trial curvature", look, [self.trial_g, *self.slots.values()], [self.trial_d])

    def blend(self) -> None:
        """The step of the blended gradient from the weights as they were."""
        method, node, update, names = self.method, self.node, self.update, list(self.slots)

        def blend(g: Array, trial_g: Array, before: Array, d: Array, trial_d: Array, w: Array, direction: Array,
                  *slots: Array) -> None:  # fmt: skip
            np.copyto(w, before)
            towards, _, after = update.newton(node, method._blended(g, trial_g))
            blended = method._blended(d, trial_d)
            _copy(towards, blended, *(after[name] for name in names), direction, trial_d, *slots)

        self._python("blend", blend, [node.grads["w"], self.trial_g, self.before, self.first_d],
                     [self.trial_d, self.w, self.direction, *self.slots.values()])  # fmt: skip

    def backtrack(self) -> None:
        """Takes that step and quantizes the weights."""
        method, node, update, names = self.method, self.node, self.update, list(self.slots)

        def backtrack(*arrays: Array) -> None:
            before, direction, d, *slots = arrays[: 3 + len(names)]
            w, codes, alpha, sign, counts = arrays[3 + len(names) :]
            _move(update.rate(node), w, before, direction, d)
            update.set_slots(node, dict(zip(names, slots, strict=True)))
            method._settle(before, d, w, codes, alpha, sign, counts)

        node.known.discard("w")
        self._python("backtrack", backtrack, [self.before, self.direction, self.trial_d, *self.slots.values()],
                     [self.w, *self._state()])  # fmt: skip
