"""What methods with int8 products share: the proof that no sum overflows, ranges, passes on codes, and their trace."""

from __future__ import annotations

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import ROLES, Array, Context, Node
from octosim.engine.quantizers import LARGEST_CODE, QTensor
from octosim.errors import OctosimError
from octosim.numerics import EXACT32

RANGE_MOMENTUM = 0.1  # of the running activation range, as batch normalization's running statistics
BITS = dict.fromkeys(ROLES, "float32") | {
    "weights": "int8",
    "activations": "int8",
    "gradients": "float32, of int8 products",
    "errors": "int8",
    "accumulator": "int32",
}
"""Types where the products alone are int8 and everything else is float32."""

PASSES = ("forward", "dX", "dW")


def refuse_overflow(node: Node, batch: int, passes: tuple[str, ...] = PASSES) -> None:
    """OctosimError where a sum of products of codes in +-127 could leave 32 bits at this batch size, in one of the passes."""
    safe = EXACT32.safe_depth(LARGEST_CODE, LARGEST_CODE)
    for name, depth in zip(PASSES, node.layer.product(node, batch).depths, strict=True):
        if depth > safe and name in passes:
            raise OctosimError(
                f"layer {node.name}, {name}: a sum of {depth} int8 products could overflow the 32-bit accumulator "
                f"(safe up to {safe})" + ("; use a smaller batch size" if name == "dW" else "")
            )


# ---- ranges and codes --------------------------------------------------


def running_range(node: Node, x: Array, context: Context) -> core.Range:
    """The batch's own range of x in training, the running one, state["x_range"], in inference."""
    running = node.state["x_range"]
    if not context.training:
        return core.Range(*running.tolist())
    found = node.x_range or core.value_range(x)
    core.follow_range(running, found, RANGE_MOMENTUM)
    return found


def weights(node: Node) -> QTensor:
    """Codes of a layer's weights within their range, nearest."""
    found = node.range_of("w")
    return symmetric(node, node.params["w"], found.low, found.high)


def symmetric(node: Node, x: Array, low: core.Number, high: core.Number) -> QTensor:
    """Codes of a layer's tensor within a range, nearest, in memory of the network."""
    return quantizers.symmetric(x, low, high, out=node.buffer(x.shape, np.int8))


# ---- the passes: codes in, float32 out; the backward ones are for symmetric codes ------------------------


def forward(node: Node, x: QTensor, w: QTensor) -> core.Sums:
    """Y = (sum (q_x - Z) q_w + round(b / S)) S with S = S_x S_w, or (sum (q_x - Z) q_w) S + b where b / S is beyond int32.

    The codes are kept for the backward passes.
    """
    node.saved.update(x=x, w=w)
    batch = x.q.shape[0]
    acc = node.buffer((batch, *node.out_shape), np.int32)
    node.layer.product(node, batch).forward(x.q, w.q, x_zero=x.z, out=acc)
    # padding holds Z, so every output has the same second term
    zero_term = core.zero_term(core.row_sums(w.q), x.z)
    scale = core.product_scale(x.s, w.s)
    rest = np.empty(zero_term.size + 1, np.float32)
    return core.Sums(acc, core.lac_fold(node.params["b"], zero_term, scale, rest=rest), scale, rest=rest)


def weight_sums(node: Node, dy: QTensor, add: Array) -> core.Sums | core.RowSums:
    """dW's sums of the codes plus add, one for each row.  Of a fully connected layer rows are made as the update takes them:
    its weights are many and its sums short."""
    x, shape, product = node.saved["x"], node.params["w"].shape, node.layer.product(node, len(dy.q))
    scale = core.product_scale(x.s, dy.s)
    if hasattr(product, "weight_grad_rows"):

        def make(rows: slice) -> core.Sums:
            core.at(node.name, "dW")
            some = add[rows]
            acc = product.weight_grad_rows(x.q, dy.q, rows, out=node.buffer((len(some), *shape[1:]), np.int32))
            core.at("optimizer", "update")
            return core.Sums(acc, some, scale, by_rows=True)

        return core.RowSums(make, shape)
    acc = product.weight_grad(x.q, dy.q, x_zero=x.z, out=node.buffer(shape, np.int32))
    return core.Sums(acc, add, scale, by_rows=True)


def real(sums: Array, codes: QTensor) -> Array:
    """float32 values of sums of codes with zero point 0."""
    return core.dequantize_sums(sums, np.zeros_like(sums), codes.s)


def weight_grad(node: Node, dy: QTensor) -> None:
    """dW = (sum q_dy q_x) S_dy S_x, db = S_dy sum q_dy."""
    node.grads["w"] = weight_sums(node, dy, np.zeros(len(node.params["w"]), np.int32))
    node.grads["b"] = real(core.column_sums(dy.q), dy)


def input_grad(node: Node, dy: QTensor) -> core.Sums:
    """dX = (sum q_dy q_w) S_dy S_w."""
    batch, w = dy.q.shape[0], node.saved["w"]
    acc = node.buffer((batch, *node.in_shape), np.int32)
    node.layer.product(node, batch).input_grad(dy.q, w.q, out=acc)
    return core.Sums(acc, np.zeros(node.in_shape[-1], np.int32), core.product_scale(w.s, dy.s))
