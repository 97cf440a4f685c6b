"""What a method's numbers do to a training step, layer by layer: errors against float32, clipping, codes, overflow.

The reference ("shadow") is the run's own network with the method fp32.  Of a measured step it answers two questions:

    layer   local error: the same pass of the same layer in float32, on the inputs that the layer had in the run
    step    accumulated error: the same pass in a whole step of the float32 network, from the run's weights and batch

Octo's compensation is part of the method under test, so its correction is included.
Two more rows a pass need no shadow:

    operand what went into the product, against the float32 tensor that it was made of: the error of quantization alone
    exact   the sums that the register made, against exact int64 ones, and what happened in the register

The shadow's step takes the whole batch, since normalization and weight gradients do.  Tensors with a batch axis are compared in
the first IMAGES images of the (shuffled) batch, and in the registers a sample of sums is counted: see `_sample`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from octosim import core, methods
from octosim.engine import Network
from octosim.engine.graph import Graph
from octosim.engine.inputs import Input
from octosim.engine.layers import Stack
from octosim.engine.nodes import Array, Context, FullProduct, Node, Product
from octosim.engine.probes import watching
from octosim.engine.registers import (
    AccumulatorModel,
    EmulatedProduct,
    as_record,
    exact_sums,
    in_rows,
    multiply,
    resized,
    x_windows,
)
from octosim.engine.selection import ALL, Selection
from octosim.numerics import Accumulator

ROLES = ("weight", "activation", "error", "gradient", "update", "accumulator")
"""error: dL/dY and dL/dX.  gradient: dL/dW.  update: the change of the weights in the step.  accumulator: the sums."""
AGAINST = ("operand", "layer", "step", "exact")
IMAGES = 8  # of the batch that are compared
COUNTED = 4  # of the batch whose sums are counted, of forward and dX
FILTERS, COLUMNS = 16, 8  # of dW, whose sums run over the whole batch, so many are counted: see _sample
BINS, BIN = 51, 5  # of a histogram of codes: -127 .. -123, ... -2 .. 2, ... 123 .. 127
OPERANDS = {"x": "activation", "w": "weight", "dy": "error"}
BLOCK = 1 << 15  # elements that are compared at once, so that they stay in the cache

Update = Callable[[str, Array, Array], None]
"""Takes a parameter's name, its value and its gradient; moves the value as the run's optimizer would, changing nothing else."""


# ---- measures --------------------------------------------------


def decibels(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise), both sums of squares; None where one of them is 0 or not finite."""
    ratio = signal / noise if noise > 0 else 0.0
    return 10 * math.log10(ratio) if 0 < ratio < math.inf else None


def _short(value: float | None) -> float | None:
    """Six digits; None for what JSON cannot hold."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def errors(reference: Array, values: Array) -> dict[str, Any]:
    """How far values lie from a reference of as many elements, computed in float64.

    elements; sqnr_db: 10 log10(sum r^2 / sum (v - r)^2), None where r is 0 or nothing differs; mse: mean (v - r)^2; bias: mean
    (v - r); max_error: largest |v - r|; cosine: of the angle between r and v, None where one of them is 0; zeros and
    reference_zeros: shares of values and of the reference that are 0.
    """
    reference, values = reference.reshape(-1), values.reshape(-1)
    signal = power = product = noise = bias = largest = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(0, reference.size, BLOCK):
            r, v = (part[i : i + BLOCK].astype(np.float64) for part in (reference, values))
            e = v - r
            signal, power, product = signal + np.square(r).sum(), power + np.square(v).sum(), product + (r * v).sum()
            noise, bias, largest = noise + np.square(e).sum(), bias + e.sum(), np.maximum(largest, np.abs(e).max())
        length = math.sqrt(signal) * math.sqrt(power)
        cosine = product / length if length else None
    n = max(1, reference.size)
    return {
        "elements": reference.size,
        "sqnr_db": _short(decibels(signal, noise)),
        "mse": _short(noise / n),
        "bias": _short(bias / n),
        "max_error": _short(largest),
        "cosine": _short(cosine),
        "zeros": _short(1 - np.count_nonzero(values) / n),
        "reference_zeros": _short(1 - np.count_nonzero(reference) / n),
    }


def _binned(codes: Array) -> list[int]:
    """Codes in BINS bins of BIN codes, symmetric about 0; -128 counts as -127."""
    inner = codes[1:].copy()
    inner[0] += codes[0]
    return [int(n) for n in inner.reshape(BINS, BIN).sum(1)]


def _counted(q: Array) -> Array:
    """How often each int8 code from -128 on occurs."""
    return np.bincount(q.reshape(-1).astype(np.int16) + 128, minlength=256)


def code_use(reference: Array, q: Array, scale: float, zero: int, ends: tuple[int, int]) -> dict[str, Any]:
    """What int8 codes, r = scale (q - zero), do with the reference that they were made of.

    ends: the lowest and the highest code of the whole tensor, of which q may be a part.
    clipped: share of the reference that lies more than half a step outside them; used_codes: how many codes of 256 occur;
    histogram: of the codes (BINS bins).
    """
    counts = _counted(q)
    low, high = (np.float32(scale * (end - zero)) for end in (ends[0] - 0.5, ends[1] + 0.5))
    outside = np.count_nonzero(reference < low) + np.count_nonzero(reference > high) if scale > 0 else 0
    return {
        "used_codes": int(np.count_nonzero(counts)),
        "clipped": _short(outside / max(1, reference.size)),
        "histogram": _binned(counts),
    }


def _unclipped(whole: Array, part: Array) -> Array:
    """How often each int8 code would occur in a part of a tensor, had the whole's own extremes been the codes' range."""
    largest = float(np.abs(whole).max())
    return _counted(core.quantize(np.ascontiguousarray(part), 127 / largest if largest > 1e-36 else 0.0))


# ---- what methods pass around, as reals --------------------------------------------------


def meaning_of(q: Array, values: list[core.Tensor]) -> tuple[float, int] | None:
    """(scale, zero) of the codes q of a product, which one of a method's values (probes.Observer.means) holds; else None, as
    where the whole tensor has no one scale."""
    held = next((value for value in values if np.may_share_memory(value.q, q)), None)
    return (held.scale, held.zero) if held is not None and held.is_affine else None


def _real(value: Any) -> Array | None:
    """float32 values of an array or a tensor; None of integers without a meaning."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float32, copy=False) if value.dtype.kind == "f" else None
    return core.materialize(value)


def _real_weight(node: Node) -> Array | None:
    """A layer's weights in float32; integers mean q 2^exponent, the exponent being part of the layer's state."""
    w, exponent = node.params["w"], node.state.get("exponent")
    if w.dtype.kind == "f":
        return w
    return None if exponent is None else np.ldexp(w.astype(np.float32), int(exponent.flat[0]))


def _sample(product: Product, pass_: str, operands: dict[str, Array], x_zero: int) -> tuple[Product, dict[str, Array]]:
    """A product, with its operands, whose sums are some of a pass's, each over its whole K.

    Of forward and dX those of the first COUNTED images; of dW those of the first FILTERS filters and COLUMNS weights of each,
    spread over the kernel and the channels (depthwise: of the first one): X's windows make it a fully connected layer with an
    image a place.
    """
    g, operands = product.geometry, in_rows(product, operands)
    if pass_ != "dW":
        batch = min(g.batch, COUNTED)
        return resized(product, batch), {k: v if k == "w" else v[:batch] for k, v in operands.items()}
    windows = x_windows(g, operands["x"], x_zero)
    dy = operands["dy"].reshape(-1, operands["dy"].shape[-1])[:, :FILTERS]
    if product.groups > 1:  # the first of the groups
        windows, dy = windows[..., : windows.shape[-1] // product.groups], dy[:, : product.shape[2]]
    kernel = windows.shape[3:]
    chosen = np.unique(np.linspace(0, math.prod(kernel) - 1, COLUMNS).astype(int))
    columns = [windows[(..., *place)].reshape(-1) for place in zip(*np.unravel_index(chosen, kernel), strict=True)]
    smaller = FullProduct(len(dy), len(columns), dy.shape[1])
    return smaller, {"x": np.stack(columns, 1), "dy": np.ascontiguousarray(dy)}


# ---- a measured step --------------------------------------------------


class _Results:
    """An observer that keeps what the passes of the shadow's step give: (layer, pass) -> array."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Array] = {}

    def add(self, layer: str, pass_: str, tensor: str, values: Array) -> None:
        if (pass_, tensor) == ("dW", "gradient of w"):
            self.kept[layer, pass_] = values.copy()
        elif tensor in ("output", "result"):
            self.kept[layer, pass_] = values[:IMAGES].copy()

    def means(self, layer: str, operand: str, value: Any) -> None:
        pass

    def product(self, layer: str, pass_: str, product: Product, operands: dict[str, Array], x_zero: int, sums: Array) -> None:
        pass


class Meter:
    """Measures steps of a network; an observer of them.  Decides no bit of a run: it only reads what the passes take and make.

    Where a method takes a layer's pass more than once in a step, the first one is measured.
    """

    def __init__(
        self, layers: Graph | Stack, in_shape: tuple[int, ...], accumulator: Accumulator, source: Input = Input(),
        selection: Selection = ALL,
    ):  # fmt: skip
        """source, selection: of the run's network."""
        self._accumulator = accumulator
        self._fp32 = methods.make("fp32", {})
        self._shadow = Network(layers, in_shape, self._fp32, None, source=source, selection=selection)
        self._nodes = {node.name: node for node in self._shadow.nodes if node.layer.weighted}

    @contextmanager
    def step(
        self,
        network: Network,
        registers: AccumulatorModel,
        batch: tuple[Array, Array],
        context: Context,
        smoothing: float,
        update: Update,
    ) -> Iterator[None]:
        """The shadow's step, then the network's inside: a forward and backward pass on the same batch.

        update: the run's optimizer, for the shadow's weights.
        """
        self._context = context
        self._rows: dict[tuple[str, str, str, str], dict[str, Any]] = {}
        self._inputs: dict[str, Array | None] = {}
        self._errors: dict[str, Array | None] = {}
        self._operands: dict[tuple[str, str], dict[str, Array]] = {}
        self._meanings: dict[str, list[Any]] = {}
        whole = self._take_weights(network)
        self._expected = self._shadow_step(batch, context, smoothing, update) if whole else {}
        with watching(network, self):
            yield

    def _take_weights(self, network: Network) -> bool:
        """Copies the network's parameters as far as float32 has them; whether all weights have values."""
        self._known: set[str] = set()
        for own, node in zip(network.nodes, self._shadow.nodes, strict=True):
            for name, held in (*node.params.items(), *node.state.items()):
                value = (own.params | own.state).get(name)
                if name == "w" and node.layer.weighted:
                    value = _real_weight(own)
                    if value is not None:
                        self._known.add(node.name)
                if value is not None and value.shape == held.shape:  # a method's own normalization may have others
                    held[...] = value
        return len(self._known) == len(self._nodes)

    def _shadow_step(
        self, batch: tuple[Array, Array], context: Context, smoothing: float, update: Update
    ) -> dict[tuple[str, str], Array]:
        """Results by (layer, pass), pass "update" being the change of the weights; nothing where float32 overflows."""
        results = _Results()
        try:
            with watching(self._shadow, results):
                self._shadow.gradients(*batch, context, smoothing=smoothing)
        except core.NotFiniteError:
            return {}
        for name, node in self._nodes.items():
            if (name, "dW") not in results.kept:
                continue
            w = node.params["w"].copy()
            update(f"{name}.w", w, results.kept[name, "dW"])
            results.kept[name, "update"] = w - node.params["w"]
        return results.kept

    def finish(self, network: Network) -> list[dict[str, Any]]:
        """After the network's parameters were updated: the step's records, in the order in which they were measured."""
        for node in network.nodes:
            after = _real_weight(node) if node.layer.weighted else None
            if after is not None and (node.name, "update") in self._expected:
                change = after - self._nodes[node.name].params["w"]
                self._row(node.name, "update", "update", "step", self._expected[node.name, "update"], change)
        self._inputs, self._errors, self._operands, self._meanings, self._expected = {}, {}, {}, {}, {}  # memory
        keys = ("layer", "pass", "role", "against")
        return [dict(zip(keys, key, strict=True)) | row for key, row in self._rows.items()]

    def _row(self, layer: str, pass_: str, role: str, against: str, reference: Array, values: Array) -> None:
        key = (layer, pass_, role, against)
        if key not in self._rows and reference.size == values.size:
            self._rows[key] = errors(reference, values)

    # ---- probes.Observer ----

    def means(self, layer: str, operand: str, value: Any) -> None:
        self._meanings.setdefault(layer, []).append(value)

    def product(self, layer: str, pass_: str, product: Product, operands: dict[str, Array], x_zero: int, sums: Array) -> None:
        self._operands[layer, pass_] = operands
        key = (layer, pass_, "accumulator", "exact")
        if key in self._rows or any(values.dtype != np.int8 for values in operands.values()):
            return
        part, few = _sample(product, pass_, operands, x_zero)
        registers = AccumulatorModel(self._accumulator, counting=True)
        made = multiply(EmulatedProduct(layer, part, registers), pass_, few, x_zero)
        found = errors(exact_sums(part, pass_, few, x_zero), made)
        account = as_record(registers.counts[0][2])
        self._rows[key] = found | {"accumulator": self._accumulator.name} | account

    def add(self, layer: str, pass_: str, tensor: str, values: Any) -> None:
        if (pass_, tensor) == ("forward", "input"):
            self._inputs[layer] = _real(values)
            self._meanings[layer] = []
        elif (pass_, tensor) == ("forward", "output"):
            self._forward(layer, values)
        elif (pass_, tensor) == ("dW", "gradient"):
            dy = _real(values)  # copied: the method may write over it
            self._errors[layer] = None if dy is None else dy.copy()
        elif (pass_, tensor) == ("dW", "gradient of w"):
            self._weight_grad(layer, values)
        elif (pass_, tensor) == ("dX", "result"):
            self._input_grad(layer, values)

    def _results(self, layer: str, pass_: str, role: str, value: Any, local: Callable[[], Array] | None) -> None:
        """The rows of a pass's result; local: makes the same in float32, None where the layer's inputs are not known."""
        got = _real(value)
        if got is None:
            return
        got = got if pass_ == "dW" else got[:IMAGES]
        if local:
            self._row(layer, pass_, role, "layer", local(), got)
        if (layer, pass_) in self._expected:
            self._row(layer, pass_, role, "step", self._expected[layer, pass_], got)

    def _forward(self, layer: str, y: Any) -> None:
        node, x = self._nodes[layer], self._inputs[layer]
        self._operand(layer, "forward", "x", x)
        self._operand(layer, "forward", "w", self._weight(layer))
        local = None
        if x is not None and layer in self._known:
            local = partial(self._fp32.forward, node, x[:IMAGES], self._context)
        self._results(layer, "forward", "activation", y, local)

    def _weight_grad(self, layer: str, gradient: Any) -> None:
        x, dy = self._inputs[layer], self._errors[layer]
        self._operand(layer, "dW", "x", x)
        self._operand(layer, "dW", "dy", dy)
        local = None if x is None or dy is None else partial(self._local_gradient, self._nodes[layer], x, dy)
        self._results(layer, "dW", "gradient", gradient, local)

    def _local_gradient(self, node: Node, x: Array, dy: Array) -> Array:
        node.saved["x"] = x
        self._fp32.weight_grad(node, dy, self._context)
        return node.grads["w"]

    def _input_grad(self, layer: str, dx: Any) -> None:
        dy = self._errors.pop(layer)
        self._operand(layer, "dX", "dy", dy)
        self._operand(layer, "dX", "w", self._weight(layer))
        local = None
        if dy is not None and layer in self._known:
            local = partial(self._fp32.input_grad, self._nodes[layer], dy[:IMAGES], self._context)
        self._results(layer, "dX", "error", dx, local)

    def _weight(self, layer: str) -> Array | None:
        return self._nodes[layer].params["w"] if layer in self._known else None

    def _operand(self, layer: str, pass_: str, tensor: str, reference: Array | None) -> None:
        """The row of an operand, where the method quantized one; reference: the real tensor, with all images."""
        q, key = self._operands.get((layer, pass_), {}).get(tensor), (layer, pass_, OPERANDS[tensor], "operand")
        if q is None or reference is None or key in self._rows or q.size != reference.size:
            return
        few = slice(None) if tensor == "w" else slice(IMAGES)
        real, codes = reference[few], np.ascontiguousarray(q[few])
        if q.dtype.kind == "f":  # quantized in float32, or not at all
            if not np.array_equal(codes, real.reshape(codes.shape)):
                self._rows[key] = errors(real, codes)
            return
        meaning = meaning_of(q, self._meanings[layer])
        if q.dtype != np.int8 or meaning is None:
            return
        scale, zero = meaning
        row = errors(real, core.dequantize(codes, scale, zero=zero))
        row |= code_use(real, codes, scale, zero, (int(q.min()), int(q.max())))
        if tensor == "dy" and zero == 0:
            row["unclipped_histogram"] = _binned(_unclipped(reference, real))
        self._rows[key] = row
