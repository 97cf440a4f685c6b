"""`octosim cost --advise` and `--sweep`: many points, the best of them under limits, or all of them as a CSV file."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octosim.cli.tables import Table
from octosim.cli.terminal import progress_bar, say, time_text
from octosim.errors import OctosimError
from octosim.files import is_onnx
from octosim.workload import CostQuery, Workload, source, typed, types_of

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Batches that are tried where none are asked for."""

METHODS = ("octo", "niti", "qat", "jetfire")
"""Training methods that are tried where none is asked for: one of each family."""


@dataclass(frozen=True)
class Limits:
    """What a step may take: bytes, joules, seconds; None is no limit.  Without a limit of bytes the device's memory is one."""

    bytes: float | None = None
    energy_j: float | None = None
    time_s: float | None = None

    def broken(self, row: dict[str, Any]) -> str:
        """Which limit a point breaks, "" where none."""
        if self.bytes is not None and (row["peak_bytes"] or 0) > self.bytes:
            return "memory"
        if self.bytes is None and row.get("fits") is False:
            return "memory of the device"
        if self.energy_j is not None and (row["energy_j"] is None or row["energy_j"] > self.energy_j):
            return "energy"
        return "deadline" if self.time_s is not None and row["time_s"] > self.time_s else ""

    def excess(self, row: dict[str, Any]) -> float:
        """How many times a point takes what it may, of the limit that it breaks most."""
        pairs = (row["peak_bytes"] or 0, self.bytes), (row["energy_j"], self.energy_j), (row["time_s"], self.time_s)
        shares = [math.inf if taken is None else taken / limit for taken, limit in pairs if limit]
        return max(shares, default=float(row["peak_bytes"] or 0))


def advise(
    asked: CostQuery, devices: list[Any], batches: list[int | None], threads: int | None, limits: Limits
) -> dict[str, Any]:
    """{"best": the point with the most images a second within the limits or None, "tried": all points, best first; where none
    keeps the limits, nearest first}.

    Where no step that trains the whole network keeps the limits, fewer of its last layers are tried: half, a quarter and so on.
    """
    tried = _points(asked, devices, batches, threads, limits)
    for last in _parts(asked) if all(row["breaks"] for row in tried) else ():
        part = replace(asked, tuning=asked.tuning | {"train_last": last})
        found = _points(part, devices, batches, threads, limits)
        tried += found
        if not all(row["breaks"] for row in found):
            break
    if not tried:
        raise OctosimError("nothing to advise: no device can run the network at any of these batches")
    tried.sort(key=lambda row: (bool(row["breaks"]), -row["images_s"]))
    if tried[0]["breaks"]:
        tried.sort(key=limits.excess)
    return {"best": None if tried[0]["breaks"] else tried[0], "tried": tried}


def _parts(asked: CostQuery) -> list[int]:
    """Numbers of last weighted layers that may be trained in place of all; none where the options choose them."""
    chosen = any(asked.tuning.get(name) for name in ("train", "train_last", "freeze", "channels"))
    if chosen or asked.inference or is_onnx(asked.model):
        return []
    layers = sum(node.layer.weighted for node in source(asked).network.nodes)
    return [layers >> by for by in range(1, layers.bit_length()) if layers >> by]


def _points(
    asked: CostQuery, devices: list[Any], batches: list[int | None], threads: int | None, limits: Limits
) -> list[dict[str, Any]]:  # fmt: skip
    """Every batch, type, method and device, with the limit that each breaks; train_last: None where all layers are trained."""
    from octosim.cli.cost import point

    own = not is_onnx(asked.model)
    free = own and asked.method is None and not asked.inference and asked.dtype in (None, "int8")
    names = METHODS if free else (asked.method,)
    sizes = [b for b in batches if b is not None] or list(BATCHES)
    tried: list[dict[str, Any]] = []
    seen = set()
    others: dict[str, Workload] = {}  # of float products: the same for all methods
    with progress_bar() as bar:
        task = bar.add_task("pricing", total=len(names) * len(devices) * len(sizes))
        for name in names:
            wanted = replace(asked, method=name)
            try:
                first = replace(source(wanted), others=others)
            except OctosimError:
                if not free:
                    raise
                continue  # a method that does not cover the network's layers
            for device in devices:
                for batch in sizes:
                    bar.advance(task)
                    try:
                        record, _ = point(wanted, first, device, first.batch(batch), threads)
                    except OctosimError:
                        continue  # a batch beyond the accumulators, or fixed in the file
                    for dtype, row in record["types"].items():
                        method = first.method if dtype == first.dtype else None
                        key = (device.name, record["batch_size"], dtype, method)
                        if key in seen:
                            continue
                        seen.add(key)
                        at = {"device": device.name, "batch_size": record["batch_size"], "dtype": dtype, "method": method,
                              "train_last": asked.tuning.get("train_last")}  # fmt: skip
                        speed = record["batch_size"] / row["time_s"]
                        tried.append(at | {"images_s": speed, "breaks": limits.broken(row)} | row)
    return tried


def _trains(row: dict[str, Any]) -> str:
    last = row["train_last"]
    return "all" if last is None else f"last {last}"


def show(found: dict[str, Any], most: int = 12) -> None:
    """The advice in a sentence, then the best of what was tried."""
    best, tried = found["best"], found["tried"]
    if best is None:
        breaks = sorted({row["breaks"] for row in tried})
        near = tried[0]
        takes = [f"{(near['peak_bytes'] or 0) / 2**20:.4g} MiB", time_text(near["time_s"])]
        takes += [] if near["energy_j"] is None else [f"{near['energy_j']:.3g} J"]
        what = " ".join(x for x in (near["dtype"], near["method"]) if x)
        part = "" if near["train_last"] is None else f" of the last {near['train_last']} weighted layers"
        say(f"nothing fits the limits ({', '.join(breaks)}): {len(tried)} points tried; the nearest, {what}{part} at batch "
            f"{near['batch_size']} on {near['device']}, takes {', '.join(takes)}")  # fmt: skip
    else:
        what = " ".join(x for x in (best["dtype"], best["method"]) if x)
        if best["train_last"] is not None and any(row["train_last"] is None for row in tried):
            layers = "layer" if best["train_last"] == 1 else f"{best['train_last']} weighted layers"
            say(f"no step that trains the whole network keeps the limits; one that trains the last {layers} does")
        say(f"best: {what}, batch {best['batch_size']} on {best['device']}: {time_text(best['time_s'])} a step, "
            f"{best['images_s']:.3g} images/s; {len(tried)} points tried")  # fmt: skip
    table = Table(title=f"the first {min(most, len(tried))} of {len(tried)} points")
    for name, rank in (("device", 0), ("type", 0), ("method", 2), ("trains", 1), ("kernels", 4)):
        table.add_column(name, rank=rank)
    for name, rank in (("batch", 0), ("time", 0), ("images/s", 3), ("energy", 1), ("memory", 1), ("breaks", 0)):
        table.add_column(name, justify="left" if name == "breaks" else "right", rank=rank)
    for row in tried[:most]:
        energy = "-" if row["energy_j"] is None else f"{row['energy_j']:.3g} J"
        memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.4g} MiB"
        kernels = row["runtime"] + (" (hypothetical)" if row["hypothetical"] else "")
        cells = str(row["batch_size"]), time_text(row["time_s"]), f"{row['images_s']:.3g}", energy, memory, row["breaks"]
        table.add_row(row["device"], row["dtype"], row["method"] or "", _trains(row), kernels, *cells)
    table.show()


def sizes_of(first: Workload, batches: list[int | None]) -> list[int]:
    """The batches that are tried: those asked for, else a file's own where it takes no other."""
    own = [first.fixed_batch] if first.fixed_batch else list(BATCHES)
    return [first.batch(b) for b in batches if b is not None] or own


def sweep(
    asked: CostQuery, first: Workload, devices: list[Any], batches: list[int | None], threads: int | None, path: Path
) -> int:
    """Writes a row for each device, type and batch; returns how many.  A device that cannot run a type has no row."""
    from octosim.cost import compare, runtimes
    from octosim.cost import sweep as sweeps
    from octosim.files import write_atomic

    sizes = sizes_of(first, batches)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("device", "dtype", "runtime", "batch_size", "time_s", "images_s", "hypothetical"))
    groups: dict[tuple[str, str, bool], list[Any]] = {}
    for device in devices:
        for dtype in types_of(device, first, asked.inference):
            runtime = runtimes.choose(asked.runtime, device, dtype, not asked.inference, first.method is not None)
            key = (dtype, runtime.name, runtime.backward is runtime.accelerated)  # GPUs train by other rules than CPUs
            groups.setdefault(key, []).append((device, runtime))
    count = 0
    for (dtype, *_), members in groups.items():
        made = typed(asked, first, dtype)
        # what is planned depends on the device only by the float type between int8 products
        tables: dict[str, tuple[Any, list[Any]]] = {}
        for device, runtime in members:
            kind = str(runtimes.onnx_rules(runtime, device, dtype, asked.inference)["float_dtype"])
            tables.setdefault(kind, (device, []))[1].append((device, runtime))
        for model_device, some in tables.values():
            runtime = some[0][1]
            table = sweeps.table(lambda b, m=made, d=model_device, r=runtime: m.ops(d, b, r), sizes)  # type: ignore[misc]
            times = sweeps.times(table, sizes, [(d, r, threads) for d, r in some])
            for (device, software), row in zip(some, times.tolist(), strict=True):
                for batch, seconds in zip(sizes, row, strict=True):
                    if seconds != seconds and device.rates is not None:
                        seconds = compare.time_of(made.ops(device, batch, software), device, threads, software)
                    if seconds == seconds:
                        hypothetical = bool(runtimes.hypothetical(software, device))
                        writer.writerow((device.name, dtype, software.name, batch, f"{seconds:.6g}", f"{batch / seconds:.6g}",
                                         hypothetical))  # fmt: skip
                        count += 1
    if not count:
        raise OctosimError("nothing to sweep: no device can run the network")
    write_atomic(path, text.getvalue().encode())
    return count
