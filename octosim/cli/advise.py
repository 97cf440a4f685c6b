"""`octosim cost --advise` and `--sweep`: many points, the best of them under limits, or all of them as a CSV file."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octosim.cli.answer import joules_text, memory_text, waiting_text, words_of
from octosim.cli.compared import Compared
from octosim.cli.tables import Table
from octosim.cli.terminal import progress_bar, say, time_text
from octosim.errors import OctosimError
from octosim.files import is_onnx
from octosim.hardware import Device
from octosim.workload import CostQuery, Workload, as_computed, source, typed, types_of

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Batches that are tried where none are asked for."""

METHODS = ("octo", "niti", "qat", "jetfire")
"""Training methods that are tried where none is asked for: one of each family."""


@dataclass(frozen=True)
class Limits:
    """What a step may take: bytes, joules, seconds; None is no limit.  The device's own memory always is one."""

    bytes: float | None = None
    energy_j: float | None = None
    time_s: float | None = None

    def broken(self, row: dict[str, Any]) -> str:
        """Which limit a point breaks, "" where none."""
        if self.bytes is not None and (row["peak_bytes"] or 0) > self.bytes:
            return "memory"
        if row.get("fits") is False:
            return "memory of the device"
        if self.energy_j is not None and (row["energy_j"] is None or row["energy_j"] > self.energy_j):
            return "energy"
        return "deadline" if self.time_s is not None and row["time_s"] > self.time_s else ""

    def excess(self, row: dict[str, Any]) -> list[float]:
        """How many times a point takes what it may, by limit, of the one that it breaks most first."""
        taken, apart = row["peak_bytes"] or 0, row["weights_apart_bytes"] or 0
        pairs = (
            (taken, self.bytes), (taken, row["room_bytes"]), (apart, row["weights_room_bytes"]),
            (row["energy_j"], self.energy_j), (row["time_s"], self.time_s),
        )  # fmt: skip
        shares = [math.inf if value is None else value / limit for value, limit in pairs if limit]
        return sorted(shares, reverse=True) or [float(taken)]


def advise(
    asked: CostQuery, devices: Compared, sizes: list[int], threads: int | None, limits: Limits, images: int | None = None,
    epochs: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """{"best": the point with the most images a second within the limits or None, "tried": all points, best first; where none
    keeps the limits, nearest first}, and "skipped" as in Compared, of devices without a point.

    Where no step that trains the whole network keeps the limits, fewer of its last layers are tried: half, a quarter and so on.
    """
    reasons: dict[str, OctosimError] = {}
    tried = _points(asked, devices.devices, sizes, threads, limits, reasons)
    if not tried:
        raise reasons[devices.devices[0].name]
    for last in _parts(asked) if all(row["breaks"] for row in tried) else ():
        part = replace(asked, tuning=asked.tuning | {"train_last": last})
        points = _points(part, devices.devices, sizes, threads, limits, reasons)
        tried += points
        if not all(row["breaks"] for row in points):
            break
    priced = {row["device"] for row in tried}
    devices.skipped |= {name: str(error) for name, error in reasons.items() if name not in priced}
    if images:
        from octosim.cli.cost import long_times

        tried = [row | long_times(row, row["batch_size"], images, epochs) for row in tried]
    tried.sort(key=lambda row: (bool(row["breaks"]), -row["images_s"]))
    if tried[0]["breaks"]:
        tried.sort(key=limits.excess)
    return {"best": None if tried[0]["breaks"] else tried[0], "tried": tried} | devices.json()


def _parts(asked: CostQuery) -> list[int]:
    """Numbers of last weighted layers that may be trained in place of all; none where the options choose them."""
    chosen = any(asked.tuning.get(name) for name in ("train", "train_last", "freeze", "channels"))
    if chosen or asked.inference or is_onnx(asked.model):
        return []
    layers = sum(node.layer.weighted for node in source(asked).network.nodes)
    return [layers >> by for by in range(1, layers.bit_length()) if layers >> by]


def _points(
    asked: CostQuery, devices: list[Device], sizes: list[int], threads: int | None, limits: Limits,
    reasons: dict[str, OctosimError],
) -> list[dict[str, Any]]:  # fmt: skip
    """Every batch, type, method and device, with the limit that each breaks; train_last: None where all layers are trained.

    reasons: gets the last reason why a device has no price, by name.
    """
    from octosim.cli.cost import point
    from octosim.cost.compare import capacity_bytes, weights_bytes

    own = not is_onnx(asked.model)
    free = own and asked.method is None and not asked.inference and asked.dtype in (None, "int8")
    names = METHODS if free else (asked.method,)
    tried: list[dict[str, Any]] = []
    seen = set()
    others: dict[str, Workload] = {}  # of float products: the same for all methods
    with progress_bar() as bar:
        task = bar.add_task("pricing", total=len(names) * len(devices) * len(sizes))
        for name in names:
            wanted = replace(asked, method=name)
            try:
                first = replace(source(wanted), others=others)
            except OctosimError as error:  # a method that does not cover the network's layers
                if not free:
                    raise
                reasons |= dict.fromkeys((device.name for device in devices), error)
                continue
            for device in devices:
                made = as_computed(wanted, first, device)
                for batch in sizes:
                    bar.advance(task)
                    try:
                        record, _ = point(wanted, made, device, made.batch(batch), threads)
                    except OctosimError as error:  # a device or software that cannot, a batch beyond the accumulators
                        reasons[device.name] = error
                        continue
                    for dtype, row in record["types"].items():
                        method = made.method if dtype == made.dtype else None
                        key = (device.name, record["batch_size"], dtype, method)
                        if key in seen:
                            continue
                        seen.add(key)
                        at = {"device": device.name, "batch_size": record["batch_size"], "dtype": dtype, "method": method,
                              "train_last": asked.tuning.get("train_last"), "room_bytes": capacity_bytes(device),
                              "weights_room_bytes": weights_bytes(device)}  # fmt: skip
                        speed = record["batch_size"] / row["time_s"]
                        tried.append(at | {"images_s": speed, "breaks": limits.broken(row)} | row)
    return tried


def _trains(row: dict[str, Any]) -> str:
    last = row["train_last"]
    return "all" if last is None else f"last {last}"


def _name(row: dict[str, Any]) -> str:
    return " ".join(x for x in (row["dtype"], row["method"]) if x)


def _sign(row: dict[str, Any]) -> str:
    return " (hypothetical)" if row["hypothetical"] else ""


def _told(row: dict[str, Any]) -> str:
    """Where, at which batch and how fast a point is; with --images what an epoch takes, with --epochs all of them."""
    parts = [f"{time_text(row['time_s'])} a step{_sign(row)}", f"{row['images_s']:.3g} images/s"]
    if row.get("epoch_s") is not None:
        parts.append(f"an epoch {waiting_text(row['epoch_s'])}")
    if row.get("training_s") is not None:
        joules = "" if row["training_j"] is None else f" and {words_of(row)}{joules_text(row['training_j'])}"
        parts.append(f"all epochs {waiting_text(row['training_s'])}{joules}")
    return f"batch {row['batch_size']} on {row['device']}: {', '.join(parts)}"


def show(found: dict[str, Any], most: int = 12) -> None:
    """The advice in a sentence, then the best of what was tried."""
    best, tried = found["best"], found["tried"]
    if best is None:
        breaks = sorted({row["breaks"] for row in tried})
        near = tried[0]
        takes = [memory_text(near["peak_bytes"] or 0)]
        takes += [f"{memory_text(near['weights_apart_bytes'])} for weights"] if near["weights_apart_bytes"] else []
        takes += [time_text(near["time_s"]) + _sign(near)]
        takes += [] if near["energy_j"] is None else [f"{near['energy_j']:.3g} J"]
        part = "" if near["train_last"] is None else f" of the last {near['train_last']} weighted layers"
        say(f"nothing fits the limits ({', '.join(breaks)}): {len(tried)} points tried; the nearest, {_name(near)}{part} at "
            f"batch {near['batch_size']} on {near['device']}, takes {', '.join(takes)}")  # fmt: skip
    else:
        if best["train_last"] is not None and any(row["train_last"] is None for row in tried):
            layers = "layer" if best["train_last"] == 1 else f"{best['train_last']} weighted layers"
            say(f"no step that trains the whole network keeps the limits; one that trains the last {layers} does")
        say(f"best: {_name(best)}, {_told(best)}; {len(tried)} points tried")
        real = next((row for row in tried if not row["hypothetical"] and not row["breaks"]), None)
        if best["hypothetical"]:
            say(best["hypothetical"])
            if real:
                say(f"best with software that exists there: {_name(real)} with {real['runtime']}, {_told(real)}")
    table = Table(title=f"the first {min(most, len(tried))} of {len(tried)} points")
    for name, rank in (("device", 0), ("type", 0), ("method", 2), ("trains", 1), ("kernels", 4)):
        table.add_column(name, rank=rank)
    for name, rank in (("batch", 0), ("time", 0), ("images/s", 3), ("energy", 1), ("memory", 1), ("breaks", 0)):
        table.add_column(name, justify="left" if name == "breaks" else "right", rank=rank)
    for row in tried[:most]:
        energy = "-" if row["energy_j"] is None else f"{row['energy_j']:.3g} J"
        memory = memory_text(row["peak_bytes"])
        kernels = row["runtime"] + _sign(row)
        cells = str(row["batch_size"]), time_text(row["time_s"]), f"{row['images_s']:.3g}", energy, memory, row["breaks"]
        table.add_row(row["device"], row["dtype"], row["method"] or "", _trains(row), kernels, *cells)
    table.show()


def sizes_of(first: Workload, batches: list[int | None]) -> list[int]:
    """The batches that are tried: those asked for, else a file's own where it takes no other."""
    own = [first.fixed_batch] if first.fixed_batch else list(BATCHES)
    return [first.batch(b) for b in batches if b is not None] or own


def sweep(
    asked: CostQuery, first: Workload, devices: Compared, batches: list[int | None], threads: int | None, path: Path
) -> int:
    """Writes a row for each device, type and batch; returns how many.  A device that cannot run a type has no row for it."""
    from octosim.cli.cost import point
    from octosim.cost import compare, runtimes
    from octosim.cost import sweep as sweeps
    from octosim.files import write_atomic

    sizes = sizes_of(first, batches)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("device", "dtype", "runtime", "batch_size", "time_s", "images_s", "hypothetical"))
    groups: dict[tuple[str, str, bool], list[Any]] = {}


    def chosen(device: Any) -> list[tuple[Any, str, Any]]:
        training, own = not asked.inference, first.method is not None
        types = types_of(device, first, asked.inference)
        return [(device, dtype, runtimes.choose(asked.runtime, device, dtype, training, own)) for dtype in types]

    for triples in devices.each(chosen):
        for device, dtype, runtime in triples:
            key = (dtype, runtime.name, runtime.backward is runtime.accelerated)  # GPUs train by other rules than CPUs
            groups.setdefault(key, []).append((device, runtime))
    count, priced = 0, set()
    for (dtype, *_), members in groups.items():
        made = typed(asked, first, dtype)
        # what is planned depends on the device only by the float type between int8 products, and by images one at a time
        tables: dict[tuple[str, bool], tuple[Any, list[Any]]] = {}
        for device, runtime in members:
            kind = str(runtimes.onnx_rules(runtime, device, dtype, asked.inference)["float_dtype"])
            tables.setdefault((kind, device.one_image), (device, []))[1].append((device, runtime))
        for model_device, some in tables.values():
            runtime = some[0][1]
            table = sweeps.table(lambda b, m=made, d=model_device, r=runtime: m.ops(d, b, r))  # type: ignore[misc]
            times = sweeps.times(table, sizes, [(d, r, threads) for d, r in some])
            for (device, software), row in zip(some, times.tolist(), strict=True):
                for batch, seconds in zip(sizes, row, strict=True):
                    if seconds != seconds and device.rates is not None:
                        seconds = compare.time_of(made.ops(device, batch, software), device, threads, software)
                    if seconds == seconds:
                        hypothetical = bool(runtimes.hypothetical(software, device, dtype, not asked.inference))
                        writer.writerow((device.name, dtype, software.name, batch, f"{seconds:.6g}", f"{batch / seconds:.6g}",
                                         hypothetical))  # fmt: skip
                        count += 1
                        priced.add(device.name)
    devices.each(lambda device: device.name in priced or point(asked, first, device, sizes[0], threads))  # says why it cannot
    write_atomic(path, text.getvalue().encode())
    return count
