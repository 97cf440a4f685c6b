"""A clock on the parts of training steps: each layer's passes, and the products in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from octosim import core
from octosim.engine.nodes import Array
from octosim.methods import find
from octosim.train import Run

Key = tuple[str, str]
"""Layer and pass."""


PRODUCTS: Key = ("products", "all")


def _is_product(function: str) -> bool:
    return function in core.COSTS and core.COSTS[function].product is not None


class Clock(core.Probe):
    """Collects the time of each layer's passes, call by call.  read: the clock, time.perf_counter or time.thread_time.

    parts: seconds of all forward and backward passes and updates; of products, and what is around them in the passes; of
    making the batch; and of a recorded step "python", what is spent neither in its calls of C nor for the batch.  In a step
    that Python makes, what it does before a call is counted with it.
    """

    def __init__(self, read: Callable[[], float] = time.perf_counter) -> None:
        self.values: dict[Key, list[float]] = {}
        self.read = read
        self.step: dict[Key, float] = {}
        self.parts: dict[str, list[float]] = {}
        self._begun = self._batch = self._last = 0.0
        self._replayed: tuple[core.Tape, Array] | None = None

    def begin(self) -> None:
        """At the beginning of a step."""
        self._begun = self._last = self.read()

    def has_batch(self) -> None:
        """When the batch is there."""
        self._last = self.read()
        self._batch = self._last - self._begun

    def add(self, key: Key, seconds: float) -> None:
        self.step[key] = self.step.get(key, 0.0) + seconds

    def call(self, name: str, number: int, function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """Makes a call of a step that Python makes."""
        before = self.read()
        status = function(*arguments)
        now = self.read()
        self.add(cast(Key, core.here.key), now - self._last)
        if _is_product(name):
            self.add(PRODUCTS, now - before)
        self._last = now
        return status

    def python(self, name: str, function: Callable[..., None], arrays: Sequence[Array]) -> None:
        """Makes a segment of Python."""
        function(*arrays)
        now = self.read()
        self.add(cast(Key, core.here.key), now - self._last)
        self._last = now

    def replay(self, tape: core.Tape) -> None:
        """Makes a recorded step."""
        seconds = tape.replay(core.CLOCKS[self.read])
        assert seconds is not None
        self._replayed = tape, seconds

    def end(self) -> float:
        """At the end of a step: its time."""
        took = self.read() - self._begun
        python = None
        if self._replayed:
            tape, seconds = self._replayed
            in_c = 0.0
            for call, spent in zip(tape.calls, seconds.tolist(), strict=True):
                self.add(cast(Key, call.key), spent)
                in_c += 0.0 if call.function.startswith("python:") else spent
                if _is_product(call.function):
                    self.add(PRODUCTS, spent)
            python = took - self._batch - in_c
            self._replayed = None
        products = self.step.pop(PRODUCTS, 0.0)
        passes = {"forward": 0.0, "backward": 0.0, "update": 0.0}
        for (layer, pass_), seconds_ in self.step.items():
            self.values.setdefault((layer, pass_), []).append(seconds_)
            passes["backward" if pass_ in ("dX", "dW") else pass_] += seconds_
        passes |= {"products": products, "around_products": passes["forward"] + passes["backward"] - products}
        passes |= {"batch": self._batch} | ({"python": python} if python is not None else {})
        for name, value in passes.items():
            self.parts.setdefault(name, []).append(value)
        self.step.clear()
        return took

    def forget(self) -> None:
        self.values.clear()
        self.parts.clear()


LR = 1e-6
"""For many steps on few batches: weights that hardly move cannot diverge."""


def rate(method: str) -> float | None:
    """The learning rate of measured steps; None where a method has a rate of its own."""
    return None if "lr" in find(method).unused else LR


def stepper(run: Run, clock: Clock, totals: list[float]) -> Callable[[], None]:
    """One step of a run, its parts put on the clock; the run wraps around its epochs."""

    def step() -> None:
        if run.step >= run.steps_per_epoch:
            run.step = 0
        clock.begin()
        batch = run.batch(run.step + 1)
        clock.has_batch()
        run.train_step(batch, clock)
        totals.append(clock.end())

    run.allow_replay = True
    return step
