"""Time, energy and memory that the cost model predicts for recorded runs on devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octosim import cost, data, engine, graph, hardware, methods
from octosim.cost import compare
from octosim.engine import optimizers, plan
from octosim.errors import OctosimError
from octosim.report.states import learned
from octosim.report.tables import DASH, Cell, Group, Table, milliseconds, significant


@dataclass(frozen=True)
class Price:
    """A configuration on a device: seconds and joules of a step and of the whole training (energy None where unknown)."""

    group: Group
    device: hardware.Device
    step: dict[str, Any]  # cost.total
    steps: int

    @property
    def time_s(self) -> float:
        return float(self.step["time_s"]) * self.steps

    @property
    def energy_j(self) -> float | None:
        return None if self.step["energy_j"] is None else self.step["energy_j"] * self.steps


def _network(decides: dict[str, Any]) -> engine.Network:
    """The network that a manifest describes, without weights."""
    shape = next((row["shape"] for row in data.available() if row["name"] == decides["data"]["name"]), None)
    if shape is None:
        raise OctosimError(f"the shape of data set {decides['data']['name']} is not known")
    method = methods.make(decides["method"]["name"], decides["method"]["parameters"])
    return plan.dry(graph.parse("manifest.json:", decides.get("layers")), tuple(shape), method, float_layers=True)


def prices(groups: Sequence[Group], devices: Sequence[hardware.Device]) -> tuple[list[Price], list[str]]:
    """Every configuration on every device, and notes on what could not be priced."""
    made: list[Price] = []
    notes: list[str] = []
    for group in groups:
        decides, records = group.runs[0].decides, max((run.records for run in group.runs), key=len)
        batch = decides.get("batch_size")
        try:
            if not isinstance(batch, int) or batch < 1:
                raise OctosimError(f"field decides.batch_size is {batch!r}, expected a whole number above 0")
            network = _network(decides)
            step = plan.plan(network, batch, optimizers.make((decides.get("optimizer") or {}).get("name", "sgd"), None))
            ops, peak = plan.ops(step), plan.memory(step)["peak"]
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


def fits(peak: int, device: hardware.Device) -> str:
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
        whole = [Cell(DASH)] * 3  # a training that did not end has no price
        if learned(price.group):
            seconds = Cell(significant(price.time_s), price.time_s)
            whole = [Cell(f"{price.steps:,}", price.steps), seconds, _joules(price.energy_j)]
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
                Cell(fits(step["peak_bytes"], price.device)),
                *whole,
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
        "the step's peak. Training: that many steps, without evaluation, of runs that finished above chance. The register does "
        "not enter the price."
    )
    return Table(caption, columns, rows)
