"""A training step that Python makes once and C makes again: the tape, and where it finds what differs from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from octosim import core
from octosim.models import Network, Tick
from octosim.nodes import Array, Context

Make = Callable[[Array, Array, Context, tuple[core.Number, ...], Tick], core.Number]
"""Makes a step: images, labels, context, the optimizer's numbers and what is told of each pass; returns the loss."""
Replay = Callable[[core.Tape], Any]
"""Makes the calls of a tape again, as core.Tape.replay does."""


class RecordedStep:
    """Records a step as it is made.  numbers: the learning rate and what else of the optimizer changes with the steps."""

    def __init__(
        self, make: Make, images: Array, labels: Array, context: Context, numbers: tuple[float, ...], tick: Tick | None
    ):
        self.tape = core.Tape()
        self._images, self._labels = images.copy(), labels.copy()
        self._step = core.step_number(int(context.step))
        self._numbers = tuple(core.scalar(number) for number in numbers)

        def both(layer: str, pass_: str) -> None:
            self.tape.mark(layer, pass_)
            if tick:
                tick(layer, pass_)

        again = Context(training=True, seed=context.seed, step=self._step, steps=context.steps, epoch=context.epoch)
        with self.tape.recording():
            self._loss = make(self._images, self._labels, again, self._numbers, both)

    @property
    def loss(self) -> float:
        """Of the last step made."""
        return float(self._loss)

    def make(self, images: Array, labels: Array, context: Context, numbers: tuple[float, ...], replay: Replay) -> None:
        """The step with another batch and other numbers; raises core.Failed."""
        np.copyto(self._images, images)
        np.copyto(self._labels, labels)
        self._step.at[0] = int(context.step)
        for held, number in zip(self._numbers, numbers, strict=True):
            held.at[0] = number
        replay(self.tape)

    def explain(self, failed: core.Failed, network: Network, context: Context) -> core.CoreError:
        """The error of a failed call as the step made by Python tells it: with the layer, and the pass or the tensor."""
        error = failed.error
        if not isinstance(error, core.NotFiniteError):
            return error
        layer, pass_ = self.tape.key(failed.at)
        try:
            if layer == "loss":  # the forward pass once more, to name the first layer
                network.forward(network.input(self._images), context, check=True)
            elif pass_ == "update":
                for node in reversed(network.nodes):
                    node.check_finite(node.params | node.state)
        except core.NotFiniteError as named:
            return named
        return core.NotFiniteError(f"layer {layer}, {'forward' if pass_ == 'forward' else 'backward'}: {error}")
