"""The trace: what the layers of a network do in one step, as plain records.

A trace is all that a cost model sees.  It is made from geometry alone (`octosim.models.trace`), so a step of any network
can be priced without running it; `octosim bench` measures the same (layer, pass) pairs for real.
"""

from __future__ import annotations

from dataclasses import dataclass

PASSES = ("forward", "dX", "dW", "update")
"""forward: Y = X W^T.  dX: input gradient dX = dY W.  dW: weight gradient dW = dY^T X.  update: the optimizer."""

DTYPE_BYTES = {"int8": 1, "float16": 2, "int32": 4, "float32": 4}

KINDS = ("gemm", "elementwise", "update")
"""gemm: a matrix product (convolutions included).  elementwise: a pass over memory (quantize, bias, normalization, ReLU,
pooling, loss ...), reductions included.  update: the optimizer's pass over the parameters."""


@dataclass(frozen=True)
class Op:
    """One operation of one layer in one pass of a training step, for a whole batch.

    layer:  the layer's name in the model ("conv1").
    pass_:  one of PASSES.
    kind:   one of KINDS.
    name:   what it does, for people: "conv 5x5", "linear", "quantize", "batchnorm", "relu" ...
    shape:  for a gemm (M, K, N) with K the reduction; else (elements,).
    dtype:  the arithmetic: "int8" (int8 x int8 products summed in int32) or "float32".
    reads, writes: compulsory traffic in bytes: every operand once, in the type it is stored in.
    """

    layer: str
    pass_: str
    kind: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    reads: int
    writes: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates: M*K*N of a gemm, else 0.  One MAC is two operations."""
        if self.kind != "gemm":
            return 0
        m, k, n = self.shape
        return m * k * n

    @property
    def elements(self) -> int:
        """Elements that the operation produces: M*N of a gemm, else the element count."""
        return self.shape[0] * self.shape[2] if self.kind == "gemm" else self.shape[0]

    @property
    def bytes(self) -> int:
        """Compulsory memory traffic in bytes."""
        return self.reads + self.writes
