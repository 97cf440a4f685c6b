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

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Context, Gradients, Node, Update
from octosim.errors import OctosimError
from octosim.methods.laq import Laq

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
    recordable = False  # its steps are of two kinds

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.blend <= 1:
            raise OctosimError(f"blaq: blend must be in [0, 1], not {self.blend}")
        if self.period < 1:
            raise OctosimError(f"blaq: period must be at least 1, not {self.period}")

    def _blended(self, first: Array, trial: Array) -> Array:
        return F(self.blend) * first + F(1 - self.blend) * trial

    def _quantized(self, node: Node, before: Array, d: Array) -> None:
        node.known.discard("w")
        self._settle(before, d, node.params["w"], *(node.state[key] for key in ("codes", "alpha", "sign", "counts")))

    def step(self, nodes: list[Node], gradients: Gradients, update: Update, context: Context) -> core.Number:
        """The two-stage step in every `period`-th epoch, else `laq`'s."""
        if context.epoch % self.period:
            return super().step(nodes, gradients, update, context)
        loss = gradients()
        weighted = [node for node in nodes if node.layer.weighted]
        grads = [{key: g.copy() for key, g in node.grads.items()} for node in nodes]
        state = [{key: value.copy() for key, value in node.state.items()} for node in nodes]
        before, curvature, moments = {}, {}, {}
        for node in weighted:
            w = node.params["w"]
            direction, d, moments[node.name] = update.newton(node, node.grads["w"])
            before[node.name], curvature[node.name] = w.copy(), d
            w -= F(float(update.lr)) * direction / d
            self._quantized(node, before[node.name], d)
        gradients()
        trial = {}
        for node in weighted:
            g = node.grads["w"]
            trial[node.name] = g.copy(), update.newton(node, g, moments[node.name])[1]
        for node, kept, held in zip(nodes, grads, state, strict=True):
            node.grads.update(kept)
            for key, value in held.items():
                node.state[key][:] = value
        new = {}
        for node in weighted:
            g, d = trial[node.name]
            node.params["w"][:] = before[node.name]
            direction, _, after = update.newton(node, self._blended(node.grads["w"], g))
            new[node.name] = direction, self._blended(curvature[node.name], d), after
        update.all()  # biases and batch normalization; the weights' own step follows
        for node in weighted:
            direction, d, after = new[node.name]
            node.params["w"][:] = before[node.name] - F(float(update.lr)) * direction / d
            update.set_slots(node, after)
            self._quantized(node, before[node.name], d)
        return loss
