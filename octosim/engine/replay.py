"""Training steps that Python makes once and C makes again: the tape, and where it finds what differs from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from octosim import core
from octosim.engine import Network
from octosim.engine.network import Tick
from octosim.engine.nodes import Array, Context

Make = Callable[[Array, Array, Context, tuple[core.Number, ...], Tick | None], core.Number]
"""Makes a step: images, labels, context, the optimizer's numbers and what is told of each pass; returns the loss."""
Replay = Callable[[core.Tape], Any]
"""Makes the calls of a tape again, as core.Tape.replay does."""


class RecordedSteps:
    """Steps on batches of one size, of a method that is recordable.  Python makes the first, which finds the ranges of the
    weights for the next; the second is recorded, and C makes all others.

    images, labels, step, numbers: where the recorded step finds its batch, its number in the random streams, and the learning
    rate and what else of the optimizer changes.
    """

    def __init__(self, network: Network):
        self.tape: core.Tape | None = None
        self._network = network
        self._begun = False

    def take(
        self, make: Make, images: Array, labels: Array, context: Context, numbers: tuple[float, ...], tick: Tick | None,
        replay: Replay,
    ) -> float:  # fmt: skip
        """Makes a step; returns its loss.  make, tick: where Python makes it; replay: makes a recorded one.

        NotFiniteError names the layer, and the pass or the tensor.
        """
        if not self._begun:
            self._begun = True
            return float(make(images, labels, context, numbers, tick))
        if self.tape is None:
            self._record(make, images, labels, context, numbers, tick)
        else:
            self._again(self.tape, images, labels, context, numbers, replay)
        return float(self._loss)

    def _record(
        self, make: Make, images: Array, labels: Array, context: Context, numbers: tuple[float, ...], tick: Tick | None
    ) -> None:
        tape = core.Tape()
        self._images, self._labels = images.copy(), labels.copy()
        self._step = core.step_number(int(context.step))
        self._numbers = tuple(core.scalar(number) for number in numbers)

        def both(layer: str, pass_: str) -> None:
            tape.mark(layer, pass_)
            if tick:
                tick(layer, pass_)

        again = Context(training=True, seed=context.seed, step=self._step, steps=context.steps, epoch=context.epoch)
        with tape.recording():
            self._loss = make(self._images, self._labels, again, self._numbers, both)
        self.tape = tape

    def _again(
        self, tape: core.Tape, images: Array, labels: Array, context: Context, numbers: tuple[float, ...], replay: Replay
    ) -> None:
        np.copyto(self._images, images)
        np.copyto(self._labels, labels)
        self._step.at[0] = int(context.step)
        for held, number in zip(self._numbers, numbers, strict=True):
            held.at[0] = number
        try:
            replay(tape)
        except core.Failed as failed:
            raise self._explained(tape, failed, context) from None

    def _explained(self, tape: core.Tape, failed: core.Failed, context: Context) -> core.CoreError:
        """The error of a call as the step made by Python tells it."""
        if not isinstance(failed.error, core.NotFiniteError):
            return failed.error
        layer, pass_ = tape.key(failed.at)
        try:
            if layer == "loss":  # the forward pass once more, to name the first layer
                self._network.forward(self._network.input(self._images), context, check=True)
            elif pass_ == "update":
                for node in reversed(self._network.nodes):
                    node.check_finite(node.params | node.state)
        except core.NotFiniteError as named:
            return named
        return core.NotFiniteError(f"layer {layer}, {'forward' if pass_ == 'forward' else 'backward'}: {failed.error}")
