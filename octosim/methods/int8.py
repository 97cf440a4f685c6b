"""What methods with int8 products share: the proof that no sum overflows, ranges, passes on codes, and their trace."""

from __future__ import annotations

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import RANGE, ROLES, SIDES, Array, BatchedProduct, Context, Node, Product
from octosim.engine.quantizers import LARGEST_CODE
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


SAFE = EXACT32.safe_depth(LARGEST_CODE, LARGEST_CODE)
"""Products of codes in +-127 whose sum 32 bits hold."""


def refuse_overflow(node: Node, batch: int, passes: tuple[str, ...] = PASSES, long: bool = False) -> None:
    """OctosimError where a sum of products of codes in +-127 could leave 32 bits at this batch size, in one of the passes.

    long: the method takes longer sums for dW, where the product has them (`weight_values`).
    """
    safe, product = SAFE, node.layer.product(node, batch)
    for name, depth in zip(PASSES, product.depths, strict=True):
        if depth > safe and name in passes and not (long and name == "dW" and product.any_length):
            raise OctosimError(
                f"layer {node.name}, {name}: a sum of {depth} int8 products could overflow the 32-bit accumulator "
                f"(safe up to {safe})" + ("; use a smaller batch size" if name == "dW" else "")
            )


def sums_in_32_bits(product: Product) -> bool:
    """Whether dW's sums are int32: 32 bits hold them, or the product has no `long_weight_grad`."""
    return product.depths[2] <= SAFE or not product.any_length


# ---- ranges and codes --------------------------------------------------


def running_range(node: Node, x: Array, context: Context, key: str = RANGE) -> core.Range:
    """The batch's own range of x in training, the running one, state[key], in inference."""
    running = node.state[key]
    if not context.training and running.any():
        return core.Range(*running.tolist())
    found = (node.x_range if key == RANGE else None) or core.value_range(x)
    if not context.training:  # before the first step: the batch's own range, which no state keeps
        return found
    core.ema_range(running, found, RANGE_MOMENTUM)
    return found


def weights(node: Node) -> core.Tensor:
    """Codes of a layer's weights within their range, nearest."""
    found = node.range_of("w")
    return symmetric(node, node.params["w"], found.low, found.high)


def symmetric(node: Node, x: Array, low: core.Number, high: core.Number) -> core.Tensor:
    """Codes of a layer's tensor within a range, nearest, in memory of the network."""
    return quantizers.symmetric(x, low, high, out=node.buffer(x.shape, np.int8))


def forward_symmetric(node: Node, x: Array, context: Context) -> core.LazyDequant:
    """`forward` of symmetric codes within the running range of x."""
    x_range = running_range(node, x, context)
    return forward(node, symmetric(node, x, x_range.low, x_range.high), weights(node))


# ---- the passes: codes in, float32 out; the backward ones are for symmetric codes ------------------------


def forward(node: Node, x: core.Tensor, w: core.Tensor) -> core.LazyDequant:
    """Y = (sum (q_x - Z) q_w + round(b / S)) S with S = S_x S_w, or (sum (q_x - Z) q_w) S + b where b / S is beyond int32.

    The codes are kept for the backward passes.
    """
    node.saved.update(x=x, w=w)
    batch = x.q.shape[0]
    acc = node.buffer((batch, *node.out_shape), np.int32)
    node.layer.product(node, batch).forward(x.q, w.q, x_zero=x.z, out=acc)
    # padding holds Z, so every output has the same second term
    zero_point_correction = core.zero_point_correction(core.row_sums(w.q), x.z)
    scale = core.combined_scale(x.s, w.s)
    rest = np.empty(zero_point_correction.size + 1, np.float32)
    return core.LazyDequant(acc, core.fold_bias(node.params["b"], zero_point_correction, scale, rest=rest), scale, rest=rest)


def weight_sums(node: Node, dy: core.Tensor, add: Array) -> core.LazyDequant | core.LazyWeightGrad:
    """dW's sums of the codes plus add, one for each row.  Of a fully connected layer rows are made as the update takes them:
    its weights are many and its sums short."""
    x, shape, product = node.saved["x"], node.params["w"].shape, node.layer.product(node, len(dy.q))
    scale = core.combined_scale(x.s, dy.s)
    if hasattr(product, "weight_grad_rows"):

        def make(rows: slice) -> core.LazyDequant:
            core.at(node.name, "dW")
            some = add[rows]
            acc = product.weight_grad_rows(x.q, dy.q, rows, out=node.buffer((len(some), *shape[1:]), np.int32))
            core.at("optimizer", "update")
            return core.LazyDequant(acc, some, scale, by_rows=True)

        return core.LazyWeightGrad(make, shape)
    acc = product.weight_grad(x.q, dy.q, x_zero=x.z, out=node.buffer(shape, np.int32))
    return core.LazyDequant(acc, add, scale, by_rows=True)


def weight_values(
    node: Node, dy: core.Tensor, sums: Array, zero: core.Whole = 0
) -> core.LazyDequant | core.LazyWeightGrad | Array:
    """dW of the codes; sums: of dy's codes over all but the channels, by which x's zero point goes in.

    Where sums could leave 32 bits they are taken in 64 and rounded once to float32.
    """
    x, product = node.saved["x"], node.layer.product(node, len(dy.q))
    if sums_in_32_bits(product):
        return weight_sums(node, dy, core.zero_point_correction(sums, zero))
    shape = node.params["w"].shape
    acc = product.long_weight_grad(x.q, dy.q, x_zero=x.z, out=node.buffer(shape, np.int64))
    scale = core.combined_scale(x.s, dy.s)
    return core.dequantize_long_rows(acc, sums, zero, scale, out=node.buffer(shape, np.float32))


def direction(node: Node, x: Array, dy: Array) -> Array:
    """int32 sums of dW of codes with zero point 0, for methods that use their direction alone.

    Sums that could leave 32 bits are taken in 64 and shifted right by the bits that the largest needs beyond 31: seldom any.
    """
    shape, product = node.params["w"].shape, node.layer.product(node, len(dy))
    acc = node.buffer(shape, np.int32)
    if sums_in_32_bits(product):
        return product.weight_grad(x, dy, out=acc)
    long = product.long_weight_grad(x, dy, out=node.buffer(shape, np.int64))
    core.python("narrow long sums", _in_32_bits, [long], [acc])
    return acc


def _in_32_bits(long: Array, acc: Array) -> None:
    bits = max(int(long.max()), -int(long.min())).bit_length()
    np.right_shift(long, max(0, bits - 31), out=acc, casting="unsafe")


def real(sums: Array, codes: core.Tensor) -> Array:
    """float32 values of sums of codes with zero point 0."""
    return core.dequantize_sums(sums, np.zeros_like(sums), codes.s)


def weight_grad(node: Node, dy: core.Tensor) -> None:
    """dW = (sum q_dy q_x) S_dy S_x, db = S_dy sum q_dy."""
    product = node.layer.product(node, len(dy.q))
    if not node.trains("w"):
        node.grads["b"] = real(core.column_sums(dy.q), dy)
        return
    if sums_in_32_bits(product):
        node.grads["w"] = weight_sums(node, dy, np.zeros(len(node.params["w"]), np.int32))
        node.grads["b"] = real(core.column_sums(dy.q), dy)
        return
    sums = core.column_sums(dy.q)
    node.grads.update(w=weight_values(node, dy, sums), b=real(sums, dy))


def input_grad(node: Node, dy: core.Tensor) -> core.LazyDequant:
    """dX = (sum q_dy q_w) S_dy S_w."""
    batch, w = dy.q.shape[0], node.saved["w"]
    acc = node.buffer((batch, *node.in_shape), np.int32)
    node.layer.product(node, batch).input_grad(dy.q, w.q, out=acc)
    return core.LazyDequant(acc, np.zeros(node.in_shape[-1], np.int32), core.combined_scale(w.s, dy.s))


# ---- products of activations: both operands quantized, symmetric --------------------------------------------------


def init_products(node: Node, names: tuple[str, ...]) -> None:
    """Running ranges of both operands of each product."""
    for name in names:
        node.state.update({f"{name}_{side}": np.zeros(2, np.float32) for side in SIDES})


def refuse_long(node: Node, product: BatchedProduct) -> None:
    """OctosimError where a sum of codes could leave 32 bits."""
    if product.depth > SAFE:
        raise OctosimError(
            f"layer {node.name}: a sum of {product.depth} int8 products could overflow the 32-bit accumulator "
            f"(safe up to {SAFE})"
        )


def _codes(node: Node, key: str, x: Array, context: Context) -> core.Tensor:
    found = running_range(node, x, context, key)
    return symmetric(node, x, found.low, found.high)


def multiply(node: Node, name: str, product: BatchedProduct, a: Array, b: Array, context: Context) -> Array:
    """C = (sum q_a q_b) S_a S_b."""
    refuse_long(node, product)
    qa, qb = _codes(node, f"{name}_left", a, context), _codes(node, f"{name}_right", b, context)
    node.saved[name] = qa, qb
    sums = product.forward(qa.q, qb.q, out=node.buffer(product.geometry.shape(2), np.int32))
    return _in_float(sums, core.combined_scale(qa.s, qb.s))


def multiply_grads(node: Node, name: str, product: BatchedProduct, dc: core.Tensor) -> tuple[Array, Array]:
    """dA = (sum q_dc q_b) S_dc S_b and dB = (sum q_a q_dc) S_a S_dc."""
    (qa, qb), g = node.saved[name], product.geometry
    da = product.left_grad(dc.q, qb.q, out=node.buffer(g.shape(0), np.int32))
    db = product.right_grad(qa.q, dc.q, out=node.buffer(g.shape(1), np.int32))
    return _in_float(da, core.combined_scale(dc.s, qb.s)), _in_float(db, core.combined_scale(qa.s, dc.s))


def _in_float(sums: Array, scale: core.Number) -> Array:
    """float32 values of sums, in their memory."""
    return core.materialize_in_place(core.LazyDequant(sums, np.zeros(sums.shape[-1], np.int32), scale))
