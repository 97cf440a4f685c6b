"""A training step as a list of calls: recorded once while Python makes it, then made again by C alone.

It is what a CUDA graph is to a GPU: between two calls Python costs microseconds, which in a small network is a third of a step.
What may differ from step to step lies in memory whose place does not: tensors in blocks that the tape holds, numbers in
`call.Scalar`s.  What Python itself does to data is on the tape where it is declared as a segment (`call.python`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from octosim.core.call import COSTS, POINTERS, Array, CoreError, Product, Recorder, Scalar, ffi, here, lib, ok, pooled
from octosim.core.memory import Lease, owner

CLOCKS = {time.perf_counter: time.CLOCK_MONOTONIC, time.thread_time: time.CLOCK_THREAD_CPUTIME_ID}
"""The clocks of C that Python's are."""
_READ = {number: read for read, number in CLOCKS.items()}

_DOUBLE = ffi.typeof("double *")
_INDIRECT = {_DOUBLE: ("float", "double"),
             ffi.typeof("float *"): ("float", "double"), ffi.typeof("float[2]"): ("float", "double"),
             ffi.typeof("int32_t *"): ("int", "int32_t"), ffi.typeof("uint32_t *"): ("uint32_t",)}  # fmt: skip
"""What parameters the number behind a pointer can stand for, as octosim.h says of octo_call."""


class Failed(Exception):
    """A call of a replay failed.  at: its number; error: what it raises."""

    def __init__(self, at: int, error: CoreError) -> None:
        super().__init__(at, error)
        self.at, self.error = at, error


class Operand(NamedTuple):
    """An array that a call takes.  access: READS, WRITES or CHANGES of `call`."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    access: str
    elements: int
    nbytes: int


class Call(NamedTuple):
    """A call of a step.  function: of C, or "python:" and the name of a segment.  product: the matrix product that it makes, if
    it makes one.  key: see `call.at`.  variant, run: see `Cost`; run 0: its largest operand's last axis."""

    function: str
    operands: tuple[Operand, ...]
    product: Product | None
    key: tuple[str, ...]
    variant: str = ""
    run: int = 0


class Tape:
    """calls: what was recorded, in its order.

    dry: nothing is executed and no memory of an operand is touched; such a tape cannot be replayed.
    """

    def __init__(self, dry: bool = False) -> None:
        self.dry = self.may_read = dry
        self.calls: list[Call] = []
        self._arguments: list[tuple[Any, ...]] = []
        self._operands: list[Operand] = []
        self._kept: list[Any] = []
        self._held: dict[int, Any] = {}
        self._calls: Any = None
        self._probe: Recorder
        self._segments: list[tuple[int, Callable[[], None]]] = []

    @property
    def names(self) -> list[str]:
        """The function of each call."""
        return [each.function for each in self.calls]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Calls that this thread makes inside are made, by the probe that is told of them if there is one, and recorded."""
        probe = here.recorder
        if isinstance(probe, Tape):
            raise CoreError("a step is being recorded already")
        here.recorder, self._probe = self, probe or NO_PROBE
        try:
            yield
        finally:
            here.recorder = probe
        if self.dry:
            return
        self._calls = ffi.new("octo_call[]", len(self._arguments))
        for each, (number, indirect, values) in zip(self._calls, self._arguments, strict=True):
            each.function, each.indirect = number, indirect
            for argument, (field, value) in zip(each.args, values, strict=False):
                setattr(argument, field, value)
        self._arguments.clear()

    def operand(self, name: str, array: Array, access: str) -> None:
        """Holds memory that a call is about to be given: of an array of a pool its block, whose other arrays come and go while
        the step is recorded."""
        root, base = array, array.base
        while isinstance(base, np.ndarray):
            root, base = base, base.base
        if not self.dry:
            held = root.pin() if isinstance(root, Lease) else root
            self._held[id(held)] = held
        elif not isinstance(root, Lease):
            self.outside(root)
        self._operands.append(Operand(name, array.shape, array.dtype, access, array.size, array.nbytes))

    def outside(self, array: Array) -> None:
        """An operand of a dry tape that is not a pool's."""

    def keep(self, number: Scalar) -> None:
        self._kept.append(number)

    def call(self, name: str, number: int, function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """Makes a call and records it."""
        if self.dry:
            self._note(name, arguments)
            return 0
        indirect, values = 0, []
        for i, (kind, argument) in enumerate(zip(ffi.typeof(function).args, arguments, strict=True)):
            if isinstance(argument, Scalar):
                if kind.cname not in _INDIRECT.get(ffi.typeof(argument.at), ()):
                    raise CoreError(f"{name}: {argument} cannot stand for a parameter of type {kind.cname}")
                indirect |= (0x10001 if ffi.typeof(argument.at) is _DOUBLE else 1) << i
                argument = self._pointed_to(argument.at, argument.memory)
                values.append(("p", argument))
            elif kind.kind == "pointer":
                values.append(("p", self._pointed_to(argument)))
            else:
                real = kind.cname in ("float", "double")
                # a seed from 2^63 on stands in an int64_t by its bits
                values.append(("d", float(argument)) if real else ("i", (int(argument) + 2**63) % 2**64 - 2**63))
        self._note(name, arguments)  # together with its arguments: replay counts both
        self._arguments.append((number, indirect, tuple(values)))
        here.recorder = None  # so that numbers can be read
        try:
            return self._probe.call(name, number, function, arguments)
        finally:
            here.recorder = self

    def python(self, name: str, function: Callable[..., None], arrays: Sequence[Array]) -> None:
        """Makes a segment of Python and records it."""
        at = len(self.calls)
        self._note(f"python:{name}", ())
        if self.dry:
            return
        self._segments.append((at, partial(function, *map(_lasting, arrays))))
        here.recorder = None
        try:
            self._probe.python(name, function, arrays)
        finally:
            here.recorder = self

    def _note(self, function: str, arguments: tuple[Any, ...]) -> None:
        cost = COSTS.get(function)
        product = cost.product(arguments) if cost and cost.product else None
        variant = cost.variant(arguments) if cost else ""
        run = cost.run(arguments) if cost and cost.run else 0
        self.calls.append(Call(function, tuple(self._operands), product, here.key, variant, run))
        self._operands.clear()

    def _pointed_to(self, at: Any, memory: Any = None) -> Any:
        """void * of a pointer, whose memory is held: that of arrays by `keep`."""
        if ffi.typeof(at) not in POINTERS.values():
            self._kept.append((at, memory))
        return ffi.cast("void *", at)

    def replay(self, clock: int | None = None) -> Array | None:
        """Makes the calls again; raises Failed.  clock: one of C's to measure by; returns the seconds of each call then."""
        seconds = None if clock is None else np.empty(len(self.calls))
        first = made = 0  # calls, and those of C, that are done
        for at, segment in (*self._segments, (len(self.calls), None)):
            if at > first:
                self._replay_c(first, made, at - first, clock, seconds)
            if segment is not None:
                read = _READ.get(clock or 0, time.perf_counter)
                before = read()
                try:
                    with pooled(None):  # as when it was recorded
                        segment()
                except CoreError as error:
                    raise Failed(at, error) from None
                if seconds is not None:
                    seconds[at] = read() - before
            made, first = made + at - first, at + 1
        return seconds

    def _replay_c(self, first: int, made: int, count: int, clock: int | None, seconds: Array | None) -> None:
        """So many calls of C from the call `first` on, which is number `made` of C's."""
        at, spent = ffi.new("int64_t *"), ffi.NULL
        if seconds is not None:
            spent = ffi.from_buffer("double[]", seconds[first : first + count])
        status = lib.octo_replay(count, self._calls + made, clock or 0, spent, at)
        if status:
            try:
                ok(status)
            except CoreError as error:
                raise Failed(first + int(at[0]), error) from None

    def key(self, at: int) -> Any:
        """What a call belongs to."""
        return self.calls[at].key


def _lasting(array: Array) -> Array:
    """The same values in the same memory; of a pool's block without keeping the block from being used again."""
    root = owner(array)
    if not isinstance(root, Lease):
        return array
    offset = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return np.ndarray(array.shape, array.dtype, root.pin(), offset, array.strides)


class Probe:
    """What is told of a thread's calls and makes them: here nothing but that.  Of a recorded step, which C makes, `replay`."""

    may_read = True

    def operand(self, name: str, array: Array, access: str) -> None:
        """call.Recorder."""

    def keep(self, number: Scalar) -> None:
        """call.Recorder."""

    def call(self, name: str, number: int, function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """Makes a call."""
        return function(*arguments)

    def python(self, name: str, function: Callable[..., None], arrays: Sequence[Array]) -> None:
        """Makes a segment of Python."""
        function(*arrays)

    def replay(self, tape: Tape) -> None:
        """Makes the calls of a tape."""
        tape.replay()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Is told of the calls that this thread makes inside."""
        before = here.recorder
        here.recorder = None if self is NO_PROBE else self
        try:
            yield
        finally:
            here.recorder = before


NO_PROBE = Probe()
