"""Loss-aware weight quantization: a few levels for each layer's weights, fitted in the metric of the loss's curvature.

Hou, Yao & Kwok, "Loss-aware Binarization of Deep Networks", ICLR 2017 (1 bit), and Hou & Kwok, "Loss-aware Weight Quantization
of Deep Networks", ICLR 2018 (ternary, m bits): the proximal Newton step, min 1/2 ||w - alpha beta||^2_D with D from Adam's
second moment, and its solutions.  As in the authors' released code (houlu369), full-precision weights are kept, updated by the
optimizer with the gradients at the quantized weights, and clipped to [-1, 1].

Differs from the paper in: D is the run's optimizer's, so only Adam's is the paper's; with SGD D is the same for all weights and
the fit is plain least squares.  alpha of m bits is the least-squares ||beta D w||_1 / ||beta D beta||_1 (released code:
||beta D||_1 below, which is the same up to 2 bits).  No logarithmic levels.  Products, activations and everything else are
float32; the models' own losses and initial weights are used (paper: square hinge loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Circumstances, Context, Gradients, Method, Node, Seen, Update
from octosim.errors import OctosimError
from octosim.methods import float32
from octosim.numerics import symmetric

F = np.float32
STEPS, FLIPS, CHANGES = range(3)  # of the counts
ONE = np.ones(1, np.int64)


def levels(bits: int) -> int:
    """The largest code n: levels are -n/n .. n/n, with 0 but for one bit.  Two bits are ternary."""
    return 1 if bits == 1 else symmetric(bits).high


def trained(nodes: list[Node]) -> list[Node]:
    """The layers whose weights are trained."""
    return [node for node in nodes if node.layer.weighted and node.trains("w")]


@dataclass(frozen=True)
class Laq(Method):
    """Parameters of the method.

    weight_bits: 1, 2 (ternary), 3, 4 or 8; levels lie evenly in alpha [-1, 1], alpha of each layer.
    ternary:     how 2 bits are fitted: "iterated" as all others, or "exact", the best of all thresholds.
    """

    weight_bits: int = 1
    ternary: Literal["iterated", "exact"] = "iterated"

    name: ClassVar[str] = "laq"
    summary: ClassVar[str] = "few-level weights, fitted in the metric of the curvature"
    paper: ClassVar[str] = "Hou & Kwok, ICLR 2018"
    counters = ("counts",)
    bits: ClassVar[dict[str, str]] = {
        "weights": "weight_bits",
        "activations": "float32",
        "gradients": "float32",
        "errors": "float32",
        "update": "float32",
        "accumulator": "float32",
        "normalization": "float32",
    }

    def __post_init__(self) -> None:
        if self.weight_bits not in (1, 2, 3, 4, 8):
            raise OctosimError(f"{self.name}: weight_bits must be 1, 2, 3, 4 or 8, not {self.weight_bits}")

    def check(self, node: Node, batch: int) -> None:
        pass

    def init(self, node: Node, seed: int) -> None:
        w, state = node.params["w"], node.state
        state.update(codes=np.zeros(w.shape, np.int8), alpha=np.zeros(1, F), sign=np.zeros(w.shape, np.int8))
        state["counts"] = np.zeros(3, np.int64)
        d = np.ones_like(w) if core.makes() else np.empty_like(w)
        self._fit(node, d, np.zeros(1, np.int64))

    def caveats(self, nodes: Sequence[Node], run: Circumstances, seen: Seen) -> list[str]:
        if run.optimizer == "adam":
            return []
        return [f"with {run.optimizer} the curvature is the same for all weights: the fit is least squares, not loss-aware"]

    def _fit(self, node: Node, d: Array, changes: Array) -> None:
        """n beta and alpha of min 1/2 ||w - alpha beta||^2_D, from n beta of the step before."""
        state, exact = node.state, self.weight_bits == 2 and self.ternary == "exact"
        core.fit_levels(node.params["w"], d, state["codes"], state["alpha"], changes, bits=self.weight_bits, exact=exact)

    def step(self, nodes: list[Node], gradients: Gradients, update: Update, context: Context) -> core.Number:
        """One pass and the optimizer's update; then the new weights are quantized, with this step's curvature."""
        loss = gradients()
        weighted = trained(nodes)
        held = []
        for node in weighted:
            w = node.params["w"]
            before, d = node.buffer(w.shape, F), node.buffer(w.shape, F)
            core.at(node.name, "update")
            core.copy(w, out=before)
            update.newton(node, node.grads["w"], curvature=d)
            held.append((before, d))
        update.all()
        for node, (before, d) in zip(weighted, held, strict=True):
            self.settle(node, before, d)
        return loss

    def settle(self, node: Node, before: Array, d: Array) -> None:
        """Clips and quantizes the new weights; counts the updates that turned back and the weights that changed level."""
        state, counts = node.state, node.state["counts"]
        core.at(node.name, "update")
        node.known.discard("w")
        core.count_reversals(before, node.params["w"], state["sign"], counts[FLIPS : FLIPS + 1])
        self._fit(node, d, counts[CHANGES:])
        core.add_counts(ONE, counts[STEPS : STEPS + 1])

    def metrics(self, nodes: list[Node]) -> dict[str, Any]:
        """By layer, per weight: updates against the one before, and changes of level."""
        weighted = trained(nodes)
        if not weighted:
            return {}
        found = {
            name: {node.name: int(node.state["counts"][which]) / node.params["w"].size for node in weighted}
            for name, which in (("update_sign_flips", FLIPS), ("level_changes", CHANGES))
        }
        steps = int(weighted[0].state["counts"][STEPS])
        for node in weighted:
            node.state["counts"][:] = 0
        return {"steps": steps, **found}

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        codes, n = node.state["codes"], levels(self.weight_bits)
        w = core.level_values(codes, node.state["alpha"], n, out=node.buffer(codes.shape, F))
        node.saved.update(x=x, w=w)
        return float32.forward(node, x, w)

    def error(self, node: Node, dy: Array, context: Context) -> Array:
        return dy

    def weight_grad(self, node: Node, error: Array, context: Context) -> None:
        float32.weight_grad(node, node.saved.get("x"), error)

    def input_grad(self, node: Node, error: Array, context: Context) -> Array:
        return float32.input_grad(node, error, node.saved["w"])
