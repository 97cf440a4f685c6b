"""The only module that touches C: NumPy arrays in and out, dtype and shape checks, status -> CoreError.

Arrays are C-contiguous unless a docstring says otherwise.  `out` may be given to reuse memory; it is returned.  Results do not
depend on the instruction set or on the number of threads, to the bit.  Images are NHWC, convolution weights
[filter][kernel_h][kernel_w][channel].  cext/octosim.h says what every function means, cext/loops.inc its arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from octosim.errors import OctosimError
from octosim.numerics import EXACT32, Accumulator, Overflow

# GNU OpenMP's threads spin for milliseconds at a barrier, which on a machine that others use too makes a step many times
# slower.  It reads this variable once, when it is loaded; who sets it or OMP_WAIT_POLICY decides, and other libraries' own
# copies are left alone.
_quiet = not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ)
if _quiet:
    os.environ["GOMP_SPINCOUNT"] = "20000"
from octosim._core import ffi, lib  # noqa: E402

if _quiet:
    del os.environ["GOMP_SPINCOUNT"]

Array = np.ndarray[Any, Any]


class CoreError(OctosimError):
    """A call of the C core was refused: a wrong dtype, shape or size, an unknown instruction set, no memory."""


class NotFiniteError(CoreError):
    """A float32 array holds a NaN or an infinity where a number is needed."""


_ERRORS = {lib.OCTO_EFINITE: NotFiniteError}
_C_TYPES = {np.dtype(k): f"{v}[]" for k, v in {
    "int8": "int8_t", "uint8": "uint8_t", "int32": "int32_t", "uint32": "uint32_t", "float32": "float"}.items()}  # fmt: skip
F32, S8, S32, U8, U32 = (np.dtype(t) for t in ("float32", "int8", "int32", "uint8", "uint32"))


def _ok(status: int) -> None:
    """The one place where a status becomes an exception."""
    if status:
        raise _ERRORS.get(status, CoreError)(ffi.string(lib.octo_error()).decode())


def _in(name: str, array: Array, dtype: np.dtype[Any], shape: tuple[int, ...] | None = None) -> Any:
    """The pointer of an input, after its checks."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise CoreError(f"{name} must be a {dtype} array, not {found}")
    if shape is not None and array.shape != shape:
        raise CoreError(f"{name} must have shape {shape}, not {array.shape}")
    if not array.flags.c_contiguous:
        raise CoreError(f"{name} must be C-contiguous")
    return ffi.from_buffer(_C_TYPES[dtype], array)


def _out(name: str, array: Array | None, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[Array, Any]:
    """An output, made where none is given, and its pointer."""
    if array is None:
        array = np.empty(shape, dtype)
    elif not array.flags.writeable:
        raise CoreError(f"{name} is read-only")
    return array, _in(name, array, dtype, shape)


# ---- instruction sets and threads --------------------------------------------------


def isas() -> dict[str, bool]:
    """Instruction sets of this build, slowest first, and whether this CPU has them."""
    rows = range(lib.octo_isa_count())
    return {ffi.string(lib.octo_isa_name(i)).decode(): bool(lib.octo_isa_supported(i)) for i in rows}


def isa() -> str:
    """The instruction set in use."""
    return str(ffi.string(lib.octo_isa()).decode())


def set_isa(name: str) -> None:
    """Uses the kernels of `name` from now on; CoreError if it is unknown or this CPU lacks it.  OCTOSIM_ISA does the same."""
    _ok(lib.octo_set_isa(name.encode()))


def threads() -> int:
    """Threads that the kernels use."""
    return int(lib.octo_threads())


def set_threads(count: int) -> None:
    """Uses `count` threads from now on (1 where the build has no OpenMP)."""
    if not 1 <= count <= 1024:
        raise CoreError(f"threads must be in 1 .. 1024, not {count}")
    _ok(lib.octo_set_threads(count))


if os.environ.get("OCTOSIM_ISA"):
    try:
        set_isa(os.environ["OCTOSIM_ISA"])
    except CoreError as error:
        raise CoreError(f"OCTOSIM_ISA: {error}") from None


# ---- matrix products and convolutions --------------------------------------------------


def _strided(name: str, array: Array, dtypes: tuple[np.dtype[Any], ...]) -> tuple[Array, int]:
    """A 2-D operand with adjacent elements in its rows (copied if not), and its row stride in elements."""
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype not in dtypes:
        raise CoreError(f"{name} must be a 2-D array of {' or '.join(str(d) for d in dtypes)}")
    size = array.itemsize
    if array.strides[1] != size or array.strides[0] % size or array.strides[0] < array.shape[1] * size:
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
        a, b = _address(self.a), _address(self.b)
        return self.transpose_a, self.transpose_b, self.m, self.n, self.k, a, self.lda, b, self.ldb


def _address(x: Array) -> Any:
    """The pointer of an array whose rows may lie apart."""
    if x.flags.c_contiguous:
        return ffi.from_buffer(_C_TYPES[x.dtype], x)
    return ffi.cast(_C_TYPES[x.dtype].replace("[]", " *"), x.ctypes.data)


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


@contextmanager
def _threads_for_a_call(count: int | None) -> Iterator[None]:
    before = lib.octo_threads()
    if count is not None:
        set_threads(count)
    try:
        yield
    finally:
        if count is not None:
            lib.octo_set_threads(before)


def _in_32_bits(p: _Product, out: Array | None) -> Array:
    """The product modulo 2^32, or in float32; uint8 codes are taken as int8 and 128 column sums of b."""
    out, c = _out("out", out, F32 if p.a.dtype == F32 else S32, (p.m, p.n))
    if p.a.dtype == F32:
        _ok(lib.octo_gemm_f32(*p.arguments(), c, p.n))
        return out
    signed = p if p.a.dtype == S8 else p._replace(a=(p.a ^ np.uint8(128)).view(S8), lda=p.a.shape[1])
    _ok(lib.octo_gemm_s8(*signed.arguments(), c, p.n))
    if signed is not p:
        with np.errstate(over="ignore"):
            out += np.int32(128) * p.b.sum(1 if p.transpose_b else 0, dtype=np.int32)
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
    p = _product(a, b, transpose_a, transpose_b)
    k = p.k
    if p.a.dtype == F32:
        if accumulator is not None:
            raise CoreError(f"accumulator {accumulator.name} is for integer operands, not float32")
    elif accumulator is None or accumulator == EXACT32:
        if k > ALWAYS_SAFE:
            largest = _largest(p.a), _largest(p.b)
            if k > EXACT32.safe_depth(*largest):
                raise CoreError(
                    f"a sum of {k} products of int8 codes as large as {largest[0]} and {largest[1]} could overflow 32 bits; "
                    f"at most {EXACT32.safe_depth(*largest)} are safe"
                )
    else:
        assert accumulator is not None
        proven = accumulator.proof(k, _largest(p.a), _largest(p.b)).holds
        wraps_only = accumulator.overflow == "wrap" and accumulator.pair_bits is None
        if not proven and not wraps_only:
            return _accumulated(p, accumulator, threads, out, ffi.NULL)
        with _threads_for_a_call(threads):
            out = _in_32_bits(p, out)
        shift = np.int32(32 - accumulator.bits)
        if not proven and shift:
            np.right_shift(np.left_shift(out, shift, out=out), shift, out=out)
        return out
    if threads is None:
        return _in_32_bits(p, out)
    with _threads_for_a_call(threads):
        return _in_32_bits(p, out)


def _accumulated(p: _Product, how: Accumulator, threads: int | None, out: Array | None, counts: Any) -> Array:
    out, c = _out("out", out, S32, (p.m, p.n))
    register = ffi.new("octo_accumulator *", (how.bits, how.overflow == "saturate", how.group, how.pair_bits or 0))
    ta, tb, m, n, k, pa, lda, pb, ldb = p.arguments()
    unsigned = p.a.dtype == U8
    pa = ffi.cast("int8_t *", pa)
    with _threads_for_a_call(threads):
        _ok(lib.octo_gemm_s8_accumulate(ta, tb, m, n, k, pa, lda, unsigned, pb, ldb, c, n, register, counts))
    return out


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


@dataclass(frozen=True)
class Conv:
    """A 2-D convolution's geometry; sizes in elements."""

    batch: int
    height: int
    width: int
    channels: int
    filters: int
    kernel_h: int
    kernel_w: int
    stride: int = 1
    pad: int = 0

    def __post_init__(self) -> None:
        if self.stride < 1 or self.out_h < 1 or self.out_w < 1:
            raise CoreError(
                f"convolution: a {self.kernel_h} x {self.kernel_w} kernel with stride {self.stride} and padding {self.pad} "
                f"does not fit a {self.height} x {self.width} image"
            )

    @property
    def out_h(self) -> int:
        return (self.height + 2 * self.pad - self.kernel_h) // self.stride + 1

    @property
    def out_w(self) -> int:
        return (self.width + 2 * self.pad - self.kernel_w) // self.stride + 1

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.height, self.width, self.channels)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.out_h, self.out_w, self.filters)

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        return (self.filters, self.kernel_h, self.kernel_w, self.channels)


@lru_cache(maxsize=1024)
def _conv(g: Conv) -> Any:
    return ffi.new("octo_conv *", (g.batch, g.height, g.width, g.channels, g.filters, g.kernel_h, g.kernel_w,
                                   g.stride, g.stride, g.pad, g.pad))  # fmt: skip


def _both(x: Array) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Operand and result dtype of a convolution."""
    return (S8, S32) if isinstance(x, np.ndarray) and x.dtype == S8 else (F32, F32)


def conv_forward(g: Conv, x: Array, w: Array, *, x_zero: int = 0, out: Array | None = None) -> Array:
    """Y = X * W.  x, w int8 -> int32, or float32 -> float32; int8 padding holds the code `x_zero`."""
    kind, wide = _both(x)
    px, pw = _in("x", x, kind, g.x_shape), _in("w", w, kind, g.w_shape)
    out, py = _out("out", out, wide, g.y_shape)
    if kind == S8:
        _ok(lib.octo_conv_forward_s8(_conv(g), px, x_zero, pw, py))
    else:
        _ok(lib.octo_conv_forward_f32(_conv(g), px, pw, py))
    return out


def conv_input_grad(g: Conv, dy: Array, w: Array, *, out: Array | None = None) -> Array:
    """dX, shape g.x_shape, from dY and W of one dtype."""
    kind, wide = _both(dy)
    pdy, pw = _in("dy", dy, kind, g.y_shape), _in("w", w, kind, g.w_shape)
    out, pdx = _out("out", out, wide, g.x_shape)
    _ok((lib.octo_conv_input_grad_s8 if kind == S8 else lib.octo_conv_input_grad_f32)(_conv(g), pdy, pw, pdx))
    return out


def conv_weight_grad(g: Conv, x: Array, dy: Array, *, x_zero: int = 0, out: Array | None = None) -> Array:
    """dW, shape g.w_shape, from X and dY of one dtype; int8 sums run over batch x out_h x out_w products."""
    kind, wide = _both(x)
    px, pdy = _in("x", x, kind, g.x_shape), _in("dy", dy, kind, g.y_shape)
    out, pdw = _out("out", out, wide, g.w_shape)
    if kind == S8:
        _ok(lib.octo_conv_weight_grad_s8(_conv(g), px, x_zero, pdy, pdw))
    else:
        _ok(lib.octo_conv_weight_grad_f32(_conv(g), px, pdy, pdw))
    return out


# ---- randomness and elementary functions --------------------------------------------------


def philox(n: int, seed: int, step: int = 0, tensor: int = 0, *, out: Array | None = None) -> Array:
    """uint32 words 0 .. n-1 of the Philox4x32-10 stream (seed, step, tensor)."""
    out, p = _out("out", out, U32, (n,))
    _ok(lib.octo_philox(n, seed, step, tensor, p))
    return out


def normal(shape: tuple[int, ...], seed: int, tensor: int, deviation: float, *, step: int = 0, mean: float = 0.0) -> Array:
    """float32 normal deviates from the Philox stream (seed, step, tensor), the same on every machine."""
    out, p = _out("out", None, F32, shape)
    _ok(lib.octo_normal_f32(out.size, seed, step, tensor, mean, deviation, p))
    return out


def exp(x: Array) -> Array:
    """float32 e^x for |x| <= 87, at most 2 ulp off."""
    out, p = _out("out", None, F32, x.shape)
    _ok(lib.octo_exp_f32(x.size, _in("x", x, F32), p))
    return out


def log(x: Array) -> Array:
    """float32 ln x for normal x > 0, at most 2 ulp off."""
    out, p = _out("out", None, F32, x.shape)
    _ok(lib.octo_log_f32(x.size, _in("x", x, F32), p))
    return out


# ---- quantization --------------------------------------------------


def value_range(x: Array) -> tuple[float, float]:
    """Smallest and largest value of a float32 array; NotFiniteError where it holds a NaN or an infinity."""
    pair = ffi.new("float[2]")
    _ok(lib.octo_range_f32(x.size, _in("x", x, F32), pair, pair + 1))
    return pair[0], pair[1]


def moments(x: Array) -> tuple[float, float]:
    """Mean and standard deviation (divided by n) of a float32 array."""
    pair = ffi.new("float[2]")
    _ok(lib.octo_moments_f32(x.size, _in("x", x, F32), pair, pair + 1))
    return pair[0], pair[1]


def quantize(
    x: Array,
    inv_scale: float,
    *,
    zero: int = 0,
    low: int = -127,
    high: int = 127,
    random: tuple[int, int, int] | None = None,
    out: Array | None = None,
) -> Array:
    """int8 codes clamp(round(x * inv_scale) + zero, low, high) of a float32 array.

    Rounds half to even; with random = (seed, step, tensor) stochastically, floor(x * inv_scale + u).
    """
    out, q = _out("out", out, S8, x.shape)
    p = _in("x", x, F32)
    if random is None:
        _ok(lib.octo_quantize_s8(x.size, p, inv_scale, zero, low, high, q))
    else:
        _ok(lib.octo_quantize_s8_stochastic(x.size, p, inv_scale, zero, low, high, *random, q))
    return out


def dequantize(q: Array, scale: float, *, zero: int = 0, out: Array | None = None) -> Array:
    """float32 (q - zero) * scale of int8 codes."""
    out, p = _out("out", out, F32, q.shape)
    _ok(lib.octo_dequantize_s8(q.size, _in("q", q, S8), scale, zero, p))
    return out


def dequantize_rows(acc: Array, add: Array, scale: float, *, out: Array | None = None) -> Array:
    """float32 (acc + add) * scale of int32 sums, `add` int32 (acc.shape[0],): one value for each index of the first axis."""
    rows = acc.shape[0]
    out, p = _out("out", out, F32, acc.shape)
    pointers = [_in("acc", acc, S32), _in("add", add, S32, (rows,))]
    _ok(lib.octo_dequantize_rows_s32(rows, acc.size // rows, *pointers, scale, p))
    return out


def dequantize_sums(acc: Array, add: Array, scale: float, *, out: Array | None = None) -> Array:
    """float32 (acc + add) * scale of int32 sums; `add` (int32) repeats along acc: acc.size is a multiple of add.size."""
    rows, rest = divmod(acc.size, add.size)
    if rest:
        raise CoreError(f"acc has {acc.size} elements, not a multiple of add's {add.size}")
    out, p = _out("out", out, F32, acc.shape)
    _ok(lib.octo_dequantize_s32(rows, add.size, _in("acc", acc, S32), _in("add", add, S32), scale, p))
    return out


def images(x: Array, scale: float, shift: float, *, out: Array | None = None) -> Array:
    """float32 x * scale + shift of uint8 pixels."""
    out, p = _out("out", out, F32, x.shape)
    _ok(lib.octo_images_f32(x.size, _in("x", x, U8), scale, shift, p))
    return out


# ---- columns: sums, affine maps, batch normalization --------------------------------------------------


def _matrix(x: Array) -> tuple[int, int]:
    """Rows and columns, the last axis being the columns."""
    if x.ndim < 1 or not x.size:
        raise CoreError("x must have a last axis and no empty one")
    return x.size // x.shape[-1], x.shape[-1]


def column_sums(x: Array, cols: int | None = None, *, out: Array | None = None) -> Array:
    """Sums over all axes but the last (or over rows of `cols` elements): float32 -> float32, int8 -> int32."""
    cols = cols or x.shape[-1]
    kind, wide = _both(x)
    out, p = _out("out", out, wide, (cols,))
    call = lib.octo_column_sums_s8 if kind == S8 else lib.octo_column_sums_f32
    _ok(call(x.size // cols, cols, _in("x", x, kind), p))
    return out


def row_sums(x: Array, *, out: Array | None = None) -> Array:
    """int32 sums of int8 x over all axes but the first."""
    out, p = _out("out", out, S32, (x.shape[0],))
    _ok(lib.octo_row_sums_s8(x.shape[0], x.size // x.shape[0], _in("x", x, S8), p))
    return out


def affine(x: Array, scale: Array, shift: Array, *, relu: bool = False, out: Array | None = None) -> Array:
    """x * scale + shift over the last axis, then max(., 0) where relu is set; out may be x."""
    rows, cols = _matrix(x)
    out, p = _out("out", out, F32, x.shape)
    pointers = [_in("scale", scale, F32, (cols,)), _in("shift", shift, F32, (cols,))]
    _ok(lib.octo_affine_f32(rows, cols, _in("x", x, F32), *pointers, relu, p))
    return out


def batchnorm_forward(
    x: Array,
    gamma: Array,
    beta: Array,
    running_mean: Array,
    running_var: Array,
    *,
    eps: float,
    momentum: float,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Normalizes over all axes but the last with the batch's statistics and updates the running ones in place.

    Returns y, the batch mean and 1 / sqrt(variance + eps), each (channels,).
    """
    rows, cols = _matrix(x)
    out, p = _out("out", out, F32, x.shape)
    (mean, pm), (inv_std, ps) = _out("mean", None, F32, (cols,)), _out("inv_std", None, F32, (cols,))
    state = [_in(n, v, F32, (cols,)) for n, v in (("gamma", gamma), ("beta", beta))]
    running = [_in(n, v, F32, (cols,)) for n, v in (("running_mean", running_mean), ("running_var", running_var))]
    _ok(lib.octo_batchnorm_forward_f32(rows, cols, _in("x", x, F32), *state, eps, momentum, *running, pm, ps, p))
    return out, mean, inv_std


def batchnorm_inference(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, eps: float, out: Array | None = None
) -> Array:
    """Normalizes with the running statistics."""
    rows, cols = _matrix(x)
    out, p = _out("out", out, F32, x.shape)
    columns = [_in(n, v, F32, (cols,)) for n, v in zip(("gamma", "beta"), (gamma, beta), strict=True)]
    running = [_in(n, v, F32, (cols,)) for n, v in zip(("mean", "var"), (mean, var), strict=True)]
    _ok(lib.octo_batchnorm_inference_f32(rows, cols, _in("x", x, F32), *columns, eps, *running, p))
    return out


def batchnorm_backward(
    x: Array, dy: Array, gamma: Array, mean: Array, inv_std: Array, *, out: Array | None = None
) -> tuple[Array, Array, Array]:
    """dx, dgamma, dbeta of `batchnorm_forward`; out may be dy."""
    rows, cols = _matrix(x)
    out, p = _out("out", out, F32, x.shape)
    (dgamma, pg), (dbeta, pb) = _out("dgamma", None, F32, (cols,)), _out("dbeta", None, F32, (cols,))
    columns = [_in(n, v, F32, (cols,)) for n, v in (("gamma", gamma), ("mean", mean), ("inv_std", inv_std))]
    _ok(lib.octo_batchnorm_backward_f32(rows, cols, _in("x", x, F32), _in("dy", dy, F32, x.shape), *columns, p, pg, pb))
    return out, dgamma, dbeta


# ---- the other layers --------------------------------------------------


def relu(x: Array, *, out: Array | None = None) -> Array:
    """max(x, 0); out may be x."""
    out, p = _out("out", out, F32, x.shape)
    _ok(lib.octo_relu_f32(x.size, _in("x", x, F32), p))
    return out


def relu_backward(y: Array, dy: Array, *, out: Array | None = None) -> Array:
    """dy where y > 0, else 0; out may be dy."""
    out, p = _out("out", out, F32, y.shape)
    _ok(lib.octo_relu_backward_f32(y.size, _in("y", y, F32), _in("dy", dy, F32, y.shape), p))
    return out


@dataclass(frozen=True)
class Pool:
    """A square pooling window without padding."""

    batch: int
    height: int
    width: int
    channels: int
    kernel: int
    stride: int

    def __post_init__(self) -> None:
        if self.stride < 1 or not 1 <= self.kernel <= min(self.height, self.width):
            raise CoreError(
                f"pooling: a {self.kernel} x {self.kernel} window with stride {self.stride} does not fit a "
                f"{self.height} x {self.width} image"
            )

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.height, self.width, self.channels)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        out_h, out_w = ((size - self.kernel) // self.stride + 1 for size in (self.height, self.width))
        return (self.batch, out_h, out_w, self.channels)


@lru_cache(maxsize=1024)
def _pool(g: Pool) -> Any:
    return ffi.new("octo_pool *", (g.batch, g.height, g.width, g.channels, g.kernel, g.stride))


def maxpool(g: Pool, x: Array, *, out: Array | None = None, argmax: Array | None = None) -> tuple[Array, Array]:
    """The largest of each window, and its position in the window (uint8, the first of equals)."""
    out, p = _out("out", out, F32, g.y_shape)
    argmax, where = _out("argmax", argmax, U8, g.y_shape)
    _ok(lib.octo_maxpool_f32(_pool(g), _in("x", x, F32, g.x_shape), p, where))
    return out, argmax


def maxpool_backward(g: Pool, dy: Array, argmax: Array, *, out: Array | None = None) -> Array:
    """dx of `maxpool`: dy added to each window's largest."""
    out, p = _out("out", out, F32, g.x_shape)
    _ok(lib.octo_maxpool_backward_f32(_pool(g), _in("dy", dy, F32, g.y_shape), _in("argmax", argmax, U8, g.y_shape), p))
    return out


def dropout(x: Array, rate: float, random: tuple[int, int, int], *, out: Array | None = None) -> Array:
    """Zeroes a share `rate` of x and scales the rest by 1 / (1 - rate).

    random = (seed, step, tensor) decides which: the same call on dy is the backward pass.
    """
    out, p = _out("out", out, F32, x.shape)
    _ok(lib.octo_dropout_f32(x.size, _in("x", x, F32), rate, *random, p))
    return out


def softmax_cross_entropy(logits: Array, labels: Array, *, gradient: bool = True) -> tuple[float, Array | None, int]:
    """Mean loss, dL/dlogits (float32 (rows, classes); None unless asked for) and the count of rows that argmax gets right.

    logits: float32 (rows, classes); labels: int32 (rows,).  NotFiniteError where a logit is NaN or infinite.
    """
    if logits.ndim != 2:
        raise CoreError(f"logits must be 2-D, not {logits.ndim}-D")
    rows, cols = logits.shape
    dlogits, p = _out("dlogits", None, F32, logits.shape) if gradient else (None, ffi.NULL)
    loss, correct = ffi.new("float *"), ffi.new("int64_t *")
    pl, pt = _in("logits", logits, F32), _in("labels", labels, S32, (rows,))
    _ok(lib.octo_softmax_cross_entropy_f32(rows, cols, pl, pt, loss, p, correct))
    return loss[0], dlogits, correct[0]


# ---- optimizers and Octo's compensation --------------------------------------------------


def sgd(w: Array, g: Array, v: Array, *, lr: float, momentum: float, decay: float) -> None:
    """SGD with momentum, in place on w and v: v = momentum v + (g + decay w); w -= lr v."""
    pointers = [_in("w", w, F32), _in("g", g, F32, w.shape), _in("v", v, F32, w.shape)]
    _ok(lib.octo_sgd_f32(w.size, *pointers, lr, momentum, decay))


def adam(
    w: Array, g: Array, m: Array, v: Array, *, lr: float, b1: float, b2: float, eps: float, c1: float, c2: float,
    decay: float,
) -> None:  # fmt: skip
    """Adam, in place on w, m and v; c1 = 1 - b1^t and c2 = 1 - b2^t correct the bias (Kingma & Ba 2015, algorithm 1)."""
    pointers = [_in("w", w, F32), _in("g", g, F32, w.shape), _in("m", m, F32, w.shape), _in("v", v, F32, w.shape)]
    _ok(lib.octo_adam_f32(w.size, *pointers, lr, b1, b2, eps, c1, c2, decay))


def lac_fold(
    bias: Array,
    zero_term: Array,
    inv_scale: float,
    lac: tuple[Array, Array, Array] | None = None,
    *,
    out: Array | None = None,
) -> Array:
    """Octo's compensation in the int32 domain: round((bias + alpha mu + offset) * inv_scale) + zero_term.

    bias float32 (cols,), zero_term int32 (cols,), lac = (alpha, mu, offset), float32 of one shape (..., cols), or None.
    Returns int32 of lac's shape, or (cols,).
    """
    cols = bias.size
    shape = lac[0].shape if lac else (cols,)
    size = lac[0].size if lac else cols
    if size % cols:
        raise CoreError(f"compensation of {size} elements for {cols} columns")
    out, p = _out("out", out, S32, shape)
    pointers = [_in(n, v, F32, shape) for n, v in zip(("alpha", "mu", "offset"), lac, strict=True)] if lac else [ffi.NULL] * 3
    terms = [_in("bias", bias, F32, (cols,)), _in("zero_term", zero_term, S32, (cols,))]
    _ok(lib.octo_lac_fold_f32(size // cols, cols, *pointers, *terms, inv_scale, p))
    return out


def lac_backward(sums: Array, lac: tuple[Array, Array, Array], decay: float) -> tuple[Array, Array, Array]:
    """dalpha, dmu, doffset from sums = dL/d(compensation); decay is the L2 factor on mu and offset."""
    shape = lac[0].shape
    made = [_out(n, None, F32, shape) for n in ("dalpha", "dmu", "doffset")]
    pointers = [_in(n, v, F32, shape) for n, v in zip(("alpha", "mu", "offset"), lac, strict=True)]
    _ok(lib.octo_lac_backward_f32(sums.size, _in("sums", sums, F32, shape), *pointers, decay, *(p for _, p in made)))
    return made[0][0], made[1][0], made[2][0]


# ---- the machine's limits ------------------------------------------------------------------------


def peak(rounds: int) -> int:
    """Runs int8 multiply-accumulates from registers on all threads; how many.  Time the call to get the machine's peak."""
    macs = ffi.new("int64_t *")
    _ok(lib.octo_peak_s8(rounds, macs))
    return int(macs[0])


def stream_triad(a: Array, b: Array, c: Array, scalar: float) -> None:
    """STREAM's triad a = b + scalar c on float32; it moves 12 bytes an element by STREAM's rule."""
    pointers = [_in("a", a, F32), _in("b", b, F32, a.shape), _in("c", c, F32, a.shape)]
    _ok(lib.octo_stream_triad(a.size, *pointers, scalar))
