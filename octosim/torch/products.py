"""What the modules of a converted network share, and the product of rows with a matrix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octosim.core.memory import Pool
from octosim.engine import registers
from octosim.engine.nodes import Array, Method
from octosim.numerics import Accumulator


@dataclass
class Session:
    """The arithmetic of converted modules, and what was seen of it.

    seed: of the random streams, whose step is a module's number of training passes.  every: passes are observed in one of so
    many training steps of a module; 0: never.  counts, noise: by (layer, pass).  attentions: of functions, by name.
    """

    method: Method
    accumulator: Accumulator
    seed: int = 0
    every: int = 1
    layers: list[str] = field(default_factory=list)
    counts: dict[tuple[str, str], list[registers.Count]] = field(default_factory=dict)
    noise: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    observers: list[Any] = field(default_factory=list)
    attentions: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registers = registers.AccumulatorModel(self.accumulator)
        self.pool = Pool()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and files: without memory and observers."""
        return {key: v for key, v in vars(self).items() if key not in ("pool", "registers")} | {"observers": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

    @contextlib.contextmanager
    def counting(self, wanted: bool) -> Iterator[None]:
        """Counts what happens in the register inside."""
        self.registers.counting, self.registers.counts = wanted, []
        try:
            yield
        finally:
            for layer, pass_, count in self.registers.counts:
                held = self.counts.setdefault((layer, pass_), [])
                held.append(count)
                if len(held) > 1:
                    held[:] = [registers.total(held)]
            self.registers.counting, self.registers.counts = False, []

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Nobody is told of the products inside."""
        observers = self.observers[:]
        self.observers.clear()
        try:
            yield
        finally:
            self.observers.extend(observers)

    def compare(self, layer: str, pass_: str, values: Array, reference: Array) -> None:
        """Adds to the signal and the noise of a pass."""
        held = self.noise.setdefault((layer, pass_), [0.0, 0.0])
        exact = reference.astype(np.float64)
        held[0] += float(np.square(exact).sum())
        held[1] += float(np.square(exact - values.reshape(exact.shape)).sum())
