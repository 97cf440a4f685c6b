"""Matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from octosim.core.call import (
    C_TYPES,
    F32,
    READS,
    S8,
    S32,
    S64,
    U8,
    WRITES,
    Array,
    CoreError,
    Number,
    Product,
    Whole,
    address,
    costs,
    ffi,
    here,
    lib,
    not_recorded,
    ok,
    operand_types,
    output,
    pointer,
    threads_for_a_call,
)
from octosim.numerics import EXACT32, Accumulator, MuLaw, Overflow, mu_tables


def _strided(name: str, array: Array, dtypes: tuple[np.dtype[Any], ...]) -> tuple[Array, int]:
    """A 2-D operand with adjacent elements in its rows (copied if not), and its row stride in elements."""
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype not in dtypes:
        raise CoreError(f"{name} must be a 2-D array of {' or '.join(str(d) for d in dtypes)}")
    size = array.itemsize
    if array.strides[1] != size or array.strides[0] % size or array.strides[0] < array.shape[1] * size:
        not_recorded(f"{name} was copied into rows")
        array = np.ascontiguousarray(array)
    return array, max(array.strides[0] // size, array.shape[1])


class _Product(NamedTuple):
    """The operands of a matrix product after their checks."""

    a: Array
    b: Array
    transpose_a: bool
    transpose_b: bool
    lda: int
    ldb: int
    m: int
    n: int
    k: int

    def arguments(self) -> tuple[Any, ...]:
        """The C call's, from transpose_a to ldb."""
        a, b = _address("a", self.a), _address("b", self.b)
        return self.transpose_a, self.transpose_b, self.m, self.n, self.k, a, self.lda, b, self.ldb


def _address(name: str, x: Array) -> Any:
    """The pointer of an array whose rows may lie apart."""
    if x.flags.c_contiguous:
        return address(x, READS, name)
    if not x.flags.aligned:
        raise CoreError(f"{name} must be aligned to the size of its items")
    if here.recorder is not None:
        here.recorder.operand(name, x, READS)
    return ffi.cast(C_TYPES[x.dtype].replace("[]", " *"), x.ctypes.data)


def _product(a: Array, b: Array, transpose_a: bool, transpose_b: bool) -> _Product:
    a, lda = _strided("a", a, (S8, U8, F32))
    b, ldb = _strided("b", b, (S8, F32))
    if (a.dtype == F32) != (b.dtype == F32):
        raise CoreError(f"a and b must both be float32 or both integer, not {a.dtype} and {b.dtype}")
    k, m = a.shape if transpose_a else a.shape[::-1]
    n, k_b = b.shape if transpose_b else b.shape[::-1]
    if k != k_b:
        raise CoreError(f"the inner sizes differ: op(a) is {m} x {k}, op(b) is {k_b} x {n}")
    return _Product(a, b, transpose_a, transpose_b, lda, ldb, m, n, k)


def _largest(x: Array) -> int:
    """The largest magnitude."""
    return max(-int(x.min()), int(x.max())) if x.size else 0


def _bounds(p: _Product, k: int) -> tuple[int, int]:
    """Largest magnitudes of the operands; 128 for the larger operand, unread, where that already proves k products safe."""
    a_first = p.a.size <= p.b.size
    least = _largest(p.a if a_first else p.b)
    if k <= EXACT32.safe_depth(least, 128 if a_first or p.a.dtype == S8 else 255):
        return (least, 128) if a_first else (128, least)
    rest = _largest(p.b if a_first else p.a)
    return (least, rest) if a_first else (rest, least)


def _in_32_bits(p: _Product, out: Array | None) -> Array:
    """The product modulo 2^32, or in float32; uint8 codes are taken as int8 and 128 column sums of b."""
    out, c = output("out", out, F32 if p.a.dtype == F32 else S32, (p.m, p.n))
    if p.a.dtype == F32:
        ok(lib.octo_gemm_f32(*p.arguments(), c, p.n))
        return out
    if p.a.dtype == U8:
        not_recorded("uint8 codes were taken as int8")
    signed = p if p.a.dtype == S8 else p._replace(a=(p.a ^ np.uint8(128)).view(S8), lda=p.a.shape[1])
    ok(lib.octo_gemm_s8(*signed.arguments(), c, p.n))
    if signed is not p:
        with np.errstate(over="ignore"):
            out += np.int32(128) * p.b.sum(1 if p.transpose_b else 0, dtype=np.int32)
    return out


def _small_exact(a: Array, b: Array, transpose_a: bool, transpose_b: bool, out: Array | None) -> Array | None:
    """`gemm` where nothing needs a second look, in few Python steps: small products take microseconds.  None where one does."""
    try:
        (k, m), (n, k_b) = a.shape if transpose_a else a.shape[::-1], b.shape if transpose_b else b.shape[::-1]
    except (AttributeError, ValueError):
        return None
    kind = a.dtype
    if kind is not S8 and kind is not F32:
        return None
    result, product = (S32, lib.octo_gemm_s8) if kind is S8 else (F32, lib.octo_gemm_f32)
    if k != k_b or k > ALWAYS_SAFE or b.dtype != a.dtype or not (a.flags.c_contiguous and b.flags.c_contiguous):
        return None
    if out is None:
        out = np.empty((m, n), result)
    elif out.dtype != result or out.shape != (m, n) or not (out.flags.c_contiguous and out.flags.writeable):
        return None
    pa, pb, c = address(a, READS, "a"), address(b, READS, "b"), address(out, WRITES, "out")
    ok(product(transpose_a, transpose_b, m, n, k, pa, m if transpose_a else k, pb, k if transpose_b else n, c, n))
    return out


ALWAYS_SAFE = EXACT32.safe_depth(255, 128)
"""K up to which no operands' sums can pass 32 bits, uint8 ones included: 65,793.  Beyond, the operands are looked at."""


def gemm(
    a: Array,
    b: Array,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    accumulator: Accumulator | None = None,
    threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """C = op(A) op(B), op the transpose where asked for.

    a, b: 2-D, both integer (a int8 or uint8, b int8; C is int32) or both float32 (C is float32, no accumulator).
    accumulator None or exact32: integer sums are exact; where K products could pass 2^31 - 1 in magnitude, given the operands'
    own largest magnitudes, CoreError is raised instead.  Any other: the sums as that register makes them, in int32; the exact
    kernel computes them where `accumulator.proof` holds for the operands or where the register only wraps.
    Operands are taken as they are: who models a library that shifts int8 activations by 128 passes uint8.
    float32 sums run in ascending k, in blocks of 256, multiply and add rounded apart (kernels.h, struct octo_job).
    """
    if accumulator is None and threads is None:
        made = _small_exact(a, b, transpose_a, transpose_b, out)
        if made is not None:
            return made
    p = _product(a, b, transpose_a, transpose_b)
    k = p.k
    if p.a.dtype == F32:
        if accumulator is not None:
            raise CoreError(f"accumulator {accumulator.name} is for integer operands, not float32")
    elif accumulator is None or accumulator == EXACT32:
        if k > ALWAYS_SAFE:
            largest = _bounds(p, k)
            if k > EXACT32.safe_depth(*largest):
                raise CoreError(
                    f"a sum of {k} products of int8 codes as large as {largest[0]} and {largest[1]} could overflow 32 bits; "
                    f"at most {EXACT32.safe_depth(*largest)} are safe"
                )
    else:
        assert accumulator is not None
        not_recorded(f"operands were looked at for {accumulator.name}")
        proven = accumulator.proof(k, _largest(p.a), _largest(p.b)).holds
        wraps_only = accumulator.overflow == "wrap" and accumulator.pair_bits is None
        if not proven and not wraps_only:
            return _accumulated(p, accumulator, threads, out, ffi.NULL)
        with threads_for_a_call(threads):
            out = _in_32_bits(p, out)
        shift = np.int32(32 - accumulator.bits)
        if not proven and shift:
            np.right_shift(np.left_shift(out, shift, out=out), shift, out=out)
        return out
    if threads is None:
        return _in_32_bits(p, out)
    with threads_for_a_call(threads):
        return _in_32_bits(p, out)


def _accumulated(p: _Product, how: Accumulator, threads: int | None, out: Array | None, counts: Any) -> Array:
    out, c = output("out", out, S32, (p.m, p.n))
    register = ffi.new("octo_accumulator *", (how.bits, how.overflow == "saturate", how.group, how.pair_bits or 0))
    ta, tb, m, n, k, pa, lda, pb, ldb = p.arguments()
    unsigned = p.a.dtype == U8
    pa = ffi.cast("int8_t *", pa)
    with threads_for_a_call(threads):
        ok(lib.octo_gemm_s8_accumulate(ta, tb, m, n, k, pa, lda, unsigned, pb, ldb, c, n, register, counts))
    return out


def gemm_cost(arguments: tuple[Any, ...]) -> Product:
    """The product of a call whose arguments are two transpositions, m, n, k and more."""
    m, n, k = arguments[2:5]
    return Product((m, k, n))


costs("octo_gemm_s8", "octo_gemm_f32", "octo_gemm_s8_accumulate", product=gemm_cost, weights="b")


def gemm_counted(
    a: Array,
    b: Array,
    accumulator: Accumulator,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    threads: int | None = None,
    out: Array | None = None,
) -> tuple[Array, Overflow]:
    """`gemm` of integer operands in the given accumulator, step by step, and what happened in it."""
    p = _product(a, b, transpose_a, transpose_b)
    if p.a.dtype == F32:
        raise CoreError("overflow is counted for integer operands, not float32")
    counts = ffi.new("octo_overflow *")
    out = _accumulated(p, accumulator, threads, out, counts)
    saturates = accumulator.overflow == "saturate"
    narrowed = int(counts.narrowed)
    overflow = Overflow(int(counts.steps), narrowed * saturates, narrowed * (not saturates), tuple(counts.needed))
    return out, overflow


@lru_cache(maxsize=16)
def _mu_struct(how: MuLaw) -> Any:
    return ffi.new("octo_mu8 *", (*mu_tables(how), how.shift, how.group, how.encode_products))


def gemm_mu8(
    a: Array, b: Array, how: MuLaw, *, threads: int | None = None, out: Array | None = None, count: Array | None = None
) -> tuple[Array, Array]:
    """Mu-law codes of A B, accumulated in mu-law codes, and how many encodings saturated: int64 (1,).

    a: uint8 (m, k), b: uint8 (k, n), mu-law codes with the bounds u_a and u_b; the result's bound is u_a u_b 2^headroom.
    Operands' values are integers up to 8191; after each group of products (ascending k) the accumulator is encoded
    again: ceil(k / group) encodings an output, twice that with how.encode_products.  count: memory whose first element gets
    that number.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise CoreError(f"a mu-law product needs (m, k) and (k, n), not {a.shape} and {b.shape}")
    (m, k), n = a.shape, b.shape[1]
    pa, pb = pointer("a", a, U8), pointer("b", b, U8)
    out, c = output("out", out, U8, (m, n))
    count, saturated = output("count", None if count is None else count[:1], S64, (1,))
    with threads_for_a_call(threads):
        ok(lib.octo_gemm_mu8(m, n, k, pa, pb, _mu_struct(how), c, saturated))
    return out, count


costs("octo_gemm_mu8", product=lambda arguments: Product((arguments[0], arguments[2], arguments[1])), weights="b")


@dataclass(frozen=True)
class Conv:
    """A 2-D convolution's geometry; sizes in elements.

    stride, dilation: down and across, a number where they are the same.  pad: above, left, below, right, a number where they
    are the same.  groups: each has its own consecutive channels and filters.
    """

    batch: int
    height: int
    width: int
    channels: int
    filters: int
    kernel_h: int
    kernel_w: int
    stride: Any = 1
    pad: Any = 0
    dilation: Any = 1
    groups: int = 1

    def __post_init__(self) -> None:
        for name, several in (("stride", self.strides), ("pad", self.pads), ("dilation", self.dilations)):
            object.__setattr__(self, name, several[0] if len(set(several)) == 1 else several)
        if min(*self.strides, *self.dilations, self.groups) < 1 or self.out_h < 1 or self.out_w < 1:
            raise CoreError(
                f"convolution: a {self.kernel_h} x {self.kernel_w} kernel with stride {self.stride} and padding {self.pad} "
                f"does not fit a {self.height} x {self.width} image"
            )

    @cached_property
    def strides(self) -> tuple[int, int]:
        """Down, across."""
        return (self.stride, self.stride) if isinstance(self.stride, int) else tuple(self.stride)

    @cached_property
    def pads(self) -> tuple[int, int, int, int]:
        """Above, left, below, right."""
        return (self.pad,) * 4 if isinstance(self.pad, int) else tuple(self.pad)

    @cached_property
    def dilations(self) -> tuple[int, int]:
        """Down, across."""
        return (self.dilation,) * 2 if isinstance(self.dilation, int) else tuple(self.dilation)

    @property
    def is_grouped(self) -> bool:
        """Whether it has groups or dilation, which the kernels of usual convolutions have not."""
        return self.groups > 1 or self.dilation != 1

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the kernel with the gaps between its taps."""
        (down, across) = self.dilations
        return (self.kernel_h - 1) * down + 1, (self.kernel_w - 1) * across + 1

    @cached_property
    def out_h(self) -> int:
        return (self.height + self.pads[0] + self.pads[2] - self.extent[0]) // self.strides[0] + 1

    @cached_property
    def out_w(self) -> int:
        return (self.width + self.pads[1] + self.pads[3] - self.extent[1]) // self.strides[1] + 1

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.height, self.width, self.channels)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.out_h, self.out_w, self.filters)

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        return (self.filters, self.kernel_h, self.kernel_w, self.channels // self.groups)

    @property
    def numbers(self) -> tuple[Any, ...]:
        """As `trace.Op.geometry` has them: without dilation and groups where there are none."""
        sizes = self.batch, self.height, self.width, self.channels, self.filters
        usual = (*sizes, self.kernel_h, self.kernel_w, self.stride, self.pad)
        return (*usual, self.dilation, self.groups) if self.is_grouped else usual


@lru_cache(maxsize=1024)
def conv_struct(g: Conv) -> Any:
    return ffi.new("octo_conv *", (g.batch, g.height, g.width, g.channels, g.filters, g.kernel_h, g.kernel_w,
                                   *g.strides, *g.pads, *g.dilations, g.groups))  # fmt: skip


def _pass(
    calls: tuple[Any, Any], g: Conv, a: tuple[str, Array, tuple[int, ...]], b: tuple[str, Array, tuple[int, ...]],
    shape: tuple[int, ...], out: Array | None, *, x_zero: Whole | None = None,
) -> Array:  # fmt: skip
    """A pass of a convolution.  calls: of int8 and of float32 operands; a, b: name, array, shape of each; shape: the result's.

    x_zero: the code that int8 padding holds, where the call takes one.
    """
    kind, wide = operand_types(a[1])
    pa, pb = pointer(*a[:2], kind, a[2]), pointer(*b[:2], kind, b[2])
    out, made = output("out", out, wide, shape)
    zero = () if x_zero is None or kind != S8 else (x_zero,)
    ok(calls[kind != S8](conv_struct(g), pa, *zero, pb, made))
    return out


def conv_cost(pass_: str, groups: bool = False) -> Callable[[tuple[Any, ...]], Product]:
    """The product that a pass of a convolution makes, of its call's arguments; groups: one for each channel."""

    @lru_cache(maxsize=1024)
    def product_of(*numbers: Any) -> Product:
        g = Conv(*numbers)
        m, taps = g.batch * g.out_h * g.out_w, g.kernel_h * g.kernel_w
        k, n = (taps, 1) if groups else (taps * g.channels // g.groups, g.filters // g.groups)
        shape = {"forward": (m, k, n), "dX": (m, n, k), "dW": (n, m, k)}[pass_]
        return Product(shape, g.channels if groups else g.groups, g.numbers)

    def product(arguments: tuple[Any, ...]) -> Product:
        c = arguments[0]
        return product_of(
            c.batch, c.height, c.width, c.channels, c.filters, c.kernel_h, c.kernel_w, (c.stride_h, c.stride_w),
            (c.pad_h, c.pad_w, c.pad_bottom, c.pad_right), (c.dilation_h, c.dilation_w), c.groups,
        )  # fmt: skip

    return product


for _of, _grouped in (("conv", False), ("depthwise", True)):
    for _dtype in ("s8", "f32"):
        costs(f"octo_{_of}_forward_{_dtype}", product=conv_cost("forward", _grouped), weights="w")
        costs(f"octo_{_of}_input_grad_{_dtype}", product=conv_cost("dX", _grouped), weights="w")
        costs(f"octo_{_of}_weight_grad_{_dtype}", product=conv_cost("dW", _grouped))


def conv_forward(g: Conv, x: Array, w: Array, *, x_zero: Whole = 0, out: Array | None = None) -> Array:
    """Y = X * W.  x, w int8 -> int32, or float32 -> float32; int8 padding holds the code `x_zero`."""
    calls = lib.octo_conv_forward_s8, lib.octo_conv_forward_f32
    return _pass(calls, g, ("x", x, g.x_shape), ("w", w, g.w_shape), g.y_shape, out, x_zero=x_zero)


def conv_input_grad(g: Conv, dy: Array, w: Array, *, out: Array | None = None) -> Array:
    """dX, shape g.x_shape, from dY and W of one dtype."""
    calls = lib.octo_conv_input_grad_s8, lib.octo_conv_input_grad_f32
    return _pass(calls, g, ("dy", dy, g.y_shape), ("w", w, g.w_shape), g.x_shape, out)


def conv_weight_grad(g: Conv, x: Array, dy: Array, *, x_zero: Whole = 0, out: Array | None = None) -> Array:
    """dW, shape g.w_shape, from X and dY of one dtype; int8 sums run over batch x out_h x out_w products."""
    calls = lib.octo_conv_weight_grad_s8, lib.octo_conv_weight_grad_f32
    return _pass(calls, g, ("x", x, g.x_shape), ("dy", dy, g.y_shape), g.w_shape, out, x_zero=x_zero)


def conv_weight_grad_long(g: Conv, x: Array, dy: Array, *, x_zero: Whole = 0, out: Array | None = None) -> Array:
    """`conv_weight_grad` of int8 codes in int64, exact whatever the number of output pixels."""
    px, pd = pointer("x", x, S8, g.x_shape), pointer("dy", dy, S8, g.y_shape)
    out, p = output("out", out, S64, g.w_shape)
    ok(lib.octo_conv_weight_grad_s64(conv_struct(g), px, x_zero, pd, p))
    return out


def dequantize_long_rows(
    acc: Array, sums: Array, zero: Whole, scale: Number, *, out: Array | None = None
) -> Array:
    """float32 (acc - zero sums) scale of int64 acc; sums int32, one for each index of the first axis.

    The integer is exact; it is rounded to float32 and then multiplied, as `dequantize_rows` does with int32.
    """
    rows = len(acc)
    out, p = output("out", out, F32, acc.shape)
    pa, ps = pointer("acc", acc, S64), pointer("sums", sums, S32, (rows,))
    ok(lib.octo_dequantize_rows_s64(rows, acc.size // rows, pa, ps, zero, scale, p))
    return out


def _depthwise_weights(g: Conv) -> tuple[int, int, int, int]:
    """A depthwise convolution's weights: each filter sees one channel."""
    return (g.channels, g.kernel_h, g.kernel_w, 1)


def depthwise_forward(g: Conv, x: Array, w: Array, *, x_zero: Whole = 0, out: Array | None = None) -> Array:
    """`conv_forward` with as many filters as channels, each on its own channel; w (channels, kernel_h, kernel_w, 1)."""
    calls = lib.octo_depthwise_forward_s8, lib.octo_depthwise_forward_f32
    return _pass(calls, g, ("x", x, g.x_shape), ("w", w, _depthwise_weights(g)), g.y_shape, out, x_zero=x_zero)


def depthwise_input_grad(g: Conv, dy: Array, w: Array, *, out: Array | None = None) -> Array:
    """dX of `depthwise_forward`, shape g.x_shape."""
    calls = lib.octo_depthwise_input_grad_s8, lib.octo_depthwise_input_grad_f32
    return _pass(calls, g, ("dy", dy, g.y_shape), ("w", w, _depthwise_weights(g)), g.x_shape, out)


def depthwise_weight_grad(g: Conv, x: Array, dy: Array, *, x_zero: Whole = 0, out: Array | None = None) -> Array:
    """dW of `depthwise_forward`, (channels, kernel_h, kernel_w, 1)."""
    calls = lib.octo_depthwise_weight_grad_s8, lib.octo_depthwise_weight_grad_f32
    return _pass(calls, g, ("x", x, g.x_shape), ("dy", dy, g.y_shape), _depthwise_weights(g), out, x_zero=x_zero)


def depthwise_weight_grad_long(g: Conv, x: Array, dy: Array, *, x_zero: Whole = 0, out: Array | None = None) -> Array:
    """`depthwise_weight_grad` of int8 codes in int64, exact whatever the number of output pixels."""
    px, pd = pointer("x", x, S8, g.x_shape), pointer("dy", dy, S8, g.y_shape)
    out, p = output("out", out, S64, _depthwise_weights(g))
    ok(lib.octo_depthwise_weight_grad_s64(conv_struct(g), px, x_zero, pd, p))
    return out


# ---- batched products --------------------------------------------------


@dataclass(frozen=True)
class Batched:
    """batch x heads products c = op(a) op(b) of m x k and k x n.

    wide: which of a, b and c have the heads side by side in a row, (batch, rows, heads cols); of the others one head comes
    after the other, (batch, heads, rows, cols).
    """

    batch: int
    heads: int
    m: int
    n: int
    k: int
    transpose_a: bool = False
    transpose_b: bool = False
    wide: tuple[bool, bool, bool] = (False, False, False)

    def _operand(self, at: int) -> tuple[int, int]:
        """Rows and columns of a head's matrix as it lies."""
        if at == 2:
            return self.m, self.n
        rows, cols = ((self.m, self.k), (self.k, self.n))[at]
        return (cols, rows) if (self.transpose_a, self.transpose_b)[at] else (rows, cols)

    def shape(self, at: int) -> tuple[int, ...]:
        """Of a, b or c."""
        rows, cols = self._operand(at)
        return (self.batch, rows, self.heads * cols) if self.wide[at] else (self.batch, self.heads, rows, cols)

    def strides(self, at: int) -> tuple[int, int, int]:
        """From row to row, image to image and head to head."""
        rows, cols = self._operand(at)
        return (self.heads * cols if self.wide[at] else cols), self.heads * rows * cols, cols if self.wide[at] else rows * cols


@lru_cache(maxsize=1024)
def _batched_struct(g: Batched) -> Any:
    strides = [number for at in range(3) for number in g.strides(at)]
    return ffi.new("octo_batched *", (g.transpose_a, g.transpose_b, g.m, g.n, g.k, g.batch, g.heads, *strides))


def gemm_batched(g: Batched, a: Array, b: Array, *, out: Array | None = None) -> Array:
    """The products, each as `gemm` makes them.  a, b int8 -> int32, k at most 131,071; or float32 -> float32."""
    kind, wide = operand_types(a)
    if kind == S8 and g.k > EXACT32.safe_depth(128, 128):
        raise CoreError(f"a sum of {g.k} products of int8 codes could overflow 32 bits")
    pa, pb = pointer("a", a, kind, g.shape(0)), pointer("b", b, kind, g.shape(1))
    out, c = output("out", out, wide, g.shape(2))
    ok((lib.octo_gemm_batched_s8 if kind == S8 else lib.octo_gemm_batched_f32)(_batched_struct(g), pa, pb, c))
    return out


def _batched_cost(arguments: tuple[Any, ...]) -> Product:
    g = arguments[0]
    return Product((g.m, g.k, g.n), g.batch * g.heads)


costs("octo_gemm_batched_s8", "octo_gemm_batched_f32", product=_batched_cost)
costs("octo_conv_weight_grad_s64", product=conv_cost("dW"))
costs("octo_depthwise_weight_grad_s64", product=conv_cost("dW", True))
