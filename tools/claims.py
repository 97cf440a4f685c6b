"""Tables and figures of a claim's study: mean accuracy, 95 % interval over the seeds, and the metrics that a method counts.

python tools/claims.py studies/logbtq/records.csv --plot reports/claims/logbtq.svg    # a table in Markdown, and a figure
python tools/claims.py studies/octo-small/records.csv --by model,batchnorm --plot octo-small.svg
python tools/claims.py studies/curves/records.csv --curve niti=32.7/2.200,36.2/1.811 --curve wage=43.2,48.5,56.4,64.5
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from octosim.report.spread import half_interval

NO_SETTING = {
    "run", "seed", "digest", "step", "epoch", "loss", "learning_rate", "test_loss", "test_accuracy", "metrics", "parameters",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The runs that differ in nothing but their seed.  settings: by name, of those in which the study's runs differ, "" where a
    method has none; accuracies in percent; metrics: the last ones, means over layers and runs."""

    settings: dict[str, str]
    accuracies: list[float]
    metrics: dict[str, float]

    @property
    def spread(self) -> float | None:
        """Half of the 95 % interval of the mean; None of a single run."""
        return half_interval(self.accuracies) if len(self.accuracies) > 1 else None


def varied(table: pd.DataFrame) -> list[str]:
    """The settings that have more than one value, what a method does not have left out; and the method."""
    values = {name: table[name].astype(str) for name in table if name not in NO_SETTING}
    return [name for name, held in values.items() if held[held != ""].nunique() > 1]


def flat_metrics(records: pd.DataFrame) -> dict[str, float]:
    """A run's last metrics, each the mean over layers."""
    found: dict[str, list[float]] = defaultdict(list)

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            leaves = [v for v in value.values() if isinstance(v, int | float)]
            if leaves and len(leaves) == len(value):
                found[prefix].append(statistics.fmean(leaves))
            else:
                for key, inner in value.items():
                    walk(f"{prefix}.{key}" if prefix else key, inner)

    for text in [text for text in records.get("metrics", ()) if text][-1:]:
        walk("", ast.literal_eval(text))
    return {name: statistics.fmean(values) for name, values in found.items()}


def rows_of(table: pd.DataFrame) -> list[Row]:
    """The runs of a study's records, in their order."""
    last = table.groupby("run", sort=False).tail(1)
    columns = varied(last)
    rows = []
    for key, group in last.groupby(columns, sort=False) if columns else [((), last)]:
        measured = [flat_metrics(table[table["run"] == run]) for run in group["run"]]
        rows.append(Row(
            {name.removeprefix("method."): str(value) for name, value in zip(columns, key, strict=True)},
            [100 * float(value) for value in group["test_accuracy"]],
            {name: statistics.fmean(m[name] for m in measured) for name in measured[0]},
        ))  # fmt: skip
    return rows


def said(name: str, value: float) -> str:
    """A metric: shares, which are called rates, in percent."""
    return f"{100 * value:.3g} %" if "rate" in name else f"{value:.3g}"


def show(rows: list[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    print("| " + " | ".join([*rows[0].settings, "accuracy, %", "95 %", "seeds", *names]) + " |")
    print("|" + "---|" * (len(rows[0].settings) + 3 + len(names)))
    for row in rows:
        spread = "" if row.spread is None else f"+-{row.spread:.2f}"
        cells = [*row.settings.values(), f"{statistics.fmean(row.accuracies):.2f}", spread, str(len(row.accuracies))]
        cells += [said(name, row.metrics[name]) if name in row.metrics else "" for name in names]
        print("| " + " | ".join(cells) + " |")


def figure_of(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure of so many panels of this size, at most two side by side, and their axes; the same figure has the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "octosim", "svg.fonttype": "none"}
    from matplotlib import pyplot as plt

    across = min(2, count)
    down = -(-count // across)
    figure, grid = plt.subplots(down, across, figsize=(width * across, height * down), squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:count])


def plot(rows: list[Row], by: list[str], out: Path) -> None:
    """A panel for each combination of the settings `by`: each row's runs, their mean, its interval; a band where fp32 lies."""
    panels: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        panels.setdefault(tuple(row.settings[name] for name in by), []).append(row)
    figure, grid = figure_of(len(panels), 7.2, 0.24 * max(map(len, panels.values())) + 1.1)
    for axes, (key, held) in zip(grid, panels.items(), strict=True):
        labels = []
        for at, row in enumerate(held):
            mean, spread = statistics.fmean(row.accuracies), row.spread or 0.0
            is_float = row.settings.get("method") == "fp32"
            color = "tab:gray" if is_float else "tab:blue"
            if is_float:
                axes.axvspan(mean - spread, mean + spread, color="0.9", zorder=0)
            axes.errorbar(mean, at, xerr=spread, fmt="o", color=color, capsize=3)
            axes.plot(row.accuracies, [at] * len(row.accuracies), "|", color=color, alpha=0.6)
            named = (value if name == "method" else f"{name} {value}"
                     for name, value in row.settings.items() if value and name not in by)  # fmt: skip
            labels.append(", ".join(named))
        shared = {label.split(", ")[0] for label in labels if "," in label}
        if len(shared) == 1:  # the method that all rows but fp32 have
            labels = [label.removeprefix(f"{min(shared)}, ") for label in labels]
        axes.set_yticks(range(len(held)), labels, fontsize=8)
        axes.invert_yaxis()
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, 0), min(high, 100.5))  # an interval of few seeds reaches farther
        axes.grid(axis="x", alpha=0.3)
        axes.set_title(", ".join(f"{name} {value}" for name, value in zip(by, key, strict=True)), fontsize=9)
        axes.set_xlabel("test accuracy, % (mean of the seeds, its 95 % interval; | one run)", fontsize=8)
    save(figure, out)


def save(figure: Any, out: Path) -> None:
    figure.tight_layout()
    figure.savefig(out, bbox_inches="tight", metadata={"Date": None} if out.suffix == ".svg" else None)


@dataclass(frozen=True)
class Curve:
    """A method's epochs, here and in its authors' log: accuracies in percent; mean training losses, where they are known."""

    method: str
    here: dict[int, float]
    theirs: dict[int, float]
    losses_here: dict[int, float]
    losses_theirs: dict[int, float]


def with_losses(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The records with a column train_loss, the mean loss of an epoch's steps, of the runs' folders beside them."""
    if "train_loss" in table:
        return table
    means: dict[tuple[str, int], float] = {}
    for run in table["run"].unique():
        path = folder / run / "records.jsonl"
        losses: dict[int, list[float]] = defaultdict(list)
        for record in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
            losses[record["epoch"]].append(record["loss"])
        means |= {(run, epoch): statistics.fmean(values) for epoch, values in losses.items()}
    held = [means.get(key, "") for key in zip(table["run"], table["epoch"], strict=True)]
    return table.assign(train_loss=held)


def of_epochs(records: pd.DataFrame, name: str) -> dict[int, float]:
    """The mean over runs of a column by epoch, of the epochs that have it."""
    held = records[records[name].astype(str) != ""]
    means: dict[int, float] = held.groupby("epoch")[name].apply(lambda of: of.astype(float).mean()).to_dict()
    return means


def curve(table: pd.DataFrame, text: str) -> Curve:
    """text: METHOD, METHOD=ACCURACY,ACCURACY ... or METHOD=ACCURACY/LOSS,... of the authors' epochs; here means over runs."""
    method, _, values = text.partition("=")
    theirs = [[float(number) for number in value.split("/")] for value in values.split(",") if value]
    records = table[table["method"] == method]
    here = {epoch: 100 * share for epoch, share in of_epochs(records, "test_accuracy").items()}
    losses = {epoch: both[1] for epoch, both in enumerate(theirs, 1) if len(both) > 1}
    accuracies = {epoch: both[0] for epoch, both in enumerate(theirs, 1)}
    return Curve(method, here, accuracies, of_epochs(records, "train_loss"), losses)


def show_curves(curves: list[Curve]) -> None:
    if not any(each.theirs for each in curves):
        print("| method | epoch | test accuracy, % | training loss |\n|---|---|---|---|")
        for each in curves:
            for epoch, accuracy in each.here.items():
                print(f"| {each.method} | {epoch} | {accuracy:.1f} | {each.losses_here.get(epoch, math.nan):.4g} |")
        return
    print("| method | epoch | here, % | authors' log, % | difference | training loss here | authors' log | difference, % |")
    print("|" + "---|" * 8)
    for each in curves:
        for epoch in sorted(each.here.keys() & each.theirs.keys()):
            ours, expected = each.here[epoch], each.theirs[epoch]
            cells = [each.method, str(epoch), f"{ours:.1f}", str(expected), f"{ours - expected:+.1f}", "", "", ""]
            if epoch in each.losses_here and epoch in each.losses_theirs:
                loss, logged = each.losses_here[epoch], each.losses_theirs[epoch]
                cells[5:] = f"{loss:.4g}", f"{logged:g}", f"{100 * (loss / logged - 1):+.1f}"
            print("| " + " | ".join(cells) + " |")


def plot_curves(curves: list[Curve], out: Path) -> None:
    with_loss = [each for each in curves if each.losses_here and bool(each.losses_theirs) == bool(each.theirs)]
    figure, grid = figure_of(1 + bool(with_loss), 6.0, 3.4)
    for number, each in enumerate(curves):
        draw(grid[0], number, each.method, each.here, each.theirs)
        if each in with_loss:
            draw(grid[1], number, each.method, each.losses_here, each.losses_theirs)
    for axes, label in zip(grid, ("test accuracy, %", "mean training loss of the epoch"), strict=False):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, out)


def draw(axes: Any, number: int, method: str, here: dict[int, float], theirs: dict[int, float]) -> None:
    """The curve of a method and its authors', where there is one, in the same colour."""
    for values, style, whose in ((here, "o-", "here"), (theirs, "s--", "authors' log")):
        if values:
            label = f"{method}, {whose}" if theirs else method
            axes.plot(list(values), list(values.values()), style, color=f"C{number}", label=label, markersize=4)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="records.csv of a study.")
    parser.add_argument("--curve", action="append", default=[],
                        help="METHOD, or METHOD=accuracies of its authors' log by epoch, each with /LOSS where it has the "
                        "training loss: a curve.")
    parser.add_argument("--keep", type=Path, help="A copy of the tested epochs' records, with their mean losses (--curve).")
    parser.add_argument("--plot", type=Path, help="A figure, .svg or .png.")
    parser.add_argument("--by", default="", help="Settings, with commas between them, whose values have a panel each.")
    given = parser.parse_args(arguments)
    table = pd.read_csv(given.records, keep_default_na=False)
    if given.curve:
        table = with_losses(table, given.records.parent)
        if given.keep:
            table[table["test_accuracy"].astype(str) != ""].to_csv(given.keep, index=False)
        curves = [curve(table, text) for text in given.curve]
        show_curves(curves)
        if given.plot:
            plot_curves(curves, given.plot)
        return
    rows = rows_of(table)
    show(rows)
    if given.plot:
        plot(rows, [name for name in given.by.split(",") if name], given.plot)


if __name__ == "__main__":
    main()
