"""Small nets and data: the graphs of the models with few filters and units, and few images."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from octosim import data, train
from octosim.engine.graph import Graph
from octosim.engine.layers import Conv2d, Item, Linear, Residual, Stack


def narrow(stack: Stack, scale: int = 16) -> Stack:
    """A stack whose convolutions and hidden layers are divided by `scale`, though not below 3; the last layer stays."""

    def smaller(item: Item) -> Item:
        match item:
            case Residual():
                return Residual(tuple(map(smaller, item.body)), tuple(map(smaller, item.shortcut)))
            case Conv2d():
                return dataclasses.replace(item, filters=max(3, math.ceil(item.filters / scale)))
            case Linear():
                return dataclasses.replace(item, units=max(3, math.ceil((item.units or 0) / scale)))
        return item

    return (*map(smaller, stack[:-1]), stack[-1])


LOAD = data.load


@functools.cache
def few_images(name: str) -> data.Dataset:
    """What `data.load` gives, with 600 images to train on and 60 to test; read once."""
    d = LOAD(name)
    return dataclasses.replace(
        d, train_images=d.train_images[:600], train_labels=d.train_labels[:600],
        test_images=d.test_images[:60], test_labels=d.test_labels[:60],
    )  # fmt: skip


def run_of(method: str, network: Graph, shape: tuple[int, ...], steps: int = 1) -> train.Run:
    """A run of a method on a network and 16 random images of 4 classes, after so many steps, or before its first."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (16, *shape), dtype=np.uint8), np.arange(16, dtype=np.uint8) % 4
    dataset = data.Dataset("random", images, labels, images, labels, tuple("abcd"), "", "")
    run = train.Run(train.Config(model="layers.toml", method=method, batch_size=4, steps=max(steps, 1)), network, dataset)
    for _ in range(steps):
        run.advance()
    return run
