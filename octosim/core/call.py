"""The calls into C: status -> CoreError, pointers of checked arrays, numbers in C memory, instruction sets and threads."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np

from octosim import limits
from octosim._core import ffi
from octosim._core import lib as _compiled
from octosim.errors import OctosimError

Array = np.ndarray[Any, Any]


class CoreError(OctosimError):
    """A call of the C core was refused: a wrong dtype, shape or size, an unknown instruction set, no memory."""


class NotFiniteError(CoreError):
    """A float32 array holds a NaN or an infinity where a number is needed."""


# ---- calls --------------------------------------------------


READS, WRITES, CHANGES = "r", "w", "rw"
"""What a call does with the memory of an operand."""


class Recorder(Protocol):
    """What is told of the calling thread's calls.  may_read: whether numbers that the core makes may be read meanwhile."""

    may_read: bool

    def operand(self, name: str, array: Array, access: str) -> None:
        """An array whose memory the next call is about to be given, by a pointer of its own or inside a struct."""

    def keep(self, number: Scalar) -> None:
        """A number whose memory the next call is about to be given inside a struct."""

    def call(self, name: str, number: int, function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """Makes a call, or does not; its status."""

    def python(self, name: str, function: Callable[..., None], arrays: Sequence[Array]) -> None:
        """Makes a segment of Python, whose operands were told, of these arrays, or does not."""


class _Here(threading.local):
    """What belongs to the calling thread.  recorder: what is told of its calls; key: what they belong to, see `at`; pool: where
    outputs of POOLED bytes and more are made, a `memory.Pool`."""

    recorder: Recorder | None = None
    key: tuple[str, ...] = ()
    pool: Any = None


here = _Here()


@contextmanager
def pooled(pool: Any) -> Iterator[None]:
    """Large outputs that this thread's calls make inside are a pool's: a recorded step would hold each otherwise."""
    before, here.pool = here.pool, pool
    try:
        yield
    finally:
        here.pool = before


def makes() -> bool:
    """Whether this thread's calls are made: not while a step is planned, where no memory of a tensor is touched."""
    return not getattr(here.recorder, "dry", False)


def at(*key: str) -> None:
    """Says what this thread's calls belong to from now on: layer and pass."""
    here.key = key


def python(name: str, function: Callable[..., None], reads: Sequence[Array], writes: Sequence[Array] = ()) -> None:
    """Makes a segment of a step in Python, as a call with these operands: a replay of a recorded step makes it again.

    function: takes all of `reads`, then all of `writes`.  Besides these it may hold on to arrays that last as long as the
    network and to numbers in C memory, of which it finds what differs from step to step; never to memory of a pool.
    """
    with pooled(None):  # what it makes for itself is gone when it returns
        if here.recorder is None:
            function(*reads, *writes)
            return
        for array in reads:
            here.recorder.operand("reads", array, READS)
        for array in writes:
            here.recorder.operand("writes", array, WRITES)
        here.recorder.python(name, function, (*reads, *writes))


def not_recorded(what: str) -> None:
    """CoreError where a step is recorded: what NumPy computes outside `python` would stay as it is in every replay."""
    if here.recorder is not None and not here.recorder.may_read:
        raise CoreError(f"{what} while a step was recorded, whose replay would not make it again")


def _with_recorder(name: str, number: int, function: Callable[..., int]) -> Callable[..., int]:
    """A C function that tells the calling thread's recorder; CoreError for a number that no C type of its parameter holds."""

    def invoke(*arguments: Any) -> int:
        try:
            if here.recorder is not None:
                return here.recorder.call(name, number, function, arguments)
            return function(*arguments)
        except (OverflowError, TypeError) as error:
            raise CoreError(f"{name.removeprefix('octo_')}: {error}") from None

    return invoke


def _library() -> SimpleNamespace:
    """The C functions and constants.  Functions with a number by octo_function can be recorded."""
    members = {name: getattr(_compiled, name) for name in dir(_compiled)}
    for name, member in members.items():
        number = _compiled.octo_function(name.encode()) if callable(member) else -1
        if number >= 0:
            members[name] = _with_recorder(name, number, member)
    return SimpleNamespace(**members)


lib = _library()
_ERRORS = {lib.OCTO_EFINITE: NotFiniteError}
C_TYPES = {np.dtype(k): f"{v}[]" for k, v in {
    "int8": "int8_t", "uint8": "uint8_t", "int32": "int32_t", "uint32": "uint32_t", "int64": "int64_t",
    "float32": "float"}.items()}  # fmt: skip
F32, S8, S32, S64, U8, U32 = (np.dtype(t) for t in ("float32", "int8", "int32", "int64", "uint8", "uint32"))


def ok(status: int) -> None:
    """The one place where a status becomes an exception."""
    if status:
        raise _ERRORS.get(status, CoreError)(ffi.string(lib.octo_error()).decode())


UNFORESEEN = (ArithmeticError, AttributeError, BufferError, LookupError, MemoryError, TypeError, ValueError)


def _misplaced(function: Callable[..., Any], value: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    """What is said of a value that has not its parameter's type: of an Accumulator or Rounding by the parameter's name."""
    import inspect  # only a mistake needs it

    signature, given = inspect.signature(function), type(value).__name__
    for name, argument in signature.bind(*arguments, **named).arguments.items():
        kinds = str(signature.parameters[name].annotation).removesuffix(" | None")
        if argument is value and kinds in ("Accumulator", "Rounding"):
            return f"{name} is of type {given}, expected octosim.numerics.{kinds}"
    return f"a NumPy array is expected in place of a value of type {given}"


def public(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the package as others call it: what its checks do not foresee is a CoreError, too, as a size that no memory
    holds or an argument that is no array."""

    @wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except AttributeError as error:
            raise CoreError(f"{function.__name__}: {_misplaced(function, error.obj, arguments, named)}") from error
        except UNFORESEEN as error:
            raise CoreError(f"{function.__name__}: {error or type(error).__name__}") from error

    return guarded


# ---- memory --------------------------------------------------


POINTERS = {kind: ffi.typeof(name) for kind, name in C_TYPES.items()}
_from_buffer = ffi.from_buffer


def address(array: Array, access: str = READS, name: str = "") -> Any:
    """The pointer of a C-contiguous array; ValueError where it is not, is not aligned, or is to be written and is read-only."""
    if not array.flags.aligned:
        raise ValueError(f"{name or 'an array'} must be aligned to the size of its items")
    if here.recorder is not None:
        here.recorder.operand(name, array, access)
    return _from_buffer(POINTERS[array.dtype], array, access is not READS)


def pointer(
    name: str, array: Array, dtype: np.dtype[Any], shape: tuple[int, ...] | None = None, writable: bool = False,
    access: str | None = None,
) -> Any:  # fmt: skip
    """The pointer of an array, after its checks.  Fast path first (thousands of calls a step); the detailed checks run only to
    word the error.

    writable: the call changes what the array holds.  access: one of READS, WRITES and CHANGES, instead.
    """
    access = access or (CHANGES if writable else READS)
    if type(array) is np.ndarray and array.dtype is dtype and (shape is None or array.shape == shape):
        try:
            return address(array, access, name)
        except ValueError:  # not C-contiguous, not aligned, or read-only
            pass
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise CoreError(f"{name} must be {'an' if dtype.kind == 'i' else 'a'} {dtype} array, not {found}")
    if shape is not None and array.shape != shape:
        raise CoreError(f"{name} must have shape {shape}, not {array.shape}")
    if not array.flags.c_contiguous:
        raise CoreError(f"{name} must be C-contiguous")
    if not array.flags.aligned:
        raise CoreError(f"{name} must be aligned to the size of its items")
    if access is not READS and not array.flags.writeable:
        raise CoreError(f"{name} is read-only")
    return address(array, access, name)


POOLED = 1 << 16


def output(name: str, array: Array | None, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[Array, Any]:
    """An output, made where none is given, and its pointer."""
    if array is None:
        large = here.pool is not None and math.prod(shape) * dtype.itemsize >= POOLED
        array = here.pool.empty(shape, dtype) if large else np.empty(shape, dtype)
        return array, address(array, WRITES, name)
    return array, pointer(name, array, dtype, shape, access=WRITES)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Calls that this thread makes inside are made now and once: what they find is the same in every step."""
    before, here.recorder = here.recorder, None
    try:
        yield
    finally:
        here.recorder = before


# ---- costs --------------------------------------------------


class Product(NamedTuple):
    """A matrix product that a call makes.  groups, geometry: see `trace.Op`; kernel: (0, 0) where it is no convolution."""

    shape: tuple[int, int, int]
    groups: int = 1
    geometry: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Cost:
    """What a C function's call costs beyond reading and writing each of its operands once.

    again: how often it reads an operand, by the operand's name, where that is not once.  product: the matrix product, of the
    call's arguments.  weights: the operand that holds parameters in a product.  update: whether it is an optimizer's step.
    run: the length of the runs that it works on, of the call's arguments, where that is not its largest operand's last axis.
    rounding: the place of the argument that says how it rounds, where drawing random numbers takes longer than all else.
    """

    again: Mapping[str, int]
    product: Callable[[tuple[Any, ...]], Product] | None = None
    weights: str | None = None
    update: bool = False
    rounding: int | None = None
    run: Callable[[tuple[Any, ...]], int] | None = None

    def variant(self, arguments: tuple[Any, ...]) -> str:
        """" stochastic" where the call draws random numbers."""
        drawn = self.rounding is not None and arguments[self.rounding] == lib.OCTO_STOCHASTIC
        return " stochastic" if drawn else ""


COSTS: dict[str, Cost] = {}
"""By the name of the C function; one that is not here reads and writes each operand once."""


def costs(
    *functions: str, product: Callable[[tuple[Any, ...]], Product] | None = None, weights: str | None = None,
    update: bool = False, rounding: int | None = None, run: Callable[[tuple[Any, ...]], int] | None = None, **again: int,
) -> None:  # fmt: skip
    """States the cost of C functions, beside their wrapper: see `Cost`."""
    for name in functions:
        assert hasattr(_compiled, name), name
        COSTS[name] = Cost(again, product, weights, update, rounding, run)


# ---- numbers that the core makes and takes --------------------------------------------------


class Scalar:
    """A number in C memory, which stands wherever a call takes one: Python need not know it, so a recorded step can be made
    again with other values.  float(), int() read it; CoreError while a tape records: it would be the recorded step's value.

    at: float *, double *, int32_t * or uint32_t *, which keeps the memory alive.
    """

    __slots__ = ("at", "memory")

    def __init__(self, at: Any, memory: Any = None) -> None:
        """memory: what `at` points into, where that is not its own."""
        self.at, self.memory = at, memory

    @classmethod
    def zero(cls) -> Scalar:
        """A float32 0 of its own."""
        return cls(ffi.new("float *"))

    def _read(self) -> Any:
        if here.recorder is not None and not here.recorder.may_read:
            raise CoreError("a number that the core makes was read while a step was recorded")
        return self.at[0]

    def __float__(self) -> float:
        return float(self._read())

    def __int__(self) -> int:
        return int(self._read())

    def __deepcopy__(self, memo: Any) -> Scalar:
        return Scalar(ffi.new(f"{ffi.typeof(self.at).item.cname} *", self.at[0]))

    def __repr__(self) -> str:
        return f"Scalar({self.at[0]})"


Number = float | Scalar
Whole = int | Scalar
Stream = tuple[int, Whole, int]
"""Of random words: (seed, step, tensor)."""


def scalar(value: Number) -> Scalar:
    """A float32 number in C memory."""
    return value if isinstance(value, Scalar) else Scalar(ffi.new("float *", value))


def scalar_array(value: Scalar) -> Array:
    """The float32 (1,) array in a number's memory."""
    array: Array = np.frombuffer(ffi.buffer(value.at, 4), F32)
    return array


def array_scalar(array: Array) -> Scalar:
    """The number that a float32 (1,) array is, in its memory."""
    return Scalar(ffi.from_buffer("float *", array), array)


def number64(value: float) -> Scalar:
    """A float64 number in C memory."""
    return Scalar(ffi.new("double *", value))


def step_number(value: int) -> Scalar:
    """A step's number in C memory, as the Philox streams take it."""
    return Scalar(ffi.new("uint32_t *", value))


_PAIR = ffi.typeof("float[2]")


class Range:
    """The least and the largest value of a tensor, in C memory.  Two floats for Python: low, high = some_range."""

    __slots__ = ("at",)

    def __init__(self, low: float = 0.0, high: float = 0.0) -> None:
        self.at = ffi.new(_PAIR, (low, high))

    @classmethod
    def of(cls, values: Array) -> Range:
        """The range that float32 (2,) values are, in their memory."""
        made = cls.__new__(cls)
        pointer("values", values, F32, (2,))
        made.at = ffi.from_buffer(_PAIR, values)
        return made

    @property
    def low(self) -> Scalar:
        return Scalar(self.at, self.at)

    @property
    def high(self) -> Scalar:
        return Scalar(self.at + 1, self.at)

    def __iter__(self) -> Iterator[float]:
        return iter((float(self.low), float(self.high)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Range | tuple) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # its values change


# ---- types --------------------------------------------------


def operand_types(x: Array) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Operand and result dtype of a convolution."""
    return (S8, S32) if isinstance(x, np.ndarray) and x.dtype == S8 else (F32, F32)


# ---- the host's floating-point environment --------------------------------------------------


@contextmanager
def float_environment() -> Iterator[None]:
    """NumPy and Python compute inside as the results are defined, whatever the process has set for this thread: rounded to the
    nearest, subnormal numbers kept.  Calls into C need it not.  May decorate a function."""
    before = lib.octo_float_enter()
    try:
        yield
    finally:
        lib.octo_float_leave(before)


# ---- instruction sets and threads --------------------------------------------------


def isas() -> dict[str, bool]:
    """Instruction sets of this build, slowest first, and whether this CPU has them."""
    rows = range(lib.octo_isa_count())
    return {ffi.string(lib.octo_isa_name(i)).decode(): bool(lib.octo_isa_supported(i)) for i in rows}


def isa() -> str:
    """The instruction set in use."""
    return str(ffi.string(lib.octo_isa()).decode())


class Tiling(NamedTuple):
    """What an instruction set computes at once, smaller products taking as long: columns of an int8 one and of a float32 one.
    depth: steps of an int8 reduction that tiles multiply at once, which leave shorter ones to vectors; 0 where there are no
    tiles.  in_place: whether an int8 product reads windows that overlap where they lie, and packs none."""

    int8: int
    float32: int
    depth: int
    in_place: bool


def tiling() -> Tiling:
    """Of the instruction set in use."""
    numbers = [ffi.new("int *") for _ in Tiling._fields]
    lib.octo_tiling(*numbers)
    columns, lanes, depth, in_place = (number[0] for number in numbers)
    return Tiling(columns, lanes, depth, bool(in_place))


def set_isa(name: str) -> None:
    """Uses the kernels of `name` from now on; CoreError if it is unknown or this CPU lacks it.  OCTOSIM_ISA does the same."""
    ok(lib.octo_set_isa(name.encode()))


def threads() -> int:
    """Threads that the kernels use."""
    return int(lib.octo_threads())


def _check_threads(count: int) -> None:
    if not 1 <= count <= 1024:
        raise CoreError(f"threads must be in 1 .. 1024, not {count}")


def set_threads(count: int) -> None:
    """Uses `count` threads from now on (1 where the build has no OpenMP, or in a process that was forked)."""
    _check_threads(count)
    ok(lib.octo_set_threads(count))


def trim() -> None:
    """Gives the core's scratch memory, which has the size of the largest call so far, back to the system."""
    lib.octo_trim()


@contextmanager
def threads_for_a_call(count: int | None) -> Iterator[None]:
    """Uses `count` threads for what the calling thread calls inside."""
    if count is None:
        yield
        return
    _check_threads(count)
    before = lib.octo_use_threads(count)
    try:
        yield
    finally:
        lib.octo_use_threads(before)


# Without OMP_NUM_THREADS as many threads as the process may use CPUs; OpenMP knows of no quota, nor of an affinity set since it
# was loaded.
if not os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip().isdigit():
    set_threads(max(1, min(1024, lib.octo_max_threads(), limits.cpus())))

if os.environ.get("OCTOSIM_ISA"):
    try:
        set_isa(os.environ["OCTOSIM_ISA"])
    except CoreError as error:
        raise CoreError(f"OCTOSIM_ISA: {error}") from None
