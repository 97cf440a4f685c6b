"""Test vectors of one training step for authors of kernels and RTL: .npz, hex, a C header, and a C program that checks it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import octosim
from octosim import core, methods, train
from octosim.engine import probes
from octosim.engine.nodes import Array, Depthwise, Node, Product
from octosim.engine.quantizers import LARGEST_CODE
from octosim.errors import OctosimError, suggest
from octosim.files import write_atomic
from octosim.numerics import Accumulator, Rounding, fixed_point

CHECKER = Path(__file__).with_name("golden_check.c")
SUMS = {"forward": "forward", "dW": "dw", "dX": "dx"}  # the pass, and its sums' name in both files


def _geometry(product: Product) -> dict[str, int]:
    g, depthwise = product.geometry, isinstance(product, Depthwise)
    sizes = {name: getattr(g, name) for name in ("batch", "height", "width", "channels", "filters", "kernel_h", "kernel_w")}
    return sizes | {
        "stride": g.stride, "pad": g.pad, "out_h": g.out_h, "out_w": g.out_w,
        "depthwise": int(depthwise), "depth": 1 if depthwise else g.channels,
    }  # fmt: skip


def _register(how: Accumulator) -> dict[str, int]:
    return {
        "bits": how.bits, "saturate": int(how.overflow == "saturate"), "group": how.group,
        "pair_bits": how.pair_bits or 0, "unsigned": int(how.unsigned),
    }  # fmt: skip


def _requantized(name: str, sums: Array) -> dict[str, Any]:
    """int8 codes of a pass's sums, one multiplier and shift for the tensor such that the largest just fits, half up."""
    largest = int(np.abs(sums.astype(np.int64)).max())
    multiplier, shift = fixed_point(LARGEST_CODE / max(largest, LARGEST_CODE))
    codes = core.requantize(sums, multiplier, shift, rounding=Rounding.HALF_UP, low=-LARGEST_CODE, high=LARGEST_CODE)
    return {f"{name}_codes": codes, f"{name}_multiplier": multiplier, f"{name}_shift": shift}


def vectors(node: Node, observed: probes.Observed, how: Accumulator) -> dict[str, Any]:
    """A layer's numbers in the step that was observed: arrays, sizes and scales by name; OctosimError without int8 products."""
    seen = {(pass_, name): values for (layer, pass_, name), values in observed.tensors.items() if layer == node.name}
    if seen.get(("forward", "x"), np.empty(0)).dtype != np.int8 or ("dW", "dy") not in seen:
        raise OctosimError(f"layer {node.name} has no int8 products to make vectors of")
    product, x_zero = observed.products[node.name, "forward"]
    found: dict[str, Any] = {"x": seen["forward", "x"], "w": seen["forward", "w"], "dy": seen["dW", "dy"]}
    found |= {name: seen[pass_, "sums"] for pass_, name in SUMS.items() if (pass_, "sums") in seen}
    for name in SUMS.values():
        if name in found:
            found |= _requantized(name, found[name])
    for operand in ("x", "w", "dy"):
        meaning = observed.meanings.get((node.name, operand))
        if meaning is not None:
            found |= {f"{operand}_scale": np.float32(meaning.scale), f"{operand}_zero": meaning.zero}
    found |= {"x_zero": x_zero} | _geometry(product) | _register(how)
    reals = {("forward", "input"): "x_real", ("forward", "output"): "y_real", ("dW", "gradient"): "dy_real"}
    reals |= {("dX", "result"): "dx_real"}
    found |= {name: seen[key] for key, name in reals.items() if key in seen}
    return found | {f"grad_{name.removeprefix('gradient of ')}": v for (_, name), v in seen.items() if "gradient of" in name}


# ---- files --------------------------------------------------


def hex_lines(values: Array) -> str:
    """A line an element, two's complement, two or eight digits: what Verilog's $readmemh reads."""
    digits, mask = 2 * values.itemsize, (1 << 8 * values.itemsize) - 1
    return "".join(f"{value & mask:0{digits}x}\n" for value in values.ravel().tolist())


def _array(kind: str, name: str, values: Array) -> str:
    flat = values.ravel().tolist()
    lines = [",".join(map(str, flat[i : i + 32])) for i in range(0, len(flat), 32)]
    return f"static const {kind} octo_{name}[{len(flat)}] = {{\n" + ",\n".join(lines) + "\n};\n"


def _hex(value: float) -> str:
    return f"{float(value).hex()}f" if math.isfinite(value) else "0.0f"


def header(layer: str, numbers: dict[str, Any], about: dict[str, Any]) -> str:
    """The vectors as a C header: sizes and scales as macros, int8 operands and int32 sums as arrays."""
    integers = {key: int(v) for key, v in numbers.items() if np.ndim(v) == 0 and not key.endswith("_scale")}
    text = json.dumps(about, indent=1).replace("*/", "* /").replace("\n", "\n * ")
    parts = [f"/* Made by octosim golden from\n * {text} */\n\n#include <stdint.h>\n\n", f'#define OCTO_LAYER "{layer}"\n']
    parts += [f"#define OCTO_{key.upper()} {value if value >= 0 else f'({value})'}\n" for key, value in integers.items()]
    parts += [f"#define OCTO_{key.upper()} {_hex(v)}\n" for key, v in numbers.items() if key.endswith("_scale")]
    parts += [f"#define OCTO_HAS_DX {int('dx' in numbers)}\n\n"]
    parts += [_array("int8_t", name, numbers[name]) for name in ("x", "w", "dy")]
    for name in SUMS.values():
        if name in numbers:
            parts += [_array("int32_t", name, numbers[name]), _array("int8_t", f"{name}_codes", numbers[f"{name}_codes"])]
    return "".join(parts)


def golden(
    folder: Path, step: int, layer: str | None, out: Path, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Replays a run to a step and writes LAYER.npz, LAYER.h, LAYER_check.c and a hex file LAYER_TENSOR.hex for each integer
    tensor, of one weighted layer or of all.

    Returns a row a layer: its name, its passes, and its files.
    """
    run = train.replay(folder)
    nodes = {node.name: node for node in run.network.nodes if node.layer.weighted}
    if layer is not None and layer not in nodes:
        raise OctosimError(f"{folder} has no weighted layer '{layer}'" + suggest(layer, nodes))
    chosen = [nodes[layer]] if layer is not None else list(nodes.values())
    train.advance_before(run, step, progress)
    params = {(node.name, name): values.copy() for node in chosen for name, values in node.params.items()}
    observed = probes.watch(run.network)
    run.train_step()
    made = []
    for node in chosen:
        numbers = vectors(node, observed, run.registers.accumulator)
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
        made.append((node.name, about, numbers, numbers_and_params))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OctosimError(f"cannot make {out}: {error.strerror}") from None
    rows = []
    for name, about, numbers, everything in made:
        files = {"npz": out / f"{name}.npz", "header": out / f"{name}.h", "checker": out / f"{name}_check.c"}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, about=json.dumps(about), **everything)
        write_atomic(files["npz"], buffer.getvalue())
        write_atomic(files["header"], header(name, numbers, about).encode())
        write_atomic(files["checker"], CHECKER.read_text().replace("@HEADER@", files["header"].name).encode())
        tensors = {key: v for key, v in numbers.items() if np.ndim(v) and v.dtype in (np.int8, np.int32)}
        for key, values in tensors.items():
            write_atomic(out / f"{name}_{key}.hex", hex_lines(values).encode())
        passes = [pass_ for pass_, sums in SUMS.items() if sums in numbers]
        rows.append({"layer": name, "passes": passes} | {kind: str(path) for kind, path in files.items()})
    return rows
