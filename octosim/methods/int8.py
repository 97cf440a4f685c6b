"""What methods with int8 products share: the proof that no sum overflows, and the trace of the three passes."""

from __future__ import annotations

import math

from octosim.errors import OctosimError
from octosim.nodes import Node
from octosim.numerics import EXACT32
from octosim.quant import LARGEST_CODE
from octosim.trace import Op


def refuse_overflow(node: Node, batch: int) -> None:
    """OctosimError where a sum of products of codes in +-127 could leave 32 bits at this batch size."""
    safe = EXACT32.safe_depth(LARGEST_CODE, LARGEST_CODE)
    for name, depth in zip(("forward", "dX", "dW"), node.layer.product(node, batch).depths, strict=True):
        if depth > safe:
            raise OctosimError(
                f"layer {node.name}, {name}: a sum of {depth} int8 products could overflow the 32-bit accumulator "
                f"(safe up to {safe})" + ("; use a smaller --batch-size" if name == "dW" else "")
            )


def sizes(node: Node, batch: int) -> tuple[int, int, int]:
    """Elements of x, w and y."""
    m, _, n = node.layer.product(node, batch).shape
    return batch * math.prod(node.in_shape), node.params["w"].size, m * n * node.layer.product(node, batch).groups


def products(node: Node, batch: int) -> list[Op]:
    """The three matrix products on int8 codes; forward, dW, dX."""
    product = node.layer.product(node, batch)
    (m, k, n), groups, kernel = product.shape, product.groups, product.kernel
    x, w, y = sizes(node, batch)
    name, kind = node.name, node.layer.title
    return [
        Op(name, "forward", "gemm", kind, (m, k, n), "int8", x + w, 4 * y, groups=groups, kernel=kernel, weights=w),
        Op(name, "dW", "gemm", kind, (n, m, k), "int8", x + y, 4 * w, groups=groups, kernel=kernel),
        Op(name, "dX", "gemm", kind, (m, n, k), "int8", y + w, 4 * x, groups=groups, kernel=kernel, weights=w),
    ]
