"""Accuracy of a study's runs against what their steps cost: measured here, and predicted for devices.

    python tools/efficiency.py reports/methods/cifar10.csv --here 7 --out reports/claims/efficiency

writes efficiency.csv (a row a method and place: seconds of a step, the interval, the accuracy) and efficiency.svg. --here N
makes N steps of each method in turns, one thread, and takes the medians; without it what efficiency.csv has of this is kept.
float32's training is shown in the type that a device's framework would use, float16 where there is one. Methods that
`octosim cost` refuses are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from claims import figure_of

HERE = "here"
DEVICES = ["raspberry-pi-4", "jetson-xavier-nx", "atlas-200dk"]


def methods_of(records: pd.DataFrame) -> pd.DataFrame:
    """A row a method: its model, batch, data and parameters, its mean accuracy in percent, and the number of seeds."""
    last = records.groupby("run", sort=False).tail(1)
    last = last[last["batchnorm"].astype(str) == "True"]  # what a cost is predicted of
    own = [name for name in last if name.startswith("method.")]
    texts = [
        " ".join(f"{name.removeprefix('method.')}={row[name]}" for name in own if row[name] != "") for _, row in last.iterrows()
    ]
    last = last.assign(parameters=texts)
    settings = ["method", "model", "data", "batch_size", "parameters"]
    found = last.groupby(settings, sort=False)["test_accuracy"].agg(["mean", "count"]).reset_index()
    return found.assign(accuracy=100 * found.pop("mean"), seeds=found.pop("count"))


def predicted(row: Any, device: str, image: str) -> dict[str, Any] | None:
    """Seconds of a step on a device with their interval, of float32 those of the narrowest float type that it trains in.

    None where the cost is refused, which is said.
    """
    command = [
        sys.executable, "-m", "octosim", "cost", "--model", row.model, "--image", image, "--method", row.method,
        "--profile", device, "--batch-size", str(row.batch_size), "--json",
        *(f"--set={text}" for text in row.parameters.split()),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{row.method} on {device} is left out: {done.stderr.strip()}", file=sys.stderr)
        return None
    found = json.loads(done.stdout)
    total, dtype = found["total"], ""
    if row.method == "fp32":
        dtype = min(found["types"], key=lambda name: (name == "int8", name))  # float16, then float32
        total = found["types"][dtype]
    return {"type": dtype} | {name: total[name] for name in ("time_s", "time_low_s", "time_high_s")}


def measured(rows: list[Any], steps: int) -> list[dict[str, Any]]:
    """The rows with the median seconds and quartiles of so many steps, in turns, with one thread; two are not counted."""
    from octosim import core
    from octosim.bench.clock import rate
    from octosim.train import Config, Run

    core.set_threads(1)
    made: list[Callable[[], Any]] = []
    for row in rows:
        lr = rate(row.method)
        config = Config(
            model=row.model, data=row.data, method=row.method, batch_size=row.batch_size, limit=16 * row.batch_size,
            parameters=dict(text.split("=", 1) for text in row.parameters.split()),
            **({} if lr is None else {"lr": lr}),
        )  # fmt: skip
        run = Run(config)
        run.allow_replay = True
        made.append(run.train_step)
    times: list[list[float]] = [[] for _ in made]
    for turn in range(2 + steps):
        for step, held in zip(made, times, strict=True):
            before = time.perf_counter()
            step()
            if turn > 1:
                held.append(time.perf_counter() - before)
    quartiles = [statistics.quantiles(held, n=4) if len(held) > 1 else 3 * held for held in times]
    return [
        row._asdict() | {"place": HERE, "type": "", "time_s": q[1], "time_low_s": q[0], "time_high_s": q[2]}
        for row, q in zip(rows, quartiles, strict=True)
    ]


def table(records: pd.DataFrame, devices: list[str], image: str, steps: int, before: pd.DataFrame | None) -> pd.DataFrame:
    methods = methods_of(records)
    rows = list(methods.itertuples(index=False))
    found: list[dict[str, Any]] = []
    if steps:
        found += measured(rows, steps)
    elif before is not None:
        found += before[before["place"] == HERE].to_dict("records")
    for device in devices:
        for row in rows:
            if (took := predicted(row, device, image)) is not None:
                found.append(row._asdict() | {"place": device} | took)
    return pd.DataFrame(found)


def plot(costs: pd.DataFrame, out: Path, least: float = 0.0) -> None:
    """A panel a place: accuracy against the seconds of a step, on a logarithmic axis; methods below `least` % are named."""
    places = list(dict.fromkeys(costs["place"]))
    figure, grid = figure_of(len(places), 6.5, 4.4)
    for axes, place in zip(grid, places, strict=True):
        every = costs[costs["place"] == place].sort_values("accuracy")
        held, below = every[every["accuracy"] >= least], every[every["accuracy"] < least]["method"]
        low = held["time_s"] - held["time_low_s"]
        axes.errorbar(1e3 * held["time_s"], held["accuracy"], xerr=1e3 * np.array([low, held["time_high_s"] - held["time_s"]]),
                      fmt="o", color="tab:blue", ecolor="0.8")  # fmt: skip
        for number, row in enumerate(held.itertuples()):
            named = f"{row.method} ({row.type})" if row.method == "fp32" and row.type else row.method
            axes.annotate(named, (1e3 * row.time_s, row.accuracy), fontsize=8, xytext=(5, (-10, 4)[number % 2]),
                          textcoords="offset points")  # fmt: skip
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        title = "measured here, one thread" if place == HERE else f"predicted on {place}"
        axes.set_title(title + (f" (below: {', '.join(below)})" if len(below) else ""), fontsize=10)
        axes.set_xlabel("ms a step (middle half)" if place == HERE else "ms a step (80 % interval)", fontsize=9)
        axes.set_ylabel("test accuracy, %", fontsize=9)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="records.csv of a study of methods.")
    parser.add_argument("--out", type=Path, required=True, help="What the two files are called, without their ending.")
    parser.add_argument("--here", type=int, default=0, metavar="N", help="Measure N steps of each method on this machine.")
    parser.add_argument("--devices", default=",".join(DEVICES), help="Profiles, with commas between them.")
    parser.add_argument("--image", default="32x32x3")
    parser.add_argument("--least", type=float, default=0.0, help="Accuracy, in percent, at which the figure begins.")
    given = parser.parse_args(arguments)
    file = given.out.with_suffix(".csv")
    before = pd.read_csv(file, keep_default_na=False) if file.exists() else None
    records = pd.read_csv(given.records, keep_default_na=False)
    costs = table(records, given.devices.split(","), given.image, given.here, before)
    costs.to_csv(file, index=False, float_format="%.6g")
    plot(costs, given.out.with_suffix(".svg"), given.least)
    for place in dict.fromkeys(costs["place"]):
        print(f"\n| {place} | type | ms a step | interval | accuracy, % | seeds |\n|---|---|---|---|---|---|")
        for row in costs[costs["place"] == place].sort_values("time_s").itertuples():
            interval = f"{1e3 * row.time_low_s:.4g} .. {1e3 * row.time_high_s:.4g}"
            print(f"| {row.method} | {row.type} | {1e3 * row.time_s:.4g} | {interval} | {row.accuracy:.2f} | {row.seeds} |")


if __name__ == "__main__":
    main()
