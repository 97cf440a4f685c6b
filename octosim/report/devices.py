"""Time, energy and memory that the cost model predicts for recorded runs on devices; accuracy against them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octosim import compare, cost, data, footprint, hw, methods, models
from octosim.errors import OctosimError
from octosim.report.figures import POINT_STYLES, Figure, Figures, Key, Legend, point_key
from octosim.report.tables import DASH, Cell, Group, Table, finals, milliseconds, percent, plural, significant


@dataclass(frozen=True)
class Price:
    """A configuration on a device: seconds and joules of a step and of the whole training (energy None where unknown)."""

    group: Group
    device: hw.Device
    step: dict[str, Any]  # cost.total
    steps: int

    @property
    def time_s(self) -> float:
        return float(self.step["time_s"]) * self.steps

    @property
    def energy_j(self) -> float | None:
        return None if self.step["energy_j"] is None else self.step["energy_j"] * self.steps


def _network(decides: dict[str, Any]) -> models.Network:
    """The network that a manifest describes, without weights."""
    shape = next((row["shape"] for row in data.available() if row["name"] == decides["data"]["name"]), None)
    if shape is None:
        raise OctosimError(f"the shape of data set {decides['data']['name']} is not known")
    method = methods.make(decides["method"]["name"], decides["method"]["parameters"])
    return models.Network(models.parse("manifest.json:", decides.get("layers")), tuple(shape), method, None)


def prices(groups: Sequence[Group], devices: Sequence[hw.Device]) -> tuple[list[Price], list[str]]:
    """Every configuration on every device, and notes on what could not be priced."""
    made: list[Price] = []
    notes: list[str] = []
    for group in groups:
        decides, records = group.runs[0].decides, group.runs[0].records
        batch = decides.get("batch_size")
        try:
            if not isinstance(batch, int) or batch < 1:
                raise OctosimError(f"field decides.batch_size is {batch!r}, expected a whole number above 0")
            network = _network(decides)
            ops = models.trace(network, batch)
            slots = 2 if (decides.get("optimizer") or {}).get("name") == "adam" else 1
            peak = footprint.footprint(network, batch, slots=slots)["peak"]
        except OctosimError as error:
            notes.append(f"{group.label}: no cost predicted: {error}.")
            continue
        steps = 0 if records.empty else int(records["step"].iloc[-1])
        for device in devices:
            try:
                made.append(Price(group, device, cost.total(cost.predict(ops, device), device, peak), steps))
            except OctosimError as error:
                notes.append(f"{group.label}: no cost predicted for {device.title}: {error}.")
    return made, notes


def _fits(peak: int, device: hw.Device) -> str:
    capacity = compare.capacity_bytes(device)
    return "unknown" if capacity is None else "yes" if peak <= capacity else "no"


def _joules(value: float | None) -> Cell:
    return Cell(DASH) if value is None else Cell(significant(value), value)


def devices_table(made: Sequence[Price]) -> Table | None:
    if not made:
        return None
    rows = []
    for price in made:
        step = price.step
        low, high = milliseconds(step["time_low_s"]), milliseconds(step["time_high_s"])
        rows.append(
            [
                Cell(price.group.label),
                Cell(price.group.runs[0].decides["model"]),
                Cell(price.device.title),
                Cell(milliseconds(step["time_s"]), step["time_s"]),
                Cell(f"{low} to {high}"),
                _joules(None if step["energy_j"] is None else 1e3 * step["energy_j"]),
                Cell(significant(step["peak_bytes"] / 1e6), step["peak_bytes"]),
                Cell(_fits(step["peak_bytes"], price.device)),
                Cell(f"{price.steps:,}", price.steps),
                Cell(significant(price.time_s), price.time_s),
                _joules(price.energy_j),
                Cell(price.device.training.status),
            ]
        )
    columns = (
        ("Configuration", "text"),
        ("Model", "text"),
        ("Device", "text"),
        ("Step (ms)", "number"),
        ("4 times in 5 (ms)", "line"),
        ("Step (mJ)", "number"),
        ("Peak memory (MB)", "number"),
        ("Fits", "text"),
        ("Steps", "number"),
        ("Training (s)", "number"),
        ("Training (J)", "number"),
        ("Training there", "text"),
    )
    caption = (
        "Predicted, not measured: the cost model's time of a training step from the device's profile, with the interval that "
        "should hold the real time four times in five; energy is time times the board's busy power, an upper bound; memory is "
        "the step's peak. Training: that many steps, without evaluation. The register does not enter the price."
    )
    return Table(caption, columns, rows)


def pareto(figures: Figures, groups: Sequence[Group], made: Sequence[Price]) -> list[Figure]:
    """Accuracy against predicted time on each device; without devices against measured time, where all is one machine's."""
    tasks: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        if finals(group):
            decides = group.runs[0].decides
            tasks.setdefault((decides["model"], decides["data"]["name"]), []).append(group)
    drawn = []
    for (model, dataset), members in tasks.items():
        for device in {price.device.name: price.device for price in made}.values():
            costs = {id(price.group): price.time_s for price in made if price.device is device and price.steps}
            if len({costs[id(group)] for group in members if id(group) in costs}) > 1:  # else there is nothing to trade
                watts = device.busy_w
                title = f"{model} on {dataset}: {device.title}"
                caption = f"Predicted for {device.title}, from its profile, with the interval that the table gives; "
                caption += f"training there: {device.training.status}."
                drawn.append(_pareto(figures, title, members, costs, "Predicted", watts, caption))
        if not made and (costs := _measured(members)):
            caption = (
                "Wall time of octosim as it was recorded, median over seeds, other load on the machine included; what is "
                "simulated (registers other than exact32) takes longer here than on hardware that has it."
            )
            title = f"{model} on {dataset}: measured"
            drawn.append(_pareto(figures, title, members, costs, "Measured", None, caption))
    return drawn


def _measured(groups: Sequence[Group]) -> dict[int, float]:
    """Median wall seconds of finished runs by group; nothing where machines, instruction sets or threads differ."""
    walls: dict[int, float] = {}
    places = set()
    for group in groups:
        found = []
        for run in group.runs:
            times = [row["wall_s"] for row in run.timing if row.get("wall_s") is not None]
            if run.digest and times:
                found.append(sum(times))
                places.add(tuple(run.environment[key] for key in ("cpu", "isa", "threads")))
        if found:
            walls[id(group)] = statistics.median(found)
    return walls if len(places) == 1 and len(walls) > 1 else {}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, accuracy) that no other beats: cheaper and no worse, or better and no dearer."""

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] >= b[1]

    return [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]


def _pareto(
    figures: Figures, title: str, members: Sequence[Group], costs: dict[int, float], kind: str, watts: float | None,
    caption: str,
) -> Figure:  # fmt: skip
    shown = [group for group in members if id(group) in costs][: len(POINT_STYLES)]
    values = [list(finals(group).values()) for group in shown]
    points = [(costs[id(group)], statistics.fmean(value)) for group, value in zip(shown, values, strict=True)]
    best = front(points)

    def paint(axes: Any) -> Legend:
        line = sorted(points[i] for i in best)
        x, y = [cost for cost, _ in line], [100 * accuracy for _, accuracy in line]
        axes.plot(x, y, color="#57606a", linewidth=1.2, drawstyle="steps-post", zorder=1)
        legend: list[Key] = []
        for i, (group, value, (time_s, mean)) in enumerate(zip(shown, values, points, strict=True)):
            colour, marker = POINT_STYLES[i]
            spread = [[100 * max(0.0, mean - min(value))], [100 * max(0.0, max(value) - mean)]]  # a mean is rounded
            fill = colour if i in best else "#ffffff"
            axes.errorbar(time_s, 100 * mean, spread, fmt=marker, color=colour, mfc=fill, markersize=8, elinewidth=1.2)
            text = f"{group.label}: {percent(mean)}, {significant(time_s)} s"
            legend.append(point_key(colour, marker, i in best, text))
        axes.set_xlabel(f"{kind} time of the whole training (s)")
        axes.set_ylabel("Test accuracy (%)")
        axes.margins(0.08)
        if watts:
            above = axes.secondary_xaxis("top", functions=(lambda t: t * watts, lambda joules: joules / watts))
            above.set_xlabel(f"Energy at {significant(watts)} W busy power (J)")
        return legend

    left = len([group for group in members if id(group) in costs]) - len(shown)
    cut = f" {plural(left, 'further configuration')} not drawn; the tables have all." if left else ""
    said = "; ".join(
        f"{group.label}: {percent(mean)} for {significant(time_s)} s"
        for group, (time_s, mean) in zip(shown, points, strict=True)
    )
    caption += " Points: mean over seeds; bars: all seeds. Filled, on the line: no other is cheaper and as accurate." + cut
    return figures.make(f"Accuracy against time: {title}", f"Scatter plot. {said}.", 3.6, paint, caption)
