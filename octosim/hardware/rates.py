"""What octosim's own kernels take on a machine, as `octosim profiles calibrate` measures it, and operations priced by it.

Products follow a sum of measured costs, passes over memory an interpolation in measured times; docs/cost-model.md has both.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from octosim.schema import Frozen, Positive, Text
from octosim.trace import DTYPE_BYTES, Op

Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]

FEATURES = (
    "us_per_call", "ps_per_mac", "ps_per_left", "ps_per_right", "ps_per_result", "ps_per_near", "ps_per_scattered",
    "ps_per_summed",
)  # fmt: skip
LINES_CUT, BLOCK_OF_SUMS = 7 / 8, 256
"""conv_input_grad skips rows of padding where at most 7/8 of the products remain; float32: only if a row's K is a multiple of
256 (`skip_padding_pays` in cext/api_gemm.c)."""
TINY = 1024
"""Bytes up to which a pass over memory takes what a call takes, which is measured, whatever its function."""
PLAIN = {
    f"octo_{product}_{dtype}" for dtype in ("s8", "f32")
    for product in ("gemm", "gemm_batched", *(f"{of}_{pass_}" for of in ("conv", "depthwise")
                                              for pass_ in ("forward", "input_grad", "weight_grad")))
}  # fmt: skip
"""The functions whose products are priced by their kind; another function's (codes in blocks, of 64-bit sums) by themselves."""
FLOATS = 8
"""Columns of a float32 result that a kernel computes at once: narrower results take as long.  Of int8: `Rates.columns`."""
FEW = 32
"""Filters up to which a float32 dW reads X in place (`weight_grad_f32` in cext/products.inc)."""
VECTOR, LINE = 16, 64
"""Channels of a depthwise convolution that a kernel takes at once; and pixels of a line of a dW of 1x1 kernels, where any lines
will do."""
LARGE = 1 << 18
"""Elements of an int8 dW from planes from which on each thread takes its own channels: its sums need not be added up
(`weight_grad_s8` in cext/api_gemm.c)."""
KERNELS = 2
"""Edition of the kernels that `features` describes.  Raise it where a kernel's time comes to follow other features: rates that
were fitted to the old ones would price it wrong."""


class ProductRate(Frozen):
    """One kind of product in one pass: us_per_call + MACs ps_per_mac + M K ps_per_left + K N ps_per_right
    + results ps_per_result + near ps_per_near + scattered ps_per_scattered + summed ps_per_summed.

    M x K x N: of the pass, as in the trace, N rounded up for the MACs to the columns that a kernel computes at once.  Of a
    convolution's dX that of the convolution of dY that it is: for each residue of X's rows modulo the stride a product whose
    columns are the channels of as many neighbours as the stride; in all of them K = kernel rows x taps that reach a neighbour x
    filters.  Rows count by the part of K that is no padding where the product leaves that out (`skip_padding_pays` in
    cext/api_gemm.c).  Of its dW in float32, of at most FEW filters, the transposed one, M = weights of a filter.  Of depthwise
    convolutions left counts the outputs of one channel, result those of all.
    results: elements of the result.  near: elements of the operand whose windows are multiplied, as it lies in memory; of an
    int8 dW from planes, pixels x kernel columns x channels.  scattered: results that a stride puts into place line by line.
    summed: results of an int8 dW whose threads' sums one thread adds up.
    kind: convolution, linear, depthwise, or a function that is not one of PLAIN.
    """

    kind: Annotated[str, Field(pattern=r"^(convolution|linear|depthwise|octo_[A-Za-z0-9_]{1,60})$")]
    dtype: Literal["int8", "float32"]
    pass_: Literal["forward", "dX", "dW"] = Field(alias="pass")
    threads: Annotated[int, Field(ge=1)]
    us_per_call: Cost
    ps_per_mac: Cost
    ps_per_left: Cost
    ps_per_right: Cost
    ps_per_result: Cost
    ps_per_near: Cost = 0.0
    ps_per_scattered: Cost = 0.0
    ps_per_summed: Cost = 0.0


class PassRate(Frozen):
    """Times of one function of octosim's core over memory at some numbers of elements, ascending.

    name: of the function.  moved: bytes that it reads and writes for each element, 0 where unknown.  pass, channels,
    us_per_call: of earlier profiles, whose names are no functions: they price nothing.
    """

    name: Text
    threads: Annotated[int, Field(ge=1)]
    moved: Cost = 0.0
    pass_: Literal["forward", "dX", "dW", "update"] | None = Field(default=None, alias="pass")
    channels: Annotated[int, Field(ge=0)] = 0
    us_per_call: Cost = 0.0
    elements: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=2)]
    us: Annotated[tuple[Positive, ...], Field(strict=False, min_length=2)]

    @model_validator(mode="after")
    def _matching(self) -> PassRate:
        if len(self.us) != len(self.elements) or list(self.elements) != sorted(set(self.elements)):
            raise ValueError("needs ascending elements and as many times")
        return self


class Bandwidth(Frozen):
    """STREAM triad, bytes read and written, on arrays of so many bytes together."""

    level: Text
    threads: Annotated[int, Field(ge=1)]
    bytes: Annotated[int, Field(ge=1)]
    gb_s: Positive


class ReferenceTime(Frozen):
    """Time of the calibration's reference step with so many threads, at the machine's full speed, on which all times rest."""

    threads: Annotated[int, Field(ge=1)]
    us: Positive


class Rates(Frozen):
    """kernels: their edition, which must be KERNELS; files from before it was written have none.
    columns: of an int8 product that the instruction set computes at once (`core.columns`).
    spread: standard deviation of ln(measured / fitted) of the products that the rates were fitted to."""

    source: Text
    kernels: int
    columns: Annotated[int, Field(ge=1, le=256)]
    references: Annotated[tuple[ReferenceTime, ...], Field(strict=False)] = ()
    spread: Positive
    products: Annotated[tuple[ProductRate, ...], Field(strict=False, min_length=1)]
    passes: Annotated[tuple[PassRate, ...], Field(strict=False, min_length=1)]
    bandwidth: Annotated[tuple[Bandwidth, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _of_these_kernels(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("kernels") != KERNELS:
            raise ValueError("were measured with other kernels than octosim has now: run `octosim profiles calibrate`")
        return given


def features(op: Op, columns: int) -> tuple[float, ...]:
    """What FEATURES are multiplied by, in calls, and 10^6 of the others: ps become us.  columns: see `Rates`."""
    kind, plain = shape_of(op), kind_of(op) == shape_of(op)
    m, k, n = (float(size) for size in op.shape)
    block = columns if op.dtype == "int8" else FLOATS
    result, scattered = m * n, 0.0
    near = float(math.prod(op.geometry[:4])) if op.geometry and (plain or kind == "depthwise") else 0.0
    if kind == "depthwise":
        outputs, groups = float(max(op.shape)), _up(op.groups, VECTOR)  # outputs: of one channel
        return 1.0, groups * m * k * n * 1e-6, outputs * 1e-6, 0.0, groups * outputs * 1e-6, near * 1e-6, 0.0, 0.0
    if kind == "convolution" and plain and op.pass_ == "dX":
        (height, width), stride = op.kernel, op.stride
        channels = n // (height * width)
        pixels = math.prod(op.geometry[:3]) if op.geometry else op.writes / DTYPE_BYTES["int32"] / channels
        taps = (width - 1) // stride + 1
        seen = math.sqrt(m * stride**2 / pixels)  # lines of dY for each of X, of square images
        if seen > LINES_CUT or op.dtype != "int8" and k * taps % BLOCK_OF_SUMS:
            seen = 1.0
        near, result = m * k, pixels * channels
        scattered = result if stride > 1 else 0.0
        m, k, n = seen * pixels / stride**2, k * height * taps, channels * stride
    elif kind == "convolution" and plain and op.pass_ == "dW":
        if op.dtype == "int8" and op.geometry:
            return _planes(op, columns)
        if op.dtype != "int8" and m <= FEW:
            m, n = n, m
    return 1.0, m * k * _up(n, block) * 1e-6, m * k * 1e-6, k * n * 1e-6, result * 1e-6, near * 1e-6, scattered * 1e-6, 0.0


def _planes(op: Op, columns: int) -> tuple[float, ...]:
    """Of an int8 weight gradient: in lines of groups of four pixels, from planes, where the lines are long enough for it (a
    third of them wasted at most, `planar_kernel` in cext/api_gemm.c), else from rows that are gathered."""
    m, k, n = op.shape
    _, _, _, channels, _, height, width = op.geometry[:7]
    alone = height * width == 1 and op.stride == 1 and k % LINE == 0
    line = LINE if alone else _line(op)
    grouped = _up(line, 4)
    gathered, pixels, wide = float(k * n), float(k), _up(n, columns)
    if op.stride == 1 and grouped * 3 <= line * 4:
        gathered, pixels, wide = 0.0, k * grouped / line, _up(n, 4)
    macs, near = _up(m, columns) * pixels * wide, 0.0 if gathered else pixels * width * channels
    summed = m * n if gathered or m * n <= LARGE else 0.0
    return 1.0, macs * 1e-6, m * k * 1e-6, gathered * 1e-6, m * n * 1e-6, near * 1e-6, 0.0, summed * 1e-6


def _line(op: Op) -> int:
    """Pixels of a line of a convolution's outputs."""
    _, _, width, _, _, _, kernel, stride, pad = op.geometry[:9]
    across = stride if isinstance(stride, int) else stride[1]
    both = 2 * pad if isinstance(pad, int) else pad[1] + pad[3]
    return int((width + both - kernel) // across + 1)


def _up(size: float, block: int) -> int:
    return block * math.ceil(size / block)


def kind_of(op: Op) -> str:
    """The kind of ProductRate that prices a product: of what shape it is, or the function that no other one is like."""
    if op.function and op.function not in PLAIN:
        return op.function
    return shape_of(op)


def shape_of(op: Op) -> str:
    """convolution, linear or depthwise."""
    if op.groups > 1:
        return "depthwise"
    return "linear" if op.kernel == (0, 0) else "convolution"


def time_of(op: Op, rates: Rates, threads: int) -> tuple[float, float, float]:
    """(compute, memory, overhead) in seconds with so many threads; their sum is the time.

    compute: of products the share of ps_per_mac; memory: packing, results, and passes over memory.
    """
    known = sorted({row.threads for row in rates.products})
    if threads in known or len(known) == 1:
        return _at(op, rates, min(known, key=lambda t: abs(t - threads)))
    few, many = _at(op, rates, known[0]), _at(op, rates, known[-1])
    # linear in 1 / threads: a part that is divided and a part that is not
    share = (1 / min(threads, known[-1]) - 1 / known[-1]) / (1 / known[0] - 1 / known[-1])
    compute, memory, overhead = (b + (a - b) * share for a, b in zip(few, many, strict=True))
    return compute, memory, overhead


def _at(op: Op, rates: Rates, threads: int) -> tuple[float, float, float]:
    if op.kind == "gemm":
        dtype = "int8" if op.dtype == "int8" else "float32"
        alike = [r for r in rates.products if r.threads == threads and r.dtype == dtype]
        rows = [r for r in alike if r.kind == kind_of(op)] or [r for r in alike if r.kind == shape_of(op)]
        row = next((r for r in rows if r.pass_ == op.pass_), rows[0] if rows else None)
        if row is not None:
            call, macs, *moved = features(op, rates.columns)
            memory = sum(getattr(row, name) * of for name, of in zip(FEATURES[2:], moved, strict=True))
            return row.ps_per_mac * macs * 1e-6, memory * 1e-6, row.us_per_call * call * 1e-6
    return pass_time(op, rates.passes, rates.bandwidth, threads)


def pass_time(op: Op, passes: Sequence[PassRate], levels: Sequence[Bandwidth], threads: int) -> tuple[float, float, float]:
    """(0, memory, overhead) in seconds of a pass over memory, by measurements with so many threads."""
    measured = [r for r in passes if r.threads == threads]
    row = _row_of(op, measured)
    overhead = min(r.us[0] for r in measured) * 1e-6
    if row is None:
        moved = max(op.bytes, 2 * op.elements * DTYPE_BYTES.get(op.dtype, 4))
        return 0.0, moved / bandwidth(levels, threads, moved), overhead
    each = max(1, op.elements // calls(op))
    time = interpolate(row.elements, row.us, each) * calls(op) * 1e-6
    if row.moved:
        time *= op.bytes / max(1, op.elements) / row.moved
    overhead = min(row.us[0] * calls(op) * 1e-6, time)
    return 0.0, time - overhead, overhead


def _row_of(op: Op, passes: Sequence[PassRate]) -> PassRate | None:
    """Of the function and its variant, else of the function."""
    rows = {row.name: row for row in passes}
    return rows.get(op.function) or rows.get(op.function.partition(" ")[0])


def priced(op: Op, rates: Rates) -> bool:
    """Whether there is a measurement behind an operation's price."""
    if op.kind == "gemm":
        dtype = "int8" if op.dtype == "int8" else "float32"
        return any(r.dtype == dtype and r.kind == kind_of(op) for r in rates.products)
    return op.bytes <= TINY or _row_of(op, rates.passes) is not None


def calls(op: Op) -> int:
    """How many calls a pass over memory takes: an update one for each tensor."""
    return op.groups if op.kind == "update" else 1


def bandwidth(levels: Sequence[Bandwidth], threads: int, size: float) -> float:
    """Bytes/s of the first level whose measured arrays are at least so large, else of the last."""
    rows = sorted((r for r in levels if r.threads == threads), key=lambda r: r.bytes) or list(levels)
    return next((r.gb_s for r in rows if r.bytes >= size), rows[-1].gb_s) * 1e9


def interpolate(x: Sequence[int], y: Sequence[float], at: float) -> float:
    """y at `at`, linear between logarithms; constant below the first x, proportional to x above the last."""
    return y[-1] * at / x[-1] if at >= x[-1] else between(x, y, at)


def between(x: Sequence[int], y: Sequence[float], at: float) -> float:
    """y at `at`, linear between logarithms; constant outside."""
    if at <= x[0]:
        return y[0]
    if at >= x[-1]:
        return y[-1]
    i = bisect.bisect_right(x, at)
    share = math.log(at / x[i - 1]) / math.log(x[i] / x[i - 1])
    return y[i - 1] * (y[i] / y[i - 1]) ** share
