"""Which runs belong together, and the tables of the page."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from markupsafe import Markup

from octosim.report.read import Bench, Run, lookup


@dataclass(frozen=True)
class Group:
    """Runs that differ only in seed (and instruction set, threads, time of day): one octosim version, one CPU.

    label: the method and the settings that set the group apart from the others; model and data set are said beside it.
    """

    label: str
    runs: tuple[Run, ...]
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the number it sorts by where the text does not sort.  picture: inline SVG before the text."""

    text: str
    sort: float | None = None
    href: str | None = None
    picture: Markup | None = None


@dataclass(frozen=True)
class Table:
    """columns: (heading, kind); "text" wraps, "long" wraps late, "line" never, "number" is right-aligned and sorts so.

    The first cell of a row is its heading; foot stays last when the table is sorted.  bands: headings over several columns,
    (text, columns), which together span the table.
    """

    caption: str
    columns: tuple[tuple[str, str], ...]
    rows: list[list[Cell]]
    foot: list[Cell] | None = None
    bands: tuple[tuple[str, int], ...] = ()

    @property
    def heads(self) -> list[str]:
        """Headings of the columns in one line: with the band's over them, where there is one."""
        over = [text for text, columns in self.bands for _ in range(columns)] or [""] * len(self.columns)
        return [f"{band}: {title}" if band else title for band, (title, _) in zip(over, self.columns, strict=True)]


def without_constants(table: Table, keep: int = 1) -> Table:
    """The table without the columns of text that say the same in all rows; the caption says it instead.

    keep: columns at the left that stay whatever they hold.  Tables with a foot or bands, and of one row, stay as they are.
    """
    if len(table.rows) < 2 or table.foot or table.bands:
        return table
    words = [i for i in range(keep, len(table.columns)) if table.columns[i][1] != "number"]
    same = [i for i in words if len({row[i].text for row in table.rows}) == 1]
    said = "; ".join(f"{table.columns[i][0]}: {table.rows[0][i].text}" for i in same if table.rows[0][i].text != DASH)
    left = [i for i in range(len(table.columns)) if i not in same]
    caption = f"{table.caption} The same in all rows: {said}." if said else table.caption
    return replace(table, caption=caption, columns=tuple(table.columns[i] for i in left),
                   rows=[[row[i] for i in left] for row in table.rows])  # fmt: skip


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """{"optimizer": {"lr": 0.001}} -> {"optimizer.lr": "0.001"}; a list becomes a short fingerprint."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flatten(item, f"{prefix}{key}.")
        elif isinstance(item, list):
            text = json.dumps(item, sort_keys=True)
            flat[prefix + key] = text if len(text) < 30 else "#" + hashlib.sha256(text.encode()).hexdigest()[:6]
        else:
            flat[prefix + key] = item if isinstance(item, str) else json.dumps(item)
    return flat


def _scope(key: str, run: Run) -> str:
    """Runs among which a setting is compared: a method's parameters and its input only beside the same method's."""
    decides = run.decides
    if key.startswith(("method.", "numerics.", "input.")):
        return decides["method"]["name"]
    if key.startswith("data."):
        return decides["data"]["name"]
    return decides["model"] if key == "layers" else ""


def _short(key: str) -> str:
    return key.removeprefix("method.parameters.").removeprefix("numerics.")


def _differing(runs: list[Run]) -> list[dict[str, str]]:
    """For each run the settings, by short name, in which it differs from some other run (seed and machine aside)."""
    shown = {"model", "data.name", "method.name", "seed"}
    flats = [{k: v for k, v in _flatten(run.decides).items() if k not in shown} for run in runs]
    values: dict[tuple[str, str], set[str | None]] = {}
    for key in {key for flat in flats for key in flat}:
        for run, flat in zip(runs, flats, strict=True):
            if key in flat or not key.startswith("optimizer."):  # a method without one says so by its name
                values.setdefault((key, _scope(key, run)), set()).add(flat.get(key))
    differing = [
        {
            _short(key): v
            for key, v in flat.items()
            if len(values.get((key, _scope(key, run)), ())) > 1 and (key, v) != ("optimizer", "null")
        }
        for run, flat in zip(runs, flats, strict=True)
    ]
    layers: dict[tuple[str, ...], set[str]] = {}
    for run, flat in zip(runs, flats, strict=True):
        layers.setdefault(_network(run, flat), set()).add(flat.get("layers", ""))
    if all(len(each) == 1 for each in layers.values()):  # the fingerprint says nothing that those do not
        for flat in differing:
            flat.pop("layers", None)
    return differing


def _network(run: Run, flat: dict[str, str]) -> tuple[str, ...]:
    """The settings that a reader knows a network's layers by."""
    normalized = [flat.get(key, "") for key in ("batchnorm", "hidden_batchnorm")]
    return run.decides["model"], run.decides["data"]["name"], *normalized


def _key(run: Run, *without: str) -> str:
    return json.dumps({k: v for k, v in run.decides.items() if k not in without}, sort_keys=True)


def group_runs(runs: list[Run]) -> tuple[list[Group], list[str]]:
    """Groups in order of appearance, and notes on what was kept apart or found twice."""
    several = len({run.environment["cpu"] for run in runs}) > 1
    labels = []
    for run, differs in zip(runs, _differing(runs), strict=True):
        labels.append((*(f"{key}={value}" for key, value in differs.items()), *[f"on {run.environment['cpu']}"] * several))
    members: dict[tuple[str, str], list[tuple[tuple[str, ...], Run]]] = {}
    for run, settings in zip(runs, labels, strict=True):
        members.setdefault((_key(run, "seed"), run.environment["cpu"]), []).append((settings, run))
    groups = []
    for pairs in members.values():
        settings, run = pairs[0]
        label = ", ".join((run.decides["method"]["name"], *settings))
        groups.append(Group(label, tuple(run for _, run in pairs), settings))
    return groups, _apart_notes(groups) + [note for group in groups for note in _twin_notes(group)]


def _apart_notes(groups: list[Group]) -> list[str]:
    twins: dict[str, list[Group]] = {}
    for group in groups:
        twins.setdefault(_key(group.runs[0], "seed", "octosim"), []).append(group)
    notes = []
    for same in twins.values():
        what = []
        versions = dict.fromkeys(group.runs[0].decides["octosim"] for group in same)
        cpus = dict.fromkeys(group.runs[0].environment["cpu"] for group in same)
        if len(versions) > 1:
            what.append(f"octosim versions ({', '.join(versions)})")
        if len(cpus) > 1:
            what.append(f"CPUs ({', '.join(cpus)})")
        if what:
            names = ", ".join(run.name for group in same for run in group.runs)
            notes.append(
                f"These runs have the same settings but different {' and '.join(what)}; they are kept in separate "
                f"groups and never pooled: {names}."
            )
    return notes


def _twin_notes(group: Group) -> list[str]:
    seeds: dict[int, list[Run]] = {}
    for run in group.runs:
        seeds.setdefault(run.decides["seed"], []).append(run)
    notes = []
    for seed, runs in seeds.items():
        finished = [run for run in runs if run.digest]
        if len(finished) < 2:
            continue
        names = ", ".join(run.name for run in finished)
        if len({run.digest for run in finished}) == 1:
            notes.append(
                f"{group.label}: seed {seed} was run {len(finished)} times with the same digest "
                f"({names}); it counts once."
            )
        else:
            notes.append(
                f"{group.label}: the runs of seed {seed} ended with different digests ({names}); they are not "
                "bit-exact repeats of each other. Only the first is counted in the summary."
            )
    return notes


DASH = "–"


def significant(value: float, digits: int = 3) -> str:
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(places, 0), 9)}f}"


def _si(value: float, unit: str = "") -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{significant(value / factor)} {prefix}{unit}"
    return f"{significant(value)} {unit}".strip()


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{significant(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: float | None, text: Callable[[float], str] = significant) -> Cell:
    if value is None or math.isnan(value):
        return Cell(DASH)
    return Cell(text(value), float(value))


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def milliseconds(value: float) -> str:
    return significant(1e3 * value)


def last_value(column: pd.Series) -> float | None:
    present = column.dropna()
    return None if present.empty else float(present.iloc[-1])


LOSS_TAIL = 100


def runs_table(runs: list[Run]) -> Table:
    rows = []
    for index, (run, differs) in enumerate(zip(runs, _differing(runs), strict=True), start=1):
        decides, environment, records = run.decides, run.environment, run.records
        accuracy = records["test_accuracy"]
        tail = records["loss"].tail(LOSS_TAIL).dropna()
        walls = [row["wall_s"] for row in run.timing if row.get("wall_s") is not None]
        rates = [row["images_per_s"] for row in run.timing if row.get("images_per_s") is not None]
        rows.append(
            [
                Cell(run.name, href=f"#run-{index}"),
                Cell(decides["model"]),
                Cell(decides["data"]["name"]),
                Cell(decides["method"]["name"]),
                Cell(", ".join(f"{key}={value}" for key, value in differs.items()) or DASH),
                Cell(str(decides["seed"]), decides["seed"]),
                _length(run),
                _number(last_value(accuracy), percent),
                _number(accuracy.max(), percent),
                _number(None if tail.empty else float(tail.median())),
                _number(last_value(records["test_loss"])),
                _number(math.fsum(walls) if walls else None, _duration),
                _number(statistics.median(rates) if rates else None, lambda v: f"{v:,.0f}"),
                Cell(run.digest.removeprefix("sha256:")[:12] if run.digest else DASH),
                Cell(("finished" if run.digest else "unfinished") + (", see notes" if run.notes else "")),
                Cell(f"{environment['cpu']}, {environment['isa']}, {plural(environment['threads'], 'thread')}"),
            ]
        )
    columns = (
        ("Run", "text"),
        ("Model", "text"),
        ("Data", "text"),
        ("Method", "text"),
        ("Differs in", "long"),
        ("Seed", "number"),
        ("Epochs", "number"),
        ("Test accuracy, last", "number"),
        ("Test accuracy, best", "number"),
        ("Training loss", "number"),
        ("Test loss", "number"),
        ("Wall time", "number"),
        ("Images/s", "number"),
        ("Digest", "text"),
        ("Status", "text"),
        ("Measured on", "line"),
    )
    caption = (
        f"One row a run. Training loss: median of the last {LOSS_TAIL} recorded steps; images/s: median over epochs; "
        "wall time: all recorded steps. Best accuracy is picked on the test set itself, so it flatters."
    )
    return Table(caption, columns, rows)


def _length(run: Run) -> Cell:
    done = 0 if run.records.empty else int(run.records["epoch"].iloc[-1])
    asked, steps = run.decides.get("epochs"), run.decides.get("steps")
    if steps is not None:
        last = 0 if run.records.empty else int(run.records["step"].iloc[-1])
        return Cell(f"{steps} steps" if run.digest else f"{last} of {steps} steps", float(done))
    if asked is None or run.digest:
        return Cell(str(done if asked is None else asked), float(done))
    return Cell(f"{done} of {asked}", float(done))


def plural(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def finals(group: Group, column: str = "test_accuracy") -> dict[int, float]:
    """Last value of an evaluation's column of finished runs by seed; of a seed that was run twice, the first's."""
    found: dict[int, float] = {}
    for run in group.runs:
        value = last_value(run.records[column])
        if run.digest and value is not None:
            found.setdefault(run.decides["seed"], value)
    return found


def seeds_table(groups: Sequence[Group], state: Callable[[Group], str]) -> Table | None:
    """Mean and spread over distinct seeds of finished runs; None when no configuration has two.  state: how a group ended."""
    rows, most = [], 0
    for group in groups:
        firsts = finals(group)
        values = list(firsts.values())
        most = max(most, len(values))
        left_out = len({run.decides["seed"] for run in group.runs}) - len(values)
        rows.append(
            [
                Cell(group.label),
                Cell(group.runs[0].decides["model"]),
                Cell(group.runs[0].decides["data"]["name"]),
                Cell(str(len(values)), len(values)),
                Cell(", ".join(map(str, firsts)) + (f" ({left_out} without an end left out)" if left_out else "")),
                _number(statistics.fmean(values) if values else None, percent),
                _number(statistics.stdev(values) if len(values) > 1 else None, lambda v: f"{100 * v:.2f}"),
                _number(min(values, default=None), percent),
                _number(max(values, default=None), percent),
                Cell(state(group)),
            ]
        )
    if most < 2:
        return None
    columns = (
        ("Configuration", "text"),
        ("Model", "text"),
        ("Data", "text"),
        ("n", "number"),
        ("Seeds", "text"),
        ("Mean", "number"),
        ("Deviation (points)", "number"),
        ("Min", "number"),
        ("Max", "number"),
        ("State", "text"),
    )
    caption = (
        "Test accuracy after the last epoch, over the seeds of one configuration. n counts distinct seeds of finished "
        "runs. Deviation is the sample's (n - 1), in percentage points; the range is what these n runs gave, not a "
        "confidence interval."
    )
    return Table(caption, columns, rows)


_LAYER_COLUMNS = (
    ("Layer", "text"),
    ("Pass", "text"),
    ("MACs", "number"),
    ("Bytes", "number"),
    ("Predicted (ms)", "number"),
    ("Bound by", "text"),
    ("Measured (ms)", "number"),
    ("Quartiles (ms)", "text"),
    ("n", "number"),
)


def layers_table(bench: Bench, what: str, block: dict[str, Any]) -> Table:
    def cells(row: dict[str, Any], head: list[Cell], time: str, predicted: str, bound: str | None) -> list[Cell]:
        low, high, n = (lookup(row, time + key) for key in ("p25_s", "p75_s", "n"))
        spread = DASH if low is None or high is None else f"{milliseconds(low)} to {milliseconds(high)}"
        median = lookup(row, time + ("median_s" if time else "time_s"))
        return head + [
            _number(row.get("macs"), _si),
            _number(row.get("bytes"), lambda v: _si(v, "B")),
            _number(lookup(row, predicted), milliseconds),
            Cell(bound or DASH),
            _number(median, milliseconds),
            Cell(spread),
            _number(n, lambda v: f"{v:.0f}"),
        ]

    rows = []
    for row in block["layers"]:
        head = [Cell(row["layer"]), Cell(row["pass"])]
        rows.append(cells(row, head, "measured.", "predicted.time_s", lookup(row, "predicted.bound")))
    total = cells(block["total"], [Cell("Whole step"), Cell("all")], "", "predicted_time_s", None)
    caption = (
        f"{what}: predicted for {bench.data['device']['title']}; measured on {machine(bench)}, median and quartiles. "
        "The last row is the step's total as recorded."
    )
    return Table(caption, _LAYER_COLUMNS, rows, total)


def machine(bench: Bench) -> str:
    environment = bench.data["environment"]
    return f"{environment['cpu']} ({environment['isa']}, {plural(environment['threads'], 'thread')})"


def machines_sentence(bench: Bench) -> str:
    """What every predicted-and-measured figure must say: whose time is whose."""
    title = bench.data["device"]["title"]
    if bench.data["device"]["name"] == "host":
        return f"Both are for this machine, {machine(bench)}: the prediction comes from its profile, not from a run."
    return (
        f"The predicted device and the measured machine are different machines: predictions are for {title}, from its "
        f"hardware profile; measurements were made on {machine(bench)}. The gap between the bars is therefore not the "
        "error of the prediction."
    )
