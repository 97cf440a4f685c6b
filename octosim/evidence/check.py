"""Somebody else's tensor of a layer and pass beside octosim's vectors: equal, off by how much, and by which deviation.

A kernel goes through five stages: it reads its operands, adds up their products in a register, may subtract a zero point's
part, makes codes of the sums, and writes them in some order.  Each stage has a table of ways to do otherwise, made of octosim's
own arithmetic.  One way, or two of different stages, is a hypothesis; it explains the tensor if every element comes out.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from octosim import core, numerics
from octosim.engine import registers
from octosim.engine.nodes import Array, Convolution, Depthwise, FullProduct, Product
from octosim.engine.quantizers import LARGEST_CODE
from octosim.errors import OctosimError, reading, suggest
from octosim.evidence.diff import off_by
from octosim.evidence.golden import OPERANDS, SUMS, VECTOR_BYTES, Arithmetic, groups, operand_names, read_npz
from octosim.files import open_regular
from octosim.numerics import ACCUMULATORS, Accumulator, Requantization, Rounding

PASSES = {sums: pass_ for pass_, sums in SUMS.items()}
SECONDS = 20.0  # after which no further pairs of deviations are tried
MOST_ROWS = 256  # that tell whose scale a channel has; the whole tensor is compared then


@dataclass(frozen=True)
class Vectors:
    """What `octosim golden` wrote of a layer.  accumulator and arithmetic: those of its sums and codes."""

    numbers: dict[str, Array]
    product: Product
    accumulator: Accumulator
    arithmetic: Arithmetic
    x_zero: int

    def operands(self, pass_: str) -> dict[str, Array]:
        """A pass's operands, by x, w and dy."""
        return {name: self.numbers[key] for name, key in zip(OPERANDS[pass_], operand_names(self.numbers, pass_), strict=True)}

    @property
    def tensors(self) -> list[str]:
        """The names of the sums and codes that a tensor may be compared with."""
        return [name for sums in PASSES for name in (sums, f"{sums}_codes") if name in self.numbers]


def read_vectors(path: Path) -> Vectors:
    """The vectors in LAYER.npz; OctosimError where the file is no such one."""
    numbers = read_npz(path)
    try:
        about = json.loads(str(numbers["about"]))
        geometry = _geometry(numbers)
        if int(numbers["depthwise"]):
            product: Product = Depthwise(geometry)
        elif numbers["w"].ndim == 2:
            product = FullProduct(geometry.batch, geometry.channels, geometry.filters)
        else:
            product = Convolution(geometry)
        how = about.get("requantize", {})
        kind = Requantization(how.get("how", Requantization.SINGLE_ROUNDING.value))
        rounding = None if kind is Requantization.GEMMLOWP else Rounding(how.get("rounding", Rounding.HALF_UP.value))
        arithmetic = Arithmetic(kind, rounding, bool(how.get("per_channel", False)))
        made = Vectors(numbers, product, numerics.find(about["accumulator"]), arithmetic, int(numbers["x_zero"]))
        shapes = dict(zip(("x", "w", "dy"), registers.shapes(product), strict=True))
        for pass_ in (PASSES[sums] for sums in PASSES if sums in numbers or sums == "forward"):
            for name, values in made.operands(pass_).items():
                if values.dtype != np.int8 or values.size != math.prod(shapes[name]):
                    raise OctosimError(f"{path}: array '{name}' is {values.dtype} {values.shape}, expected {shapes[name]}")
        return made
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise OctosimError(f"{path} has no vectors of `octosim golden`: {error!r}") from None


def _geometry(numbers: dict[str, Array]) -> core.Conv:
    names: list[Any] = ["batch", "height", "width", "channels", "filters", "kernel_h", "kernel_w", "stride", "pad"]
    if "groups" in numbers:  # not of an earlier release
        names[-2:] = ["stride_h", "stride_w"], [f"pad_{end}" for end in ("top", "left", "bottom", "right")]
        names += [["dilation_h", "dilation_w"], *([] if int(numbers["depthwise"]) else ["groups"])]
    sizes: list[Any] = [
        int(numbers[name]) if isinstance(name, str) else tuple(int(numbers[end]) for end in name) for name in names
    ]
    return core.Conv(*sizes)


def read_tensor(path: Path) -> Array:
    """A tensor of integers in a .npy file or in a hex file (a line an element, two's complement of 2, 4, 6 or 8 digits)."""
    kind = "hexadecimal numbers" if path.suffix != ".npy" else ".npy"
    with reading(path, kind), open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > VECTOR_BYTES:
            raise OctosimError(f"{path} cannot be read as {kind}: it is larger than {VECTOR_BYTES:,} bytes")
        if path.suffix != ".npy":
            return _read_hex(path, file)
        values = np.load(file, allow_pickle=False)
    if not isinstance(values, np.ndarray):
        raise OctosimError(f"{path} cannot be read as .npy: it holds several arrays")
    if values.dtype.kind == "f" and np.array_equal(values, np.rint(values)):
        values = values.astype(np.int64)
    if values.dtype.kind not in "iu":
        raise OctosimError(f"{path} has values of {values.dtype}, expected whole numbers")
    return np.asarray(values.astype(np.int64))


def _read_hex(path: Path, file: BinaryIO) -> Array:
    """The numbers of a hex file, a part at a time."""
    width, parts = 0, []
    while text := file.read(1 << 20) + file.readline(1 << 16):
        if b"//" in text:
            text = b"\n".join(line.partition(b"//")[0] for line in text.splitlines())
        words = text.split()
        if not words:
            continue
        width = width or len(words[0])
        if width > 15 or any(len(word) != width for word in words):
            break
        odd = b"0" * (width % 2)
        try:
            digits = np.frombuffer(bytes.fromhex((odd + odd.join(words)).decode()), np.uint8)
        except ValueError:
            break
        value = np.zeros(len(words), np.int64)
        for column in digits.reshape(len(words), -1).T:
            value = value << 8 | column
        parts.append(value)
    else:
        if width:
            values = np.concatenate(parts)
            return np.where(values >= 1 << (4 * width - 1), values - (1 << 4 * width), values)
    raise OctosimError(f"{path}: expected a .npy file, or hexadecimal numbers of the same number of digits, a line each")


# ---- the stages of a kernel --------------------------------------------------

Operands = tuple[dict[str, Array], int]
"""x, w, dy by name, int64, in octosim's layouts; and what padding holds."""


@dataclass(frozen=True)
class Deviation:
    """A way to do a stage otherwise.  stage: a deviation is combined with those of others.  text: what follows "equal"."""

    stage: str
    text: str
    apply: Callable[..., Any]


def _reader(shape: tuple[int, ...], axes: tuple[int, ...]) -> Callable[[Array], Array]:
    """Reads an array's memory with another shape, and puts its axes in octosim's order."""
    return lambda array: np.ascontiguousarray(array.reshape(shape).transpose(axes))


def _reading(v: Vectors, pass_: str) -> Iterator[Deviation]:
    """Other readings of the operands."""
    g, used = v.product.geometry, OPERANDS[pass_]

    def change(name: str, text: str, new: Callable[[Array], Array]) -> Deviation:
        return Deviation(name, text, lambda o: (o[0] | {name: new(o[0][name])}, o[1]))

    for name, shape in (("x", g.x_shape), ("dy", g.y_shape)):
        if name not in used:
            continue
        n, h, w, c = shape
        if h * w > 1 and c > 1:
            yield change(name, f"if {name}, which is NHWC, is read as NCHW", _reader((n, c, h, w), (0, 2, 3, 1)))
        yield change(name, f"if {name} is read as unsigned", lambda a: a & 255)
        yield change(name, f"if {name} has 128 added, which is not subtracted again", lambda a: a + 128)
        if h != 1 and w != 1:
            yield change(name, f"if height and width of {name} are exchanged", _reader((n, w, h, c), (0, 2, 1, 3)))
    if "x" in used and v.x_zero:
        yield Deviation("x", "if padding holds 0, not the zero point", lambda o: (o[0], 0))
        text = "if the zero point is subtracted from x, and padding holds 0"
        yield Deviation("x", text, lambda o: (o[0] | {"x": o[0]["x"] - v.x_zero}, 0))
    if "w" in used:
        f, kh, kw, d = _weights(v.product)
        if f > 1 and kh * kw * d > 1:
            text = "if w is transposed: its memory is read as " + ("[input][output]" if kh * kw == 1 else "HWIO")
            yield change("w", text, _reader((kh, kw, d, f), (3, 0, 1, 2)))
        if kh * kw > 1 and d > 1:
            yield change("w", "if w, which is OHWI, is read as OIHW", _reader((f, d, kh, kw), (0, 2, 3, 1)))
        if kh * kw > 1:
            text = "if the kernel is rotated by 180 degrees"
            yield change("w", text, lambda a: a.reshape(f, kh, kw, d)[:, ::-1, ::-1].copy())
        if kh > 1 and kw > 1:
            yield change("w", "if the kernel's height and width are exchanged", _reader((f, kw, kh, d), (0, 2, 1, 3)))
        yield change("w", "if w is read as unsigned", lambda a: a & 255)


def _weights(product: Product) -> tuple[int, int, int, int]:
    g = product.geometry
    return g.filters, g.kernel_h, g.kernel_w, g.channels // groups(product)


def _exact(product: Product, pass_: str, held: dict[str, Array], pad: int) -> Array:
    """The sums of whole numbers of any size, int64 (through float64, which holds them below 2^53)."""
    g, parts = product.geometry, groups(product)
    reals = {name: values.astype(np.float64) for name, values in held.items()}
    f, kh, kw, depth = _weights(product)

    def columns(windows: Array) -> Array:
        """(group, place, tap and channel of the group)"""
        each = windows.reshape(-1, kh * kw, parts, windows.shape[-1] // parts)
        return each.transpose(2, 0, 1, 3).reshape(parts, len(each), -1)

    if pass_ == "dX":
        w = reals["w"].reshape(parts, f // parts, kh * kw, depth).transpose(0, 2, 1, 3).reshape(parts, -1, depth)
        sums = columns(registers.dy_windows(g, reals["dy"].reshape(g.y_shape))) @ w
        return np.rint(sums.transpose(1, 0, 2)).astype(np.int64).ravel()
    a = columns(registers.x_windows(g, reals["x"].reshape(g.x_shape), pad))
    if pass_ == "forward":
        sums = (a @ reals["w"].reshape(parts, f // parts, -1).transpose(0, 2, 1)).transpose(1, 0, 2)
    else:
        sums = reals["dy"].reshape(-1, parts, f // parts).transpose(1, 2, 0) @ a
    return np.rint(sums).astype(np.int64).ravel()


def wrap(values: Array, bits: int) -> Array:
    """Whole numbers modulo 2^bits, in two's complement."""
    half = 1 << (bits - 1)
    return np.asarray((values + half) % (2 * half) - half)


def _in_register(v: Vectors, pass_: str, o: Operands, how: Accumulator) -> Array:
    """The sums of a pass in a register, int64, flat; operands beyond int8 only in registers that wrap."""
    held, pad = o
    if how.overflow == "wrap" and how.pair_bits is None and (how.bits == 32 or not how.unsigned):
        return wrap(_exact(v.product, pass_, held, pad), how.bits)
    if any(values.min() < -128 or values.max() > 127 for values in held.values()) or not -128 <= pad <= 127:
        raise OverflowError
    made = registers.EmulatedProduct("", v.product, registers.AccumulatorModel(how))
    shapes = dict(zip(("x", "w", "dy"), registers.shapes(v.product), strict=True))
    codes = {name: np.ascontiguousarray(values.astype(np.int8).reshape(shapes[name])) for name, values in held.items()}
    return registers.multiply(made, pass_, codes, pad).astype(np.int64).ravel()


def _registers(v: Vectors, pass_: str, held: dict[str, Array]) -> Iterator[Deviation]:
    """Other registers: those that some sum of the pass leaves."""
    state = registers.AccumulatorModel(ACCUMULATORS["acc32-wrap"], counting=True)
    registers.multiply(registers.EmulatedProduct("", v.product, state), pass_, {name: held[name] for name in held}, v.x_zero)
    needed = state.counts[0][2].overflow.largest_bits
    own = v.accumulator
    models: dict[str, Accumulator] = {"if sums are exact": ACCUMULATORS["acc32-wrap"]}
    for bits in range(min(31, needed - 1), 7, -1):
        models[f"if sums wrap at {bits} bits"] = Accumulator("", bits, "wrap")
        models[f"if sums saturate at {bits} bits"] = Accumulator("", bits, "saturate")
    for name in ("maddubs", "vpdpbusds"):
        models[f"if sums are those of {name}" + ", whose pairs saturate at 16 bits" * (name == "maddubs")] = ACCUMULATORS[name]
    models["if pairs of products saturate at 16 bits"] = Accumulator("", 32, "wrap", group=2, pair_bits=16)
    if own.overflow == "saturate":
        for group in {1, 2, 4, 8} - {own.group}:
            after = f"each {group} products" if group > 1 else "each product"
            models[f"if sums saturate at {own.bits} bits after {after}"] = Accumulator("", own.bits, "saturate", group=group)
    for text, how in models.items():
        if how != own:
            yield Deviation("register", text, lambda o, how=how: _in_register(v, pass_, o, how))


def _corrections(v: Vectors, pass_: str) -> Iterator[Deviation]:
    """The zero point's part of the sums."""
    if not v.x_zero or pass_ == "dX":
        return
    f, *rest = _weights(v.product)

    def term(o: Operands) -> Array:
        if pass_ == "forward":
            rows = o[0]["w"].reshape(f, -1).sum(1)
            return np.broadcast_to(rows, (v.numbers["forward"].size // f, f)).ravel()
        columns = o[0]["dy"].reshape(-1, f).sum(0)
        return np.repeat(columns, math.prod(rest))

    for sign, text in ((1, "if the zero point's part is subtracted from the sums"), (-1, "if the zero point's part is added")):
        yield Deviation("zero", text, lambda sums, o, sign=sign: wrap(sums - sign * v.x_zero * term(o), 32))


def _codes(v: Vectors, name: str) -> Iterator[Deviation]:
    """Other ways from sums to codes."""
    arithmetic, sums = v.arithmetic, v.numbers[name]
    multiplier, shift = (np.atleast_1d(v.numbers[f"{name}_{key}"]).astype(np.int64) for key in ("multiplier", "shift"))
    columns = len(shift)

    def scaled(kind: Arithmetic, m: Array, s: Array, low: int = -LARGEST_CODE, high: int = LARGEST_CODE) -> Any:
        def apply(values: Array) -> Array:
            acc = np.ascontiguousarray(wrap(values, 32).astype(np.int32).reshape(-1, len(s)))
            return kind.codes(acc, m.astype(np.int32), s.astype(np.int32), low, high).ravel().astype(np.int64)

        return apply

    for rounding in Rounding:
        if rounding not in (arithmetic.rounding, Rounding.STOCHASTIC, Rounding.PSEUDO_STOCHASTIC):
            kind = Arithmetic(Requantization.SINGLE_ROUNDING, rounding)
            yield Deviation("codes", f"if codes are rounded {rounding.value}", scaled(kind, multiplier, shift))
    if arithmetic.how is not Requantization.GEMMLOWP and np.all(shift >= 31) and np.all(multiplier > 1):
        kind = Arithmetic(Requantization.GEMMLOWP)
        yield Deviation("codes", "if requantized with gemmlowp's double rounding", scaled(kind, multiplier, shift))
    for by, text in ((1, "one bit too far"), (-1, "one bit too little")):
        if np.all(shift + by >= (31 if arithmetic.how is Requantization.GEMMLOWP else 0)) and np.all(shift + by <= 62):
            yield Deviation("codes", f"if the shift is off by one: {text}", scaled(arithmetic, multiplier, shift + by))
    if np.all(multiplier >= 1 << 16):
        yield Deviation("codes", "if the multiplier has 16 bits", scaled(arithmetic, (multiplier >> 16) << 16, shift))
    yield Deviation("codes", "if codes are clamped to -128 .. 127", scaled(arithmetic, multiplier, shift, -128))
    yield Deviation("codes", "if codes are clamped to 0 .. 127, as with a ReLU", scaled(arithmetic, multiplier, shift, 0))
    wrapped = partial(_wrapped, own=arithmetic, multiplier=multiplier, shift=shift)
    yield Deviation("codes", "if codes wrap instead of being clamped", wrapped)
    scale = (multiplier / np.exp2(shift)).astype(np.float32)

    def in_float(values: Array) -> Array:
        product = wrap(values, 32).astype(np.float32).reshape(-1, columns) * scale
        return np.clip(np.rint(product), -LARGEST_CODE, LARGEST_CODE).ravel().astype(np.int64)

    yield Deviation("codes", "if requantized in float32, half to even", in_float)
    if columns > 1:
        one_of = {"of the largest sum": int(np.argmin(scale)), "of the smallest sum": int(np.argmax(scale)), "of channel 0": 0}
        for text, at in one_of.items():
            one = scaled(arithmetic, multiplier[at : at + 1], shift[at : at + 1])
            yield Deviation("codes", f"if requantized per tensor, with the scale {text}, not per channel", one)
    elif name != "dw" and sums.shape[-1] > 1:
        each = [arithmetic.scale(int(m)) for m in np.abs(sums.astype(np.int64)).reshape(-1, sums.shape[-1]).max(0)]
        m, s = (np.array(values, np.int64) for values in zip(*each, strict=True))
        yield Deviation("codes", "if requantized per channel, not per tensor", scaled(arithmetic, m, s))


def _exchanged(v: Vectors, name: str, given: Array) -> Iterator[Deviation]:
    """Scales of other channels, where each channel's codes are those that some channel's scale gives."""
    m, s = (np.atleast_1d(v.numbers[f"{name}_{key}"]).astype(np.int32) for key in ("multiplier", "shift"))
    if len(s) < 2:
        return
    acc = np.ascontiguousarray(v.numbers[name].reshape(-1, len(s))[:MOST_ROWS])
    seen = given.reshape(-1, len(s))[:MOST_ROWS]
    fits = np.array([(v.arithmetic.codes(acc, m[i : i + 1], s[i : i + 1]) == seen).all(0) for i in range(len(s))])
    if not fits.any(0).all():
        return
    order = np.where(fits.diagonal(), np.arange(len(s)), fits.argmax(0))
    moved = [f"{channel} has that of {of}" for channel, of in enumerate(order) if channel != of]
    listed = ", ".join(moved[:4]) + (f" and {len(moved) - 4} more" if len(moved) > 4 else "")

    def apply(values: Array) -> Array:
        sums = np.ascontiguousarray(wrap(values, 32).astype(np.int32).reshape(-1, len(s)))
        return v.arithmetic.codes(sums, m[order], s[order]).ravel().astype(np.int64)

    yield Deviation("codes", f"if the channels' scales are exchanged: channel {listed}", apply)


def _wrapped(values: Array, own: Arithmetic, multiplier: Array, shift: Array) -> Array:
    """Codes modulo 256, rounded half up."""
    exact = wrap(values, 32).reshape(-1, len(shift)) * multiplier  # below 2^62
    return wrap(((exact >> np.maximum(shift - 1, 0)) + (shift > 0)) >> np.minimum(shift, 1), 8).ravel()


def _writing(v: Vectors, name: str) -> Iterator[Deviation]:
    """Other orders of the result's elements."""
    pass_, g = PASSES[name.removesuffix("_codes")], v.product.geometry
    if pass_ == "dW":
        f, kh, kw, d = _weights(v.product)
        shapes = {"OIHW": ((f, kh, kw, d), (0, 3, 1, 2)), "HWIO": ((f, kh, kw, d), (1, 2, 3, 0))}
        if kh * kw == 1:
            shapes = {"[input][output]": ((f, kh, kw, d), (1, 2, 3, 0))}
    else:
        shapes = {"NCHW": (g.y_shape if pass_ == "forward" else g.x_shape, (0, 3, 1, 2))}
        shapes["NHWC with height and width exchanged"] = (shapes["NCHW"][0], (0, 2, 1, 3))
    for layout, (shape, axes) in shapes.items():
        where = np.arange(math.prod(shape)).reshape(shape).transpose(axes).ravel()
        if not np.array_equal(where, np.arange(where.size)):
            yield Deviation("layout", f"if written as {layout}", lambda values, where=where: values[where])


# ---- the comparison --------------------------------------------------


def _choose(v: Vectors, mine: Array, tensor: str | None, where: str) -> str:
    """The name of the vectors' tensor that a tensor of so many elements is to be compared with."""
    if tensor is not None and tensor not in v.tensors:
        raise OctosimError(f"the vectors have no tensor '{tensor}'" + suggest(tensor, v.tensors))
    fits = [name for name in v.tensors if v.numbers[name].size == mine.size and tensor in (None, name)]
    if not fits:
        sizes = ", ".join(f"{name} {v.numbers[name].shape}" for name in v.tensors if tensor in (None, name))
        raise OctosimError(f"{where} has {mine.size} elements, expected those of {sizes}")
    most = int(np.abs(mine).max(initial=0))
    if most > 255 or any(name.endswith("_codes") and np.abs(v.numbers[name[:-6]]).max() > 255 for name in fits):
        fits = [name for name in fits if name.endswith("_codes") == (most <= 255)] or fits
    return min(fits, key=lambda name: int(np.count_nonzero(v.numbers[name].ravel() != mine.ravel())))


def check(vectors: Path, against: Path, tensor: str | None = None, layout: str | None = None) -> dict[str, Any]:
    """Compares somebody's tensor with the vectors of `octosim golden`.

    tensor: forward, dx, dw, or one of them with _codes; by default the one that fits best.  layout: that of `against`, NCHW
    (of dw OIHW); NHWC if not given.
    Returns "tensor", "equal", "elements", "differ", "off_by" (elements by distance), "index" and "values" of the first
    difference, "hypotheses": what makes the two equal, each a clause that begins with "if"; "closest": where nothing does, the
    deviation that explains most, and the share of elements; "seconds".
    """
    if layout not in (None, "NHWC", "NCHW"):
        raise OctosimError(f"the layout must be NHWC or NCHW, not {layout}")
    started = time.monotonic()
    v, mine = read_vectors(vectors), read_tensor(against)
    name = _choose(v, mine, tensor, str(against))
    expected = v.numbers[name].astype(np.int64).ravel()
    given = mine.ravel()
    if layout == "NCHW":
        turned = next((d for d in _writing(v, name) if d.text.endswith(("NCHW", "OIHW", "[input][output]"))), None)
        order = np.arange(given.size) if turned is None else turned.apply(np.arange(given.size))
        given = np.empty_like(given)
        given[order] = mine.ravel()
    if name.endswith("_codes") and given.size and given.max() > 127 and given.min() >= 0:
        given = wrap(given, 8)  # bytes
    differs = np.flatnonzero(given != expected)
    result: dict[str, Any] = {
        "tensor": name, "pass": PASSES[name.removesuffix("_codes")], "equal": not differs.size, "elements": given.size,
        "differ": differs.size, "off_by": off_by(given, expected), "index": None, "values": None, "hypotheses": [],
        "closest": None,
    }  # fmt: skip
    if differs.size:
        shape = v.numbers[name].shape
        result["index"] = [int(i) for i in np.unravel_index(int(differs[0]), shape)]
        result["values"] = {"theirs": int(given[differs[0]]), "octosim": int(expected[differs[0]])}
        result["hypotheses"], result["closest"], result["tried"] = explain(v, name, given, started + SECONDS)
    return result | {"seconds": round(time.monotonic() - started, 2)}


def explain(v: Vectors, name: str, given: Array, until: float) -> tuple[list[str], dict[str, Any] | None, int]:
    """The deviations that make the vectors' tensor the given one, flat int64; else the one that comes closest; how many were
    tried.  Pairs are tried where no deviation alone explains it, until the clock `time.monotonic` says `until`."""
    sums_name = name.removesuffix("_codes")
    pass_, in_codes = PASSES[sums_name], name.endswith("_codes")
    held = v.operands(pass_)
    wide = {key: values.astype(np.int64) for key, values in held.items()}
    own: dict[str, Deviation] = {
        "register": Deviation("register", "", lambda o: _in_register(v, pass_, o, v.accumulator)),
        "zero": Deviation("zero", "", lambda sums, o: sums),
        "codes": next(_same_codes(v, sums_name)) if in_codes else Deviation("codes", "", lambda sums: sums),
        "layout": Deviation("layout", "", lambda values: values),
    }
    ways = [*_reading(v, pass_), *_registers(v, pass_, held), *_corrections(v, pass_)]
    ways += [*_codes(v, sums_name), *_exchanged(v, sums_name, given)] if in_codes else []
    ways += _writing(v, name)
    cache: dict[tuple[str, ...], Any] = {}

    def make(chosen: tuple[Deviation, ...]) -> Array | None:
        """The tensor with these deviations; None where they cannot be combined."""
        by_stage = {d.stage: d for d in chosen}
        key = tuple(by_stage[s].text if s in by_stage else "" for s in ("x", "w", "dy", "register"))
        if key not in cache:
            o: Operands = (wide, v.x_zero)
            for stage in ("x", "w", "dy"):
                if stage in by_stage:
                    o = by_stage[stage].apply(o)
            shapes = dict(zip(("x", "w", "dy"), registers.shapes(v.product), strict=True))
            o = {key: values.reshape(shapes[key]) for key, values in o[0].items()}, o[1]
            try:
                cache[key] = o, (by_stage.get("register") or own["register"]).apply(o)
            except OverflowError:
                cache[key] = None
            if len(cache) > 64:
                cache.pop(next(iter(cache)))
        if cache.get(key) is None:
            return None
        o, sums = cache[key]
        sums = (by_stage.get("zero") or own["zero"]).apply(sums, o)
        made = (by_stage.get("layout") or own["layout"]).apply((by_stage.get("codes") or own["codes"]).apply(sums))
        return np.asarray(made)

    before = int(np.count_nonzero(make(()) != given))
    found: list[str] = []
    best: tuple[int, str] = (before, "")
    tried = 0
    stages: list[str] | None = None  # of the first deviations that explain the tensor; others of these stages may do so too
    for chosen in _chosen(ways):
        if len(chosen) > 1 and (time.monotonic() > until or stages is not None and len(stages) == 1):
            break
        if len(chosen) > 1 and stages not in (None, [d.stage for d in chosen]):
            continue
        made = make(chosen)
        if made is None:
            continue
        tried += 1
        wrong = int(np.count_nonzero(made != given))
        text = " and ".join(d.text for d in chosen)
        if wrong == 0:
            found.append(text)
            stages = stages or [d.stage for d in chosen]
        best = min(best, (wrong, text))
    closest = None
    if not found and best[1]:
        closest = {"hypothesis": best[1], "equal": 1 - best[0] / given.size}
    return found, closest, tried


def _same_codes(v: Vectors, name: str) -> Iterator[Deviation]:
    m, s = (np.atleast_1d(v.numbers[f"{name}_{key}"]).astype(np.int32) for key in ("multiplier", "shift"))

    def apply(values: Array) -> Array:
        acc = np.ascontiguousarray(wrap(values, 32).astype(np.int32).reshape(-1, len(s)))
        return v.arithmetic.codes(acc, m, s).ravel().astype(np.int64)

    yield Deviation("codes", "", apply)


def _chosen(ways: list[Deviation]) -> Iterator[tuple[Deviation, ...]]:
    """Each deviation alone, then pairs of different stages."""
    yield from ((way,) for way in ways)
    pairs = [pair for pair in itertools.combinations(ways, 2) if pair[0].stage != pair[1].stage]
    yield from sorted(pairs, key=lambda pair: sum(way.stage == "register" for way in pair))  # those of registers take longest
