"""What a weighted layer's passes take and make in a training step, seen from outside: copies of every tensor, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from octosim import core
from octosim.engine import Network
from octosim.engine.nodes import Array, Context, Method, Node, Product
from octosim.engine.registers import Registers

Key = tuple[str, str, str]
"""Layer, pass, tensor.  forward: input (real), x and w (the product's operands), sums, output (real).  dW: gradient (real), x,
dy, sums, and the gradients of w, b ...  dX: dy, w, sums, result (real)."""


class Observer(Protocol):
    """What is told of a step.  The arrays are the method's own: they hold their values only until the call returns."""

    def add(self, layer: str, pass_: str, tensor: str, values: Any) -> None:
        """A tensor of a pass (see Key): an array, or codes with their meaning where a method has such between layers."""

    def means(self, layer: str, operand: str, value: Any) -> None:
        """Codes with their meaning (`quantizers.QTensor` or the like) that a method keeps: after its forward pass, before
        "output", and after it made the error of a layer."""

    def product(self, layer: str, pass_: str, product: Product, operands: dict[str, Array], x_zero: int, sums: Array) -> None:
        """registers.Seen."""


@dataclass
class Observed:
    """What was seen since `clear`, in the order in which it was made.

    products: by (layer, pass), the product and x's zero point.  meanings: by (layer, operand), its `quantizers.QTensor`, where
    the method has one.
    """

    tensors: dict[Key, Array] = field(default_factory=dict)
    products: dict[tuple[str, str], tuple[Product, int]] = field(default_factory=dict)
    meanings: dict[tuple[str, str], Any] = field(default_factory=dict)

    def clear(self) -> None:
        for held in (self.tensors, self.products, self.meanings):
            held.clear()

    def add(self, layer: str, pass_: str, tensor: str, values: Any) -> None:
        self.tensors[layer, pass_, tensor] = getattr(values, "q", values).copy()

    def means(self, layer: str, operand: str, value: Any) -> None:
        if hasattr(value, "scale") and hasattr(value, "zero"):
            self.meanings[layer, operand] = value

    def product(self, layer: str, pass_: str, product: Product, operands: dict[str, Array], x_zero: int, sums: Array) -> None:
        """registers.Seen."""
        self.products[layer, pass_] = product, x_zero
        for tensor, values in (operands | {"sums": sums}).items():
            self.add(layer, pass_, tensor, values)


class _Watched:
    """A method whose passes are observed; all else is the method's own."""

    def __init__(self, method: Any, observed: Observer):
        self._method, self._observed = method, observed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def forward(self, node: Node, x: Array, context: Context) -> Array:
        self._observed.add(node.name, "forward", "input", x)
        y: Array = core.values(self._method.forward(node, x, context))
        self._means(node, node.saved)
        self._observed.add(node.name, "forward", "output", y)
        return y

    def error(self, node: Node, dy: Array, context: Context) -> Any:
        self._observed.add(node.name, "dW", "gradient", dy)
        error = self._method.error(node, dy, context)
        self._means(node, {"dy": error})
        return error

    def weight_grad(self, node: Node, error: Any, context: Context) -> None:
        self._method.weight_grad(node, error, context)
        node.grads = {name: core.values(g) for name, g in node.grads.items()}
        for name, values in node.grads.items():
            self._observed.add(node.name, "dW", f"gradient of {name}", values)

    def input_grad(self, node: Node, error: Any, context: Context) -> Array:
        dx: Array = core.values(self._method.input_grad(node, error, context))
        self._observed.add(node.name, "dX", "result", dx)
        return dx

    def _means(self, node: Node, values: dict[str, Any]) -> None:
        for name, value in values.items():
            for part in value if isinstance(value, tuple) else (value,):
                if hasattr(part, "q"):
                    self._observed.means(node.name, name, part)


def watch(network: Network, registers: Registers) -> Observed:
    """From now on every training step of the network is observed."""
    observed = Observed()
    network.method = cast(Method, _Watched(network.method, observed))
    registers.seen = observed.product
    return observed


@contextmanager
def watching(network: Network, registers: Registers | None, observer: Observer) -> Iterator[None]:
    """Tells an observer of the passes made inside; registers None: of all but the products."""
    method, seen = network.method, registers.seen if registers else None
    network.method = cast(Method, _Watched(method, observer))
    if registers:
        registers.seen = observer.product
    try:
        yield
    finally:
        network.method = method
        if registers:
            registers.seen = seen
