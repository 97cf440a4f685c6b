"""Prices against the clock: steps of each method on this machine, and what its calibrated profile says of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from octosim import core, cost, graph, hardware, methods
from octosim.bench import calibrate
from octosim.engine import plan
from octosim.engine.nodes import Method
from octosim.errors import ArgumentError
from octosim.hardware import rates

NETWORKS = {"resnet20": (32, 32, 3), "mobilenet": (32, 32, 3)}
"""Networks that are measured, none of which is calibrated with, and their images."""
BATCH = 32

Rows = list[dict[str, Any]]


def host(
    device: hardware.Device | None, names: Sequence[str] = (), networks: Sequence[str] = tuple(NETWORKS), batch: int = BATCH,
    progress: Callable[[float], None] = lambda share: None,
) -> Rows:  # fmt: skip
    """A row for each network and method (all if none is named): seconds of a training step, measured on one thread and
    predicted; the function of the core with the largest error, in seconds; the functions without a measured price.

    device: this machine's calibrated profile; without one it is calibrated first.  ArgumentError for an unknown name, and for
    a profile that holds no measurement.
    """
    made = {name: methods.make(name, {}) for name in names or methods.METHODS}
    threads = core.threads()
    share = 0.5 if device is None else 0.0
    core.set_threads(1)
    try:
        if device is None:
            data = calibrate.calibrate(threads=(1,), progress=lambda done: progress(share * done))
            device = calibrate.load_check(calibrate.toml(data))
        if device.rates is None:
            raise ArgumentError(f"{{profile}}: {device.name} was not calibrated; its prices are not this machine's")
        rows: Rows = []
        for network in networks:
            for name, method in made.items():
                rows.append(_row(device, network, name, method, batch))
                progress(share + (1 - share) * len(rows) / (len(networks) * len(made)))
        return rows
    finally:
        core.set_threads(threads)


def _row(device: hardware.Device, network: str, name: str, method: Method, batch: int) -> dict[str, Any]:
    layers = graph.layers(network, 10, method.batchnorm, NETWORKS[network])
    assert not isinstance(layers, graph.Graph)  # NETWORKS are stacks
    probe = calibrate.Probe(NETWORKS[network], batch, layers)
    calls = calibrate.probe_steps(probe, name, calibrate.clock_for(1))
    off: dict[str, float] = defaultdict(float)
    for priced, call in zip(cost.predict([call.op for call in calls], device, 1), calls, strict=True):
        off[call.op.function] += priced.time_s - call.seconds
    worst = max(off, key=lambda function: abs(off[function]))
    assert device.rates is not None
    unpriced = sorted({call.op.function for call in calls if not rates.priced(call.op, device.rates)})
    measured = sum(call.seconds for call in calls)
    step = plan.ops(plan.plan(plan.dry(layers, NETWORKS[network], method), batch))  # as `octosim cost` prices it
    predicted = sum(priced.time_s for priced in cost.predict(step, device, 1))
    return {
        "network": network, "method": name, "batch": batch, "measured": measured, "predicted": predicted,
        "error": predicted / measured - 1, "worst_call": worst.removeprefix("octo_"), "worst_s": off[worst],
        "unpriced": ", ".join(function.removeprefix("octo_") for function in unpriced),
    }  # fmt: skip
