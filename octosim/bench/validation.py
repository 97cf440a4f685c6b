"""Prices against the clock: training steps on this machine, and what its calibrated profile says of them."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from octosim import core, cost, graph, hardware, methods
from octosim.bench import calibrate
from octosim.engine import plan
from octosim.engine.layers import Stack
from octosim.engine.nodes import Method
from octosim.errors import ArgumentError
from octosim.hardware import rates

NETWORKS = ("resnet20", "mobilenet")
"""Models that are measured where none is named; none of octosim's is calibrated with."""
IMAGES = (32, 32, 3)
BATCH = 32
ROUNDS = 3
"""How often each step is measured, spread over the whole time: a machine that others use is fast and slow by turns."""

Rows = list[dict[str, Any]]


def host(
    device: hardware.Device | None, names: Sequence[str] = (), networks: Sequence[str] = NETWORKS,
    batches: Sequence[int] = (BATCH,), threads: Sequence[int] = (1,), progress: Callable[[float], None] = lambda share: None,
) -> Rows:  # fmt: skip
    """A row for each number of threads, network, method (all if none is named) and batch size: seconds of a training step on
    images of 32 x 32 x 3, measured and predicted; the machine's speed meanwhile, as a share of that of the calibration, at
    which the measured seconds are; the function of the core with the largest error, in seconds; the functions without a
    measured price.

    device: this machine's calibrated profile; without one it is calibrated first.  ArgumentError for an unknown name, and for
    a profile that holds no measurement.
    """
    made = {name: methods.make(name, {}) for name in names or methods.METHODS}
    unknown = [name for name in networks if name not in graph.MODELS]
    if unknown:
        raise ArgumentError(f"{{model}}: '{unknown[0]}' is none of octosim's stacks of layers ({', '.join(graph.MODELS)})")
    before = core.threads()
    share = 0.5 if device is None else 0.0
    try:
        if device is None:
            data = calibrate.calibrate(threads=threads, progress=lambda done: progress(share * done))
            device = calibrate.load_check(calibrate.toml(data))
        if device.rates is None:
            raise ArgumentError(f"{{profile}}: {device.name} was not calibrated; its prices are not this machine's")
        rows: Rows = []
        steps = [*itertools.product(networks, made, batches)]
        done = 0
        for count in threads:
            core.set_threads(count)
            reference = calibrate.Reference(calibrate.clock_for(count))
            measured: list[list[tuple[list[calibrate.Timed], float]]] = [[] for _ in steps]
            for _ in range(ROUNDS):
                for (network, name, batch), some in zip(steps, measured, strict=True):
                    some.append(_measured(network, made[name], batch, reference))
                    done += 1
                    progress(share + (1 - share) * done / (len(steps) * len(threads) * ROUNDS))
            rows += [_row(device, network, made[name], batch, count, some)
                     for (network, name, batch), some in zip(steps, measured, strict=True)]  # fmt: skip
        return rows
    finally:
        core.set_threads(before)


def _measured(
    network: str, method: Method, batch: int, reference: calibrate.Reference
) -> tuple[list[calibrate.Timed], float]:  # fmt: skip
    """The calls of a step, as multiples of the reference's time, and that in seconds."""
    reference.times.clear()
    calls = calibrate.probe_steps(calibrate.Probe(IMAGES, batch, _layers(network, method)), method.name, reference)
    return calls, statistics.median(reference.times)


def _layers(network: str, method: Method) -> Stack:
    layers = graph.layers(network, 10, method.batchnorm, IMAGES)
    assert not isinstance(layers, graph.Graph)  # MODELS are stacks
    return layers


def _row(
    device: hardware.Device, network: str, method: Method, batch: int, threads: int,
    rounds: Sequence[tuple[list[calibrate.Timed], float]],
) -> dict[str, Any]:  # fmt: skip
    """Of the rounds' measurements the median of each call."""
    assert device.rates is not None
    now = statistics.median(at for _, at in rounds)
    full = next((row.us * 1e-6 for row in device.rates.references if row.threads == threads), now)
    calls = calibrate.medians([calls for calls, _ in rounds])
    off: dict[str, float] = defaultdict(float)
    for priced, call in zip(cost.predict([call.op for call in calls], device, threads), calls, strict=True):
        off[call.op.function] += priced.time_s - call.time * full
    worst = max(off, key=lambda function: abs(off[function]))
    unpriced = sorted({call.op.function for call in calls if not rates.priced(call.op, device.rates)})
    measured = sum(call.time for call in calls) * full
    step = plan.ops(plan.plan(plan.dry(_layers(network, method), IMAGES, method), batch))  # as `octosim cost` prices it
    predicted = sum(priced.time_s for priced in cost.predict(step, device, threads))
    return {
        "network": network, "method": method.name, "batch": batch, "threads": threads, "measured": measured,
        "predicted": predicted, "error": predicted / measured - 1, "speed": full / now,
        "worst_call": worst.removeprefix("octo_"), "worst_s": off[worst],
        "unpriced": ", ".join(function.removeprefix("octo_") for function in unpriced),
    }  # fmt: skip
