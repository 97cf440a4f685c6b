"""The first cost model: a roofline over the trace.  Pure functions (ops, Device) -> time, energy, memory.

One operation takes

    time = overhead + max(work / rate, bytes / bandwidth)

with work / rate = MACs / (peak x efficiency) of the engine that runs a matrix product.  It knows no layers: see
docs/cost-model.md for the equations, their parameters and what is not modelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from octosim.errors import OctosimError
from octosim.hw import DTYPES, Device, Dtype, Engine
from octosim.trace import Op

BOUNDS = ("compute", "memory", "overhead")
"""What limits an operation: the largest of its three times, the first named here where they are equal."""

ASSUMED_EFFICIENCY = 0.37
"""Achieved / peak of matrix products where a profile states none: the median of the INT8 ratios that profiles do state,
nearly all from whole ResNet-50 inference (0.31 to 0.49; CPUs, GPUs and NPUs do not differ)."""


@dataclass(frozen=True)
class OpCost:
    """The predicted cost of one operation; times in seconds, time_s = overhead_s + max(compute_s, memory_s).

    dtype_used: the arithmetic that runs on the device; wider than op.dtype where it has no such units (see note).
    """

    op: Op
    time_s: float
    compute_s: float
    memory_s: float
    overhead_s: float
    bound: str
    dtype_used: str
    note: str


def predict(ops: Iterable[Op], device: Device) -> list[OpCost]:
    """The cost of each operation, in order.

    Raises OctosimError when no engine of the device can run an operation (its dtype or a wider one, its pass).
    """
    chosen: dict[tuple[str, bool], tuple[float, str, str]] = {}
    element_rates: dict[bool, float] = {}
    costs = []
    for op in ops:
        backward = op.pass_ != "forward"
        if op.kind == "gemm":
            key = (op.dtype, backward)
            if key not in chosen:
                chosen[key] = _gemm_rate(op, device)
            rate, dtype_used, note = chosen[key]
            compute_s = op.macs / rate
        else:
            if backward not in element_rates:
                element_rates[backward] = max(engine.elements_s() for engine in _engines(op, device))
            dtype_used, note = op.dtype, ""
            compute_s = op.elements / element_rates[backward]
        memory_s = op.bytes / device.bandwidth_b_s
        costs.append(
            OpCost(
                op,
                device.overhead_s + max(compute_s, memory_s),
                compute_s,
                memory_s,
                device.overhead_s,
                _bound(compute_s, memory_s, device.overhead_s),
                dtype_used,
                note,
            )
        )
    return costs


def total(costs: Sequence[OpCost], device: Device, peak_bytes: int | None = None) -> dict[str, Any]:
    """Sums over the operations: time_s, energy_j, peak_bytes, macs, bytes, training.

    energy_j: busy power x time, None where the profile has no busy power.  An upper bound: the busy power is that of
    the whole board at full load, or the module's budget.
    peak_bytes: passed through; the trace does not hold it.
    training: whether training on the device is supported or hypothetical, and why.
    """
    time_s = sum(cost.time_s for cost in costs)
    return {
        "time_s": time_s,
        "energy_j": None if device.busy_w is None else device.busy_w * time_s,
        "peak_bytes": peak_bytes,
        "macs": sum(cost.op.macs for cost in costs),
        "bytes": sum(cost.op.bytes for cost in costs),
        "training": device.training_note,
    }


def cost_json(costs: Sequence[OpCost], device: Device, peak_bytes: int | None = None) -> dict[str, Any]:
    """What `octosim cost --json` prints: {"device", "total", "notes", "layers"}; null where unknown."""
    layers = [
        {
            "layer": cost.op.layer,
            "pass": cost.op.pass_,
            "name": cost.op.name,
            "kind": cost.op.kind,
            "dtype": cost.dtype_used,
            "macs": cost.op.macs,
            "bytes": cost.op.bytes,
            "time_s": cost.time_s,
            "bound": cost.bound,
        }
        for cost in costs
    ]
    notes = list(dict.fromkeys(cost.note for cost in costs if cost.note))
    if device.memory.bandwidth_sustained_gb_s is None:
        notes.append(f"{device.name} has no known memory bandwidth: traffic costs no time")
    return {"device": device.name, "total": total(costs, device, peak_bytes), "notes": notes, "layers": layers}


def _engines(op: Op, device: Device) -> list[Engine]:
    """The engines that can run the pass of `op`; never empty."""
    engines = [engine for engine in device.engines if engine.trains or op.pass_ == "forward"]
    if not engines:
        raise OctosimError(
            f"profile {device.name}: no engine has trains = true, so the pass {op.pass_} of layer {op.layer} cannot run there"
        )
    return engines


def _gemm_rate(op: Op, device: Device) -> tuple[float, str, str]:
    """(MAC/s, dtype, note) of the fastest engine with op.dtype, else of the fastest with a wider dtype.

    INT8 products without INT8 units run in float32: float16 (at most 65504) holds the sum of no more than four of them.
    """
    if op.dtype not in DTYPES:
        raise OctosimError(
            f"layer {op.layer}: a matrix product in {op.dtype!r} has no price, expected one of {', '.join(DTYPES)}"
        )
    engines = _engines(op, device)
    order: dict[str, tuple[Dtype, ...]] = {"int8": ("int8", "float32", "float16"), "float16": ("float16", "float32")}
    for dtype in order.get(op.dtype, ("float32",)):
        engine = max(engines, key=lambda e: e.rate_mac_s(dtype, ASSUMED_EFFICIENCY))
        rate = engine.rate_mac_s(dtype, ASSUMED_EFFICIENCY)
        if rate:
            notes = []
            if dtype != op.dtype:
                notes.append(f"{device.name} has no {op.dtype} units for this pass: runs in {dtype}")
            if engine.efficiency(dtype) is None:
                notes.append(f"{device.name}: efficiency of {engine.name} in {dtype} unknown, {ASSUMED_EFFICIENCY} assumed")
            return rate, dtype, "; ".join(notes)
    raise OctosimError(
        f"profile {device.name}: no engine computes {op.dtype} or a wider type, which the pass "
        f"{op.pass_} of layer {op.layer} needs"
    )


def _bound(compute_s: float, memory_s: float, overhead_s: float) -> str:
    times = dict(zip(BOUNDS, (compute_s, memory_s, overhead_s), strict=True))
    return max(BOUNDS, key=lambda name: times[name])
