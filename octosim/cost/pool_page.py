"""The page that says how far the pool's predictions are off (docs/validation.md), from the figures of octosim.cost.pool."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from octosim import cost, hardware
from octosim.cost import fit
from octosim.cost.pool import KEY_CHIPS, NOT_FITTED, REWRITTEN, SOURCE, Campaign, network_ops, networks, scores
from octosim.hardware import efficiency
from octosim.trace import WORK

XNNPACK = {
    # google/XNNPACK README.md (benchmarked on 8 February 2022): milliseconds with as many threads as cores
    ("raspberry-pi-3b-plus", "float32"): {"mobilenet": 114, "mobilenet_v2": 79, "mobilenet_v3": 67},
    ("raspberry-pi-4", "float32"): {"mobilenet": 77, "mobilenet_v2": 46, "mobilenet_v3": 40},
    ("raspberry-pi-3b-plus", "smlal"): {"mobilenet": 46, "mobilenet_v2": 30},
    ("raspberry-pi-4", "smlal"): {"mobilenet": 24, "mobilenet_v2": 17},
}  # fmt: skip


def other_software(data: Path) -> list[dict[str, Any]]:
    """What the profiles and the shipped factors say of measurements with other software."""
    nets = networks(data)
    found = []
    for (profile, path), times in XNNPACK.items():
        device = hardware.load(profile)
        for network, ms in times.items():
            stack, other = nets[network]
            chain = [replace(layer, int8_output=True) for layer in stack]  # codes from end to end
            costs = cost.predict(network_ops(network, {network: (chain, other)}, "float32", path == "smlal"), device)
            total = cost.total(costs, device)
            found.append({"profile": profile, "path": path, "network": network, "measured_s": ms / 1000} | total)
    return found


def pairs(all_: Sequence[Campaign], one_chip: bool) -> list[tuple[Campaign, Campaign, fit.Array]]:
    """Campaigns with the same core, clock, arithmetic and threads, on one chip or on two, and ln(second / first) by network."""
    found = []
    for i, a in enumerate(all_):
        for b in all_[i + 1 :]:
            same = all((c.path, c.rewritten, c.threads, c.core) == (a.path, a.rewritten, a.threads, a.core) for c in (a, b))
            if same and (a.chip == b.chip) == one_chip and a.samples[0].ops.clock[0] == b.samples[0].ops.clock[0]:
                one, two = ({s.network: math.log(s.time_s) for s in c.samples} for c in (a, b))
                found.append((a, b, np.array([two[n] - one[n] for n in one if n in two])))
    return found


def pair_lines(found: Iterable[tuple[Campaign, Campaign, fit.Array]]) -> list[str]:
    lines = ["| campaign | against | median difference, % | second / first, median (least, most) |", "|---|---|---|---|"]
    for a, b, ratios in found:
        middle, least, most = np.exp([np.median(ratios), ratios.min(), ratios.max()])
        lines.append(f"| {a.label} | {b.name} | {percent(fit.median_error(np.abs(ratios)))} | "
                     f"{middle:.2f} ({least:.2f}, {most:.2f}) |")  # fmt: skip
    return lines


UNCALIBRATED, CALIBRATED = 0.40, 0.15
"""Median errors that the key devices' rows are meant to stay below."""


def above_lines(target: Sequence[Mapping[str, Any]], all_: Sequence[Campaign]) -> list[str]:
    """The rows above their targets, each with other campaigns on the same core at the same clock."""
    lines = [
        "| device | arithmetic | threads | error, % | predicted / measured, median | the same core and clock elsewhere: time |",
        "|---|---|---|---|---|---|",
    ]
    both = [*pairs(all_, True), *pairs(all_, False)]
    turned = [*both, *((b, a, -ratios) for a, b, ratios in both)]
    for row in target:
        for key, most in (("uncalibrated", UNCALIBRATED), ("calibrated", CALIBRATED)):
            if row[key]["median"] <= most:
                continue
            here = (row["name"], row["path"], row["threads"])
            others = [f"{b.name} {math.exp(np.median(r)):.2f} ({math.exp(r.min()):.2f} to {math.exp(r.max()):.2f}) times"
                      for a, b, r in turned if (a.name, a.path, a.threads) == here and b.role != "older"]  # fmt: skip
            lines.append(f"| {' | '.join(map(str, here))} | {key} {percent(row[key]['median'])} | {row[key]['bias']:.2f} | "
                         f"{'; '.join(others) or 'none'} |")  # fmt: skip
    return lines


def inversions(predictions: Sequence[Mapping[str, Any]], key: str) -> dict[tuple[str, str], list[float]]:
    """Pairs of networks predicted in the wrong order -> how many times as long the slower one took, by campaign."""
    found: dict[tuple[str, str], list[float]] = {}
    for a in predictions:
        for b in predictions:
            same = all(a[k] == b[k] for k in ("name", "path", "threads"))
            ratio = b["measured_s"] / a["measured_s"]
            if same and ratio > 1 and ratio * math.exp(b[key] - a[key]) < 1:
                found.setdefault(tuple(sorted((a["network"], b["network"]))), []).append(ratio)
    return dict(sorted(found.items(), key=lambda x: -len(x[1])))


def inversion_lines(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| pair | uncalibrated | calibrated | slower / faster as measured, median (most) |", "|---|---|---|---|"]
    plain, fitted = (inversions(predictions, key) for key in ("uncalibrated", "calibrated"))
    for pair in sorted({*plain, *fitted}, key=lambda p: -len(plain.get(p, [])) - len(fitted.get(p, []))):
        ratios = [*plain.get(pair, []), *fitted.get(pair, [])]
        lines.append(f"| {pair[0]}, {pair[1]} | {len(plain.get(pair, []))} | {len(fitted.get(pair, []))} | "
                     f"{np.median(ratios):.2f} ({max(ratios):.2f}) |")  # fmt: skip
    return lines


def ranks_without(predictions: Sequence[Mapping[str, Any]], network: str) -> list[tuple[float, float]]:
    """Rank correlations of each campaign, uncalibrated and calibrated, with one network left out."""
    campaigns_: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in predictions:
        if row["network"] != network:
            campaigns_.setdefault((row["name"], row["path"], row["threads"]), []).append(row)
    found = []
    for some in campaigns_.values():
        y = np.log([row["measured_s"] for row in some])
        plain, fitted = (scores(y + [row[key] for row in some], y)["rank"] for key in ("uncalibrated", "calibrated"))
        found.append((plain, fitted))
    return found


def summary_lines(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| arithmetic | role | measurements | uncalibrated: chip left out | calibrated: network left out |",
             "|---|---|---|---|---|"]  # fmt: skip
    for path in efficiency.PATHS:
        for role in ("pool", "held-out", "older"):
            some = [r for r in predictions if (r["path"], r["role"]) == (path, role)]
            if some:
                keys = ("uncalibrated", "calibrated")
                errors = [percent(fit.median_error(np.array([r[key] for r in some]))) for key in keys]
                lines.append(f"| {path} | {role} | {len(some)} | {' | '.join(errors)} |")
    return lines


def percent(value: float) -> str:
    return f"{100 * value:.0f}"


def rows_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| device | arithmetic | threads | networks | roofline | uncalibrated | without its core | calibrated | rank |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        cells = [f"{percent(r[k]['median'])} ({percent(r[k]['mean'])})"
                 for k in ("roofline", "uncalibrated", "uncalibrated_core", "calibrated")]  # fmt: skip
        path = r["path"] if r["rewritten"] else f"{r['path']}, before {REWRITTEN:%m/%Y}"
        lines.append(f"| {r['name']} | {path} | {r['threads']} | {r['networks']} | {' | '.join(cells)} | "
                     f"{r['uncalibrated']['rank']:.2f}, {r['calibrated']['rank']:.2f} |")  # fmt: skip
    return lines


def group_lines(predictions: Sequence[Mapping[str, Any]], key: str, names: Mapping[str, str]) -> list[str]:
    lines = [f"| {key} | arithmetic | measurements | uncalibrated | calibrated |", "|---|---|---|---|---|"]
    order = sorted({(r[key], r["path"]) for r in predictions}, key=lambda x: (names.get(x[0], x[0]), x[1]))
    for value, path in order:
        some = [r for r in predictions if r[key] == value and r["path"] == path]
        errors = [percent(fit.median_error(np.array([r[k] for r in some]))) for k in ("uncalibrated", "calibrated")]
        lines.append(f"| {names.get(value, value)} | {path} | {len(some)} | {' | '.join(errors)} |")
    return lines


def network_lines(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| network | " + " | ".join(efficiency.PATHS) + " |", "|---" * (1 + len(efficiency.PATHS)) + "|"]
    for network in sorted({r["network"] for r in predictions}):
        cells = []
        for path in efficiency.PATHS:
            some = [r["calibrated"] for r in predictions if r["network"] == network and r["path"] == path]
            cells.append(f"{100 * math.expm1(float(np.median(some))):+.0f}" if some else "")
        lines.append(f"| {network} | {' | '.join(cells)} |")
    return lines


def part_lines(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each part of the predicted times would have to be multiplied by, from the networks of each device together."""
    from scipy.optimize import nnls

    lines = [f"| arithmetic | devices | {' | '.join(f'{part}: share, factor (quartiles)' for part in fit.PARTS)} |",
             "|---" * (2 + len(fit.PARTS)) + "|"]  # fmt: skip
    for path in efficiency.PATHS:
        devices: dict[str, list[Mapping[str, Any]]] = {}
        for r in predictions:
            if r["path"] == path and r["network"] not in NOT_FITTED:
                devices.setdefault(r["name"], []).append(r)
        shares, factors = [], []
        for some in devices.values():
            parts = np.array([r["parts_s"] for r in some])
            time = np.array([r["measured_s"] for r in some])
            time = time * np.exp(np.median([r["uncalibrated"] for r in some]))  # a device's own speed is no part's error
            shares.append((parts / parts.sum(axis=1, keepdims=True)).mean(axis=0))
            factors.append(nnls(parts / time[:, None], np.ones(len(some)))[0])
        low, middle, high = np.quantile(factors, (0.25, 0.5, 0.75), axis=0)
        cells = [f"{percent(share)} %, {m:.2f} ({a:.2f} to {b:.2f})"
                 for share, a, m, b in zip(np.mean(shares, axis=0), low, middle, high, strict=True)]  # fmt: skip
        lines.append(f"| {path} | {len(devices)} | {' | '.join(cells)} |")
    return lines


def coverage(predictions: Sequence[Mapping[str, Any]], key: str, spread: Mapping[str, float]) -> str:
    inside = [abs(r[key]) <= cost.INTERVAL * spread[r["path"]] for r in predictions]
    return percent(float(np.mean(inside)))


def page(all_: Sequence[Campaign], found: Mapping[str, Any], data: Path, command: str) -> str:
    """docs/validation.md."""
    predictions, rows = found["predictions"], found["campaigns"]
    chip = {r["name"]: r["chip"] for r in predictions}
    target = [r for r in rows if chip[r["name"]] in KEY_CHIPS and r["role"] == "pool" and "Zero" not in r["name"]
              and "A55" not in r["name"]]  # fmt: skip
    names = {r["name"] for r in target}
    mine = [r for r in predictions if r["name"] in names and r["role"] == "pool"]
    kept = [r for r in predictions if r["role"] == "pool"]
    inside, outside = ([r for r in predictions if r["role"] == role and r["rewritten"]] for role in ("pool", "held-out"))
    pooled = {path: f.spread for path, f in efficiency.shipped()["pool"].items()}
    titles = {"BCM2837": "Pi 3B+", "BCM2711": "Pi 4", "BCM2712": "Pi 5"}
    both = {key: [percent(fit.median_error(np.array([r[key] for r in mine if (r["path"] in ("smlal", "sdot")) == i8])))
                  for i8 in (False, True)] for key in ("uncalibrated", "calibrated")}  # fmt: skip
    int8_rows = [r for r in rows if r["role"] == "pool" and r["path"] in ("smlal", "sdot")]
    int8_kept = [r for r in kept if r["path"] in ("smlal", "sdot")]
    ranks = np.mean(ranks_without(int8_kept, "squeezenet_ssd"), axis=0)
    ranks_all = [float(np.mean([r[key]["rank"] for r in int8_rows])) for key in ("uncalibrated", "calibrated")]
    with_ssd: list[int] = []
    for key in ("uncalibrated", "calibrated"):
        wrong = inversions(int8_kept, key)
        with_ssd += [sum(len(v) for pair, v in wrong.items() if "squeezenet_ssd" in pair), sum(map(len, wrong.values()))]
    software = other_software(data)
    off = fit.median_error(np.array([math.log(r["time_s"] / r["measured_s"]) for r in software]))
    hit = sum(r["time_low_s"] <= r["measured_s"] <= r["time_high_s"] for r in software)
    lines = [
        "# How far the cost model is off",
        "",
        f"Made by `{command}`; do not edit.",
        f"Latencies: {SOURCE} (BSD-3), the fastest of each network's runs; the layers of its",
        "networks from the parameter files beside it. Devices: `octosim/cost/ncnn_devices.toml`. Rows of GPUs (Vulkan), of",
        "32-bit Arm and of x86 are not used.",
        "",
        "Every figure is the median over networks of |predicted / measured - 1| in percent, the mean in brackets.",
        "",
        "- **roofline**: peak rate and sustained bandwidth, nothing fitted, winograd not counted.",
        "- **uncalibrated**: the profile and the pool's factors; the fit has seen no measurement of the device's chip.",
        "- **without its core**: the same, and no measurement of the core (Cortex-A53 ...) on any chip either.",
        "- **calibrated**: factors fitted to the device's other networks, at all numbers of threads; the network is left out.",
        "  The float layers inside int8 networks have the factors of the device's float measurements, all of them.",
        "- **rank**: Spearman's correlation over networks, uncalibrated and calibrated. Eight int8 networks, some within 5 %",
        "  of each other, make a coarse rank.",
        f"- **sdot, before {REWRITTEN:%m/%Y}**: measured with ncnn's int8 convolutions of before they were rewritten, until",
        f"  {REWRITTEN} (Tencent/ncnn@c8662cce5, 80b3b9c6f, 4136de3b8; an entry is as old as its lines in the table). These",
        "  entries have factors of their own; the factors of octosim are of the entries since. With the kernels of before, a",
        "  Raspberry Pi 5 took 1.57 times as long for ResNet-18, 1.04 times for MobileNet (f38fc95e0, 070dac995, one thread).",
        "",
        "The form of the model and its fixed numbers (border copies, half of the cache, Winograd's tiles, the weight of local",
        "response normalization, which networks and entries the fit leaves out) were chosen with the pool's errors in view, so",
        "these are somewhat optimistic. The held-out devices and the other software below were not used for that. The Pi 5's",
        "errors led to ncnn's history, in which the date of the rewrite stands; no date was tried.",
        "",
        f"Over the devices below: uncalibrated {both['uncalibrated'][0]} % (float) and {both['uncalibrated'][1]} % (int8), "
        f"calibrated {both['calibrated'][0]} % and {both['calibrated'][1]} %.",
        "",
        *rows_of(target),
        "",
        "By chip, all threads and boards together:",
        "",
        *group_lines(mine, "chip", titles),
        "",
        "Over all devices, by arithmetic (pool: leave-one-chip-out and leave-one-network-out; held-out and older: in no fit",
        "of the pool):",
        "",
        *summary_lines(predictions),
        "",
        "## Rows above 40 % (uncalibrated) or 15 % (calibrated)",
        "",
        "A time of 1.35 in the last column: another campaign with the same core, clock, arithmetic and threads took 1.35 times",
        "as long (median over networks, with the least and the most). A prediction from core and clock that is right about one",
        "is wrong about the other by as much; where least and most lie far apart, for one network more than for another.",
        "",
        *above_lines(target, all_),
        "",
        "## Networks in the wrong order",
        "",
        f"Pairs of int8 networks that a prediction puts in the wrong order, of {len(int8_rows)} campaigns of the pool.",
        "squeezenet_ssd (see the end: most of what the model misses is no tensor operation) is in",
        f"{with_ssd[0]} of {with_ssd[1]} uncalibrated and {with_ssd[2]} of {with_ssd[3]} calibrated inversions; without it the",
        f"mean rank correlation is {ranks[0]:.2f} and {ranks[1]:.2f} instead of {ranks_all[0]:.2f} and {ranks_all[1]:.2f}.",
        "",
        *inversion_lines(int8_kept),
        "",
        "## Noise floor",
        "",
        "The same software on the same board repeats within 2 to 5 %. Campaigns of different people on the same chip,",
        "arithmetic and threads (software version, cooling, operating system) differ more; no model of the chip alone can",
        "be nearer:",
        "",
        *pair_lines(pairs(all_, True)),
        "",
        "The same core at the same clock on two chips: what a prediction from the core alone cannot tell apart, whether it",
        "comes from caches and memory or from the software of the day.",
        "",
        *pair_lines(pairs(all_, False)),
        "",
        "## Other devices of the pool",
        "",
        *rows_of(r for r in rows if r["role"] == "pool" and r not in target),
        "",
        "## Devices outside every fit of the pool",
        "",
        "In no fit, and no parameter was chosen by them. The FT-2000/4 was taken out of the pool after a first look: its entry",
        "is three times slower than other cores of its peak, and nothing in the table says why.",
        "",
        *rows_of(r for r in rows if r["role"] == "held-out"),
        "",
        "Older software, not in the pool either: measured before FastestDet joined the table's networks, and a newer entry",
        "with the same core is about 1.5 times as fast in int8 at the same clock, or more. With them in the pool, the",
        "uncalibrated float16 errors on Pi 5 and RK3588 grow by half.",
        "",
        *rows_of(r for r in rows if r["role"] == "older"),
        "",
        "## Other software",
        "",
        "XNNPACK on the same boards (google/XNNPACK README.md, 8 February 2022; as many threads as cores), predicted from the",
        f"shipped profiles and factors: median error {percent(off)} %, {hit} of {len(software)} inside the 80 % interval.",
        "Nothing was fitted to it. Its int8 kernels are faster than ncnn's: software matters as much as the device.",
        "",
        "| board | arithmetic | network | measured, ms | predicted, ms | 80 % interval, ms |",
        "|---|---|---|---|---|---|",
        *(f"| {r['profile']} | {r['path']} | {r['network']} | {1000 * r['measured_s']:.0f} | {1000 * r['time_s']:.0f} | "
          f"{1000 * r['time_low_s']:.0f} to {1000 * r['time_high_s']:.0f} |" for r in software),
        "",
        "## Intervals",
        "",
        "With the spread of the factors alone (`octosim/hardware/efficiency.toml`), exp(+-1.28 spread) around an uncalibrated",
        f"prediction holds {coverage(inside, 'uncalibrated', pooled)} % of the pool's measurements (80 by construction) and",
        f"{coverage(outside, 'uncalibrated', pooled)} % of those held out.",
        f"`octosim cost` adds a spread of {cost.SOFTWARE_SPREAD} for other software, and {cost.BACKWARD_SPREAD} for training's",
        "passes.",
        "",
        "## Parts apart",
        "",
        "A prediction is a sum of products, passes over memory and calls; the table of latencies has whole networks only.",
        "What each part would have to be multiplied by follows from networks that consist of them in different shares: the",
        "three factors, none below 0, with which the parts of one device's networks come nearest to the measured times (least",
        "squares of the relative error; uncalibrated, the device's median error taken out first). 1 is right; a part of a few",
        "percent of the time is hardly determined. To judge the parts alone, times of single layers would be needed: ncnn",
        "prints them if built with NCNN_BENCHMARK, and no such list of a board in this table was found.",
        "",
        *part_lines(kept),
        "",
        "## By network",
        "",
        "Median over devices of the calibrated error (predicted / measured - 1, network left out of the fit), in percent;",
        "the signs show what the model lacks.",
        "",
        *network_lines(kept),
        "",
        "Left out of every fit, but predicted: " + ", ".join(NOT_FITTED) + ".",
        "squeezenet_ssd: its time is largely non-maximum suppression over equal scores (the benchmark's weights are zeros), on",
        "one thread. nanodet_m: its unlisted layers produce three times the elements of the listed ones, most of them views.",
        "vision_transformer: fully connected layers of many rows read their weights again for each row. alexnet and googlenet",
        f"have local response normalization, priced as {WORK['LRN']} passes over its elements.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
