"""INT8 beside float32 on devices and batch sizes: what is gained, why not, what fits and from which batch on INT8 pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octosim import cost
from octosim.cost import OpCost
from octosim.hardware import Device, Runtime
from octosim.trace import Op, with_peak

SHORT = {"int8": "INT8", "float16": "FP16", "float32": "FP32"}
"""Types as tables name them."""

PAYS = 1.05
"""INT8 counts as paid from this ratio of times on: below it the model's own noise decides."""

USABLE = 0.8
"""Share of a device's memory that a step may take: an assumption, for the operating system and the program itself."""

Trace = Callable[[int], Sequence[Op]]
"""The operations of a network at a batch size."""


@dataclass(frozen=True)
class Ratio:
    """A time as a multiple of another, with the interval that should hold the true one four times in five.

    The two predictions' errors are taken as independent: they share a device, so the interval is rather too wide.
    """

    value: float
    low: float
    high: float

    @property
    def told(self) -> str:
        return "faster" if self.high < 1 else "slower" if self.low > 1 else "cannot be told"


def ratio(one: Mapping[str, Any], other: Mapping[str, Any]) -> Ratio | None:
    """Of predictions with time_s, time_low_s and time_high_s; None where a time is 0."""
    times = [(p["time_s"], p["time_low_s"], p["time_high_s"]) for p in (one, other)]
    if any(time <= 0 or low <= 0 for time, low, _ in times):
        return None
    value = times[0][0] / times[1][0]
    deviation = math.hypot(*(math.log(high / low) / 2 for _, low, high in times))
    return Ratio(value, value * math.exp(-deviation), value * math.exp(deviation))


def side_by_side(
    int8: Sequence[OpCost], float32: Sequence[OpCost] | None, device: Device, quantized: bool = False
) -> dict[str, Any]:
    """{"int8", "float32": time_s and its interval, energy_j; "gain": float32's time / INT8's; "reason": in words}.

    float32 None: the device cannot run it, or the file is quantized; the gain is then None too.
    """
    keys = ("time_s", "time_low_s", "time_high_s", "energy_j")
    if float32 is None:
        total = cost.total(int8, device)
        why = "the file is quantized and has no float32 products" if quantized else "no engine computes in float32"
        text = f"{why}, so there is nothing to compare"
        return {"int8": {k: total[k] for k in keys}, "float32": dict.fromkeys(keys), "gain": None, "pays": None, "reason": text}
    sides = {}
    for name, costs in (("int8", int8), ("float32", float32)):
        total = cost.total(costs, device)
        sides[name] = {key: total[key] for key in keys}
    gain = sides["float32"]["time_s"] / sides["int8"]["time_s"]
    return sides | {"gain": gain, "pays": gain >= PAYS, "reason": reason(int8, float32, device)}


def _parts(costs: Sequence[OpCost]) -> tuple[float, float, float]:
    """Seconds of products, of passes over memory, and of overheads."""
    products = sum(c.time_s - c.overhead_s for c in costs if c.op.kind == "gemm")
    overhead = sum(c.overhead_s for c in costs)
    return products, sum(c.time_s for c in costs) - products - overhead, overhead


def reason(int8: Sequence[OpCost], float32: Sequence[OpCost], device: Device) -> str:
    """Why INT8 gains what it gains, in one clause."""
    (products, passes, calls), (products32, passes32, calls32) = _parts(int8), _parts(float32)
    asked = [c for c in int8 if c.op.kind == "gemm" and c.op.dtype == "int8"]
    if all(c.dtype_used != "int8" for c in asked):
        return f"no INT8 units: products run in {asked[0].dtype_used if asked else 'float32'}, quantizing comes on top"
    more = max(passes - passes32, 0.0) + max(calls - calls32, 0.0)
    saved = products32 - products
    bound = "memory" if 2 * sum(c.time_s for c in asked if c.bound == "memory") > sum(c.time_s for c in asked) else "arithmetic"
    ratio = products32 / products if products else 1.0
    whole, whole32 = products + passes + calls, products32 + passes32 + calls32
    if 2 * calls32 > whole32 > whole:  # on a GPU the products run meanwhile, and nothing of their time is seen
        share32, share = _share(calls32 / whole32), _share(calls / whole)
        return f"calls take {share32} of float32's time and {share} of INT8's, which is shorter"
    if ratio < PAYS:
        return f"INT8 products are no faster ({_share(ratio)} of float32's speed, bound by {bound})"
    text = f"products {ratio:.0f} times as fast" if ratio >= 10 else f"products {ratio:.2g} times as fast"
    if more <= 0.05 * saved:
        return text
    by_passes = passes - passes32 >= calls - calls32
    what = "quantizing and rescaling" if by_passes else f"the overhead of {len(int8) - len(float32)} more calls"
    if more >= saved:
        return f"{text}, but {what} costs more than that saves"
    return f"{text}, {what} takes {_share(more / saved)} of the gain"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def capacity_bytes(device: Device) -> float | None:
    """Bytes that a step may take; None where the profile does not know the memory."""
    known = device.memory.capacity_gib
    return None if known is None else USABLE * known.value * 2**30


def weights_bytes(device: Device) -> float | None:
    """Bytes of the memory that holds weights alone; None where the device has none."""
    return None if device.memory.weights_gib is None else device.memory.weights_gib.value * 2**30


def placed(parts: dict[str, int], device: Device, inference: bool) -> dict[str, int]:
    """The parts of a peak in the device's main memory; weights that are read alone are "weights apart" where they have a memory
    of their own: all of an inference, of a training what `octosim.engine.plan.in_c` says."""
    apart = parts.get("weights apart", parts["weights"] if inference else 0)
    if weights_bytes(device) is None:
        return with_peak({name: max(size, apart) if name == "weights" else size for name, size in parts.items()
                          if name != "weights apart"})  # fmt: skip
    return with_peak(parts | ({"weights": 0} if inference else {}) | ({"weights apart": apart} if apart else {}))


def fits(parts: Mapping[str, int], device: Device) -> bool | None:
    """Whether a step fits, by its parts as `placed` has them; None where the profile does not know the memory."""
    capacity, weights = capacity_bytes(device), weights_bytes(device)
    if weights is not None and parts.get("weights apart", 0) > weights:
        return False
    return None if capacity is None else parts["peak"] <= capacity


def fit(
    parts: dict[str, Mapping[str, int]], largest: dict[str, Callable[[float], int]], device: Device,
    fixed_batch: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Whether each arithmetic's step fits the device, and what would: {"fits": {name: bool | None}, "advice": text}.

    parts: of its peak, as `placed` has them.  largest: by arithmetic, the largest batch for a number of bytes.
    fixed_batch: the only batch of an ONNX file, None: any.
    """
    capacity = capacity_bytes(device)
    found = {name: fits(of, device) for name, of in parts.items()}
    if all(here in (None, True) for here in found.values()):
        return {"fits": found, "advice": ""}
    apart = {name for name, of in parts.items() if fits(dict(of, peak=0), device) is False}
    most = {} if capacity is None else {name: find(capacity) for name, find in largest.items() if name not in apart}
    would = [f"{name} at this batch" for name, here in found.items() if here]
    would += [f"a batch of up to {batch} in {name}" for name, batch in most.items() if batch and not found[name]]
    missing = [name for name, here in found.items() if not here]
    verb = "do" if len(missing) > 1 else "does"
    none = f"the batch is fixed at {fixed_batch} in the file" if fixed_batch and not apart else "no batch fits"
    what = f"fits: {', '.join(would)}" if would else none
    room = f"{_size(capacity)} ({USABLE:g} of the memory)" if capacity is not None else ""
    weights = weights_bytes(device)
    if weights is not None and any("weights apart" in of for of in parts.values()):
        room += f"{' and ' if room else ''}{_size(weights)} for weights"
    return {"fits": found, "advice": f"{' and '.join(missing)} {verb} not fit in {room}; {what}"}


def _size(count: float) -> str:
    return f"{count / 2**30:.2g} GiB" if count >= 2**27 else f"{count / 2**20:.2g} MiB"


def time_of(ops: Sequence[Op], device: Device, threads: int | None = None, runtime: Runtime | None = None) -> float:
    """The predicted time alone, in seconds."""
    if device.rates is not None or runtime and runtime.backward:
        return sum(c.time_s for c in cost.predict(ops, device, threads, runtime))
    prepared = cost.prepare(ops, device, threads, runtime)
    return float(cost.times(prepared, prepared.parameters)[0].sum())


def crossover(
    int8: Trace, runtime: Runtime | None, float32: Trace, runtime32: Runtime | None, device: Device,
    threads: int | None = None, most: int = 1024,
) -> int | None:  # fmt: skip
    """The smallest batch from which on INT8 pays (PAYS), None if it does not at `most`.

    Found by bisection: the gain is taken to grow with the batch, since quantizing the weights and the calls cost the same at
    any batch.
    """

    def pays(batch: int) -> bool:
        """Whether INT8 pays at this batch; where the device cannot run float32 the question has no answer."""
        return time_of(float32(batch), device, threads, runtime32) >= PAYS * time_of(int8(batch), device, threads, runtime)

    if not pays(most):
        return None
    low, high = 0, most  # pays(high), not pays(low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return high
