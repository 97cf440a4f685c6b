"""A clock on the parts of training steps: each layer's passes, and the products in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from octosim.nodes import Array, Product
from octosim.train import Run

Key = tuple[str, str]
"""Layer and pass."""


class Clock:
    """Collects the time of each layer's passes through `models.Tick`.  read: the clock."""

    def __init__(self, read: Callable[[], float] = time.perf_counter) -> None:
        self.values: dict[Key, list[float]] = {}
        self.read = read
        self.last = 0.0
        self.step: dict[Key, float] = {}
        self.parts: dict[str, list[float]] = {}

    def __call__(self, layer: str, pass_: str) -> None:
        now = self.read()
        self.add((layer, pass_), now - self.last)
        self.last = self.read()

    def add(self, key: Key, seconds: float) -> None:
        self.step[key] = self.step.get(key, 0.0) + seconds

    def flush(self) -> None:
        """At the end of a step."""
        products = self.step.pop(PRODUCTS, None)
        passes = {"forward": 0.0, "backward": 0.0, "update": 0.0}
        for (layer, pass_), seconds in self.step.items():
            self.values.setdefault((layer, pass_), []).append(seconds)
            passes["backward" if pass_ in ("dX", "dW") else pass_] += seconds
        if products is not None:  # of a method whose products are not its layers' there is no time
            passes |= {"products": products, "around_products": passes["forward"] + passes["backward"] - products}
        for name, seconds in passes.items():
            self.parts.setdefault(name, []).append(seconds)
        self.step.clear()

    def forget(self) -> None:
        self.values.clear()
        self.parts.clear()


PRODUCTS: Key = ("products", "all")
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
        before = clock.last = clock.read()
        run.train_step(clock)
        totals.append(clock.read() - before)
        clock.flush()

    for node in run.network.nodes:
        node.through = partial(_timed_product, node.name, clock)
    return step
