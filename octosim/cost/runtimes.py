"""The operations that other software makes of a training step: octosim's float operations by a runtime's rules.

Inference is planned where the graph is read (octosim.cost.onnx), since what is fused depends on neighbours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from octosim.cost.model import DEPTHWISE, KINDS, kind_of
from octosim.errors import OctosimError
from octosim.hardware import Device, Runtime, load_runtime
from octosim.hardware.runtime import Backward, LayerKind
from octosim.trace import DTYPE_BYTES, Op, with_peak, with_winograd

DEFAULTS = {"cpu": "tflite", "gpu": "tensorrt", "npu": "vendor-npu"}
"""Inference software by the kind of a device's first engine, where its profile names none."""


def default(device: Device, training: bool) -> Runtime:
    """The common software of a device: octosim's own kernels for training, else what most people infer with there."""
    if training:
        return load_runtime("octosim")
    return load_runtime(device.runtime or DEFAULTS[device.engines[0].kind])


def check(runtime: Runtime, device: Device, training: bool) -> None:
    """Raises OctosimError where the runtime drives none of the device's engines, or does not train."""
    kinds = {engine.kind for engine in device.engines}
    if not kinds & set(runtime.engines):
        raise OctosimError(
            f"runtime {runtime.name} runs on {' and '.join(runtime.engines)} engines, and {device.name} has none of them"
        )
    if training and runtime.backward is None and runtime.name != "octosim":
        raise OctosimError(f"runtime {runtime.name} does not train; --inference prices its forward pass")


def on(runtime: Runtime, device: Device) -> Runtime:
    """The runtime as it trains on a device: GPUs and NPUs have a backward pass of their own."""
    if runtime.accelerated is None or device.engines[0].kind == "cpu":
        return runtime
    return runtime.model_copy(update={"backward": runtime.accelerated})


def training_ops(ops: Sequence[Op], runtime: Runtime, batch: int | None = None) -> list[Op]:
    """A float training step as the runtime trains: the same operations, slower or with more traffic.

    batch: images, which some software shares among its threads; unknown: as many as threads.
    """
    rules = runtime.backward
    if rules is None:
        return list(ops)
    found = []
    for op in ops:
        work = counted(op, rules, batch)
        if f"{layer_of(op)} {op.pass_}" not in rules.composed:
            if op.kind == "gemm":
                found.append(_slower(op, runtime, rules))
                found += [] if rules.work else unfolded(op, rules)
            elif not work:
                times = rules.update_passes if op.kind == "update" and rules.update_passes else rules.passes
                found.append(replace(op, passes=op.passes * times.value))
        found += work
    return found


def _slower(op: Op, runtime: Runtime, rules: Backward) -> Op:
    """A product at the speed of the framework's kernels."""
    depthwise = KINDS.index(kind_of(op)) == DEPTHWISE
    if op.pass_ in ("dX", "dW"):
        share = rules.dx if op.pass_ == "dX" else rules.dw
        if share is None and not depthwise:  # one kernel for all three
            share = rules.forward
        return replace(op, slow=op.slow / ((share.value if share else 1.0) * (rules.depthwise.value if depthwise else 1.0)))
    share = rules.forward_depthwise if depthwise else rules.forward
    op = with_winograd(op) if runtime.winograd and rules.forward is None else op
    return replace(op, slow=op.slow / share.value) if share else op


LAYERS: dict[str, LayerKind] = {
    "batchnormalization": "batchnorm", "batchnorm": "batchnorm", "relu": "relu", "activation": "relu", "clip": "relu6",
    "relu6": "relu6", "maxpool": "maxpool", "averagepool": "avgpool", "avgpool": "avgpool", "globalaveragepool": "avgpool",
    "add": "add", "concat": "concat", "bias": "bias", "affine": "bias", "columnsums": "bias",
}  # fmt: skip
"""Kinds of layer by the names of elementwise operations (octosim's, ONNX's and those of a table of layers)."""
BYTES_OF = {"copy": (1, 1), "combine": (2, 1), "read": (1, 0), "write": (0, 1)}
"""How often a pass reads and writes each element."""
COUNTED, INTERLEAVED = "a pass of the framework's", "a pass of the framework's, interleaved"


def layer_of(op: Op) -> LayerKind | Literal[""]:
    """The kind of layer that an operation is part of; "" for one without a name in LAYERS."""
    if op.kind == "gemm":
        if KINDS.index(kind_of(op)) == DEPTHWISE:
            return "depthwise"
        return "convolution" if op.kernel != (0, 0) else "linear" if op.weights or op.pass_ == "dW" else "product"
    if op.kind == "update":
        return "optimizer"
    return LAYERS.get(re.sub(" (forward|backward|gradient)$", "", op.name).replace(" ", ""), "")


def counted(op: Op, rules: Backward, batch: int | None) -> list[Op]:
    """The passes that the framework's source makes for an operation, by `hardware.runtime.Work`."""
    layer, size = layer_of(op), DTYPE_BYTES.get(op.dtype, 4)
    mine = [work for work in rules.work if layer in work.of and work.pass_ == op.pass_]
    if not mine:
        return []
    elements, rows, parts = _sizes(op, size)
    wide = op.kernel[0] * op.kernel[1] > 1
    needed = {"wide": wide, "narrow": not wide, "batched": rows > 1, "several": batch != 1}
    found = []
    for work in mine:
        count = elements.get(work.over, 0)
        if not count or not all(needed[what] for what in work.only):
            continue
        reads, writes = BYTES_OF[work.how]
        shape = (max(1, count * (reads + writes) // 2),)  # an element of an elementwise operation is read and written
        speed = rules.interleaved.value if work.interleaved and rules.interleaved else 1.0
        found.append(Op(
            op.layer, op.pass_, "elementwise", INTERLEAVED if work.interleaved else COUNTED, shape, op.dtype,
            count * size * reads, count * size * writes, slow=work.slow / speed, passes=work.times * rules.passes.value,
            threads={"all": 0, "images": batch or 0, "one": 1}[work.threads],
            calls=max(1, round(work.times)) * (parts if work.apart else 1),
        ))  # fmt: skip
    return found


def _sizes(op: Op, size: int) -> tuple[dict[str, int], int, int]:
    """Elements of what a pass can go over; rows of a product; places of a kernel or window, or tensors of parameters."""
    if op.kind == "update":
        return {"weights": op.elements}, 0, op.groups
    if op.kind != "gemm":
        if "pool" not in layer_of(op):
            return {"input": op.elements, "result": op.elements}, 0, 1
        given = (op.reads if op.pass_ == "forward" else op.writes) // size
        taken = op.writes if op.pass_ == "forward" else op.reads - op.writes if op.reads > op.writes else op.reads
        result = max(1, taken // size)
        windows = max(op.elements, result)
        places = windows / result
        return {"input": given, "result": result, "windows": windows, "spread": round(given * places)}, 0, round(places)
    first, k, last = op.shape
    m, n = {"forward": (first, last), "dX": (first, k), "dW": (k, first)}[op.pass_]
    result, area = m * n * op.groups, max(1, op.kernel[0] * op.kernel[1])
    if op.pass_ == "forward":
        given, weights = (op.reads - op.weights) // size, op.weights // size
    elif op.pass_ == "dX":
        given, weights = op.writes // size, op.weights // size
    else:
        given, weights = op.reads // size - result, op.writes // size
    return {"input": given, "result": result, "weights": weights, "patches": patch_elements(op), "windows": result * area,
            "spread": given * area}, m, area  # fmt: skip


PATCHES = "passes over the unfolded input"


def unfolded(product: Op, rules: Backward) -> list[Op]:
    """What a framework adds to a convolution: passes over its unfolded input (im2col)."""
    forward, size = product.pass_ == "forward", DTYPE_BYTES[product.dtype]
    if rules.patch_passes is None or product.kernel[0] * product.kernel[1] <= 1 or forward and rules.forward is None:
        return []
    count = patch_elements(product)
    return [Op(product.layer, "dX" if forward else product.pass_, "elementwise", PATCHES, (count,), product.dtype, count * size,
               count * size, passes=rules.patch_passes.value)]  # fmt: skip


def patch_elements(op: Op) -> int:
    """Elements of the unfolded input of a convolution in any pass: a row of K values for each output pixel, of all groups."""
    m, k, n = op.shape
    rows, columns = {"forward": (m, k), "dX": (m, n), "dW": (k, n)}[op.pass_]
    return rows * columns * op.groups


def inference_ops(ops: Sequence[Op], runtime: Runtime, dtype: str) -> list[Op]:
    """octosim's own float32 inference as a runtime runs it in a type: without what it fuses, int8 as codes throughout."""
    size = DTYPE_BYTES[dtype]
    found: list[Op] = []
    after_product = False
    for op in ops:
        if op.kind == "gemm":
            shrunk = replace(op, dtype=dtype, reads=op.reads * size // 4, writes=op.writes * size // 4,
                             weights=op.weights * size // 4, function="")  # fmt: skip
            found.append(with_winograd(shrunk) if runtime.winograd else shrunk)
            after_product = True
            continue
        fused = {"affine": "norm", "batchnorm inference": "norm", "relu": "activation", "add": "add"}.get(op.name)
        if after_product and fused in runtime.fuses or op.name == "images":
            continue
        after_product = False
        found.append(replace(op, dtype=dtype, reads=op.reads * size // 4, writes=op.writes * size // 4, function=""))
    return found


def onnx_rules(runtime: Runtime, device: Device, dtype: str, inference: bool) -> dict[str, Any]:
    """Arguments of octosim.cost.onnx.ops by runtime and device: what predictions and calibrations both plan with."""
    floats = None
    if dtype == "int8" and inference:
        halves = runtime.float16 and any("float16" in engine.macs_per_clock.given() for engine in device.engines)
        floats = "int8" if runtime.codes == "throughout" else "float16" if halves else None
    return {"float_dtype": floats, "inference": inference, "fuses": runtime.fuses, "winograd": runtime.winograd}


def choose(asked: str | None, device: Device, dtype: str, training: bool, own: bool) -> Runtime:
    """The runtime that prices a type: the one asked for where it can, else the common one.

    INT8 trains with octosim's kernels alone.  own: a network of octosim's own, which octosim infers as well.
    """
    if asked is not None:
        runtime = on(load_runtime(asked), device)
        check(runtime, device, training)
        return load_runtime("octosim") if training and dtype == "int8" else runtime
    if not training:
        return load_runtime("octosim") if own else default(device, False)
    gpu = device.engines[0].kind == "gpu" and dtype != "int8"
    return on(load_runtime("pytorch" if gpu else "octosim"), device)


def hypothetical(runtime: Runtime, device: Device, dtype: str = "int8", training: bool = True) -> str:
    """Why a figure is of software that does not exist on the device, or not with products of a type; "" where it does."""
    has_cpu = any(engine.kind == "cpu" for engine in device.engines)
    at_rates = "its operations are priced at the rates of the hardware"
    if runtime.name == "octosim" and not has_cpu:
        return f"hypothetical: octosim has no kernels for {device.name}; {at_rates}"
    if runtime.name == "octosim" and dtype == "float16":
        return f"hypothetical: octosim has no kernels in float16; {at_rates}"
    if training and dtype == "float16" and all(engine.kind == "cpu" for engine in device.engines):
        return f"hypothetical: {runtime.name} is not known to train in float16 on CPU cores; {at_rates}"
    return ""


ANOTHER_PROGRAM = "octosim's own kernels: PyTorch, MNN and other frameworks are other programs, which --runtime prices"
"""What is said where octosim's training step is asked for by name, or set beside steps of other software."""


def in_float16(ops: Sequence[Op]) -> list[Op]:
    """A float32 step in mixed precision: products and passes in float16, the optimizer on float32 master weights."""
    found = []
    for op in ops:
        if op.dtype == "float32" and op.kind != "update":
            op = replace(op, dtype="float16", reads=math.ceil(op.reads / 2), writes=math.ceil(op.writes / 2),
                         weights=math.ceil(op.weights / 2))  # fmt: skip
        elif op.kind == "update":
            op = replace(op, reads=op.reads + op.elements * 2, writes=op.writes + op.elements * 2)
        found.append(op)
    return found


def in_half(parts: Mapping[str, int], matrices: int, training: bool) -> dict[str, int]:
    """Memory of a float32 plan in mixed precision, as frameworks' automatic one is.

    parts: as `octosim.engine.plan.memory` has them.  matrices: elements of the weights that products read.
    Activations and workspace are halved.  Training keeps float32 weights, gradients and optimizer's values, and a float16 copy
    of the matrices beside them; inference keeps the copy alone.
    """
    found = dict(parts) | {name: math.ceil(parts[name] / 2) for name in ("activations", "workspace")}
    found["weights"] += (2 if training else -2) * matrices
    return with_peak(found)


def with_all_gradients(parts: Mapping[str, int], gradients: int) -> dict[str, int]:
    """Memory of other software's step, of the float32 plan that it makes: octosim's has the largest gradient alone, frameworks
    keep all, `gradients` bytes, until the optimizer's step."""
    return with_peak(dict(parts) | {"gradients": gradients})
