"""A training step as a list of calls: recorded once while Python makes it, then made again by C alone.

It is what a CUDA graph is to a GPU: between two calls Python costs microseconds, which in a small network is a third of a step.
What may differ from step to step lies in memory whose place does not: tensors in blocks that the tape holds, numbers in
`call.Scalar`s.  What Python itself does to data while a step is recorded is not on the tape; a method says whether it does
(`nodes.Method.recordable`), and tests compare recorded runs with others for every method that says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from octosim.core.call import POINTERS, Array, CoreError, Scalar, ffi, here, lib, ok
from octosim.core.memory import Lease

CLOCKS = {time.perf_counter: time.CLOCK_MONOTONIC, time.thread_time: time.CLOCK_THREAD_CPUTIME_ID}
"""The clocks of C that Python's are."""

_INDIRECT = {ffi.typeof("float *"): ("float", "double"), ffi.typeof("float[2]"): ("float", "double"),
             ffi.typeof("int32_t *"): ("int", "int32_t"), ffi.typeof("uint32_t *"): ("uint32_t",)}  # fmt: skip
"""What parameters the number behind a pointer can stand for, as octosim.h says of octo_call."""


class Failed(Exception):
    """A call of a replay failed.  at: its number; error: what it raises."""

    def __init__(self, at: int, error: CoreError) -> None:
        super().__init__(at, error)
        self.at, self.error = at, error


class Tape:
    """names: the C function of each call.  marks: (calls recorded until then, key), in their order, see `mark`."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.marks: list[tuple[int, Any]] = []
        self._arguments: list[tuple[Any, ...]] = []
        self._kept: list[Any] = []
        self._held: dict[int, Any] = {}
        self._calls: Any = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Calls into C that this thread makes inside are made and recorded."""
        if here.recorder is not None:
            raise CoreError("a step is being recorded already")
        here.recorder = self
        try:
            yield
        finally:
            here.recorder = None
        self._calls = ffi.new("octo_call[]", len(self.names))
        for each, (number, indirect, values) in zip(self._calls, self._arguments, strict=True):
            each.function, each.indirect = number, indirect
            for argument, (field, value) in zip(each.args, values, strict=False):
                setattr(argument, field, value)
        self._arguments.clear()

    def mark(self, *key: str) -> None:
        """Says what the calls since the last mark belong to; may be given as `network.Tick`."""
        self.marks.append((len(self.names), key))

    def keep(self, array: Array | Scalar) -> None:
        """Holds memory that a call is about to be given: of an array of a pool its block, whose other arrays come and go while
        the step is recorded."""
        if isinstance(array, Scalar):
            self._kept.append(array)
            return
        while isinstance(array.base, np.ndarray):
            array = array.base
        held = array.pin() if isinstance(array, Lease) else array
        self._held[id(held)] = held

    def call(self, name: str, number: int, function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """Makes a call and records it."""
        indirect, values = 0, []
        for i, (kind, argument) in enumerate(zip(ffi.typeof(function).args, arguments, strict=True)):
            if isinstance(argument, Scalar):
                if kind.cname not in _INDIRECT.get(ffi.typeof(argument.at), ()):
                    raise CoreError(f"{name}: {argument} cannot stand for a parameter of type {kind.cname}")
                indirect |= 1 << i
                argument = self._pointed_to(argument.at, argument.memory)
                values.append(("p", argument))
            elif kind.kind == "pointer":
                values.append(("p", self._pointed_to(argument)))
            else:
                values.append(("d", float(argument)) if kind.cname in ("float", "double") else ("i", int(argument)))
        self.names.append(name)
        self._arguments.append((number, indirect, tuple(values)))
        here.recorder = None  # so that numbers can be read
        try:
            return function(*arguments)
        finally:
            here.recorder = self

    def _pointed_to(self, at: Any, memory: Any = None) -> Any:
        """void * of a pointer, whose memory is held: that of arrays by `keep`."""
        if ffi.typeof(at) not in POINTERS.values():
            self._kept.append((at, memory))
        return ffi.cast("void *", at)

    def replay(self, clock: int | None = None) -> Array | None:
        """Makes the calls again; raises Failed.  clock: one of C's to measure by; returns the seconds of each call then."""
        seconds = None if clock is None else np.empty(len(self.names))
        at = ffi.new("int64_t *")
        status = lib.octo_replay(
            len(self.names), self._calls, clock or 0, ffi.NULL if seconds is None else ffi.from_buffer("double[]", seconds), at
        )
        if status:
            try:
                ok(status)
            except CoreError as error:
                raise Failed(int(at[0]), error) from None
        return seconds

    def key(self, at: int) -> Any:
        """What a call belongs to."""
        return next((key for end, key in self.marks if at < end), None)
