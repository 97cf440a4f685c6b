"""What octosim's own kernels take on a machine, as `octosim profiles calibrate` measures it, and operations priced by it.

Products follow a sum of measured costs, passes over memory an interpolation in measured times; docs/cost-model.md has both.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from octosim.schema import Frozen, Positive, Text
from octosim.trace import DTYPE_BYTES, Op

Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]

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
FEW = 32
"""Filters up to which a float32 dW reads X in place (`weight_grad_f32` in cext/products.inc)."""
VECTOR, LINE = 16, 64
"""Channels of a depthwise convolution that a kernel takes at once; and pixels of a line of a dW of 1x1 kernels, where any lines
will do."""
LARGE = 1 << 18
"""Elements of an int8 dW from planes from which on each thread takes its own channels: its sums need not be added up
(`weight_grad_s8` in cext/api_gemm.c)."""
MOST_PIXELS, MOST_OF_DY = 4096, 1 << 20
"""Pixels and elements of dY that a call of an int8 dW takes at most where tiles multiply (`weight_grad_lines` in
cext/api_gemm.c)."""
SHORT, FAR = 8, 256
"""Pixels of a line from which on a float32 product reads windows in place, and the most values from one of them to the next
(`gemm_f32` in cext/products.inc)."""
ROW, WIDEST = 192, 16
"""What a row of a narrow int8 convolution costs beside its products, and the most columns that neighbouring pixels make
together (`neighbours` in cext/api_gemm.c)."""
SIDE, STEP, SHORTEST, LONGER = 16, 4, 7, 16
"""Rows of a tile, and codes of a step of it.  Pixels of a line from which on windows are read in place, of results of at most
two tiles' columns and of wider ones (`in_place` in cext/x86_gemm.inc)."""
KERNELS = 4
"""Edition of the kernels that `work` describes.  Raise it where a kernel's time comes to follow other work: rates that were
fitted to the old one would price it wrong."""


class Work(NamedTuple):
    """What takes a product its time, M x K x N as its pass is in the trace; each has a cost in ProductRate.

    macs: M K N, with what is computed in vain: N rounded up to the columns that a kernel computes at once, of a narrow int8
        convolution those of neighbouring pixels together (`neighbours` in cext/api_gemm.c); where tiles multiply, M and the
        runs of K rounded up too.
    left, right: M K and K N, operands that are packed; left without windows that are read in place.
    result: M N, with the columns in vain.  scattered: results that are put into place line by line, of a stride or of products
        that leave padding out; of codes in blocks the runs of channels that are added to X's.
    near: elements of the operand whose windows are multiplied, as it lies in memory; of an int8 dW from planes, pixels x kernel
        columns x channels, with tiles K N where rows are gathered before they are packed.
    summed: results of an int8 dW whose threads' sums one thread adds up.
    vector_macs: of int8, what is left to vectors where tiles multiply, instead of macs.
    lines: of windows that are read in place, for each of the kernel's columns.

    A convolution's dX is the convolution of dY that it is: for each residue of X's rows modulo the stride a product whose
    columns are the channels of as many neighbours as the stride; in all of them K = kernel rows x taps that reach a neighbour x
    filters.  Rows count by the part of K that is no padding where the product leaves that out (`skip_padding_pays` in
    cext/api_gemm.c).  Of a float32 dW of at most FEW filters M is the weights of a filter.  Of depthwise convolutions left
    counts the outputs of one channel, result those of all.
    """

    calls: float = 1.0
    macs: float = 0.0
    left: float = 0.0
    right: float = 0.0
    result: float = 0.0
    near: float = 0.0
    scattered: float = 0.0
    summed: float = 0.0
    vector_macs: float = 0.0
    lines: float = 0.0

    def scaled(self) -> tuple[float, ...]:
        """In calls and millions of the others: what COSTS give microseconds of."""
        return self.calls, *(count * 1e-6 for count in self[1:])


COSTS = (
    "us_per_call", "ps_per_mac", "ps_per_left", "ps_per_right", "ps_per_result", "ps_per_near", "ps_per_scattered",
    "ps_per_summed", "ps_per_vector_mac", "ps_per_line",
)  # fmt: skip
"""Of each of Work's in its order."""


class ProductRate(Frozen):
    """COSTS of one kind of product in one pass.  kind: convolution, linear, depthwise, or a function that is not of PLAIN."""

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
    ps_per_vector_mac: Cost = 0.0
    ps_per_line: Cost = 0.0


class PassRate(Frozen):
    """Times of one function of octosim's core over memory at some numbers of elements, ascending, beside what it takes for each
    run of neighbours (`Op.channels` of them) and for each byte that it reads or writes.  name: of the function, with its
    variant."""

    name: Text
    threads: Annotated[int, Field(ge=1)]
    ps_per_run: Cost = 0.0
    ps_per_byte: Cost = 0.0
    elements: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=2)]
    us: Annotated[tuple[Positive, ...], Field(strict=False, min_length=2)]

    @model_validator(mode="after")
    def _matching(self) -> PassRate:
        if len(self.us) != len(self.elements) or list(self.elements) != sorted(set(self.elements)):
            raise ValueError("needs ascending elements and as many times")
        return self

    def time(self, elements: float, runs: float, moved: float) -> float:
        """Microseconds of a call on so many elements in so many runs, which moves so many bytes."""
        return interpolate(self.elements, self.us, elements) + (self.ps_per_run * runs + self.ps_per_byte * moved) * 1e-6


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


class Tiling(Frozen):
    """`core.Tiling` of the instruction set."""

    int8: Annotated[int, Field(ge=1, le=256)]
    float32: Annotated[int, Field(ge=1, le=256)]
    depth: Annotated[int, Field(ge=0, le=1024)] = 0
    in_place: bool = False


class Rates(Frozen):
    """kernels: their edition, which must be KERNELS; files from before it was written have none.
    spread: standard deviation of ln(measured / fitted) of the products that the rates were fitted to."""

    source: Text
    kernels: int
    tiling: Tiling
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


def work(op: Op, tiling: Tiling) -> Work:
    """Of a product, with kernels of such a tiling."""
    kind, plain = shape_of(op), kind_of(op) == shape_of(op)
    m, k, n = (float(size) for size in op.shape)
    result, scattered, windows = m * n, 0.0, None
    near = float(math.prod(op.geometry[:4])) if op.geometry and (plain or kind == "depthwise") else 0.0
    if kind == "depthwise":
        outputs, groups = float(max(op.shape)), _up(op.groups, VECTOR)  # outputs: of one channel
        return Work(macs=groups * m * k * n, left=outputs, result=groups * outputs, near=near)
    if kind == "convolution" and not plain and op.pass_ == "dX":
        scattered = m * math.prod(op.kernel)
    elif kind == "convolution" and plain and op.pass_ == "forward" and op.geometry:
        windows = Windows(_line(op), *op.kernel, op.geometry[3], op.stride)
    elif kind == "convolution" and plain and op.pass_ == "dX":
        (height, width), stride = op.kernel, op.stride
        channels, filters = n // (height * width), int(k)
        pixels = math.prod(op.geometry[:3]) if op.geometry else op.writes / DTYPE_BYTES["int32"] / channels
        taps = (width - 1) // stride + 1
        seen = math.sqrt(m * stride**2 / pixels)  # lines of dY for each of X, of square images
        if seen > LINES_CUT or op.dtype != "int8" and filters * taps % BLOCK_OF_SUMS:
            seen = 1.0
        near, result = m * k, pixels * channels
        scattered = result if stride > 1 or seen < 1 else 0.0
        m, k, n = seen * pixels / stride**2, k * height * taps, channels * stride
        if op.geometry:
            windows = Windows(max(1, op.geometry[2] // stride), height, taps, filters, 1 if stride == 1 else 0)
    elif kind == "convolution" and plain and op.pass_ == "dW":
        if op.dtype == "int8" and op.geometry:
            return _weight_gradient(op, tiling)
        if op.dtype != "int8" and m <= FEW:
            m, n = n, m
    rest = Work(near=near, scattered=scattered)
    if op.dtype == "int8" and plain:
        return _int8(m, k, n, result, tiling, windows, rest)
    columns = tiling.int8 if op.dtype == "int8" else tiling.float32
    wide = _up(n, columns)
    done = rest._replace(macs=m * k * wide, left=m * k, right=k * n, result=result * wide / n)
    if windows is None or windows.line < SHORT or max(1, windows.stride) * windows.pixel > FAR:
        return done
    return done._replace(left=0.0, lines=m / windows.line * wide / columns)


class Windows(NamedTuple):
    """A convolution's: how many are in a line; lines of taps, taps of a line, values of a pixel; pixels from one to the next, 0
    where neighbours are together anyway."""

    line: int
    height: int
    width: int
    pixel: int
    stride: int


def _int8(m: float, k: float, n: float, result: float, tiling: Tiling, windows: Windows | None, rest: Work) -> Work:
    """An int8 product M x K x N, of a convolution with `result` results; rest: what else there is to it."""
    line, run, overlap = 1, k, False
    if windows is not None:
        line, height, taps, pixel, stride = windows
        together, taps = _neighbours(n, taps, height * pixel, stride, line, tiling.int8)
        line, run = line // together, taps * pixel
        m, k, n = m / together, height * run, n * together
        overlap = 2 * max(1, stride) * together * pixel <= k
    least = SHORTEST if n <= 2 * tiling.int8 else LONGER
    steps = math.ceil(run / STEP) * k / run
    in_place = tiling.in_place and overlap and line >= least and 2 * steps <= 3 * math.ceil(k / STEP)
    wide = _up(n, tiling.int8)
    done = rest._replace(left=0.0 if in_place else m * k, right=k * n, result=result * wide / n,
                         lines=m / line * wide / tiling.int8 if in_place else 0.0)  # fmt: skip
    if not tiling.depth:
        return done._replace(macs=m * k * wide)
    if k <= tiling.depth:
        return done._replace(vector_macs=m * k * wide)
    rows, steps = (line, run) if in_place else (m, k)  # that tiles round up
    return done._replace(macs=m / rows * _up(rows, SIDE) * k / steps * _up(steps, tiling.depth) * wide)


def _neighbours(n: float, taps: int, deep: int, stride: int, line: int, columns: int) -> tuple[int, int]:
    """How many neighbouring pixels' results a narrow convolution computes together, and the taps that these see."""
    best, seen, least = 1, taps, math.inf
    for together in range(1, max(1, int(WIDEST // n)) + 1 if stride else 2):
        wide = taps + (together - 1) * stride
        cost = (_up(together * n, columns) * wide * deep + ROW) / together
        if line % together == 0 and cost < least:
            best, seen, least = together, wide, cost
    return best, seen


def _weight_gradient(op: Op, tiling: Tiling) -> Work:
    """Of an int8 weight gradient.  Tiles take dY by filters and the rows of im2col, packed from X (gathered first unless four
    pixels and 16 columns lie side by side), and round up pixels, filters and columns; they leave a single channel to vectors.

    Vectors multiply in lines of groups of four pixels, from planes (of a channel, or of few channels an element of a run:
    `octo_planes` in cext/kernels.h), where the lines are long enough for it (a third of them wasted at most, `line_kernel` in
    cext/api_gemm.c), else rows that are gathered."""
    m, k, n = op.shape
    channels, _, height, width = op.geometry[3:7]
    filters = _up(m, tiling.int8)
    done = Work(left=filters * k, result=m * n)
    line = LINE if height * width == 1 and op.stride == 1 and k % LINE == 0 else _line(op)
    if tiling.depth and channels > 1:
        calls = math.ceil(k / min(MOST_PIXELS, max(1, MOST_OF_DY // m)))
        gathered = k * n if line % STEP or width * channels % SIDE else 0.0
        return done._replace(macs=_up(m, SIDE) * _up(k, tiling.depth) * _up(n, SIDE), right=k * n, near=gathered,
                             result=m * n * calls, summed=m * n if m * n <= LARGE else 0.0)  # fmt: skip
    grouped = _up(line, STEP)
    if op.stride > 1 or grouped * 3 > line * 4:
        return done._replace(macs=filters * k * _up(n, tiling.int8), right=k * n, summed=m * n)
    pixels = k * grouped / line
    macs = filters * pixels * _up(n, STEP)
    done = done._replace(near=pixels * width * channels, summed=m * n if m * n <= LARGE else 0.0)
    return done._replace(vector_macs=macs) if tiling.depth else done._replace(macs=macs)


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

    compute: of products the share of the MACs; memory: packing, results, and passes over memory.
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
            us = Work(*(getattr(row, cost) * count for cost, count in zip(COSTS, work(op, rates.tiling).scaled(), strict=True)))
            compute = us.macs + us.vector_macs
            return compute * 1e-6, (sum(us[1:]) - compute) * 1e-6, us.calls * 1e-6
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
    time = row.time(each, runs(op), op.bytes / calls(op)) * calls(op) * 1e-6
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


def runs(op: Op) -> float:
    """How many runs of neighbours a call of a pass over memory works on; 0 where it works on all elements alike."""
    return op.elements / op.channels if op.channels and op.kind != "update" else 0.0


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
