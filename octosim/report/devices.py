"""Time, energy and memory that the cost model predicts for recorded runs on devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octosim import cost, hardware
from octosim.cost import compare
from octosim.errors import OctosimError
from octosim.report.read import printable
from octosim.report.states import learned
from octosim.report.tables import DASH, Cell, Group, Table, milliseconds, significant
from octosim.trace import Op

StepOf = Callable[[dict[str, Any], bool], tuple[list[Op], dict[str, int]]]
"""The operations of a step and its memory, of a run's manifest: `octosim.train.step_of`.  A report computes nothing itself, so
its caller brings it."""


@dataclass(frozen=True)
class Price:
    """A configuration on a device: seconds and joules of a step and of the whole training (energy None where unknown).

    label: the device's, which no other device of the report has.
    """

    group: Group
    label: str
    device: hardware.Device
    step: dict[str, Any]  # cost.total
    memory: dict[str, int]  # compare.placed
    steps: int

    @property
    def fits(self) -> str:
        return {None: "unknown", True: "yes", False: "no"}[compare.fits(self.memory, self.device)]

    @property
    def time_s(self) -> float:
        return float(self.step["time_s"]) * self.steps

    @property
    def energy_j(self) -> float | None:
        return None if self.step["energy_j"] is None else self.step["energy_j"] * self.steps


def labelled(profiles: Sequence[str]) -> dict[str, hardware.Device]:
    """The devices of --profile by labels that tell them apart, equal ones once.

    A label is the short title; the whole title where several devices share the short one; the short title with the option's
    text where they share both, as a profile and its calibrated copy do.
    """
    given: dict[str, hardware.Device] = {}
    for text in profiles:
        device = hardware.load(text)
        if device not in given.values():
            given[str(text)] = device
    short = Counter(short_title(device) for device in given.values())
    whole = Counter(device.title for device in given.values())

    def label(text: str, device: hardware.Device) -> str:
        title = short_title(device)
        return title if short[title] == 1 else device.title if whole[device.title] == 1 else f"{title} ({printable(text)})"

    return {label(text, device): device for text, device in given.items()}


def prices(
    groups: Sequence[Group], devices: Mapping[str, hardware.Device], step_of: StepOf
) -> tuple[list[Price], list[str]]:  # fmt: skip
    """Every configuration on every device, and notes on what could not be priced."""
    made: list[Price] = []
    notes: list[str] = []
    ours = hardware.load_runtime("octosim")
    for group in groups:
        records = max((run.records for run in group.runs), key=len)
        try:
            steps_of = {bare: step_of(group.runs[0].manifest, bare) for bare in {device.is_bare for device in devices.values()}}
        except OctosimError as error:
            notes.append(f"{group.label}: no cost predicted: {error}.")
            continue
        steps = 0 if records.empty else int(records["step"].iloc[-1])
        for label, device in devices.items():
            ops, parts = steps_of[device.is_bare]
            held = compare.placed(parts, device, False)
            try:
                total = cost.total(cost.predict(ops, device, runtime=ours), device, held["peak"])
                made.append(Price(group, label, device, total, held, steps))
            except OctosimError as error:
                notes.append(f"{group.label}: no cost predicted for {label}: {error}.")
    return made, notes


def short_title(device: hardware.Device) -> str:
    """A device's title without what its brackets add."""
    return device.title.split(" (")[0]


def _joules(value: float | None) -> Cell:
    return Cell(DASH) if value is None else Cell(significant(value), value)


def devices_table(made: Sequence[Price]) -> Table | None:
    if not made:
        return None
    rows = []
    labels = list(dict.fromkeys(price.label for price in made))
    for price in sorted(made, key=lambda price: labels.index(price.label)):
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
                Cell(price.label),
                Cell(milliseconds(step["time_s"]), step["time_s"]),
                Cell(f"{low} to {high}"),
                _joules(None if step["energy_j"] is None else 1e3 * step["energy_j"]),
                Cell(significant(step["peak_bytes"] / 2**20), step["peak_bytes"]),
                Cell(price.fits),
                *whole,
                Cell(price.device.training.status),
            ]
        )
    columns = (
        ("Configuration", "text"),
        ("Model", "text"),
        ("Device", "line"),
        ("Step (ms)", "number"),
        ("4 times in 5 (ms)", "line"),
        ("Step (mJ)", "number"),
        ("Peak memory (MiB)", "number"),
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
