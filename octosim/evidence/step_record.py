"""A training step recorded for other programs: its calls, the memory that they work on, and how long each part is needed.

The step is made dry: the network's own code runs and calls the core, which writes down each call and makes none.  No memory is
used twice while it is recorded, so that an address stands for one array.
"""

from __future__ import annotations

import math
import mmap
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from octosim import core, train
from octosim.core.call import C_TYPES, ffi
from octosim.core.memory import SMALL, Pool, owner
from octosim.engine import optimizers
from octosim.engine.nodes import Array, Context
from octosim.errors import OctosimError
from octosim.evidence import core_source
from octosim.evidence.step_registers import RecordedRegisters

RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
TYPES = {kind: name.removesuffix("[]") for kind, name in C_TYPES.items()}
"""C types of elements by dtype."""


def address_of(place: Any) -> int:
    """Where an array begins, or what a number or a pointer of cffi's points to."""
    if isinstance(place, np.ndarray):
        return int(place.__array_interface__["data"][0])
    return int(ffi.cast("uintptr_t", place.at if isinstance(place, core.Scalar) else place))


class _Unique(Pool):
    """A pool that takes no memory back."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Array] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        kind = np.dtype(dtype)
        size = kind.itemsize * math.prod(shape)
        if size < SMALL:
            made = np.empty(shape, kind)
        else:
            made = np.frombuffer(mmap.mmap(-1, size, flags=RESERVED), kind, math.prod(shape)).reshape(shape)
        self.kept.append(made)
        return made


@dataclass
class Use:
    """An access of a call: memory from `start` to `end`."""

    call: int
    start: int
    end: int
    access: str


@dataclass
class Call:
    """A call of a function of octosim.h."""

    function: str
    arguments: tuple[Any, ...]
    key: tuple[str, ...]


class Recorded(core.Tape):
    """The calls of one kind of step.  images: of its batch."""

    def __init__(self, images: int, memory: Memory) -> None:
        super().__init__(dry=True)
        self.may_read = False
        self.images = images
        self.made: list[Call] = []
        self.uses: list[Use] = []
        self.loss = 0  # its address
        self.numbers: set[int] = set()  # addresses of those that calls write
        self._memory = memory

    def operand(self, name: str, array: Array, access: str) -> None:
        if not array.nbytes:
            return
        start = self._memory.array(array, name)
        self.uses.append(Use(len(self.made), start, start + array.nbytes, access))

    def keep(self, number: core.Scalar) -> None:
        self._memory.number(number.at, number)

    def call(self, name: str, number: int, function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        for argument, parameter in zip(arguments, core_source.prototypes()[name], strict=True):
            at = argument.at if isinstance(argument, core.Scalar) else argument
            if not isinstance(at, ffi.CData) or at == ffi.NULL or parameter.startswith("const octo_"):
                continue  # a number, or a struct, whose operands were told
            for each in at if parameter.count("*") == 2 else [at]:
                self._memory.number(each, argument)
            if "const" not in parameter and "*" in parameter:
                self._written(address_of(at))
        self.made.append(Call(name, arguments, core.here.key))
        return 0

    def _written(self, address: int) -> None:
        """An operand of the call is changed, whatever was told of it."""
        mine = [use for use in self.uses if use.call == len(self.made) and use.start == address]
        if not mine:
            self.numbers.add(address)
        elif all(use.access == core.READS for use in mine):
            mine[-1].access = core.CHANGES

    def python(self, name: str, function: Callable[..., None], arrays: Sequence[Array]) -> None:
        raise OctosimError(f"its step has a part that is not in C: '{name}'")


@dataclass
class Region:
    """Memory that belongs together.  kind: the C type of an element, or of a struct; arrays: whether it is an array's."""

    start: int
    size: int
    kind: str
    name: str
    arrays: bool
    kept: Any

    @property
    def end(self) -> int:
        return self.start + self.size

    def content(self) -> bytes:
        return bytes(ffi.buffer(ffi.cast("char *", self.start), self.size))


class Memory:
    """Every array and number that calls were given, by its address; all of it stays where it is."""

    def __init__(self) -> None:
        self._found: dict[int, Region] = {}
        self.regions: list[Region] = []
        self._starts: list[int] = []

    def array(self, array: Array, name: str) -> int:
        root = owner(array)
        address = address_of(root)
        known = self._found.get(address)
        if known is None or known.size < root.nbytes or not known.arrays:
            self._found[address] = Region(address, root.nbytes, TYPES[root.dtype], name, True, (root, known))
        return address_of(array)

    def number(self, at: Any, kept: Any) -> None:
        """Memory behind a pointer of cffi's, unless it is an array's."""
        address, kind = address_of(at), ffi.typeof(at)
        size = kind.length * ffi.sizeof(kind.item) if kind.kind == "array" and kind.length else ffi.sizeof(kind.item)
        known = self._found.get(address)
        if known is None or known.size < size and not known.arrays:
            self._found[address] = Region(address, size, kind.item.cname, "number", False, (at, kept, known))

    def settle(self) -> None:
        """Regions that overlap are one, from now on."""
        for region in sorted(self._found.values(), key=lambda each: (each.start, -each.size)):
            last = self.regions[-1] if self.regions else None
            if last and region.start < last.end:
                size = max(last.end, region.end) - last.start
                arrays, kind = last.arrays or region.arrays, last.kind if last.arrays or not region.arrays else region.kind
                self.regions[-1] = replace(last, size=size, arrays=arrays, kind=kind, kept=(last.kept, region.kept))
            else:
                self.regions.append(region)
        self._starts = [region.start for region in self.regions]

    def at(self, address: int) -> Region:
        region = self.regions[bisect_right(self._starts, address) - 1]
        assert region.start <= address < region.end
        return region

    def of(self, place: Array | core.Scalar) -> Region:
        """The region of an array or a number."""
        return self.at(address_of(place))


# ---- a run's steps --------------------------------------------------


@dataclass
class Entry:
    """From the step `first` on, steps are made by the calls `steps[index]` with these numbers of the optimizer."""

    first: int
    index: int
    numbers: tuple[float, ...]


@dataclass
class Recording:
    """A run's training.  images, labels, step, numbers: the memory of what differs from step to step.
    arena: offsets of regions that are needed in a part of a step only, by address; `room` bytes in all."""

    run: train.Run
    memory: Memory
    steps: list[Recorded]
    schedule: list[Entry]
    images: Array
    labels: Array
    step: core.Scalar
    numbers: tuple[core.Scalar, ...]
    tensors: dict[str, Array]
    initial: dict[int, bytes] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)
    arena: dict[int, int] = field(default_factory=dict)
    room: int = 0


def record(run: train.Run) -> Recording:
    """The steps of a run before its first one, which is good for nothing else afterwards.

    OctosimError, with the method, where a step is not calls of C alone.
    """
    refuse = f"method {run.config.method}: its training step cannot be exported to C"
    run._calibrate()
    network, batch = run.network, run.config.batch_size
    RecordedRegisters(run.registers.accumulator).install(network.nodes)
    memory = Memory()
    images = np.zeros((batch, *network.nodes[0].in_shape), run.data.train_images.dtype)
    labels = np.zeros(batch, np.int32)
    numbers = tuple(core.number64(n) for n in optimizers.numbers(run.optimizer, run.learning_rate(1), 1, network))
    step = core.step_number(1)
    for array, name in ((images, "images"), (labels, "labels")):
        memory.array(array, name)
    for scalar in (step, *numbers):
        memory.number(scalar.at, scalar)
    pool = network.pool = _Unique()
    for node in network.nodes:
        node.pool = pool
    kinds: dict[Hashable, int] = {}
    steps: list[Recorded] = []
    schedule: list[Entry] = []
    for number in range(1, run.steps + 1):
        epoch, index = divmod(number - 1, run.steps_per_epoch)
        size = min(batch, len(run.data.train_labels) - index * batch)
        context = Context(True, seed=run.config.seed, step=step, steps=run.steps, epoch=epoch + 1, recorded=number)
        phase = run.method.phase(context)
        kind = number == 1, size, ("step", number) if phase is None else phase
        if kind not in kinds:
            if len(kinds) > MOST_KINDS:
                raise OctosimError(f"{refuse}: it has more than {MOST_KINDS} kinds of steps")
            tape = Recorded(size, memory)
            try:
                with core.float_environment(), tape.recording():
                    loss = run._make(images[:size], labels[:size], context, numbers)
            except OctosimError as error:
                why = "Python reads numbers in it" if "was read while" in str(error) else error
                raise OctosimError(f"{refuse}: {why}") from None
            if not isinstance(loss, core.Scalar):
                raise OctosimError(f"{refuse}: its loss is a number of Python")
            memory.number(loss.at, loss)
            tape.loss = address_of(loss)
            kinds[kind] = len(steps)
            steps.append(tape)
        values = optimizers.numbers(run.optimizer, run.learning_rate(number), number, network)
        if not schedule or (schedule[-1].index, schedule[-1].numbers) != (kinds[kind], values):
            schedule.append(Entry(number, kinds[kind], values))
    tensors = run.tensors()
    for name, tensor in tensors.items():
        memory.array(tensor, name)
    memory.settle()
    made = Recording(run, memory, steps, schedule, images, labels, step, numbers, tensors)
    _classify(made)
    return made


MOST_KINDS = 64
"""Of steps: each is a function of the program."""


# ---- lifetimes --------------------------------------------------


def _covered(spans: list[tuple[int, int]], start: int, end: int) -> bool:
    return any(low <= start and end <= high for low, high in spans)


def _joined(spans: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    apart = [(low, high) for low, high in spans if high < start or end < low]
    met = [(low, high) for low, high in spans if not (high < start or end < low)]
    return [*apart, (min([start, *(low for low, _ in met)]), max([end, *(high for _, high in met)]))]


def _classify(recording: Recording) -> None:
    """Which regions are written, which are needed in a part of a step only, and where those lie."""
    memory = recording.memory
    lives: dict[int, Life] = {}
    stays = {memory.of(tensor).start for tensor in recording.tensors.values() if tensor.nbytes}
    stays |= {memory.of(array).start for array in (recording.images, recording.labels)}
    stays |= {region.start for region in memory.regions if not region.arrays}
    recording.written.add(memory.of(recording.labels).start)
    for number, tape in enumerate(recording.steps):
        spans: dict[int, list[tuple[int, int]]] = {}
        life: dict[int, tuple[int, int]] = {}
        for use in tape.uses:
            at = memory.at(use.start).start
            known = spans.setdefault(at, [])
            if use.access != core.WRITES and not _covered(known, use.start, use.end):
                stays.add(at)
            if use.access != core.READS:
                recording.written.add(at)
                spans[at] = _joined(known, use.start, use.end)
            life[at] = life.get(at, (use.call, 0))[0], use.call
        recording.written |= {memory.at(address).start for address in tape.numbers}
        for at, (first, last) in life.items():
            lives.setdefault(at, []).append((number, first, last))
    recording.initial = {region.start: region.content() for region in memory.regions if region.start in stays}
    _place(recording, {at: life for at, life in lives.items() if at not in stays})


ALIGNED = 16


Life = list[tuple[int, int, int]]
"""Of a region: kind of step, first and last call."""


def _overlap(one: Life, other: Life) -> bool:
    return any(a == b and first <= last_b and first_b <= last for a, first, last in one for b, first_b, last_b in other)


def _place(made: Recording, lives: dict[int, Life]) -> None:
    """Offsets in the arena, the largest region first, each as low as those that are needed at the same time leave room."""
    placed: list[tuple[int, int, Life]] = []
    for at in sorted(lives, key=lambda start: -made.memory.at(start).size):
        size = -(-made.memory.at(at).size // ALIGNED) * ALIGNED
        taken = sorted((offset, end) for offset, end, other in placed if _overlap(lives[at], other))
        offset = 0
        for low, high in taken:
            if low - offset >= size:
                break
            offset = max(offset, high)
        placed.append((offset, offset + size, lives[at]))
        made.arena[at] = offset
        made.room = max(made.room, offset + size)
