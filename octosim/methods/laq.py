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
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Circumstances, Context, Gradients, Method, Node, Seen, Update
from octosim.errors import OctosimError
from octosim.methods import float32

F = np.float32
TOLERANCE = 1e-6  # of alpha, at which its iteration ends
ROUNDS = 10  # at most, as in the released code; codes go on from the step before
STEPS, FLIPS, CHANGES = range(3)  # of the counts


def levels(bits: int) -> int:
    """The largest code n: levels are -n/n .. n/n, with 0 but for one bit.  Two bits are ternary."""
    return 1 if bits == 1 else 2 ** (bits - 1) - 1


def binary(w: Array, d: Array) -> tuple[Array, float]:
    """1 bit: beta = sign(w), alpha = ||D w||_1 / ||D||_1."""
    return np.where(w < 0, -1, 1).astype(np.int8), float32.total(d * np.abs(w)) / float32.total(d)


def ternary_exact(w: Array, d: Array) -> tuple[Array, float]:
    """Ternary: of all thresholds, the one with the least error.

    With |w| in descending order, c_j = (sum_{i<=j} D |w|) / (2 sum_{i<=j} D); the j with |w_j| > c_j > |w_{j+1}| and largest
    c_j^2 sum_{i<=j} D; alpha = 2 c_j.
    """
    order = np.argsort(-np.abs(w), axis=None, kind="stable")
    size, weight = np.abs(w).ravel()[order].astype(np.float64), d.ravel()[order].astype(np.float64)
    mass = np.cumsum(weight)  # one after the other, so the same on every machine
    c = np.cumsum(weight * size) / mass / 2
    fits = (size > c) & (c > np.append(size[1:], -1))
    if not fits.any():
        return np.zeros(w.shape, np.int8), 0.0
    best = int(np.argmax(np.where(fits, c * c * mass, -1)))
    codes = np.zeros(w.size, np.int8)
    codes[order[: best + 1]] = np.sign(w.ravel()[order[: best + 1]])
    return codes.reshape(w.shape), float(2 * c[best])


def iterated(w: Array, d: Array, n: int, codes: Array) -> tuple[Array, float]:
    """m bits: alpha = ||beta D w||_1 / ||beta D beta||_1 and beta = the nearest level to w / alpha, in turn, from given codes.

    Codes of nothing but zeros say nothing of alpha: then it begins at max|w|.
    """
    alpha = 0.0
    for _ in range(ROUNDS):
        beta = codes.astype(F) / F(n)
        weighted = d * beta
        below = float32.total(weighted * beta)
        before, alpha = alpha, abs(float32.total(weighted * w) / below) if below > 0 else float(np.abs(w).max())
        if alpha == 0:
            return np.zeros(w.shape, np.int8), 0.0
        codes = np.rint(np.clip(w / F(alpha), F(-1), F(1)) * F(n)).astype(np.int8)
        if abs(alpha - before) <= TOLERANCE:
            break
    return codes, alpha


def _curvature(update: Update, node: Node, w: Array, g: Array, before: Array, d: Array) -> None:
    """The weights as they are and the optimizer's curvature, as arrays."""
    before[:] = w
    d[:] = update.newton(node, g)[1]


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
        w = node.params["w"]
        node.state["codes"], alpha = self.fit(w, np.ones_like(w), np.zeros(w.shape, np.int8))
        node.state["alpha"] = np.array([alpha], np.float32)
        node.state["sign"] = np.zeros(w.shape, np.int8)
        node.state["counts"] = np.zeros(3, np.int64)

    def caveats(self, nodes: Sequence[Node], run: Circumstances, seen: Seen) -> list[str]:
        if run.optimizer == "adam":
            return []
        return [f"with {run.optimizer} the curvature is the same for all weights: the fit is least squares, not loss-aware"]

    def fit(self, w: Array, d: Array, codes: Array) -> tuple[Array, float]:
        """n beta and alpha of min 1/2 ||w - alpha beta||^2_D; codes: n beta of the step before."""
        if self.weight_bits == 1:
            return binary(w, d)
        if self.weight_bits == 2 and self.ternary == "exact":
            return ternary_exact(w, d)
        return iterated(w, d, levels(self.weight_bits), codes)

    def step(self, nodes: list[Node], gradients: Gradients, update: Update, context: Context) -> core.Number:
        """One pass and the optimizer's update; then the new weights are quantized, with this step's curvature."""
        loss = gradients()
        weighted = trained(nodes)
        before = []
        for node in weighted:
            w, g = node.params["w"], node.grads["w"]
            held, d = node.buffer(w.shape, F), node.buffer(w.shape, F)
            core.at(node.name, "update")
            core.python("curvature", partial(_curvature, update, node), [w, g], [held, d])
            before.append((held, d))
        update.all()
        for node, (held, d) in zip(weighted, before, strict=True):
            core.at(node.name, "update")
            node.known.discard("w")
            state = [node.state[key] for key in ("codes", "alpha", "sign", "counts")]
            core.python("quantize w", self._settle, [held, d], [node.params["w"], *state])
        return loss

    def _settle(self, before: Array, d: Array, w: Array, codes: Array, alpha: Array, sign: Array, counts: Array) -> None:
        """Clips and quantizes the new weights; counts the updates that turned back and the weights that changed level."""
        np.clip(w, F(-1), F(1), out=w)
        turned = np.sign(w - before).astype(np.int8)
        fitted, of_all = self.fit(w, d, codes)
        counts += (1, np.count_nonzero(turned * sign < 0), np.count_nonzero(fitted != codes))
        codes[:], alpha[0] = fitted, of_all
        np.copyto(sign, turned, where=turned != 0)

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
        codes, alpha = node.state["codes"], node.state["alpha"]
        w = node.buffer(codes.shape, np.float32)
        core.python("dequantize w", self._real, [codes, alpha], [w])
        node.saved.update(x=x, w=w)
        return float32.forward(node, x, w)

    def _real(self, codes: Array, alpha: Array, w: Array) -> None:
        np.multiply(codes, alpha[0] / F(levels(self.weight_bits)), out=w)

    def error(self, node: Node, dy: Array, context: Context) -> Array:
        return dy

    def weight_grad(self, node: Node, error: Array, context: Context) -> None:
        float32.weight_grad(node, node.saved.get("x"), error)

    def input_grad(self, node: Node, error: Array, context: Context) -> Array:
        return float32.input_grad(node, error, node.saved["w"])
