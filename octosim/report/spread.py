"""What the seeds say: paired differences between configurations with their intervals, and runs that gave the same bits."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence

from octosim.report.read import Run
from octosim.report.states import state_of
from octosim.report.tables import DASH, Cell, Group, Table, finals, plural

# Student's t, 97.5 % quantile, by degrees of freedom 1 .. 30; tests/test_report_spread.py integrates the density.
T975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
    2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
ENOUGH = 3  # pairs for an interval
FEW = 6  # below so many pairs, their normal distribution is taken on trust


def half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of at least 2 values (Student's t)."""
    n = len(values)
    return T975[min(n - 1, len(T975)) - 1] * statistics.stdev(values) / math.sqrt(n)  # beyond the table: a little wide


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of paired differences (Student's t); None for fewer than ENOUGH, and where all are 0."""
    if len(differences) < ENOUGH or not any(differences):
        return None
    half, mean = half_interval(differences), statistics.fmean(differences)
    return mean - half, mean + half


def families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that may be compared with each other, in order of appearance."""
    found: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        found.setdefault(_family(group), []).append(group)
    return list(found.values())


def differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Differences of accuracies in percentage points, over the seeds that both have."""
    return [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def _family(group: Group) -> tuple[str, ...]:
    """Groups that may be compared: one network, with the same layers, data set, octosim version and CPU."""
    decides = group.runs[0].decides
    same = (decides.get("layers"), decides["data"], decides["octosim"], group.runs[0].environment["cpu"])
    return decides["model"], decides["data"]["name"], json.dumps(same, sort_keys=True)


def reference(groups: Sequence[Group]) -> Group:
    """What the others are compared with: float32 where it is there, else the exact register, else the first."""

    def rank(group: Group) -> int:
        decides = group.runs[0].decides
        if decides["method"]["name"] == "fp32":
            return 0
        return 1 if (decides.get("numerics") or {}).get("accumulator") == "exact32" else 2

    return min(groups, key=rank)


def _reading(differences: Sequence[float], span: tuple[float, float] | None) -> str:
    if len(differences) >= 2 and not any(differences):
        return "equal with every seed"
    if span is None:
        return f"too few seeds to say ({len(differences)})"
    said = "above" if span[0] > 0 else "below" if span[1] < 0 else "no difference shown"
    return said + (f", with {len(differences)} seeds only" if len(differences) < FEW else "")


def _at_chance(*groups: Group) -> str:
    """Warns of seeds whose accuracy is that of guessing: their differences say nothing about the method's accuracy."""
    parts = []
    for group in groups:
        if stuck := sum(state_of(run).kind == "at chance" for run in group.runs):
            parts.append(f"{stuck} of {plural(len(group.runs), 'run')} of {group.label} at chance")
    return f"; {', '.join(parts)}" if parts else ""


def differences_table(groups: Sequence[Group]) -> Table | None:
    """Every configuration against its family's reference, over the seeds that both have; None without two common seeds."""
    rows, intervals = [], 0
    for members in families(groups):
        base = reference(members)
        decides = base.runs[0].decides
        for group in members:
            pairs = differences(finals(group), finals(base))
            if group is base or len(pairs) < 2:
                continue
            span, mean = interval(pairs), statistics.fmean(pairs)
            intervals += span is not None
            rows.append(
                [
                    Cell(group.label),
                    Cell(base.label),
                    Cell(f"{decides['model']}, {decides['data']['name']}"),
                    Cell(str(len(pairs)), len(pairs)),
                    Cell(f"{mean:+.2f}", mean),
                    Cell(f"{span[0]:+.2f} to {span[1]:+.2f}" if span else DASH),
                    Cell(_reading(pairs, span) + _at_chance(group, base)),
                ]
            )
    if not rows:
        return None
    columns = (
        ("Compared", "text"),
        ("With", "text"),
        ("Model, data", "text"),
        ("n", "number"),
        ("Mean difference", "number"),
        ("95 % interval", "line"),
        ("Reading", "text"),
    )
    caption = (
        "Difference of last test accuracies in percentage points, seed by seed; n counts the seeds that both have. The "
        "interval is Student's t for the mean over seeds and takes the differences as normally distributed, which fewer than "
        f"{FEW} seeds cannot show; below {ENOUGH} seeds there is none. It speaks of other seeds, not of other test images."
    )
    if intervals > 1:
        caption += f" Each of the {intervals} intervals stands alone: of 20 without a true difference, "
        caption += "one is expected to miss 0."
    return Table(caption, columns, rows)


def same_bits_table(runs: Sequence[Run]) -> Table | None:
    """Runs with other settings but the same digest, seed by seed; None where there are no such runs."""
    by_digest: dict[tuple[str, str, int, str], list[Run]] = {}
    for run in runs:
        if run.digest:
            key = (run.decides["model"], run.decides["data"]["name"], run.decides["seed"], run.digest)
            by_digest.setdefault(key, []).append(run)
    rows = []
    for (model, data, seed, digest), same in by_digest.items():
        if len({repr(run.decides) for run in same}) > 1:
            names = ", ".join(run.name for run in same)
            head = [Cell(digest.removeprefix("sha256:")[:12]), Cell(f"{model}, {data}"), Cell(str(seed), seed)]
            rows.append([*head, Cell(str(len(same)), len(same)), Cell(names)])
    if not rows:
        return None
    titles = ("Digest", "Model, data", "Seed", "Runs", "Equal to the bit")
    columns = tuple((title, "number" if title in ("Seed", "Runs") else "text") for title in titles)
    caption = (
        "Runs with different settings that ended with the same weights, optimizer and statistics, bit for bit. "
        "Finished runs of a seed that are not listed together differ."
    )
    return Table(caption, columns, rows)
