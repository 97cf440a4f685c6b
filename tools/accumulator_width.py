"""Makes reports/accumulator-width/: octosim study accumulator-width (it continues where it stopped), its page, and a reading.

    python tools/accumulator_width.py --jobs 2

The records and the page are octosim's; README.md is made from records.csv alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from octosim.numerics import ACCUMULATORS
from octosim.report.spread import interval

BASE = "exact32"


def register_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The last evaluation of every run, as a row a register: accuracies (in percent) by seed against those of exact32."""
    last = table.groupby("run", sort=False).last()
    exact = last[last["accumulator"] == BASE].set_index("seed")
    rows = []
    for name, runs in last.groupby("accumulator", sort=False):
        runs = runs.set_index("seed")
        common = runs.index.intersection(exact.index)
        ours, theirs = 100 * runs["test_accuracy"], 100 * exact["test_accuracy"]
        differences = (ours[common] - theirs[common]).tolist()
        same = bool(len(common)) and (runs.loc[common, "digest"] == exact.loc[common, "digest"]).all()
        lost = 100 * (runs["saturations"] + runs["wraps"]).sum() / runs["additions"].sum()
        inexact = 100 * runs["inexact"].sum() / runs["outputs"].sum()
        rows.append(
            {
                "name": name, "seeds": len(runs), "mean": ours.mean(), "low": ours.min(), "high": ours.max(),
                "difference": sum(differences) / len(differences) if differences else float("nan"),
                "span": interval(differences), "same": same, "lost": lost, "inexact": inexact,
                "bits": int(runs["largest_bits"].max()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows).set_index("name", drop=False)


def _holds(row: pd.Series) -> bool:
    """Whether nothing shows that a register costs accuracy: the same bits, or an interval that reaches 0 within a point."""
    return bool(row["same"]) or (row["span"] is not None and row["span"][1] >= 0 and row["difference"] > -1)


def _narrowest(rows: pd.DataFrame, overflow: str) -> str:
    """A sentence on the registers that saturate, or wrap, from the widest down to the first that fails."""
    narrow = [ACCUMULATORS[name] for name in rows.index if name.startswith("acc")]
    family = sorted((a for a in narrow if a.overflow == overflow), key=lambda a: -a.bits)
    if not family:
        return ""
    kept = []
    for accumulator in family:
        if not _holds(rows.loc[accumulator.name]):
            break
        kept.append(accumulator)
    way = "saturates" if overflow == "saturate" else "wraps"
    if len(kept) == len(family):
        verb = way.removesuffix("s")
        return f"Of the registers that {verb}, every one down to {kept[-1].bits} bits trains as well as {BASE}."
    failed = rows.loc[family[len(kept)].name]
    fails = f"{failed['name']} ends at {failed['mean']:.2f} % ({failed['difference']:+.2f} points)"
    if not kept:
        return f"A register that {way} is worse at {family[0].bits} bits already: {fails}."
    return f"A register that {way} trains as well as {BASE} down to {kept[-1].bits} bits; {fails}."


def reading(table: pd.DataFrame, command: str) -> str:
    """README.md: what the records say, and what they do not."""
    first, seeds = table.iloc[0], table["seed"].nunique()
    text = [
        "# Accumulator width\n",
        "How many bits do the sums of a method's int8 products need in training?  "
        f"{first['model']} on {first['data']}, batch {first['batch_size']}, {table['step'].max()} steps, {seeds} seeds.\n",
        f"Made by `{command}`: [records.csv](records.csv) and `report.html`, the page, which is not in the repository.  "
        "This text is made from the records.\n",
    ]
    for method, part in table.groupby("method", sort=False):
        rows = register_rows(part)
        if BASE not in rows.index:
            text += [f"## {method}\n", f"No finished run with {BASE}: nothing to compare with.\n"]
            continue
        exact = rows.loc[BASE]
        same = [name for name in rows.index if name != BASE and rows.loc[name, "same"]]
        text += [
            f"## {method}\n",
            f"{BASE} ends at {exact['mean']:.2f} % ({exact['low']:.2f} to {exact['high']:.2f} over {exact['seeds']} seeds). "
            + (f"The same bits with every seed: {', '.join(same)}. " if same else "No other register gave the same bits. ")
            + " ".join(filter(None, (_narrowest(rows, "saturate"), _narrowest(rows, "wrap"))))
            + "\n",
            "| register | accuracy, mean | range | against exact32, points | 95 % interval | additions that overflow | "
            "outputs not exact | most bits needed |",
            "|---|---:|---|---:|---|---:|---:|---:|",
        ]
        for row in rows.to_dict("records"):
            span = f"{row['span'][0]:+.2f} to {row['span'][1]:+.2f}" if row["span"] else "too few seeds"
            text.append(
                f"| {row['name']} | {row['mean']:.2f} % | {row['low']:.2f} to {row['high']:.2f} | {row['difference']:+.2f} | "
                f"{'same bits' if row['same'] else span} | {row['lost']:.3g} % | {row['inexact']:.3g} % | {row['bits']} |"
            )
        text.append("")
    text.append(
        "\"As well\" means: the same bits, or a mean difference of less than one point whose 95 % interval (Student's t over "
        f"{seeds} seeds) reaches 0.  With so few seeds a small loss can hide in the interval.  One network, one data set, a "
        "short training; sums of other lengths need other widths.  Widths between those listed were not tried.  Overflow was "
        f"counted in every {int(first['count_overflow'])}th step; most bits needed is the largest seen there.\n"
    )
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="accumulator-width", help="a study of the package or a .toml file")
    parser.add_argument("--out", type=Path, default=Path("reports/accumulator-width"))
    parser.add_argument("--jobs", default="2", help="runs at once")
    options = parser.parse_args()
    folder = Path("studies") / Path(options.study).stem
    octosim = [sys.executable, "-m", "octosim.cli"]
    done = subprocess.run([*octosim, "study", options.study, "--jobs", options.jobs, "--threads", "1", "--out", str(folder)])
    if done.returncode:
        return done.returncode
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "records.csv", options.out / "records.csv")
    command = f"python tools/accumulator_width.py --jobs {options.jobs}"
    (options.out / "README.md").write_text(reading(pd.read_csv(options.out / "records.csv"), command))
    return subprocess.run([*octosim, "report", str(folder), "-o", str(options.out / "report.html")]).returncode


if __name__ == "__main__":
    sys.exit(main())
