"""Fits the efficiency factors, and writes the page that says how far the cost model is off.

    python tools/validate_cost.py --data MEASURED --write    # octosim/hardware/efficiency.toml and docs/validation.md
    python tools/validate_cost.py --data MEASURED --json     # the figures only

MEASURED: a folder with ncnn_benchmark.csv.gz, ncnn_network_layers.csv and ncnn_network_summary.csv.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from octosim import cost, hardware  # noqa: E402
from octosim.cost import fit  # noqa: E402
from octosim.hardware import efficiency  # noqa: E402
from octosim.trace import DTYPE_BYTES, WORK, Op  # noqa: E402

SOURCE = "Tencent/ncnn@a4d2ea1 benchmark/README.md"
KEY_CHIPS = ("BCM2837", "BCM2711", "BCM2712", "RK3588")
NOT_FITTED = ("squeezenet_ssd", "nanodet_m", "vision_transformer")
"""Networks that the tables of layers do not explain (the page's end says why); they are predicted all the same."""

# Elements that the table of layers does not list and that cost more than an addition: local response normalization, and
# networks whose activation is x sigmoid(x).
NORMALIZED = {"googlenet": (200704, 602112), "alexnet": (290400, 186624)}
SWISH = ("efficientnet_b0", "efficientnetv2_b0")


# The fit replaces these; the file that is being made must decide nothing.
START = {path: fit.as_factors(fit.START, 0.3, "start of the fit") for path in efficiency.PATHS}


@dataclass(frozen=True)
class Campaign:
    """One device, arithmetic and number of threads in the table: all its networks."""

    name: str
    chip: str
    core: str
    role: str
    path: str
    threads: int
    samples: tuple[fit.Sample, ...]

    @property
    def label(self) -> str:
        return f"{self.name}, {self.path}, {self.threads} threads"


def figure(value: float) -> dict[str, Any]:
    return {"value": value, "kind": "derived", "source": "tools/ncnn_devices.toml"}


def device_of(row: Mapping[str, Any], rates: Mapping[str, float]) -> hardware.Device:
    """The profile a row names, at the row's clock, or one made of the row."""
    if "profile" in row:
        return hardware.at_clock(hardware.load(row["profile"]), row["clock_ghz"]).model_copy(update={"calibration": START})
    int8 = "sdot" if "sdot" in rates else "smlal"
    macs = {"int8" if key == int8 else key: figure(value) for key, value in rates.items()}
    units = {"value": row.get("units", 4), "kind": "derived", "source": "tools/ncnn_devices.toml"}
    return hardware.Device.model_validate(
        {
            "name": "table", "title": row["name"], "training": {"status": "supported", "note": "a CPU"},
            "overhead_us": figure(5),
            "engines": [{"name": "neon", "accumulator": int8, "trains": True, "units": units, "core": row["core"],
                         "clock_ghz": figure(row["clock_ghz"]), "macs_per_clock": macs}],
            "memory": {"bandwidth_sustained_gb_s": figure(row["bandwidth_gb_s"]),
                       "bandwidth_peak_gb_s": figure(row["peak_gb_s"])},
            "caches": [{"name": "last", "shared_by": "all cores", "size_kib": figure(row["cache_kib"])}],
        }
    ).model_copy(update={"calibration": START})  # fmt: skip


def network_ops(name: str, nets: Mapping[str, Any], float_dtype: str, int8: bool) -> list[Op]:
    """A network of the tables, with what they leave out; ncnn stores float32 weights of full connections in 16 bits."""
    stack, other = nets[name]
    plain = name.removesuffix("_int8")
    normalized = NORMALIZED.get(plain, ())
    size = DTYPE_BYTES[float_dtype]
    ops = fit.layer_ops(stack, max(0, other - sum(normalized)), float_dtype, int8, linear_bytes=2)
    if plain in SWISH:
        ops = [replace(op, shape=(op.shape[0] * WORK["Sigmoid"],)) if op.name == "other" else op for op in ops]
    for i, n in enumerate(normalized):
        ops.append(Op(f"norm{i}", "forward", "elementwise", "lrn", (WORK["LRN"] * n,), float_dtype, n * size, n * size))
    if plain == "vision_transformer":  # the table lists the attention but not the two products after it
        shapes = [(145, 768, 3072), (145, 3072, 768)] * 12
        for i, (m, k, n) in enumerate(shapes):
            weights = k * n * size
            ops.append(Op(f"mlp{i}", "forward", "gemm", "linear", (m, k, n), float_dtype, m * k * size + weights, m * n * size,
                          weights=weights))  # fmt: skip
    return ops


def campaigns(data: Path) -> list[Campaign]:
    """The rows of the table that tools/ncnn_devices.toml describes."""
    table = tomllib.loads((ROOT / "tools" / "ncnn_devices.toml").read_text())
    nets = fit.networks(data / "ncnn_network_layers.csv", data / "ncnn_network_summary.csv")
    rows = fit.measurements(data / "ncnn_benchmark.csv.gz")
    found = []
    for row in table["device"]:
        rates = table["cores"].get(row.get("core"), {})
        device = device_of(row, rates)
        engine = device.engines[0]
        int8 = engine.accumulator
        has = engine.macs_per_clock.given()
        real = "float16" if "float16" in has else "float32"
        core = row.get("core") or engine.core or "Cortex-A" + device.title.split("Cortex-A")[1].split(",")[0]
        mine = [r for r in rows if r.device.startswith(row["match"]) and int(r.row["powersave"]) == row.get("powersave", 0)]
        for threads in row["threads"]:
            for path in (real, int8):
                some = {r.network: r for r in mine if r.threads == threads and r.is_int8 == (path == int8)}
                name = f"{row['name']}/{threads}"
                samples = tuple(
                    fit.Sample(
                        n.removesuffix("_int8"), name,
                        cost.prepare(network_ops(n, nets, real, path == int8), device, threads), r.time_s,
                    )
                    for n, r in some.items()
                )  # fmt: skip
                if samples:
                    found.append(Campaign(row["name"], row["chip"], core, row.get("role", "pool"), path, threads, samples))
    return found


def joined(some: Iterable[Campaign], fitted_only: bool = True) -> list[fit.Sample]:
    return [s for c in some for s in c.samples if not (fitted_only and s.network in NOT_FITTED)]


def base(path: str) -> str:
    """The float arithmetic beside an int8 one."""
    return {"smlal": "float32", "sdot": "float16"}.get(path, path)


def pool(all_: Sequence[Campaign], keep: Any) -> dict[str, fit.Array]:
    """Factors of all arithmetics from the pool's campaigns that `keep` admits."""
    factors: dict[str, fit.Array] = {}
    for path in efficiency.PATHS:
        some = [c for c in all_ if c.role == "pool" and c.path == path and keep(c)]
        factors = fit.fit(joined(some), path, factors, campaigns=True).factors
    return factors


def scores(predicted: fit.Array, measured: fit.Array) -> dict[str, float]:
    """Median and mean of |predicted / measured - 1|, the median ratio, and the rank correlation (Spearman)."""
    ratio = predicted - measured
    order = [np.argsort(np.argsort(x)) for x in (predicted, measured)]
    return {
        "median": fit.median_error(ratio),
        "mean": float(np.mean(np.abs(np.expm1(ratio)))),
        "bias": math.exp(float(np.median(ratio))),
        "rank": float(np.corrcoef(*order)[0, 1]) if len(ratio) > 2 else math.nan,
    }


def measured(samples: Sequence[fit.Sample]) -> fit.Array:
    return np.log([s.time_s for s in samples])


def roofline(samples: Sequence[fit.Sample]) -> fit.Array:
    """ln of the time of a plain roofline: peak rate, sustained bandwidth of main memory, nothing else."""
    found = []
    for s in samples:
        p = s.ops
        nominal = np.array([op.macs for op in p.ops], float)
        moved = np.array([op.bytes for op in p.ops], float)
        found.append(np.log(np.maximum(nominal / (p.rate * p.cores), moved / p.bandwidth).sum()))
    return np.array(found)


def evaluate(all_: Sequence[Campaign], wanted: Iterable[str] | None = None) -> dict[str, Any]:
    """The figures of the page: for each campaign a roofline, uncalibrated twice, calibrated without the network.

    wanted: only campaigns on these chips; the fits still see all that they may.
    """
    asked = list(all_) if wanted is None else [c for c in all_ if c.chip in set(wanted) and c.role == "pool"]
    chips = list(dict.fromkeys(c.chip for c in asked))
    without_chip = {chip: pool(all_, lambda c, chip=chip: c.chip != chip) for chip in chips}
    cores = list(dict.fromkeys(c.core for c in asked))
    without_core = {core: pool(all_, lambda c, core=core: c.core != core) for core in cores}
    found: dict[str, Any] = {"campaigns": [], "predictions": []}
    own: dict[tuple[str, str], dict[str, fit.Array]] = {}
    for c in asked:
        samples = list(c.samples)
        y = measured(samples)
        uncalibrated = fit.log_times(samples, without_chip[c.chip])
        row: dict[str, Any] = {"name": c.name, "path": c.path, "threads": c.threads, "role": c.role, "networks": len(samples)}
        row["roofline"] = scores(roofline(samples), y)
        row["uncalibrated"] = scores(uncalibrated, y)
        row["uncalibrated_core"] = scores(fit.log_times(samples, without_core[c.core]), y)
        together = [d for d in all_ if d.name == c.name and d.path == c.path]
        key = (c.name, base(c.path))
        known = without_chip[c.chip] | own.get(key, {})
        prior = without_chip[c.chip][c.path]
        everything = joined(together, fitted_only=False)
        if c.threads == together[0].threads:
            own_fit = fit.fit(joined(together), c.path, known, prior).factors[c.path]
            own.setdefault(key, {})[c.path] = own_fit
            left = leave_networks_out(everything, c.path, known, prior)
        else:
            left = found["left"][c.name, c.path]
        found.setdefault("left", {})[c.name, c.path] = left
        mine = np.array([left[s.network, s.campaign] for s in samples])
        row["calibrated"] = scores(mine, y)
        found["campaigns"].append(row)
        for s, u, k, t in zip(samples, uncalibrated, mine, y, strict=True):
            found["predictions"].append(
                {"name": c.name, "chip": c.chip, "role": c.role, "path": c.path, "threads": c.threads, "network": s.network,
                 "measured_s": math.exp(t), "uncalibrated": float(u - t), "calibrated": float(k - t)}
            )  # fmt: skip
    del found["left"]
    return found


def leave_networks_out(
    samples: Sequence[fit.Sample], path: str, known: Mapping[str, fit.Array], prior: fit.Array
) -> dict[tuple[str, str], float]:
    """(network, campaign) -> ln of the time predicted by a fit to the device's other networks."""
    found = {}
    for network in dict.fromkeys(s.network for s in samples):
        mine = [s for s in samples if s.network == network]
        others = [s for s in samples if s.network not in (network, *NOT_FITTED)]
        factors = fit.fit(others, path, known, prior, steps=15).factors
        for s, value in zip(mine, fit.log_times(mine, factors), strict=True):
            found[s.network, s.campaign] = float(value)
    return found


def spread_of(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Standard deviation that makes INTERVAL hold four errors in five."""
    return float(np.quantile(np.abs([r[key] for r in rows]), 0.8)) / cost.INTERVAL


def efficiency_file(all_: Sequence[Campaign], found: Mapping[str, Any], command: str) -> str:
    """The text of octosim/hardware/efficiency.toml."""
    groups: dict[str, dict[str, efficiency.Factors]] = {"pool": {}}
    full = pool(all_, lambda c: True)
    table = tomllib.loads((ROOT / "tools" / "ncnn_devices.toml").read_text())
    predictions = found["predictions"]
    for path in efficiency.PATHS:
        some = [c for c in all_ if c.role == "pool" and c.path == path]
        rows = [r for r in predictions if r["path"] == path and r["role"] == "pool"]
        text = f"{SOURCE}: {len(some)} campaigns on {len({c.chip for c in some})} chips; spread with the chip left out"
        groups["pool"][path] = fit.as_factors(full[path], spread_of(rows, "uncalibrated"), text)
    for profile in dict.fromkeys(row["profile"] for row in table["device"] if "profile" in row):
        names = [row["name"] for row in table["device"] if row.get("profile") == profile and row.get("role", "pool") == "pool"]
        some = [c for c in all_ if c.name in names]
        chip = some[0].chip
        outside = pool(all_, lambda c, chip=chip: c.chip != chip)
        known = dict(outside)
        for path in efficiency.PATHS:
            mine = [c for c in some if c.path == path]
            if not mine:
                continue
            several = len(names) > 1
            known = fit.fit(joined(mine), path, known, outside[path], campaigns=several).factors
            rows = [r for r in predictions if r["path"] == path and r["name"] in names]
            text = f"{SOURCE}: {', '.join(c.label for c in mine)}; spread with the network left out"
            groups.setdefault(profile, {})[path] = fit.as_factors(known[path], spread_of(rows, "calibrated"), text)
    head = "# Efficiency factors of CPU cores (octosim/efficiency.py), fitted to measured times of whole networks."
    return f"{head}\n# Made by: {command}\n\n{efficiency.toml(groups)}"


# ---- the page --------------------------------------------------

XNNPACK = {
    # google/XNNPACK README.md (benchmarked on 8 February 2022): milliseconds with as many threads as cores
    ("raspberry-pi-3b-plus", "float32"): {"mobilenet": 114, "mobilenet_v2": 79, "mobilenet_v3": 67},
    ("raspberry-pi-4", "float32"): {"mobilenet": 77, "mobilenet_v2": 46, "mobilenet_v3": 40},
    ("raspberry-pi-3b-plus", "smlal"): {"mobilenet": 46, "mobilenet_v2": 30},
    ("raspberry-pi-4", "smlal"): {"mobilenet": 24, "mobilenet_v2": 17},
}  # fmt: skip


def other_software(data: Path) -> list[dict[str, Any]]:
    """What the profiles and the shipped factors say of measurements with other software."""
    nets = fit.networks(data / "ncnn_network_layers.csv", data / "ncnn_network_summary.csv")
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
            same = all((c.path, c.threads, c.core) == (a.path, a.threads, a.core) for c in (a, b))
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
                found.setdefault(tuple(sorted((a["network"], b["network"]))), []).append(ratio)  # type: ignore[arg-type]
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
        lines.append(f"| {r['name']} | {r['path']} | {r['threads']} | {r['networks']} | {' | '.join(cells)} | "
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
    outside = [r for r in predictions if r["role"] == "held-out"]
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
        "networks from the parameter files beside it. Devices: `tools/ncnn_devices.toml`. Rows of GPUs (Vulkan), of 32-bit Arm",
        "and of x86 are not used.",
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
        "",
        "The form of the model and its fixed numbers (border copies, half of the cache, Winograd's tiles, the weight of local",
        "response normalization, which networks and entries the fit leaves out) were chosen with the pool's errors in view, so",
        "these are somewhat optimistic. The held-out devices and the other software below were not used for that.",
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
        "uncalibrated errors on Pi 5 and RK3588 grow by half (float16) to twice (sdot).",
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
        f"prediction holds {coverage(kept, 'uncalibrated', pooled)} % of the pool's measurements (80 by construction) and",
        f"{coverage(outside, 'uncalibrated', pooled)} % of those held out.",
        f"`octosim cost` adds a spread of {cost.SOFTWARE_SPREAD} for other software, and {cost.BACKWARD_SPREAD} for training's",
        "passes.",
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    all_ = campaigns(args.data)
    found = evaluate(all_)
    if args.write:
        command = "python tools/validate_cost.py --data MEASURED --write"
        (ROOT / "octosim" / "hardware" / "efficiency.toml").write_text(efficiency_file(all_, found, command))
        efficiency.shipped.cache_clear()
        (ROOT / "docs" / "validation.md").write_text(page(all_, found, args.data, command))
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(rows_of(found["campaigns"])))


if __name__ == "__main__":
    main()
