"""The trace: what the layers of a network do in one step, as plain records.

A trace is all that a cost model sees.  It is made from geometry alone (`octosim.engine.trace`), so a step of any network
can be priced without running it; `octosim bench` measures the same (layer, pass) pairs for real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

PASSES = ("forward", "dX", "dW", "update")
"""forward: Y = X W^T.  dX: input gradient dX = dY W.  dW: weight gradient dW = dY^T X.  update: the optimizer."""

DTYPE_BYTES = {"int8": 1, "int16": 2, "float16": 2, "int32": 4, "float32": 4}

WORK = {"Sigmoid": 4, "Softmax": 4, "LRN": 40}
"""How many times an element of an elementwise operation counts that takes longer than an addition: the order of the
instructions of an exponential; LRN takes a power and five neighbours."""

KINDS = ("gemm", "elementwise", "update")
"""gemm: a matrix product (convolutions included).  elementwise: a pass over memory (quantize, bias, normalization, ReLU,
pooling, loss ...), reductions included.  update: the optimizer's pass over the parameters."""

ALGORITHMS = ("direct", "winograd")
"""winograd: F(4x4, 3x3) for a 3x3 convolution of stride 1: a quarter of the products, more traffic (Lavin & Gray 2016).
Inference only: it is not bit-exact with the definition, so octosim's own training does not use it."""


@dataclass(frozen=True)
class Op:
    """One operation of one layer in one pass of a training step, for a whole batch.

    layer:  the layer's name in the model ("conv1").
    pass_:  one of PASSES.
    kind:   one of KINDS.
    name:   what it does, for people: "conv 5x5", "linear", "quantize", "batchnorm", "relu" ...
    shape:  for a gemm (M, K, N) with K the reduction; else (elements,), each counted WORK times.
    dtype:  the arithmetic: "int8" (int8 x int8 products summed in int32), "int16" (of codes with more bits) or "float32".
    reads, writes: compulsory traffic in bytes: every operand once, in the type it is stored in.
    groups: products of the shape in a grouped convolution; each takes the channels of one group.
    kernel, stride: of a convolution or of pooling whose elements count their windows; (0, 0) where the operation is none.
    weights: how many of the bytes are parameters, which stay from step to step.
    algorithm: one of ALGORITHMS.
    channels: neighbours in memory that an elementwise operation works on at once, of most the innermost axis; 0 where that
        does not matter.
    groups of an update: tensors that are updated one by one.
    function: of octosim's core, which makes it; "" where other software does.
    slow: times as long as octosim's kernels would compute, by software whose kernels are generic.
    passes: times that software passes over the operands of an elementwise operation or an update.
    geometry: of a convolution: batch, height, width, channels, filters, kernel height and width, stride, padding; with groups
        or dilation, these too (`core.Conv`).
    threads: the most that software works on it with, 0 where all can.  calls: that software makes of it.
    images: that are taken one after the other, each with all of the weights.
    """

    layer: str
    pass_: str
    kind: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    reads: int
    writes: int
    groups: int = 1
    kernel: tuple[int, int] = (0, 0)
    stride: int = 1
    weights: int = 0
    algorithm: str = "direct"
    channels: int = 0
    function: str = ""
    geometry: tuple[Any, ...] = ()
    slow: float = 1.0
    passes: float = 1.0
    threads: int = 0
    calls: int = 1
    images: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates: groups*M*K*N of a gemm, else 0, whatever the algorithm.  One MAC is two operations."""
        if self.kind != "gemm":
            return 0
        m, k, n = self.shape
        return m * k * n * self.groups

    @property
    def elements(self) -> int:
        """Elements that the operation produces: groups*M*N of a gemm, else the element count."""
        return self.groups * self.shape[0] * self.shape[2] if self.kind == "gemm" else self.shape[0]

    @property
    def bytes(self) -> int:
        """Compulsory memory traffic in bytes, of one pass."""
        return self.reads + self.writes

    @property
    def traffic(self) -> int:
        """Memory traffic of all passes in bytes."""
        return round(self.bytes * self.passes)


def with_peak(parts: Mapping[str, int]) -> dict[str, int]:
    """The parts of the main memory that a step takes, by what they hold, with their sum "peak".

    "weights apart", in a memory of their own, are not in it.
    """
    return {"peak": sum(size for name, size in parts.items() if name not in ("peak", "weights apart"))} | {
        name: size for name, size in parts.items() if name != "peak"
    }


def with_winograd(op: Op) -> Op:
    """The operation as inference software runs it: Winograd's algorithm for a 3x3 convolution of stride 1, where it is wide
    enough for the transforms to pay (16 channels in and out)."""
    wide = op.kind == "gemm" and op.shape[1] >= 9 * 16 and op.shape[2] >= 16
    if wide and op.kernel == (3, 3) and op.stride == 1 and op.groups == 1:
        return replace(op, algorithm="winograd")
    return op


def is_training(ops: Sequence[Op]) -> bool:
    """Whether operations are a training step's, not an inference's."""
    return any(op.pass_ != "forward" for op in ops)
