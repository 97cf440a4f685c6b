"""A clock on the parts of training steps: each layer's passes, and the products in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from octosim import core
from octosim.engine.nodes import Array, Product
from octosim.train import Run

Key = tuple[str, str]
"""Layer and pass."""


PRODUCTS: Key = ("products", "all")
PRODUCT_CALLS = ("octo_gemm", "octo_conv", "octo_depthwise")


def _keys(tape: core.Tape) -> list[tuple[Key, bool]]:
    """What each call of a tape belongs to, and whether it is a product: one in the midst of an update is its layer's dW."""
    found: list[tuple[Key, bool]] = []
    first, layer = 0, ""
    for end, key in tape.marks:
        for name in tape.names[first:end]:
            product = name.startswith(PRODUCT_CALLS)
            found.append(((layer, "dW") if product and key[1] == "update" else key, product))
        first = end
        layer = layer if key[1] == "update" else key[0]
    return found


class Clock:
    """Collects the time of each layer's passes: as `network.Tick` of steps that Python makes, as `replay.Replay` of recorded
    ones.  read: the clock, time.perf_counter or time.thread_time.

    parts: seconds of all forward and backward passes and updates; of products, and what is around them in the passes; of
    making the batch; and of a recorded step "python", what is spent neither in its calls nor for the batch.  What comes before
    the first layer's pass is counted with that pass, too.
    """

    def __init__(self, read: Callable[[], float] = time.perf_counter) -> None:
        self.values: dict[Key, list[float]] = {}
        self.read = read
        self.last = 0.0
        self.step: dict[Key, float] = {}
        self.parts: dict[str, list[float]] = {}
        self._begun = self._batch = 0.0
        self._replayed: tuple[core.Tape, Array, float] | None = None  # with what came before it
        self._tape: core.Tape | None = None
        self._keys: list[tuple[Key, bool]] = []  # of its calls

    def begin(self) -> None:
        """At the beginning of a step."""
        self._begun = self.last = self.read()

    def has_batch(self) -> None:
        """When the batch is there."""
        self._batch = self.read() - self._begun

    def __call__(self, layer: str, pass_: str) -> None:
        now = self.read()
        self.add((layer, pass_), now - self.last)
        self.last = self.read()

    def add(self, key: Key, seconds: float) -> None:
        self.step[key] = self.step.get(key, 0.0) + seconds

    def replay(self, tape: core.Tape) -> None:
        before = self.read() - self._begun
        seconds = tape.replay(core.CLOCKS[self.read])
        assert seconds is not None
        self._replayed = tape, seconds, before

    def _add_calls(self, tape: core.Tape, seconds: Array, before: float) -> None:
        if self._tape is not tape:
            self._tape, self._keys = tape, _keys(tape)
        for _, key in tape.marks:  # some have no calls
            self.add(key, 0.0)
        self.add(self._keys[0][0], before)  # as in other steps: its images come with it
        for (key, product), spent in zip(self._keys, seconds.tolist(), strict=True):
            self.add(key, spent)
            if product:
                self.add(PRODUCTS, spent)

    def end(self) -> float:
        """At the end of a step: its time."""
        took = self.read() - self._begun
        python = None
        if self._replayed:
            python = took - self._batch - float(self._replayed[1].sum())
            self._add_calls(*self._replayed)
            self._replayed = None
        products = self.step.pop(PRODUCTS, None)
        passes = {"forward": 0.0, "backward": 0.0, "update": 0.0}
        for (layer, pass_), seconds in self.step.items():
            self.values.setdefault((layer, pass_), []).append(seconds)
            passes["backward" if pass_ in ("dX", "dW") else pass_] += seconds
        if products is not None:  # of a method whose products are not its layers' there is no time
            passes |= {"products": products, "around_products": passes["forward"] + passes["backward"] - products}
        passes |= {"batch": self._batch} | ({"python": python} if python is not None else {})
        for name, seconds in passes.items():
            self.parts.setdefault(name, []).append(seconds)
        self.step.clear()
        return took

    def forget(self) -> None:
        self.values.clear()
        self.parts.clear()


LR = 1e-6
"""For many steps on few batches: weights that hardly move cannot diverge."""


@dataclass
class _Timed:
    """A layer's product on the clock."""

    layer: str
    product: Product
    clock: Clock

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.product, name)
        if name not in ("forward", "input_grad", "weight_grad", "weight_grad_rows"):
            return value

        def call(*operands: Array, **named: Any) -> Array:
            before = self.clock.read()
            made: Array = value(*operands, **named)
            took = self.clock.read() - before
            self.clock.add(PRODUCTS, took)
            if name == "weight_grad_rows":  # in the midst of the update
                self.clock.add((self.layer, "dW"), took)
                self.clock.last += took
            return made

        return call


def _timed_product(layer: str, clock: Clock, product: Product) -> Product:
    return cast(Product, _Timed(layer, product, clock))


def stepper(run: Run, clock: Clock, totals: list[float]) -> Callable[[], None]:
    """One step of a run, its parts put on the clock; the run wraps around its epochs."""

    def step() -> None:
        if run.step >= run.steps_per_epoch:
            run.step = 0
        clock.begin()
        batch = run.batch(run.step + 1)
        clock.has_batch()
        run.train_step(clock, batch, clock.replay)
        totals.append(clock.end())

    run.records = True
    for node in run.network.nodes:
        node.through = partial(_timed_product, node.name, clock)
    return step
