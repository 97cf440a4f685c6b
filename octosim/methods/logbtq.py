"""LogBTQ: a log barrier keeps weights and activations inside the range of 8-bit mu-law codes, accumulators included.

Li et al., "End-to-end Quantized Training via Log-Barrier Extensions", submission to ICLR 2021; only its abstract is known here.
The log-barrier extension is exact, from Kervadec et al., "Constrained deep networks: Lagrangian optimization via log-barrier
extensions" (arXiv 1904.04205):

    psi_t(z) = -(1/t) log(-z)  for z <= -1/t^2,  t z - (1/t) log(1/t^2) + 1/t  otherwise

All that joins it to training is a reconstruction: the constraints z = |w| - weight_bound and z = |x| - activation_bound, the
mean of psi over a tensor as a term of the loss, the schedule of t (that of Kervadec's released code), mu-law companding as
"MU8", its bounds, and the accumulator (`numerics.MuLaw`).

Differs from the paper in: whatever its body says.  Here only the forward pass is 8-bit; the backward pass is float32 at the
decoded values, straight through the encoders, without gradient where a value was clipped; biases and normalization are float32.
The recorded loss is the task's, without the barrier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Circumstances, Context, Method, Node, Seen
from octosim.errors import OctosimError
from octosim.methods import caveats, float32
from octosim.numerics import MuLaw, mu_law

LEAST_PULL = 1e-4  # of the barrier's gradient, as a share of the whole
ENCODED, ENCODINGS, X_OUTSIDE, X_VALUES, W_OUTSIDE, W_VALUES = range(6)  # of the counts; ENCODED: saturated ones
COUNTS = {"accumulator": (ENCODED, ENCODINGS), "activations": (X_OUTSIDE, X_VALUES), "weights": (W_OUTSIDE, W_VALUES)}


def _encoded(node: Node, x: Array, bound: float, outside: Array) -> core.Tensor:
    """Mu-law codes of values within +-bound; outside: its first element gets the number of those beyond."""
    return core.Tensor(core.encode_mu8(x, bound, out=node.buffer(x.shape, np.uint8), count=outside)[0], bound, format=mu_law())


@dataclass(frozen=True)
class Logbtq(Method):
    """Parameters of the method.

    barrier:          the barrier's weight in the loss; 0 leaves it out.  The 0.01 of its authors' segmentation hardly acts: the
                      pull on a value is divided by the tensor's size.
    t, growth, t_max: the barrier's tightness: t growth^(epoch - 1), at most t_max.
    weight_bound, activation_bound: the largest values of the codes, and the barriers' ends.
    accumulator:      "strict" is encoded again after each product, "blocked" after each `block` products; "exact" is float32,
                      the default for its speed: a simulated accumulator takes about 10 to 100 ns a product.
    block:            1 .. 32.
    headroom:         the accumulator's bound is 2^headroom weight_bound activation_bound, -8 .. 16.
    """

    barrier: float = 1.0
    t: float = 5.0
    growth: float = 1.1
    t_max: float = 100.0
    weight_bound: float = 1.0
    activation_bound: float = 4.0
    accumulator: Literal["exact", "blocked", "strict"] = "exact"
    block: int = 32
    headroom: int = 4

    name: ClassVar[str] = "logbtq"
    summary: ClassVar[str] = "mu-law codes and accumulators, held in range by a log barrier"
    paper: ClassVar[str] = "Li et al., submission to ICLR 2021"
    counters = ("counts",)
    bits: ClassVar[dict[str, str]] = {
        "weights": "8-bit mu-law",
        "activations": "8-bit mu-law",
        "gradients": "float32",
        "errors": "float32",
        "update": "float32",
        "accumulator": "float32, or 8-bit mu-law",
        "normalization": "float32",
    }

    inspects: ClassVar[bool] = True
    for_weight_grad: ClassVar[tuple[str, ...]] = ("x_real",)

    def __post_init__(self) -> None:
        for name in ("t", "t_max", "weight_bound", "activation_bound"):
            if not 1e-3 <= getattr(self, name) <= 1e6:
                raise OctosimError(f"logbtq: {name} must be in 0.001 .. 1000000, not {getattr(self, name)}")
        if not 0 <= self.barrier < 1e30:
            raise OctosimError(f"logbtq: barrier must not be negative, not {self.barrier}")
        if not 1 <= self.growth <= 1e3:
            raise OctosimError(f"logbtq: growth must be in 1 .. 1000, not {self.growth}")
        self._arithmetic()

    def _arithmetic(self) -> MuLaw:
        return MuLaw(headroom=self.headroom, group=1 if self.accumulator == "strict" else self.block)

    def tightness(self, epoch: int) -> float:
        """t of an epoch (from 1), by multiplication: libm's powers differ from machine to machine."""
        t = self.t
        for _ in range(epoch - 1):
            if t >= self.t_max:
                break
            t *= self.growth
        return min(t, self.t_max)

    def phase(self, context: Context) -> float:
        return self.tightness(context.epoch)

    def check(self, node: Node, batch: int) -> None:
        pass

    def init(self, node: Node, seed: int) -> None:
        node.state["counts"] = np.zeros(6, np.int64)

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        w = node.params["w"]
        for tensor in (x, w):
            core.value_range(tensor)  # a NaN is told here: it has no code
        counts = np.array([0, 0, 0, x.size, 0, w.size], np.int64)
        qx = _encoded(node, x, self.activation_bound, counts[X_OUTSIDE:])
        qw = _encoded(node, w, self.weight_bound, counts[W_OUTSIDE:])
        if context.training or self.accumulator == "exact":
            x_real, w_real = (q.materialize(node.buffer(q.shape, np.float32)) for q in (qx, qw))
        if self.accumulator == "exact":
            y = float32.forward(node, x_real, w_real)
        else:
            bound = self.weight_bound * self.activation_bound * 2.0**self.headroom
            sums = core.Tensor(self._sums(node, qx.q, qw.q, counts), bound, format=mu_law())
            y = sums.materialize(node.buffer(sums.shape, np.float32))
            core.python("add bias", lambda b, y: np.add(y, b, out=y), [node.params["b"]], [y])
        if context.training:
            node.saved.update(x=x, x_real=x_real, w_real=w_real)
            core.add_counts(counts, node.state["counts"])
        return y

    def _sums(self, node: Node, qx: Array, qw: Array, counts: Array) -> Array:
        """Codes of Y in the accumulator's bound; counts: get how many encodings saturated, and of how many."""
        how, batch = self._arithmetic(), len(qx)
        product = node.layer.product(node, batch)
        (m, k, n), groups = product.shape, product.groups
        counts[ENCODINGS] = m * n * groups * -(-k // how.group) * (2 if how.encode_products else 1)
        rows, taps = node.buffer((groups, m, k), np.uint8), node.buffer((groups, k, n), np.uint8)
        codes, saturated = node.buffer((groups, m, n), np.uint8), np.empty(groups, np.int64)

        def arrange(qx: Array, qw: Array, rows: Array, taps: Array) -> None:
            if product.kernel == (0, 0):
                rows[0] = qx.reshape(m, k)
            else:
                every = float32.windows(product.geometry, qx)
                parts = every.reshape(m, every.shape[1], groups, -1).transpose(2, 0, 1, 3)
                np.copyto(rows, parts.reshape(groups, m, k))
            np.copyto(taps, qw.reshape(groups, n, k).transpose(0, 2, 1))

        core.python("windows", arrange, [qx, qw], [rows, taps])
        for group in range(groups):
            core.gemm_mu8(rows[group], taps[group], how, out=codes[group], count=saturated[group:])
        y = node.buffer((batch, *node.out_shape), np.uint8)

        def gather(codes: Array, saturated: Array, y: Array, count: Array) -> None:
            np.copyto(y, codes.transpose(1, 0, 2).reshape(y.shape))
            count[0] = saturated.sum()

        core.python("gather", gather, [codes, saturated], [y, counts[ENCODED : ENCODED + 1]])
        return y

    def metrics(self, nodes: list[Node]) -> dict[str, Any]:
        """By layer: the share of encodings, activations and weights outside their bounds."""
        weighted = [node for node in nodes if node.layer.weighted]
        rates = {
            name: {n.name: int(n.state["counts"][out]) / max(1, int(n.state["counts"][all_])) for n in weighted}
            for name, (out, all_) in COUNTS.items()
        }
        for node in weighted:
            node.state["counts"][:] = 0
        return {"overflow_rates": rates}

    def caveats(self, nodes: Sequence[Node], run: Circumstances, seen: Seen) -> list[str]:
        sentences = []
        if self.accumulator == "exact":
            sentences.append("accumulators are float32 (accumulator=exact): blocked and strict are the 8-bit ones")
        if not self.barrier:
            return [*sentences, "barrier=0: no log barrier"]
        weak, epoch, at_all = [], max(1, run.epochs), 0
        for node in nodes:
            pulls = [(t, x, bound) for t, x, bound in (
                ("gradient of w", node.params.get("w"), self.weight_bound),
                ("result", seen[node.name].get("input"), self.activation_bound),
            ) if x is not None and t in seen[node.name]] if node.name in seen else []  # fmt: skip
            for tensor, x, bound in pulls:
                pull, g = np.zeros_like(x), seen[node.name][tensor]
                core.barrier(pull, np.ascontiguousarray(x), bound, self.tightness(epoch), self.barrier / x.size)
                at_all += 1
                with np.errstate(over="ignore"):  # a run that is about to diverge
                    acts = np.linalg.norm(pull) >= LEAST_PULL * np.linalg.norm(g)
                if not acts:
                    weak.append(f"{'w' if tensor == 'gradient of w' else 'x'} of {node.name}")
        if weak:
            where = caveats.layers_text(weak, at_all, "tensors")
            sentences.append(f"the barrier's pull is below {LEAST_PULL:g} of the gradient {where}")
        return sentences

    def error(self, node: Node, dy: Array, context: Context) -> Array:
        return dy

    def weight_grad(self, node: Node, error: Array, context: Context) -> None:
        float32.weight_grad(node, node.saved.get("x_real"), error)
        if node.trains("w"):
            self._barrier(node.grads["w"], node.params["w"], self.weight_bound, context)

    def input_grad(self, node: Node, error: Array, context: Context) -> Array:
        dx = float32.input_grad(node, error, node.saved["w_real"])
        self._barrier(dx, node.saved["x"], self.activation_bound, context)
        return dx

    def _barrier(self, g: Array, x: Array, bound: float, context: Context) -> None:
        """g, 0 where x was clipped, plus the gradient of barrier mean psi_t(|x| - bound), which is 0 where x is."""
        core.barrier(g, x, bound, self.tightness(context.epoch), self.barrier / x.size)
