"""Training steps that Python makes once and C makes again: the tape, and where it finds what differs from step to step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable

import numpy as np

from octosim import core
from octosim.engine import Network
from octosim.engine.nodes import Array, Context

Make = Callable[[Array, Array, Context, tuple[core.Number, ...]], core.Number]
"""Makes a step: images, labels, context and the optimizer's numbers; returns the loss."""


class RecordedSteps:
    """Steps on batches of one size.  Python makes the first, which finds the ranges of the weights for the next; the second is
    recorded, and so is the first of each later phase (`Method.phase`); C makes all others.

    images, labels, step, numbers: fixed buffers that the recorded calls read: batch, step counter of the random streams,
    learning rate and bias corrections.
    replays: how many steps C made.
    """

    def __init__(self, network: Network):
        self.tape: core.Tape | None = None
        self._network = network
        self.replays = 0
        self._begun = False
        self._phase: Hashable = None

    def take(
        self, make: Make, images: Array, labels: Array, context: Context, numbers: tuple[float, ...],
        watch: core.Probe,
    ) -> float:  # fmt: skip
        """Runs a step and returns its loss.  make: builds it in Python, where it is not replayed.  watch: is told of the calls.

        NotFiniteError names the layer, and the pass or the tensor.
        """
        phase = self._network.method.phase(context)
        if not self._begun or phase is None:
            self._begun = True
            with watch.watching():
                return float(make(images, labels, context, numbers))
        if self.tape is None or phase != self._phase:
            self.tape = None  # its memory goes before there is another
            self._record(make, images, labels, context, numbers, watch)
            self._phase = phase
        else:
            self._again(self.tape, images, labels, context, numbers, watch)
            self.replays += 1
        return float(self._loss)

    def _record(
        self, make: Make, images: Array, labels: Array, context: Context, numbers: tuple[float, ...], watch: core.Probe
    ) -> None:
        self._network.pool.pinned.clear()  # by the tape that is gone
        self._network.pool.trim()  # the blocks that a step in another order left do not fit this one's values
        tape = core.Tape()
        self._images, self._labels = images.copy(), labels.copy()
        self._step = core.step_number(int(context.step))
        self._numbers = tuple(core.number64(number) for number in numbers)

        again = dataclasses.replace(context, step=self._step, recorded=int(context.step))
        with watch.watching(), tape.recording():
            self._loss = make(self._images, self._labels, again, self._numbers)
        self.tape = tape

    def _again(
        self, tape: core.Tape, images: Array, labels: Array, context: Context, numbers: tuple[float, ...], watch: core.Probe
    ) -> None:
        np.copyto(self._images, images)
        np.copyto(self._labels, labels)
        self._step.at[0] = int(context.step)
        for held, number in zip(self._numbers, numbers, strict=True):
            held.at[0] = number
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # of declared segments; as network.QUIET
                watch.replay(tape)
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
