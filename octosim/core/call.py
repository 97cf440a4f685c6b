"""The calls into C: status -> CoreError, pointers of checked arrays, instruction sets and threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from octosim.errors import OctosimError

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
C_TYPES = {np.dtype(k): f"{v}[]" for k, v in {
    "int8": "int8_t", "uint8": "uint8_t", "int32": "int32_t", "uint32": "uint32_t", "float32": "float"}.items()}  # fmt: skip
F32, S8, S32, U8, U32 = (np.dtype(t) for t in ("float32", "int8", "int32", "uint8", "uint32"))


def ok(status: int) -> None:
    """The one place where a status becomes an exception."""
    if status:
        raise _ERRORS.get(status, CoreError)(ffi.string(lib.octo_error()).decode())


_POINTERS = {kind: ffi.typeof(name) for kind, name in C_TYPES.items()}
_from_buffer = ffi.from_buffer


def pointer(name: str, array: Array, dtype: np.dtype[Any], shape: tuple[int, ...] | None = None, writable: bool = False) -> Any:
    """The pointer of an array, after its checks.  A step makes thousands: what is right is found out with the least of Python,
    and what is wrong is told after a second look."""
    if type(array) is np.ndarray and array.dtype is dtype and (shape is None or array.shape == shape):
        try:
            return _from_buffer(_POINTERS[dtype], array, writable)
        except ValueError:  # not C-contiguous, or read-only
            pass
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise CoreError(f"{name} must be a {dtype} array, not {found}")
    if shape is not None and array.shape != shape:
        raise CoreError(f"{name} must have shape {shape}, not {array.shape}")
    if not array.flags.c_contiguous:
        raise CoreError(f"{name} must be C-contiguous")
    if writable and not array.flags.writeable:
        raise CoreError(f"{name} is read-only")
    return _from_buffer(_POINTERS[dtype], array, writable)


def output(name: str, array: Array | None, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[Array, Any]:
    """An output, made where none is given, and its pointer."""
    if array is None:
        array = np.empty(shape, dtype)
        return array, _from_buffer(_POINTERS[dtype], array)
    return array, pointer(name, array, dtype, shape, True)


_PAIR = ffi.typeof("float[2]")


def float_pair() -> Any:
    """Memory for a least and a largest value."""
    return ffi.new(_PAIR)


def operand_types(x: Array) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Operand and result dtype of a convolution."""
    return (S8, S32) if isinstance(x, np.ndarray) and x.dtype == S8 else (F32, F32)


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
    ok(lib.octo_set_isa(name.encode()))


def threads() -> int:
    """Threads that the kernels use."""
    return int(lib.octo_threads())


def set_threads(count: int) -> None:
    """Uses `count` threads from now on (1 where the build has no OpenMP)."""
    if not 1 <= count <= 1024:
        raise CoreError(f"threads must be in 1 .. 1024, not {count}")
    ok(lib.octo_set_threads(count))


@contextmanager
def threads_for_a_call(count: int | None) -> Iterator[None]:
    before = lib.octo_threads()
    if count is not None:
        set_threads(count)
    try:
        yield
    finally:
        if count is not None:
            lib.octo_set_threads(before)


if os.environ.get("OCTOSIM_ISA"):
    try:
        set_isa(os.environ["OCTOSIM_ISA"])
    except CoreError as error:
        raise CoreError(f"OCTOSIM_ISA: {error}") from None
