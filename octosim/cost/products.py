"""Matrix products of ONNX operators: their sizes, from shapes and attributes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octosim.onnxfile import attribute

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """Products of the same size, (M, K, N), `groups` times.  a, b, y: the operands' and the result's tensors, by name.

    kernel, stride, plain: of a convolution; plain: Winograd's algorithm can make it.
    """

    shape: tuple[int, int, int]
    name: str
    a: str
    b: str
    y: str
    groups: int = 1
    kernel: tuple[int, int] = (0, 0)
    stride: int = 1
    plain: bool = False


Geometry = Callable[[Any, Mapping[str, Shape]], list[Product]]


def _operands(node: Any) -> tuple[str, str, str]:
    """The two operands and the result: of quantized operators scale and zero point stand behind each operand."""
    second = 3 if node.op_type.startswith("QLinear") or node.op_type == "QGemm" else 1
    return node.input[0], node.input[second], node.output[0]


def _conv(node: Any, shapes: Mapping[str, Shape]) -> list[Product]:
    a, b, y = _operands(node)
    x, w, out = shapes[a], shapes[b], shapes[y]
    groups, sides = attribute(node, "group", 1), w[2:]
    kernel = (math.prod(sides[:-1]), sides[-1])
    stride = max(attribute(node, "strides", None) or [1])
    name = "x".join(map(str, sides))
    if node.op_type == "ConvTranspose":
        size = (x[0] * math.prod(x[2:]), x[1] // groups, w[1] * math.prod(sides))
        return [Product(size, f"transposed conv {name}", a, b, y, groups, kernel, stride)]
    size = (out[0] * math.prod(out[2:]), w[1] * math.prod(sides), w[0] // groups)
    plain = max(attribute(node, "dilations", None) or [1]) == 1
    return [Product(size, f"conv {name}", a, b, y, groups, kernel, stride, plain)]


def _gemm(node: Any, shapes: Mapping[str, Shape]) -> list[Product]:
    a, b, y = _operands(node)
    x, w = shapes[a], shapes[b]
    m, k = (x[1], x[0]) if attribute(node, "transA", 0) else (x[0], x[1])
    return [Product((m, k, w[0] if attribute(node, "transB", 0) else w[1]), "linear", a, b, y)]


def _matmul(node: Any, shapes: Mapping[str, Shape]) -> list[Product]:
    a, b, y = _operands(node)
    x, w = shapes[a], shapes[b]
    if attribute(node, "transA", 0):
        x = (*x[:-2], x[-1], x[-2])
    if attribute(node, "transB", 0):
        w = (*w[:-2], w[-1], w[-2])
    if len(w) <= 2:  # one matrix for all rows
        k, n = (w[0], w[1]) if len(w) == 2 else (w[0], 1)
        return [Product((math.prod(x) // max(1, k), k, n), "linear", a, b, y)]
    batches = shapes[y][: -2 if len(x) > 1 else -1]
    return [Product((x[-2] if len(x) > 1 else 1, x[-1], w[-1]), "matmul", a, b, y, math.prod(batches))]


def _recurrent(node: Any, shapes: Mapping[str, Shape]) -> list[Product]:
    """The products with the input of all steps at once, and one with the state in each step."""
    a, w, r = node.input[0], node.input[1], node.input[2]
    x, (directions, gates, inputs), hidden = shapes[a], shapes[w], shapes[r][2]
    steps, batch = (x[1], x[0]) if attribute(node, "layout", 0) else (x[0], x[1])
    y = next(name for name in node.output if name)
    kind = node.op_type.lower()
    return [
        Product((steps * batch, inputs, gates), f"{kind} input", a, w, y, directions),
        Product((batch, hidden, gates), f"{kind} state", y, r, y, steps * directions),
    ]


def _einsum(node: Any, shapes: Mapping[str, Shape]) -> list[Product]:
    """The product of two tensors; of more, from left to right.  Labels that one operand alone has and the result has not are
    summed before."""
    equation = attribute(node, "equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    sizes: dict[str, int] = {}
    filled: list[str] = []
    for term, name in zip(terms, node.input, strict=True):
        shape = shapes[name]
        if "..." in term:
            extra = len(shape) - len(term.replace("...", ""))
            term = term.replace("...", "".join(chr(0x3B1 + 24 - extra + i) for i in range(extra)))
        for label, size in zip(term, shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), size)
        filled.append(term)
    if arrow:
        rest = [label for label in sizes if ord(label) > 0x3B0]
        result = result.replace("...", "".join(sorted(rest)))
    else:
        joined = "".join(filled)
        result = "".join(sorted(label for label in sizes if joined.count(label) == 1 or ord(label) > 0x3B0))
    found: list[Product] = []
    first = filled[0]
    for number, second in enumerate(filled[1:], 1):
        later = set(result).union(*filled[number + 1 :])
        groups = math.prod(sizes[label] for label in set(first) & set(second) & later)
        k = math.prod(sizes[label] for label in (set(first) & set(second)) - later)
        m = math.prod(sizes[label] for label in (set(first) - set(second)) & later)
        n = math.prod(sizes[label] for label in (set(second) - set(first)) & later)
        a = node.input[0] if number == 1 else node.output[0]
        found.append(Product((m, k, n), "einsum", a, node.input[number], node.output[0], groups))
        first = "".join(label for label in dict.fromkeys(first + second) if label in later)
    return found


def _attention(node: Any, shapes: Mapping[str, Shape]) -> list[Product]:
    """Scores Q K^T and the values that they weigh, for each head."""
    q, k, v = (shapes[name] for name in node.input[:3])
    y = node.output[0]
    if len(q) == 4:
        batch, heads, rows, depth = q
        columns, width = k[2], v[3]
    else:
        heads = attribute(node, "q_num_heads", 1) or attribute(node, "num_heads", 1)
        shared = attribute(node, "kv_num_heads", heads) or heads
        batch, rows, depth = q[0], q[1], q[2] // heads
        columns, width = k[1], v[2] // shared
    if len(node.input) > 4 and node.input[4] in shapes:  # keys of earlier tokens
        columns += shapes[node.input[4]][2]
    return [
        Product((rows, depth, columns), "scores", node.input[0], node.input[1], y, batch * heads),
        Product((rows, columns, width), "attention", y, node.input[2], y, batch * heads),
    ]


def _heads(node: Any, shapes: Mapping[str, Shape]) -> list[Product]:
    """onnxruntime's operators: `Attention` multiplies with the weights of Q, K and V too."""
    heads, y, x = attribute(node, "num_heads", 1), node.output[0], shapes[node.input[0]]
    if node.op_type == "MultiHeadAttention":
        return _attention(node, shapes)
    w = shapes[node.input[1]]
    batch, rows, depth = x[0], x[1], w[1] // 3 // max(1, heads)
    return [
        Product((batch * rows, w[0], w[1]), "linear", node.input[0], node.input[1], y),
        Product((rows, depth, rows), "scores", y, y, y, batch * heads),
        Product((rows, rows, depth), "attention", y, y, y, batch * heads),
    ]


MICROSOFT = "com.microsoft"
PRODUCTS: dict[tuple[str, str], Geometry] = {
    **{("", op): _conv for op in ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv")},
    **{("", op): _matmul for op in ("MatMul", "MatMulInteger", "QLinearMatMul")},
    **{("", op): _recurrent for op in ("LSTM", "GRU", "RNN")},
    ("", "Gemm"): _gemm,
    ("", "Einsum"): _einsum,
    ("", "Attention"): _attention,
    **{(MICROSOFT, op): _matmul for op in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "FusedMatMul")},
    **{(MICROSOFT, op): _gemm for op in ("QGemm", "FusedGemm")},
    **{(MICROSOFT, op): _heads for op in ("Attention", "MultiHeadAttention")},
    (MICROSOFT, "FusedConv"): _conv,
}
"""Operators with matrix products, by domain and name."""


def of(node: Any) -> Geometry | None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    return PRODUCTS.get((domain, node.op_type))
