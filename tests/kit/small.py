"""Small nets and data: the graphs of the models with few filters and units, and few images."""

from __future__ import annotations

import dataclasses
import functools
import math

from octosim import data
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
