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

from collections.abc import Hashable, Iterable, Sequence
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
            _copy(node.state.values(), kept)
        for stages in weighted:
            stages.trial()
        gradients()
        for stages in weighted:
            stages.look()
        for node, first, kept in zip(nodes, grads, state, strict=True):
            node.grads.update(first)
            core.at(node.name, "update")
            _copy(kept, node.state.values())
        for stages in weighted:
            stages.blend()
        update.all()  # biases and batch normalization; the weights' own step follows
        for stages in weighted:
            stages.backtrack()
        return loss


def _copy(sources: Iterable[Array], targets: Iterable[Array]) -> None:
    for source, target in zip(sources, targets, strict=True):
        core.copy_codes(source.reshape(-1).view(np.int8), out=target.reshape(-1).view(np.int8))


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

    def _move(self, d: Array) -> None:
        """Takes the step from the weights as they were, and quantizes."""
        core.newton_move(self.before, self.direction, d, self.update.rate(self.node), out=self.w)
        self.method.settle(self.node, self.before, d)

    def trial(self) -> None:
        """The weights after the first pass's step, quantized."""
        core.at(self.node.name, "update")
        core.copy(self.w, out=self.before)
        gradient = self.node.grads["w"]
        self.update.newton(self.node, gradient, direction=self.direction, curvature=self.first_d, after=self.slots)
        self._move(self.first_d)

    def look(self) -> None:
        """The trial's gradient and curvature."""
        core.at(self.node.name, "update")
        self.trial_g = self.node.grads["w"]
        self.update.newton(self.node, self.trial_g, self.slots, curvature=self.trial_d)

    def blend(self) -> None:
        """The step of the blended gradient from the weights as they were."""
        core.at(self.node.name, "update")
        core.copy(self.before, out=self.w)
        share = self.method.blend
        gradient = core.blend(self.node.grads["w"], self.trial_g, share, out=self.trial_g)
        self.update.newton(self.node, gradient, direction=self.direction, after=self.slots)
        core.blend(self.first_d, self.trial_d, share, out=self.trial_d)

    def backtrack(self) -> None:
        """Takes that step and quantizes the weights."""
        core.at(self.node.name, "update")
        self.update.set_slots(self.node, self.slots)
        self._move(self.trial_d)
