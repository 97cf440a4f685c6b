"""The operations that other software makes of a training step: octosim's float operations by a runtime's rules.

Inference is planned where the graph is read (octosim.cost.onnx), since what is fused depends on neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from octosim.cost.model import DEPTHWISE, KINDS, kind_of
from octosim.errors import OctosimError
from octosim.hardware import Device, Runtime, load_runtime
from octosim.hardware.runtime import Backward
from octosim.trace import DTYPE_BYTES, Op, with_winograd

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


def training_ops(ops: Sequence[Op], runtime: Runtime) -> list[Op]:
    """A float training step as the runtime trains: the same operations, slower or with more traffic."""
    rules = runtime.backward
    if rules is None:
        return list(ops)
    found = []
    for op in ops:
        depthwise = op.kind == "gemm" and KINDS.index(kind_of(op)) == DEPTHWISE
        if op.kind == "gemm" and op.pass_ in ("dX", "dW"):
            speed = (rules.dx if op.pass_ == "dX" else rules.dw).value * (rules.depthwise.value if depthwise else 1.0)
            op = replace(op, slow=op.slow / speed)
        elif op.kind == "gemm":
            share = rules.forward_depthwise if depthwise else rules.forward
            op = with_winograd(op) if runtime.winograd and rules.forward is None else op
            op = replace(op, slow=op.slow / share.value) if share else op
        elif op.kind == "elementwise":
            op = replace(op, passes=op.passes * rules.passes.value)
        elif op.kind == "update":
            op = replace(op, passes=op.passes * rules.update_passes.value)
        found.append(op)
        if op.kind == "gemm":
            found += extra_passes(op, rules)
    return found


RESULT, WEIGHTS, PATCHES = "passes over the result", "passes over the weights", "passes over the unfolded input"
PASSES = {RESULT: "product_passes", WEIGHTS: "row_passes", PATCHES: "patch_passes"}
"""Names of the operations that `extra_passes` adds, with the parameter of Backward that counts each one's passes."""


def extra_passes(product: Op, rules: Backward) -> list[Op]:
    """What a framework adds to a product: passes over its result and a linear layer's weights, once a step, and over a
    convolution's unfolded input (im2col)."""
    forward, size = product.pass_ == "forward", DTYPE_BYTES[product.dtype]
    counts: dict[str, int] = {}
    if forward:
        linear = product.kernel == (0, 0) and product.groups == 1 and product.weights > 0
        counts = {RESULT: product.elements, WEIGHTS: product.weights // size * product.shape[0] if linear else 0}
    if product.kernel[0] * product.kernel[1] > 1 and (rules.forward or not forward):
        counts[PATCHES] = patch_elements(product)
    passes = {name: getattr(rules, field) for name, field in PASSES.items()}
    pass_ = "dX" if forward else product.pass_
    return [
        Op(product.layer, pass_, "elementwise", name, (count,), product.dtype, count * size, count * size, passes=each.value)
        for name, count in counts.items()
        if count and (each := passes[name])
    ]


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


def hypothetical(runtime: Runtime, device: Device) -> str:
    """Why a figure is of software that does not exist on the device; "" where it does."""
    if runtime.name != "octosim" or any(engine.kind == "cpu" for engine in device.engines):
        return ""
    return f"hypothetical: octosim has no kernels for {device.name}; its operations are priced at the rates of the hardware"


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
