"""Tables of a claim's study: mean accuracy, 95 % interval over the seeds and, where the method counts any, its metrics.

    python tools/claims.py studies/octo-small                  # what records.csv has, as a table in Markdown
    python tools/claims.py studies/curves --curve niti=32.7,36.2,50.2,53.5,60.2 --curve wage=43.2,48.5,56.4,64.5
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from octosim.report.spread import half_interval

NO_SETTING = {
    "run", "seed", "digest", "step", "epoch", "loss", "learning_rate", "test_loss", "test_accuracy", "metrics", "parameters",
}


def varied(table: pd.DataFrame) -> list[str]:
    """The settings in which the runs differ, seeds left out."""
    return [name for name in table if name not in NO_SETTING and table[name].astype(str).nunique() > 1]


def flat_metrics(path: Path) -> dict[str, float]:
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

    for line in path.read_text().splitlines():
        if '"metrics"' in line:
            found.clear()
            walk("", json.loads(line)["metrics"])
    return {name: statistics.fmean(values) for name, values in found.items()}


def show(study: Path) -> None:
    table = pd.read_csv(study / "records.csv", keep_default_na=False)
    last = table.sort_values("step").groupby("run", sort=False).tail(1)
    columns = varied(last)
    groups = last.groupby(columns, sort=False) if columns else [((), last)]
    rows, names = [], dict[str, None]()
    for key, group in groups:
        accuracies = [100 * float(value) for value in group["test_accuracy"]]
        measured = [flat_metrics(study / run / "records.jsonl") for run in group["run"]]
        means = {name: statistics.fmean(m[name] for m in measured) for name in measured[0]}
        names |= dict.fromkeys(means)
        rows.append((key, accuracies, means))
    print("| " + " | ".join([*columns, "accuracy, %", "95 %", "seeds", *names]) + " |")
    print("|" + "---|" * (len(columns) + 3 + len(names)))
    for key, accuracies, means in rows:
        spread = f"+-{half_interval(accuracies):.2f}" if len(accuracies) > 1 else ""
        cells = [*map(str, key), f"{statistics.fmean(accuracies):.2f}", spread, str(len(accuracies))]
        cells += [f"{100 * means[name]:.3g} %" if name in means else "" for name in names]
        print("| " + " | ".join(cells) + " |")


def curve(study: Path, method: str, theirs: list[float]) -> None:
    table = pd.read_csv(study / "records.csv", keep_default_na=False)
    table = table[table["method"] == method]
    for epoch, expected in enumerate(theirs, 1):
        ours = [100 * float(value) for value in table[table["epoch"] == epoch]["test_accuracy"]]
        if ours:
            mean = statistics.fmean(ours)
            print(f"| {method} | {epoch} | {mean:.1f} | {expected} | {mean - expected:+.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--curve", action="append", default=[], help="METHOD=accuracies of the authors' log, by epoch.")
    given = parser.parse_args()
    if not given.curve:
        show(given.study)
        return
    print("| method | epoch | here, % | authors' log, % | difference |\n|---|---|---|---|---|")
    for text in given.curve:
        method, values = text.split("=")
        curve(given.study, method, [float(value) for value in values.split(",")])


if __name__ == "__main__":
    main()
