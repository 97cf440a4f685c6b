"""What `octosim cost` prints: the answer in a sentence, then tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octosim.cli.tables import Table
from octosim.cli.terminal import count_text, duration_text, say, time_text
from octosim.cost.compare import PAYS, SHORT, USABLE, Ratio, capacity_bytes, ratio
from octosim.files import is_onnx
from octosim.hardware import Device
from octosim.workload import CostQuery, Workload

MOST_ROWS = 40
"""Operations in a table: the costliest, in their order."""


def title(asked: CostQuery, first: Workload, sizes: list[int | None], types: bool = False) -> str:
    """What a table, or a picture of all types, of several devices or batches is about."""
    batch = ", ".join(str(first.batch(size)) for size in sizes)
    against = " against float32" if first.dtype == "int8" else ""
    step = "inference" if asked.inference else "training step"
    what = [Path(asked.model).name, f"batch {batch}", first.method if types else f"{first.method or first.dtype}{against}"]
    return f"{', '.join(part for part in what if part)}: predicted {step}"


def _interval(total: dict[str, Any]) -> str:
    return f"{time_text(total['time_low_s'])} .. {time_text(total['time_high_s'])}"


def energy_text(total: dict[str, Any]) -> str:
    if total["energy_j"] is None:
        return "-"
    sign = "<= " if total.get("energy_is") == "at most" else ""
    return f"{sign}{total['energy_j']:.3g} J"


def waiting_text(seconds: float) -> str:
    """The time of an epoch or of a training."""
    return time_text(seconds) if seconds < 90 else duration_text(seconds)


def joules_text(joules: float) -> str:
    """The energy of a training: three digits and a unit."""
    unit, size = next(((unit, size) for unit, size in (("MJ", 1e6), ("kJ", 1e3)) if joules >= size), ("J", 1.0))
    return f"{joules / size:.3g} {unit}"


def long_heads(record: dict[str, Any]) -> dict[str, int]:
    """Columns of the time and energy of --images and --epochs, with their ranks."""
    heads = {"an epoch": 1} if record.get("epoch_s") is not None else {}
    if record.get("training_s") is not None:
        heads |= {"all epochs": 0, "all epochs, energy": 0}
    return heads


def memory_text(value: float | None) -> str:
    """Four digits in MiB; what is below a tenth of one, as on microcontrollers, in KiB or bytes."""
    if value is None:
        return "-"
    if value >= 2**20 / 10:
        return f"{value / 2**20:.4g} MiB"
    return f"{value / 1024:.4g} KiB" if value >= 1024 else f"{value:.0f} B"


def words_of(row: dict[str, Any]) -> str:
    """What is said before an energy of how it is known."""
    return {"at most": "at most ", "by budget": "by the module's budget "}.get(row["energy_is"], "")


def sentence(
    record: dict[str, Any], priced: dict[str, Any], device: Device, asked: CostQuery, images: int | None,
    epochs: int | None = None,
) -> str:
    """The answer in one line: times by type, memory, energy, epochs; then whether INT8 pays, what binds, where half is.

    Where the step does not fit the device, that and why comes first.
    """
    rows = record["types"]
    order = [name for name in SHORT if name in rows]
    times = ", ".join(
        f"{SHORT[name]} {time_text(rows[name]['time_s'])} ({time_text(rows[name]['time_low_s'])} to "
        f"{time_text(rows[name]['time_high_s'])})" + (" hypothetical" if rows[name]["hypothetical"] else "")
        for name in order
    )  # fmt: skip
    chosen = rows[record["dtype"]]
    what = f"{Path(asked.model).name}, batch {record['batch_size']}{_of_images(asked)}{' inference' if asked.inference else ''}"
    parts = [f"{what} on {device.title}: {times}"]
    if chosen["peak_bytes"] is not None:
        size = _of_room(chosen["peak_bytes"], device.memory.capacity_gib)
        usable = capacity_bytes(device)
        if chosen.get("fits") is False and usable is not None and usable < chosen["peak_bytes"] <= usable / USABLE:
            size += f", of which a step may take {USABLE:g},"
        if apart := record["memory"].get("weights apart", 0):
            size += f" and {_of_room(apart, device.memory.weights_gib)} for weights"
        size = size.rstrip(",")
        if chosen.get("fits") is None:
            parts.append(f"needs {size}")
        elif chosen["fits"]:
            parts.append(f"fits ({size})")
        else:
            reason = _too_large(record, size)
            parts = [f"{what} on {device.title}: does not fit, because {reason}", f"if it did: {times}"]
    if chosen["energy_j"] is not None:
        parts.append(f"{words_of(chosen)}{chosen['energy_j']:.3g} J")
    if images:
        parts.append(f"an epoch of your {images:,} images {waiting_text(record['epoch_s'])}")
    if epochs:
        joules = "" if record["training_j"] is None else f" and {words_of(chosen)}{joules_text(record['training_j'])}"
        parts.append(f"{epochs:,} of them {waiting_text(record['training_s'])}{joules}")
    return "; ".join(parts) + ". " + _why(record, priced)


def _of_images(asked: CostQuery) -> str:
    """The size of one input of an own network, which --image sets; an ONNX file has its own."""
    if is_onnx(asked.model):
        return ""
    from octosim import graph  # which an ONNX file needs not

    return f" of {asked.image or 'x'.join(map(str, graph.usual(asked.model)[0]))}"


def _of_room(count: float, room: Any) -> str:
    if room is None:
        return memory_text(count)
    return f"{memory_text(count).removesuffix(' MiB')} of {room.value * 1024:.4g} MiB"


def _too_large(record: dict[str, Any], size: str) -> str:
    """Why a step does not fit: its size, the parts that take most, and the batch that would."""
    parts = {name: count for name, count in (record["memory"] or {}).items() if name not in ("peak", "weights apart") and count}
    most = ", ".join(f"{name} {memory_text(parts[name])}" for name in sorted(parts, key=lambda name: -parts[name])[:2])
    would = record.get("advice", "").rpartition("; ")[2]
    return f"it needs {size}{f' ({most})' if most else ''}{f'; {would}' if would else ''}"


def _verdict(other: str, gain: Ratio | None) -> str:
    """Whether INT8 pays against another type: only where the interval of the ratio of their times leaves no doubt."""
    if gain is None:
        return f"INT8 takes no time that can be compared with {other}'s"
    span = f"({gain.low:.2g} to {gain.high:.2g})"
    if gain.told == "cannot be told":
        return f"INT8 is {gain.value:.2g} times as fast as {other} {span}: whether it pays cannot be told"
    if gain.value >= PAYS:
        return f"INT8 pays {gain.value:.2g} times {span} against {other}"
    return f"INT8 does not pay against {other}: {gain.value:.2g} times as fast {span}"


def _why(record: dict[str, Any], priced: dict[str, Any]) -> str:
    """Whether INT8 pays against the fastest float type, what binds the type asked for, and which layers take half of it."""
    rows = record["types"]
    clauses = []
    floats = [name for name in ("float16", "float32") if name in rows]
    if "int8" in rows and floats:
        best = min(floats, key=lambda name: rows[name]["time_s"])
        clauses.append(_verdict(SHORT[best], ratio(rows[best], rows["int8"])))
    costs = priced[record["dtype"]]
    total = sum(c.time_s for c in costs)
    if total:
        bound: dict[str, float] = {}
        layers: dict[str, float] = {}
        for c in costs:
            bound[c.bound] = bound.get(c.bound, 0.0) + c.time_s
            layers[c.op.layer] = layers.get(c.op.layer, 0.0) + c.time_s
        clauses.append(f"{SHORT[record['dtype']]} is bound by {max(bound, key=lambda b: bound[b])}")
        names, sum_ = [], 0.0
        for name, seconds in sorted(layers.items(), key=lambda pair: -pair[1]):
            names.append(name)
            sum_ += seconds
            if sum_ >= total / 2:
                break
        said = " and ".join(names) if len(names) <= 2 else f"{len(names)} of {len(layers)} layers, {names[0]} first"
        clauses.append(f"half of it is {said}")
    return "; ".join(clauses) + "."


def show_layers(record: dict[str, Any], costs: list[Any], device: Device, asked: CostQuery) -> None:
    """The answer, the types, then every operation of the type asked for."""
    say(record["answer"])
    types = Table(title="by type of the products")
    types.add_column("type")
    types.add_column("kernels", rank=1)
    for name, rank in (("time", 0), ("80 % interval", 0), ("energy", 0), ("memory", 0), ("fits", 2)):
        types.add_column(name, justify="right", rank=rank)
    for name, row in record["types"].items():
        fits = {True: "yes", False: "no"}.get(row.get("fits"), "-")
        kernels = row["runtime"] + (" (hypothetical)" if row["hypothetical"] else "")
        cells = time_text(row["time_s"]), _interval(row), energy_text(row), memory_text(row["peak_bytes"]), fits
        types.add_row(SHORT[name], kernels, *cells)
    types.show()
    name = f"{asked.model}, batch {record['batch_size']}, {record['method'] or record['dtype']}"
    table = Table(title=f"{name}: predicted on {device.title}")
    for name in ("layer", "pass", "what"):
        table.add_column(name)
    for name, rank in (("MACs", 2), ("bytes", 3), ("time", 0), ("bound by", 1)):
        table.add_column(name, justify="right", rank=rank)
    shown = sorted(range(len(costs)), key=lambda at: -costs[at].time_s)[:MOST_ROWS]
    for c in (costs[at] for at in sorted(shown)):
        macs = count_text(c.op.macs) if c.op.macs else ""
        table.add_row(c.op.layer, c.op.pass_, c.op.name, macs, count_text(c.op.traffic), time_text(c.time_s), c.bound)
    table.show()
    total = record["total"]
    rest = sum(c.time_s for c in costs) - sum(costs[at].time_s for at in shown)
    if len(shown) < len(costs):
        say(f"{len(costs) - len(shown)} more operations take {time_text(rest)} together; --json has all")
    what = "inference" if asked.inference else "step"
    lines = [f"{what}: {time_text(total['time_s'])} ({_interval(total)} with 80 % probability)"]
    lines[0] += "" if asked.inference else f"; training on this device is {total['training']}"
    if record["memory"]:
        held = [(name, value) for name, value in record["memory"].items() if name != "peak" and value]
        parts = ", ".join(f"{name} {memory_text(value)}" for name, value in held)
        lines.append(f"memory: {memory_text(total['peak_bytes'])} ({parts})")
    if "gain" in record:
        gain = "" if record["gain"] is None else f"INT8 is {record['gain']:.2f} times as fast: "
        lines.append(f"float32: {time_text(record['float32']['time_s'])}; {gain}{record['reason']}")
    lines += [record["advice"]] if record.get("advice") else []
    for line in [*lines, *record["notes"]]:
        say(line)


def show_points(heading: str, records: list[dict[str, Any]]) -> None:
    """One row a device and batch."""
    table = Table(title=heading)
    table.add_column("device")
    both = "gain" in records[0]
    pair = {"batch": 1, "INT8": 0, "float32": 0, "gain": 0, "INT8 energy": 2, "float32 energy": 3}
    pair |= {"INT8 memory": 4, "float32 memory": 5}
    one = {"batch": 1, "time": 0, "80 % interval": 0, "against the first": 4, "energy": 2, "memory": 3}
    heads = (pair if both else one) | long_heads(records[0])
    for name, rank in heads.items():
        table.add_column(name, justify="right", rank=rank)
    for record in records:
        total, batch = record["total"], str(record["batch_size"])
        longer = [waiting_text(record[key]) for key in ("epoch_s", "training_s") if record.get(key) is not None]
        if record.get("training_s") is not None:
            joules = record["training_j"]
            longer.append("-" if joules is None else joules_text(joules))
        if both:
            sides = [record["int8"], record["float32"]]
            fits = [record.get("fits", {}).get(name) for name in ("INT8", "FP32")]
            memory = [
                memory_text(side.get("peak_bytes")) + (" (too much)" if here is False else "")
                for side, here in zip(sides, fits, strict=True)
            ]
            table.add_row(
                record["device"], batch, *(time_text(side["time_s"]) for side in sides),
                "-" if record["gain"] is None else f"{record['gain']:.2f}",
                *(energy_text(side) for side in sides), *memory, *longer,
            )  # fmt: skip
        else:
            ratio = f"{total['time_s'] / records[0]['total']['time_s']:.2f}"
            used = energy_text(total), memory_text(total["peak_bytes"])
            table.add_row(record["device"], batch, time_text(total["time_s"]), _interval(total), ratio, *used, *longer)
    table.show()
    several = len({record["batch_size"] for record in records}) > 1
    lines = []
    for record in records:
        where = f"{record['device']}, batch {record['batch_size']}" if several else record["device"]
        lines += [f"{where}: {record['reason']}"] if both else []
        lines += [f"{where}: {record['advice']}"] if record.get("advice") else []
    notes = [note for record in records for note in record["notes"]]
    status = {record["device"]: record["total"]["training"] for record in records}
    untrained = [f"{name}: training is {text}" for name, text in status.items() if not text.startswith("supported")]
    for line in dict.fromkeys([*lines, *notes, *untrained]):
        say(line)
