"""Real timings of training steps on this machine, beside the prediction for a device.

Every measured step is a whole one on real images: gather the batch, forward, backward, update.  The contestants take turns
in one process, a few steps each at a time, so that a disturbance of the machine hits all alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyperf

from octosim import core, cost, hardware
from octosim.bench import peers, roofline
from octosim.bench.clock import Clock, Key, rate, stepper
from octosim.bench.jax_peer import jax_steps, qwix_steps
from octosim.bench.memory import measure
from octosim.cost import runtimes
from octosim.engine import plan
from octosim.errors import ArgumentError, OctosimError
from octosim.files import environment
from octosim.hardware import state
from octosim.train import Config, Run

FORMAT = 1
PEERS: dict[str, Callable[[peers.Task], dict[str, peers.Steps]]] = {
    "torch": peers.torch_contest, "jax": jax_steps, "qwix": qwix_steps
}  # fmt: skip
"""The peers of training steps: what makes their steps, by the rows of the record that they give."""
UNSTABLE = 0.15  # relative width of the middle half above which a measurement is called unstable


def _spread(values: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median_s": middle, "p25_s": low, "p75_s": high, "n": len(values)}


def _timed(step: Callable[[], None], totals: list[float]) -> Callable[[], None]:
    def timed() -> None:
        before = time.perf_counter()
        step()
        totals.append(time.perf_counter() - before)

    return timed


def _some(step: Callable[[], None], count: int, seconds: float) -> None:
    """So many calls, or fewer, one at least, where they take more than these seconds."""
    until = time.perf_counter() + seconds
    for _ in range(count):
        step()
        if time.perf_counter() > until:
            break


def _take_turns(steps: list[Callable[[], None]], forget: Callable[[], None], seconds: float, progress: Any) -> None:
    """Warm-up, then rounds of a few steps each until each contestant has run about `seconds` (5 rounds at least)."""
    for step in steps:
        _some(step, 3, 2 * seconds)
    forget()
    started, rounds = time.perf_counter(), 0
    budget = seconds * len(steps)
    while rounds < 5 or (time.perf_counter() - started < budget and rounds < 1000):
        for step in steps:
            _some(step, 4, max(1.0, seconds))
        rounds += 1
        if progress:
            progress(min(1.0, (time.perf_counter() - started) / budget, rounds / 5))


def _rows(costs: list[cost.OpCost], clock: Clock, roof: roofline.Roof) -> list[dict[str, Any]]:
    """One row a layer and pass: work, prediction (what binds its slowest operation), measurement, and the least time here."""
    grouped: dict[Key, list[cost.OpCost]] = {}
    for c in costs:
        grouped.setdefault((c.op.layer, c.op.pass_), []).append(c)
    rows = []
    for (layer, pass_), some in grouped.items():
        slowest = max(some, key=lambda c: c.time_s)
        rows.append({
            "layer": layer,
            "pass": pass_,
            "macs": sum(c.op.macs for c in some),
            "bytes": sum(c.op.traffic for c in some),
            "predicted": {"time_s": sum(c.time_s for c in some), "bound": slowest.bound},
            "measured": _spread(clock.values[layer, pass_]) if (layer, pass_) in clock.values else None,
            "limit_s": roof.seconds(c.op for c in some),
        })  # fmt: skip
    return rows


def _part(
    run: Run, device: hardware.Device, here: bool, clock: Clock, totals: list[float], roof: roofline.Roof
) -> dict[str, Any]:
    """Prediction and measurement of one contestant.  here: whether the device is this machine."""
    threads = core.threads() if here or device.rates else None
    costs = cost.predict(plan.trace(run.network, run.config.batch_size), device, threads, hardware.load_runtime("octosim"))
    spread = _spread(totals)
    predicted = sum(c.time_s for c in costs)
    return {
        "layers": _rows(costs, clock, roof),
        "parts": {name: statistics.median(values) for name, values in clock.parts.items()},
        "total": {
            "time_s": spread["median_s"],
            "p25_s": spread["p25_s"],
            "p75_s": spread["p75_s"],
            "n": spread["n"],
            "predicted_time_s": predicted,
            "is": _is(device, core.threads()),
            "error": predicted / spread["median_s"] - 1 if here else None,
            "macs": sum(c.op.macs for c in costs),
            "bytes": sum(c.op.traffic for c in costs),
        },
    }


def _is(device: hardware.Device, threads: int) -> dict[str, str]:
    """What each figure of a part is: measured here, predicted by the model, or scaled from rates measured at other threads."""
    if device.rates is None:
        return {"time_s": "measured", "predicted_time_s": "predicted"}
    known = {row.threads for row in device.rates.products}
    return {"time_s": "measured", "predicted_time_s": "predicted from measured rates" if threads in known else "scaled"}


def _frameworks(run: Run, device: hardware.Device) -> dict[str, Any]:
    """Float training by the device's framework, where that is not octosim: predicted times with intervals by type."""
    found = {}
    for dtype in ("float16", "float32"):
        runtime = runtimes.choose(None, device, dtype, True, True)
        if runtime.name == "octosim":
            continue
        ops = plan.trace(run.network, run.config.batch_size, poolings=False)
        ops = runtimes.training_ops(ops, runtime, run.config.batch_size)
        try:
            costs = cost.predict(runtimes.in_float16(ops) if dtype == "float16" else ops, device, runtime=runtime)
        except OctosimError:
            continue
        total = cost.total(costs, device)
        found[dtype] = {key: total[key] for key in ("time_s", "time_low_s", "time_high_s")} | {"runtime": runtime.name}
    return found


def step_bench(
    config: Config,
    device: hardware.Device,
    *,
    against: list[str],
    seconds: float,
    command: str,
    progress: Callable[[float], None] | None = None,
    raw: Path | None = None,
    memory: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Measures config's training step here, FP32's beside it, and predicts both on the device.

    against: peers to measure in the same process, of PEERS.  seconds: about how long each contestant runs.
    clock: `time.thread_time` leaves out what other programs take of the core; for one thread, and no peers.
    raw: also write every single value as pyperf JSON.
    memory: also measure peak memory, see membench.  Returns the bench record that `report` reads; times in seconds.
    Where the device is this machine, "total" has the prediction's "error" (predicted / measured - 1), else None there.
    """
    unknown = sorted(set(against) - set(PEERS))
    if unknown:
        raise ArgumentError(f"{{against}}: unknown peer '{unknown[0]}' (known: {', '.join(PEERS)})")
    configs = [config]
    if config.method != "fp32":
        configs.append(Config(**{**vars(config), "method": "fp32", "parameters": {}}))
    configs = [c if c.lr is not None else replace(c, lr=rate(c.method)) for c in configs]
    runs = [Run(c) for c in configs]
    clocks, totals = [Clock(clock) for _ in runs], [[] for _ in runs]  # type: list[Clock], list[list[float]]
    steps = [stepper(*three) for three in zip(runs, clocks, totals, strict=True)]
    contest: dict[str, peers.Steps] = {}
    if against:
        first, (images, labels) = runs[0], runs[0].batch(1)
        task = peers.Task(
            first.layers, images, labels, config.optimizer, first.optimizer.lr, core.threads(), first.source, config.selection,
            config.accumulate,
        )  # fmt: skip
        for name in dict.fromkeys(against):
            contest |= PEERS[name](task)
    peer_totals: dict[str, list[float]] = {}
    for row, how in contest.items():
        for way, step in how.ways.items():
            steps.append(_timed(step, peer_totals.setdefault(f"{row} {way}", [])))

    def forget() -> None:
        for values in (*totals, *peer_totals.values()):
            values.clear()
        for clock in clocks:
            clock.forget()

    before, used = state.read(), state.used()
    _take_turns(steps, forget, seconds, progress)
    after, neighbours, roof = state.read(), state.neighbours(used, state.used()), roofline.measure()
    here = hardware.is_here(device)
    record: dict[str, Any] = {
        "format": FORMAT,
        "kind": "bench",
        "model": config.model,
        "data": config.data,
        "batch_size": config.batch_size,
        "method": config.method,
        "parameters": config.parameters,
        "device": {"name": device.name, "title": device.title, "training": device.training_note,
                   "here": here, "calibrated": device.rates is not None,
                   "hypothetical": runtimes.hypothetical(hardware.load_runtime("octosim"), device),
                   "frameworks": _frameworks(runs[-1], device) if any(e.trains for e in device.engines) else {}},
        "environment": environment(core.isa(), core.threads()),
        **_part(runs[0], device, here, clocks[0], totals[0], roof),
    }
    if len(runs) > 1:
        record["fp32"] = _part(runs[1], device, here, clocks[1], totals[1], roof)
    if contest:
        own = record["total"]["time_s"]
        record["against"] = {row: _peer(row, how, peer_totals, own) for row, how in contest.items() if how.ways}
        record["left_out"] = [f"{how.what}: {why}" for how in contest.values() for why in how.left_out]
    int8 = [op for op in plan.trace(runs[0].network, config.batch_size) if op.kind == "gemm" and op.dtype == "int8"]
    if int8:
        peak = roof.macs["int8"]
        least = sum(op.macs for op in int8) / peak
        record["limit"] = {"peak_mac_s": peak, "time_s": least, "share": least / record["total"]["time_s"]}
    record["state"] = {"before": before, "after": after, "slowed": state.slowed(before, after),
                       "neighbours": neighbours, "busy": state.busy(neighbours)}  # fmt: skip
    record["unstable"] = [
        name
        for name, values in (("int8" if config.method != "fp32" else "fp32", totals[0]), *peer_totals.items())
        if (s := _spread(values))["p75_s"] - s["p25_s"] > UNSTABLE * s["median_s"]
    ]
    if memory:
        record["memory"] = measure(config, against, core.threads())
    record["command"] = command
    if raw:
        _write_pyperf(raw, {config.method: totals[0], **({"fp32": totals[1]} if len(runs) > 1 else {}),
                            **peer_totals}, config)  # fmt: skip
    return record


def _peer(row: str, how: peers.Steps, totals: dict[str, list[float]], own: float) -> dict[str, Any]:
    """The fastest way of a peer's steps beside our own seconds."""
    spreads = {way: _spread(totals[f"{row} {way}"]) for way in how.ways}
    best = min(spreads, key=lambda way: spreads[way]["median_s"])
    chosen = f"{best} (the fastest of {len(spreads)} ways)" if len(spreads) > 1 else best
    return {
        "time_s": spreads[best]["median_s"],
        "p25_s": spreads[best]["p25_s"],
        "p75_s": spreads[best]["p75_s"],
        "ratio": spreads[best]["median_s"] / own,
        "version": how.version,
        "what": f"{how.what}, {chosen}",
        "all": {way: spread["median_s"] for way, spread in spreads.items()},
    }


def _write_pyperf(path: Path, values: dict[str, list[float]], config: Config) -> None:
    """Every measured step as a pyperf suite: `python -m pyperf compare_to`, `hist` and `check` read it."""
    suite = []
    for name, totals in values.items():
        title = {"name": f"{config.model} b{config.batch_size} {name}"}
        suite.append(pyperf.Benchmark([pyperf.Run(totals, metadata=title)]))
    try:
        pyperf.BenchmarkSuite(suite).dump(str(path), replace=True)
    except OSError as error:
        raise OctosimError(f"cannot write {path}: {error.strerror}") from None
