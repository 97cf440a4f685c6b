"""What a weighted layer's passes take and make in a training step, seen from outside: copies of every tensor, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from octosim.engine import Network
from octosim.engine.nodes import Array, Observer, Product

Key = tuple[str, str, str]
"""Layer, pass, tensor.  forward: input (real), x and w (the product's operands), sums, output (real).  dW: gradient (real), x,
dy, sums, and the gradients of w, b ...  dX: dy, w, sums, result (real)."""


class Meaning(NamedTuple):
    """A quantized operand's codes, with their one scale and zero point."""

    q: Array
    scale: float
    zero: int


@dataclass
class Observed:
    """What was seen since `clear`, in the order in which it was made.

    products: by (layer, pass), the product and x's zero point.  meanings: by (layer, operand), in their order; a method may
    have several of an operand.
    """

    tensors: dict[Key, Array] = field(default_factory=dict)
    products: dict[tuple[str, str], tuple[Product, int]] = field(default_factory=dict)
    meanings: dict[tuple[str, str], list[Meaning]] = field(default_factory=dict)

    def clear(self) -> None:
        for held in (self.tensors, self.products, self.meanings):
            held.clear()

    def add(self, layer: str, pass_: str, tensor: str, values: Any) -> None:
        self.tensors[layer, pass_, tensor] = getattr(values, "q", values).copy()

    def means(self, layer: str, operand: str, value: Any) -> None:
        if value.is_affine:
            self.meanings.setdefault((layer, operand), []).append(Meaning(value.q.copy(), value.scale, value.zero))

    def product(self, layer: str, pass_: str, product: Product, operands: dict[str, Array], x_zero: int, sums: Array) -> None:
        """nodes.Observer."""
        self.products[layer, pass_] = product, x_zero
        for tensor, values in (operands | {"sums": sums}).items():
            self.add(layer, pass_, tensor, values)


@dataclass
class Tensors:
    """An observer that keeps tensors of some names, by layer."""

    names: tuple[str, ...]
    kept: dict[str, dict[str, Array]] = field(default_factory=dict)

    def add(self, layer: str, pass_: str, tensor: str, values: Any) -> None:
        if tensor in self.names and isinstance(values, np.ndarray):
            self.kept.setdefault(layer, {})[tensor] = values.copy()

    def means(self, layer: str, operand: str, value: Any) -> None:
        pass

    def product(self, layer: str, pass_: str, product: Product, operands: dict[str, Array], x_zero: int, sums: Array) -> None:
        pass


def watch(network: Network) -> Observed:
    """From now on every training step of the network is observed."""
    observed = Observed()
    network.observers.append(observed)
    return observed


@contextmanager
def watching(network: Network, observer: Observer) -> Iterator[None]:
    """Tells an observer of the passes made inside."""
    network.observers.append(observer)
    try:
        yield
    finally:
        network.observers.remove(observer)
