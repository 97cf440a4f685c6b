"""Test vectors of one training step for authors of kernels and RTL: .npz, hex, a C header, and a C program that checks it."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import octosim
from octosim import core, methods, train
from octosim.engine import probes, registers
from octosim.engine.layers import Conv2d, DepthwiseConv2d
from octosim.engine.nodes import Array, Depthwise, FullProduct, Node, Product
from octosim.engine.quantizers import DEFAULT_ROUNDING, LARGEST_CODE
from octosim.errors import OctosimError, reading, suggest
from octosim.files import open_regular, read_json, write_atomic
from octosim.integrity import sha256_of
from octosim.numerics import Accumulator, Requantization, Rounding, fixed_point

VECTOR_BYTES = 1 << 30
"""Limit of a file of tensors, unpacked."""
CHECKER = Path(__file__).with_name("golden_check.c")
TESTBENCH = Path(__file__).with_name("golden_tb.v")
SUMS = {"forward": "forward", "dW": "dw", "dX": "dx"}  # the pass, and its sums' name in both files
OPERANDS = {"forward": ("x", "w"), "dW": ("x", "dy"), "dX": ("dy", "w")}
MANIFEST = "vectors.json"  # a folder with a manifest.json is a run directory
KIND = "golden vectors"


def operand_names(numbers: Container[str], pass_: str) -> tuple[str, str]:
    """The names of a pass's operands: x, w and dy, or where a method has others of them in this pass, as dx_dy."""
    return tuple(own if (own := f"{SUMS[pass_]}_{name}") in numbers else name for name in OPERANDS[pass_])  # type: ignore[return-value]


def groups(product: Product) -> int:
    """How many parts the channels and the filters have, the k-th filters seeing the k-th channels alone."""
    return product.geometry.channels if isinstance(product, Depthwise) else product.geometry.groups


def _geometry(product: Product) -> dict[str, int]:
    """Sizes by name; `stride` and `pad` only where they are the same on all sides.  depth: channels of a group."""
    g = product.geometry
    sizes = {name: getattr(g, name) for name in ("batch", "height", "width", "channels", "filters", "kernel_h", "kernel_w")}
    sizes |= {name: value for name in ("stride", "pad") if isinstance(value := getattr(g, name), int)}
    sides = {"stride": ("h", "w"), "dilation": ("h", "w"), "pad": ("top", "left", "bottom", "right")}
    for name, ends in sides.items():
        sizes |= {f"{name}_{end}": value for end, value in zip(ends, getattr(g, f"{name}s"), strict=True)}
    return sizes | {
        "out_h": g.out_h, "out_w": g.out_w, "groups": groups(product), "depth": g.channels // groups(product),
        "depthwise": int(isinstance(product, Depthwise)),
    }  # fmt: skip


def _register(how: Accumulator) -> dict[str, int]:
    return {
        "bits": how.bits, "saturate": int(how.overflow == "saturate"), "group": how.group,
        "pair_bits": how.pair_bits or 0, "unsigned": int(how.unsigned),
    }  # fmt: skip


@dataclass(frozen=True)
class Arithmetic:
    """How a pass's sums become int8 codes: round(sum multiplier / 2^shift) within +-127.

    how: GEMMLOWP rounds twice and has no other rounding; POWER_OF_TWO has multiplier 1.  per_channel: a multiplier and a shift
    for each index of the last axis of forward and dX; dW has one of each.
    """

    how: Requantization = Requantization.SINGLE_ROUNDING
    rounding: Rounding | None = None
    per_channel: bool = False

    def __post_init__(self) -> None:
        if self.how is Requantization.FLOAT_SCALE:
            raise OctosimError("vectors are requantized in integers: single-rounding, gemmlowp or power-of-two")
        if self.how is Requantization.GEMMLOWP and self.rounding is not None:
            raise OctosimError(f"gemmlowp requantization has its own two roundings; {self.rounding.value} cannot be chosen")
        if self.rounding in (Rounding.STOCHASTIC, Rounding.PSEUDO_STOCHASTIC):
            raise OctosimError(f"vectors are requantized without randomness; {self.rounding.value} cannot be chosen")
        if self.rounding is None and self.how is not Requantization.GEMMLOWP:
            object.__setattr__(self, "rounding", DEFAULT_ROUNDING[self.how])

    def scale(self, largest: int) -> tuple[int, int]:
        """Multiplier and shift with which a sum of this magnitude just fits."""
        if self.how is Requantization.POWER_OF_TWO:
            return 1, next(shift for shift in range(32) if largest <= LARGEST_CODE << shift)
        share = LARGEST_CODE / max(largest, LARGEST_CODE)
        return fixed_point(min(share, 1 - 2**-31) if self.how is Requantization.GEMMLOWP else share)

    def codes(self, sums: Array, multiplier: Any, shift: Any, low: int = -LARGEST_CODE, high: int = LARGEST_CODE) -> Array:
        """int8 codes of sums; multiplier, shift: numbers, or int32 arrays of the last axis."""
        if self.how is Requantization.GEMMLOWP:
            return core.requantize(sums, multiplier, np.asarray(shift) - 31, rounding=self.how, low=low, high=high)
        return core.requantize(sums, multiplier, shift, rounding=self.rounding or Rounding.HALF_UP, low=low, high=high)


def _requantized(name: str, sums: Array, how: Arithmetic = Arithmetic()) -> dict[str, Any]:  # noqa: B008 - frozen
    """int8 codes of a pass's sums, with multipliers and shifts such that the largest just fits."""
    sizes = np.abs(sums.astype(np.int64))
    if how.per_channel and name != "dw":
        each = [how.scale(int(largest)) for largest in sizes.reshape(-1, sums.shape[-1]).max(0)]
        multiplier, shift = (np.array(values, np.int32) for values in zip(*each, strict=True))
    else:
        multiplier, shift = how.scale(int(sizes.max()))  # type: ignore[assignment]
    return {f"{name}_codes": how.codes(sums, multiplier, shift), f"{name}_multiplier": multiplier, f"{name}_shift": shift}


def vectors(node: Node, observed: probes.Observed, how: Accumulator) -> tuple[Product, dict[str, Any]]:
    """A layer's product, and its numbers in the step that was observed: arrays, sizes and scales by name, of the passes with
    int8 products; OctosimError where forward is none."""
    seen = {(pass_, name): values for (layer, pass_, name), values in observed.tensors.items() if layer == node.name}
    kinds = {key: values.dtype for key, values in seen.items()}
    whole = [pass_ for pass_, names in OPERANDS.items() if all(kinds.get((pass_, name)) == np.int8 for name in names)]
    if "forward" not in whole:
        raise OctosimError(f"layer {node.name} has no int8 products to make vectors of")
    product, x_zero = observed.products[node.name, "forward"]
    numbers: dict[str, Any] = {}
    for pass_ in whole:
        for name in OPERANDS[pass_]:
            values = seen[pass_, name]
            shared = np.array_equal(values, numbers.setdefault(name, values))
            own = name if shared else f"{SUMS[pass_]}_{name}"
            numbers[own] = values
            meanings = observed.meanings.get((node.name, name), ())
            meaning = next((m for m in meanings if np.array_equal(m.q.ravel(), values.ravel())), None)
            if meaning is not None:
                numbers |= {f"{own}_scale": np.float32(meaning.scale), f"{own}_zero": meaning.zero}
    for pass_ in whole:
        sums = seen[pass_, "sums"]
        if sums.min(initial=0) < -(2**31) or sums.max(initial=0) >= 2**31:
            raise OctosimError(f"layer {node.name}: a sum of {pass_} needs more than 32 bits; use a smaller batch size")
        numbers |= {SUMS[pass_]: sums.astype(np.int32)} | _requantized(SUMS[pass_], sums.astype(np.int32))
    numbers |= {"x_zero": x_zero} | _geometry(product) | _register(how)
    reals = {("forward", "input"): "x_real", ("forward", "output"): "y_real", ("dW", "gradient"): "dy_real"}
    reals |= {("dX", "result"): "dx_real"}
    numbers |= {name: seen[key] for key, name in reals.items() if key in seen}
    grads = {f"grad_{name.removeprefix('gradient of ')}": v for (_, name), v in seen.items() if "gradient of" in name}
    return product, numbers | grads


# ---- files --------------------------------------------------


def hex_lines(values: Array) -> str:
    """A line an element, two's complement, two or eight digits: what Verilog's $readmemh reads."""
    digits, mask = 2 * values.itemsize, (1 << 8 * values.itemsize) - 1
    return "".join(f"{value & mask:0{digits}x}\n" for value in values.ravel().tolist())


def stems(layers: Iterable[str]) -> dict[str, str]:
    """What the names of a layer's files, and of what is in them, begin with, by layer: the layer's name, behind which stands a
    part of its digest where another layer of the network would have the same names.

    In C and Verilog '.' and '-' are '_', macros have capitals, `a_dx` would be the layer a's tensors of dX too, and a module
    named by a digit begins with "layer_"; file systems may not tell "A" from "a".
    """
    plain = {layer: identifier(layer).lower() for layer in layers}
    bare = {layer: re.sub(r"^layer_(?=\d)|(_(forward|dw|dx))+$", "", name) for layer, name in plain.items()}
    count = Counter(bare.values())
    unique = {layer for layer, name in bare.items() if count[name] == 1}
    return {layer: layer if layer in unique else f"{layer}_{sha256_of(layer)[:8]}" for layer in plain}


def identifier(stem: str) -> str:
    """As a part of names in C."""
    return re.sub(r"[^A-Za-z0-9_]", "_", stem)


def prefixed(stem: str, text: str) -> str:
    """C text whose names octo_... and OCTO_... are those of one layer: the headers of several can be in one program."""
    name = identifier(stem)
    return re.sub(r"\bOCTO_(?=\w)", f"OCTO_{name.upper()}_", re.sub(r"\bocto_(?=\w)", f"octo_{name}_", text))


def _array(kind: str, name: str, values: Array) -> str:
    flat = values.ravel().tolist()
    lines = [",".join(map(str, flat[i : i + 32])) for i in range(0, len(flat), 32)]
    return f"static const {kind} octo_{name}[{len(flat)}] = {{\n" + ",\n".join(lines) + "\n};\n"


def _hex(value: float) -> str:
    return f"{float(value).hex()}f" if math.isfinite(value) else "0.0f"


ROUNDINGS = ["half-up", "half-even", "half-away", "floor", "toward-zero"]
"""Without randomness, by the number that golden_check.c has for them; gemmlowp follows."""
REQUANTIZATIONS = [how.value for how in Requantization if how is not Requantization.FLOAT_SCALE]


def _operands(numbers: Container[str]) -> list[str]:
    """The names of all passes' operands, each once."""
    passes = [pass_ for pass_, sums in SUMS.items() if sums in numbers]
    return list(dict.fromkeys(name for pass_ in passes for name in operand_names(numbers, pass_)))


def header(layer: str, stem: str, numbers: dict[str, Any], about: dict[str, Any]) -> str:
    """The vectors as a C header: sizes and scales as macros, int8 operands and int32 sums as arrays; names by `stems`."""
    integers = {key: int(v) for key, v in numbers.items() if np.ndim(v) == 0 and not key.endswith("_scale")}
    text = json.dumps(about, indent=1).replace("*/", "* /").replace("\n", "\n * ")
    about_text = f"/* Made by octosim golden from\n * {text} */\n\n"
    parts = ["#ifndef OCTO_GOLDEN_H\n#define OCTO_GOLDEN_H\n#include <stdint.h>\n\n", f'#define OCTO_LAYER "{layer}"\n']
    parts += [f"#define OCTO_{key.upper()} {value if value >= 0 else f'({value})'}\n" for key, value in integers.items()]
    parts += [f"#define OCTO_{key.upper()} {_hex(v)}\n" for key, v in numbers.items() if key.endswith("_scale")]
    parts += [f"#define OCTO_HAS_{sums.upper()} {int(sums in numbers)}\n" for sums in ("dw", "dx")]
    for pass_, sums in SUMS.items():  # where a pass's operands stand
        for role, name in zip(OPERANDS[pass_], operand_names(numbers, pass_), strict=True):
            parts += [f"#define OCTO_{sums.upper()}_{role.upper()} octo_{name}\n"] if sums in numbers else []
    kind = about.get("requantize", {}).get("rounding", Rounding.HALF_UP.value)
    parts += [f"#define OCTO_ROUNDING {[*ROUNDINGS, Requantization.GEMMLOWP.value].index(kind)} /* {kind} */\n\n"]
    parts += [_array("int8_t", name, numbers[name]) for name in _operands(numbers)]
    for name in SUMS.values():
        if name in numbers:
            parts += [_array("int32_t", name, numbers[name]), _array("int8_t", f"{name}_codes", numbers[f"{name}_codes"])]
            for scale in ("multiplier", "shift"):  # one, or one for each index of the last axis
                values = np.atleast_1d(np.asarray(numbers[f"{name}_{scale}"]))
                parts += [_array("int32_t", f"{name}_{scale}s", values)]
    return about_text + prefixed(stem, "".join(parts)) + "#endif\n"


def testbench(layer: str, stem: str, numbers: dict[str, Any]) -> str:
    """A Verilog module that makes the forward sums again from the hex files, in the register."""
    scaled = ("_scale", "_multiplier", "_shift", "_zero")
    integers = {key: int(v) for key, v in numbers.items() if np.ndim(v) == 0 and (key == "x_zero" or not key.endswith(scaled))}
    constants = "".join(f"    localparam {key.upper()} = {value};\n" for key, value in integers.items())
    text = TESTBENCH.read_text().replace("@CONSTANTS@\n", constants)
    name = identifier(stem)
    module = f"layer_{name}" if name[0].isdigit() else name
    return text.replace("@MODULE@", module).replace("@STEM@", stem).replace("@LAYER@", layer)


# ---- the manifest --------------------------------------------------

_AXES = {
    "x": ("batch", "row", "column", "channel"),
    "w": ("filter", "kernel row", "kernel column", "channel"),
    "dy": ("batch", "output row", "output column", "filter"),
}
_LINEAR_AXES = {"x": ("batch", "input"), "w": ("output", "input"), "dy": ("batch", "output")}
_LIKE = {"forward": "dy", "dw": "w", "dx": "x"}  # the operand that has the axes of a pass's sums
_ORDER = {
    "forward": ("kernel row", "kernel column", "channel"),
    "dW": ("batch", "output row", "output column"),
    "dX": ("kernel row", "kernel column", "filter"),
}
"""Of the products in a sum: the axes that it runs over, the last one fastest."""
_LINEAR_ORDER = {"forward": ("input",), "dW": ("batch",), "dX": ("output",)}


def layers_there(folder: Path) -> dict[str, Any]:
    """The layers in a folder's manifest, by name; OctosimError where its vectors.json is something else."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    content = read_json(path)
    try:
        layers: Any = content["layers"] if content["kind"] == KIND else None
        return {name: entry for name, entry in layers.items() if (folder / entry["files"]["npz"]).exists()}
    except (KeyError, TypeError, AttributeError):
        raise OctosimError(f"{path} is not of octosim golden and would be replaced; choose another folder") from None


def _entry(product: Product, about: dict[str, Any], numbers: dict[str, Any], files: dict[str, Path]) -> dict[str, Any]:
    """What a testbench generator needs of a layer: tensors with dtype, shape, axes and file, sums with register and order."""
    linear, depthwise = isinstance(product, FullProduct), isinstance(product, Depthwise)
    shapes = dict(zip(("x", "w", "dy"), registers.shapes(product), strict=True))
    axes = _LINEAR_AXES if linear else _AXES
    tensors: dict[str, Any] = {}
    operands = _operands(numbers)
    for name, path in files.items():
        values = numbers[name]
        stem, _, kind = name.partition("_")
        like = name.rpartition("_")[2] if name in operands else _LIKE[stem]
        whole = name in operands or kind in ("", "codes")  # else one number for each index of the last axis
        tensors[name] = {
            "file": path.name, "dtype": values.dtype.name, "bits": 8 * values.itemsize, "elements": values.size,
            "shape": list(shapes[like]) if whole else [values.size], "axes": list(axes[like] if whole else axes[like][-1:]),
        }  # fmt: skip
    for name in operands:
        scale = numbers.get(f"{name}_scale")
        if scale is not None and np.isfinite(scale):
            tensors[name] |= {"scale": float(scale), "zero": int(numbers[f"{name}_zero"])}
    requantize = about.get("requantize") or {"how": Requantization.SINGLE_ROUNDING.value, "rounding": Rounding.HALF_UP.value}
    passes = {}
    for pass_, sums in SUMS.items():
        if sums in numbers:
            order = (_LINEAR_ORDER if linear else _ORDER)[pass_]
            passes[pass_] = {
                "operands": list(operand_names(numbers, pass_)), "sums": sums, "codes": f"{sums}_codes",
                "order": [axis for axis in order if not (depthwise and axis in ("channel", "filter"))],
                "multiplier": np.atleast_1d(numbers[f"{sums}_multiplier"]).tolist(),
                "shift": np.atleast_1d(numbers[f"{sums}_shift"]).tolist(),
            }  # fmt: skip
    return {
        "kind": "linear" if linear else "depthwise" if depthwise else "conv",
        "about": about,
        "sizes": _geometry(product),
        "padding": int(numbers["x_zero"]),
        "register": {key: numbers[key] for key in ("bits", "saturate", "group", "pair_bits", "unsigned")},
        "requantize": requantize | {"lowest": -LARGEST_CODE, "highest": LARGEST_CODE},
        "passes": passes,
        "tensors": tensors,
    }


def golden(
    folder: Path, step: int, layer: str | None, out: Path, progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Replays a run to a step and writes LAYER.npz, LAYER.h, LAYER_check.c, LAYER_tb.v and a hex file LAYER_TENSOR.hex for each
    integer tensor, of one weighted layer or of all, and vectors.json, which describes them.  LAYER: see `stems`.

    tell: told why a layer is left out, where others are not.
    Returns a row a layer: its name, its passes, and its files.
    """
    layers_there(out)
    run = train.replay(folder)
    nodes = {node.name: node for node in run.network.nodes if node.layer.weighted}
    if layer is not None and layer not in nodes:
        raise OctosimError(f"{folder} has no weighted layer '{layer}'" + suggest(layer, nodes))
    whole = [node for node in nodes.values() if node.trains("w") and node.outputs is None]
    chosen = [nodes[layer]] if layer is not None else whole
    if layer is not None and not nodes[layer].trains("w"):
        raise OctosimError(f"{folder} does not train layer {layer}: there is no backward pass to make vectors of")
    if layer is not None and nodes[layer].outputs is not None or not chosen:
        which = "every layer" if layer is None else f"layer {layer}"
        raise OctosimError(f"{folder} trains some output channels of {which} alone: dW is no pass of a whole layer there")
    train.advance_before(run, step, progress)
    params = {(node.name, name): values.copy() for node in chosen for name, values in node.params.items()}
    observed = probes.watch(run.network)
    run.train_step()
    made, left, names = [], [], stems(nodes)
    for node in chosen:
        try:
            product, numbers = vectors(node, observed, run.registers.accumulator)
        except OctosimError as error:
            left.append(error)
            continue
        about = {
            "octosim": octosim.__version__,
            "run": {key: vars(run.config)[key] for key in ("model", "data", "method", "batch_size", "seed")},
            "step": step,
            "layer": node.name,
            "kind": node.layer.title,
            "accumulator": run.registers.accumulator.name,
            "parameters": methods.parameters(run.method),
        }
        numbers_and_params = numbers | {f"param_{name}": v for (own, name), v in params.items() if own == node.name}
        made.append((node.name, names[node.name], product, about, numbers, numbers_and_params))
    if not made:
        raise left[0]
    for reason in left:
        tell(str(reason))
    return [write(out, *each) for each in made]


def write(
    out: Path, name: str, stem: str, product: Product, about: dict[str, Any], numbers: dict[str, Any],
    everything: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes a layer's files into a folder, and the layer into its manifest; returns name, passes and files.

    stem: see `stems`.  everything: for the .npz alone.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OctosimError(f"cannot make {out}: {error.strerror}") from None
    files = {"npz": out / f"{stem}.npz", "header": out / f"{stem}.h", "checker": out / f"{stem}_check.c"}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=json.dumps(about), **(numbers if everything is None else everything))
    write_atomic(files["npz"], buffer.getvalue())
    write_atomic(files["header"], header(name, stem, numbers, about).encode())
    checker = prefixed(stem, CHECKER.read_text()).replace("@HEADER@", files["header"].name)
    write_atomic(files["checker"], checker.encode())
    files["testbench"] = out / f"{stem}_tb.v"
    write_atomic(files["testbench"], testbench(name, stem, numbers).encode())
    results = [f"{sums}{part}" for sums in SUMS.values() for part in ("", "_codes", "_multiplier", "_shift")]
    tensors = {key: numbers[key] for key in (*_operands(numbers), *results) if np.ndim(numbers.get(key, 0))}
    listed = {key: out / f"{stem}_{key}.hex" for key in tensors}
    for key, values in tensors.items():
        write_atomic(listed[key], hex_lines(values).encode())
    entry = _entry(product, about, numbers, listed) | {"files": {kind: path.name for kind, path in files.items()}}
    content = {"format": 1, "kind": KIND, "layers": layers_there(out) | {name: entry}}
    files["manifest"] = out / MANIFEST
    write_atomic(files["manifest"], (json.dumps(content, indent=1) + "\n").encode())
    passes = [pass_ for pass_, sums in SUMS.items() if sums in numbers]
    about_files = {kind: str(path) for kind, path in files.items()}
    return {"layer": name, "passes": passes} | about_files | {"hex": {key: str(path) for key, path in listed.items()}}


# ---- a layer without a run --------------------------------------------------


_SIDES = {"x": (4,), "kernel": (1, 2), "stride": (1, 2), "dilation": (1, 2), "pad": (1, 2, 4)}
"""How many numbers a field of a shape may have; 1 where nothing is said."""
_FIELDS = {"conv": ("x", "filters", "kernel", "stride", "pad", "dilation", "groups"),
           "depthwise": ("x", "kernel", "stride", "pad", "dilation", "multiplier"), "linear": ("x", "units")}  # fmt: skip


def parse_shape(text: str) -> Product:
    """A product of "conv,x=2x8x8x3,filters=4,kernel=3,stride=1,pad=1,dilation=1,groups=1",
    "depthwise,x=2x8x8x4,kernel=3x5,multiplier=1" or "linear,x=8x100,units=10"; OctosimError with what is wrong.

    x: batch, height, width, channels, or batch and inputs.  kernel, stride, dilation: down and across, or one number.  pad:
    above, left, below and right, or down and across, or one number.
    """
    kind, *parts = text.replace(" ", "").split(",")
    if kind not in _FIELDS:
        raise OctosimError(f"shape '{text}' must begin with conv, depthwise or linear")
    known = _FIELDS[kind]
    given: dict[str, list[int]] = {"stride": [1], "pad": [0], "dilation": [1], "groups": [1], "multiplier": [1]}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in known or not re.fullmatch(r"\d{1,6}(x\d{1,6}){0,3}", value):
            raise OctosimError(f"shape '{text}': '{part}' is none of {', '.join(f'{each}=N' for each in known)}")
        given[key] = [int(number) for number in value.split("x")]
    for key in known:
        if key not in given:
            raise OctosimError(f"shape '{text}': {key}=N is missing")
        counts = (2,) if kind == "linear" and key == "x" else _SIDES.get(key, (1,))
        if len(given[key]) not in counts or min(given[key]) < (key != "pad"):
            least = "of at least 0" if key == "pad" else "above 0"
            count = " or ".join(map(str, counts)) + (" number" if counts == (1,) else " numbers")
            raise OctosimError(f"shape '{text}': {key} takes {count} {least}, with an x between them")
    if kind == "linear":
        batch, inputs = given["x"]
        product: Product = FullProduct(batch, inputs, given["units"][0])
    else:
        product = _windows(text, kind, given)
    size = 6 * sum(math.prod(shape) for shape in registers.shapes(product))  # of each operand int8, and sums and codes like it
    if size > VECTOR_BYTES:
        raise OctosimError(f"shape '{text}': its tensors take {size:,} bytes, expected at most {VECTOR_BYTES:,}")
    return product


def _windows(text: str, kind: str, given: dict[str, list[int]]) -> Product:
    """The layer that a network would have, whose own rules hold, in a batch."""
    batch, *image = given["x"]
    fields: dict[str, Any] = {key: tuple(given[key]) for key in ("kernel", "stride", "pad", "dilation")}
    fields = {key: value[0] if len(value) == 1 else value for key, value in fields.items()}
    if kind == "depthwise":
        layer: Any = DepthwiseConv2d(multiplier=given["multiplier"][0], **fields)
    else:
        layer = Conv2d(given["filters"][0], groups=given["groups"][0], **fields)
    try:
        node = Node("layer", 0, layer, tuple(image), layer.out_shape(tuple(image)))
    except OctosimError as error:
        raise OctosimError(f"shape '{text}': {error}") from None
    made: Product = layer.product(node, batch)
    return made


def operands(product: Product, given: str | Path, seed: int = 0) -> dict[str, Array]:
    """int8 x, w and dy of a product: "random" in -128 .. 127, "corners" (-128, 127, -127, 0 and 1 only), or of an .npz file."""
    shapes = dict(zip(("x", "w", "dy"), registers.shapes(product), strict=True))
    if str(given) in ("random", "corners"):
        words = core.philox(sum(math.prod(s) for s in shapes.values()), seed)
        values = (words >> 24).astype(np.int16) - 128 if str(given) == "random" else np.array(_CORNERS)[words % len(_CORNERS)]
        ends = np.cumsum([math.prod(s) for s in shapes.values()])[:-1]
        parts = np.split(values.astype(np.int8), ends)
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    arrays = read_npz(Path(given))
    for name, shape in shapes.items():
        if name not in arrays:
            raise OctosimError(f"{given} has no array '{name}', expected int8 {shape}")
        if arrays[name].dtype != np.int8 or arrays[name].size != math.prod(shape):
            raise OctosimError(f"{given}: array '{name}' is {arrays[name].dtype} {arrays[name].shape}, expected int8 {shape}")
    return {name: np.ascontiguousarray(arrays[name].reshape(shape)) for name, shape in shapes.items()}


_CORNERS = (-128, 127, -127, 0, 1)


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file of at most VECTOR_BYTES unpacked; OctosimError where it is none."""
    with reading(path, ".npz"), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        if sum(member.file_size for member in archive.infolist()) > VECTOR_BYTES:
            raise OctosimError(f"{path} cannot be read as .npz: it unpacks to more than {VECTOR_BYTES:,} bytes")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def by_hand(
    shape: str, given: str | Path, accumulator: Accumulator, arithmetic: Arithmetic, out: Path, x_zero: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Vectors of a layer without a run: see `parse_shape`, `operands` and `write`.  x_zero: the code that padding holds."""
    layers_there(out)
    product = parse_shape(shape)
    if not -128 <= x_zero <= 127:
        raise OctosimError(f"the zero point must be in -128 .. 127, not {x_zero}")
    held = operands(product, given, seed)
    numbers: dict[str, Any] = held | all_sums(product, held, accumulator, x_zero)
    for name in SUMS.values():
        numbers |= _requantized(name, numbers[name], arithmetic)
    numbers |= {"x_zero": x_zero} | _geometry(product) | _register(accumulator)
    rounding = arithmetic.rounding.value if arithmetic.rounding else arithmetic.how.value
    requantize = {"how": arithmetic.how.value, "rounding": rounding, "per_channel": arithmetic.per_channel}
    about = {"octosim": octosim.__version__, "shape": shape, "operands": str(given), "seed": seed, "layer": "layer",
             "accumulator": accumulator.text, "requantize": requantize}  # fmt: skip
    return write(out, "layer", "layer", product, about, numbers)


def all_sums(product: Product, held: dict[str, Array], accumulator: Accumulator, x_zero: int = 0) -> dict[str, Array]:
    """The sums of the three passes in a register, by SUMS' names."""
    made = registers.EmulatedProduct("layer", product, registers.AccumulatorModel(accumulator))
    return {sums: np.asarray(registers.multiply(made, pass_, held, x_zero)) for pass_, sums in SUMS.items()}
