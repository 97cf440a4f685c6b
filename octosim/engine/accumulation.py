"""Gradient accumulation: a step's batch in micro-batches, one after the other in the memory of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from octosim import core
from octosim.engine.nodes import Array, Context, Node

Pass = Callable[[Array, Array, Context, Callable[[Node], None]], tuple[core.Number, core.Whole | None]]
"""Forward and backward on a micro-batch: images, labels, context, done; see `Network.gradients`."""


def micro_batch(batch: int, parts: int) -> int:
    """The images of a micro-batch of a step on so many images in so many parts."""
    return -(-batch // parts)


def _slices(images: int, size: int) -> Iterator[slice]:
    for first in range(0, images, size):
        yield slice(first, min(images, first + size))


def _rows(x: Array) -> Array:
    return x.reshape(len(x) if x.ndim > 1 else 1, -1)


def _scaled(x: Array, factor: float) -> Array:
    """x times a float32 factor, in its memory."""
    rows = _rows(x)
    core.affine(rows, np.full(rows.shape[1], factor, np.float32), np.zeros(rows.shape[1], np.float32), out=rows)
    return x


def accumulated(
    one: Pass, nodes: list[Node], size: int, images: Array, labels: Array, context: Context,
    done: Callable[[Node], None] | None,
) -> tuple[core.Number, core.Whole | None]:  # fmt: skip
    """The means of gradients and loss over a step's images, in micro-batches of `size`, the last perhaps of fewer; and the last
    one's count.

    Of m images, with r in the last of k: G = ((g1 + g2) + ... + (r / size) gk) (size / m), each operation rounded to float32.
    """
    held: dict[str, dict[str, Array]] = {}
    total: dict[str, Array] = {}
    correct: core.Whole | None = 0

    def add(kept: dict[str, Array], key: str, g: Array, share: float) -> None:
        if share != 1:
            g = _scaled(g, share)
        if key in kept:
            core.add(_rows(kept[key]), _rows(g), out=_rows(kept[key]))
        else:
            kept[key] = g

    for number, some in enumerate(_slices(len(labels), size)):
        share = len(labels[some]) / size

        def collect(node: Node, share: float = share) -> None:
            core.at("accumulate", "update")
            kept = held.setdefault(node.name, {})
            for key in list(node.grads):
                add(kept, key, core.materialize_in_place(node.grads.pop(key)), share)

        loss, correct = one(images[some], labels[some], replace(context, micro=number), collect)
        core.at("accumulate", "update")
        add(total, "loss", core.copy(core.scalar_array(core.scalar(loss)), out=np.empty(1, np.float32)), share)
    whole = size / len(labels)
    for node in reversed(nodes):
        if node.name in held:
            core.at("accumulate", "update")
            node.grads = {key: _scaled(g, whole) for key, g in held.pop(node.name).items()}
            if done:
                done(node)
                node.grads.clear()
    core.at("accumulate", "update")
    return core.array_scalar(_scaled(total["loss"], whole)), correct
