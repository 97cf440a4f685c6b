"""What a network is given: bytes or float32 values, and how they are normalized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from octosim import core
from octosim.engine.graph import InputSpec
from octosim.engine.nodes import Array
from octosim.errors import OctosimError

LARGEST = float(np.finfo(np.float32).max)
LEAST = 2.0**-16
"""Of a channel's largest magnitude: a smaller deviation would show float32's rounding of the mean."""


@dataclass(frozen=True)
class Input:
    """The input of a network: its first layer gets (v - mean) / deviation, v = pixel / 255 of bytes, the value of float32.

    floats: whether it is float32.  mean, deviation: one number a channel, the last axis; empty: 0 and 1.
    limit: the largest magnitude of what the first layer gets in training; methods with a fixed range clip to it.
    """

    floats: bool = False
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    limit: float = 1.0

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.deviation):
            raise OctosimError(f"an input has {len(self.mean)} means and {len(self.deviation)} deviations, expected as many")
        for name, values in (("mean", self.mean), ("deviation", self.deviation), ("limit", (self.limit,))):
            finite = all(abs(v) <= LARGEST for v in values)  # a NaN is not
            if not finite or name != "mean" and not all(v > 0 for v in values):
                raise OctosimError(f"an input's {name} is {values}, expected finite numbers" + " above 0" * (name != "mean"))

    @property
    def dtype(self) -> type[Any]:
        return np.float32 if self.floats else np.uint8

    @property
    def is_plain(self) -> bool:
        """Bytes that are only brought to [0, 1], as each method does it."""
        return not self.floats and not self.mean

    @cached_property
    def _affine(self) -> tuple[Array, Array]:
        mean, deviation = np.array(self.mean), np.array(self.deviation)
        return (1 / deviation).astype(np.float32), (-mean / deviation).astype(np.float32)

    def values(self, images: Array, out: Array) -> Array:
        """The normalized float32 values, in `out`: each product and sum of v / deviation + -mean / deviation rounded once."""
        x = core.copy(images, out=out) if self.floats else core.images(images, 1 / 255, 0.0, out=out)
        return core.affine(x, *self._affine, out=x) if self.mean else x

    def describe(self) -> dict[str, Any]:
        """As a manifest holds it; empty for plain bytes."""
        if self.is_plain:
            return {}
        return {"values": "float32" if self.floats else "uint8", "mean": list(self.mean), "deviation": list(self.deviation),
                "limit": self.limit}  # fmt: skip


def of_network(spec: InputSpec, images: Array) -> Input | None:
    """The input that a network's file asks for, of its training images; None where it asks for none."""
    if spec.mean is None and spec.deviation is None:
        return None
    channels = images.shape[-1]
    mean, deviation = spec.mean or (0.0,) * channels, spec.deviation or (1.0,) * channels
    for name, values in (("mean", mean), ("deviation", deviation)):
        if len(values) != channels:
            raise OctosimError(f"[input]: field '{name}' has {len(values)} numbers, the data have {channels} channels")
    low, high = _range(images)
    return Input(images.dtype == np.float32, mean, deviation, _limit(low, high, np.array(mean), np.array(deviation)))


def _range(images: Array) -> tuple[Array, Array]:
    """The least and the largest value of each channel; of bytes in [0, 1]."""
    axes = tuple(range(images.ndim - 1))
    unit = 1.0 if images.dtype == np.float32 else 1 / 255
    return images.min(axis=axes).astype(np.float64) * unit, images.max(axis=axes).astype(np.float64) * unit


def _limit(low: Array, high: Array, mean: Array, deviation: Array) -> float:
    largest = np.maximum(abs(low - mean), abs(high - mean)) / deviation
    return float(np.float32(largest.max())) or 1.0


def measured(images: Array, normalize: bool) -> Input:
    """The input for training images uint8 or float32 (N, ..., channels).

    normalize: to mean 0 and deviation 1 in each channel of all of them; a channel of one value gets the deviation 1, no
    other less than LEAST of its largest magnitude.

    Sums are float64 and in the images' order, so that the numbers are the same on every machine.
    """
    floats, channels = images.dtype == np.float32, images.shape[-1]
    if not floats and not normalize:
        return Input()
    low, high = _range(images)
    if not normalize:
        return Input(floats, limit=_limit(low, high, np.zeros(channels), np.ones(channels)))
    unit, count = 1.0 if floats else 1 / 255, images.size // channels
    size = max(1, (1 << 18) // images[0].size)

    def average(term: Callable[[Array], Array]) -> Array:
        total = np.zeros(channels)
        for first in range(0, len(images), size):
            part = term(images[first : first + size].reshape(-1, channels).astype(np.float64) * unit)
            # adds one after the other, where the order of np.sum depends on the processor
            total = np.add.accumulate(np.concatenate([total[None], part]), axis=0)[-1]
        return total / count

    mean = average(lambda part: part).astype(np.float32).astype(np.float64)
    deviation = np.sqrt(average(lambda part: (part - mean) ** 2)).astype(np.float32).astype(np.float64)
    deviation = np.maximum(deviation, np.maximum(abs(low), abs(high)) * LEAST)
    deviation[low == high] = 1
    return Input(floats, tuple(mean.tolist()), tuple(deviation.tolist()), _limit(low, high, mean, deviation))
