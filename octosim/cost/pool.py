"""The pool of CPU factors: fitted to ncnn's published latencies, and judged with chips, cores and networks left out.

What is fitted becomes octosim/hardware/efficiency.toml, what is judged docs/validation.md (octosim.cost.pool_page).
"""

from __future__ import annotations

import datetime
import functools
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from octosim import cost, hardware
from octosim.cost import fit
from octosim.errors import OctosimError
from octosim.hardware import efficiency
from octosim.trace import DTYPE_BYTES, WORK, Op

BENCHMARK, LAYERS, SUMMARY = "ncnn_benchmark.csv.gz", "ncnn_network_layers.csv", "ncnn_network_summary.csv"
"""Files of a folder of measurements: latencies, the networks' layers, and how many elements each network produces."""

SOURCE = "Tencent/ncnn@a4d2ea1 benchmark/README.md"
KEY_CHIPS = ("BCM2837", "BCM2711", "BCM2712", "RK3588")
NOT_FITTED = ("squeezenet_ssd", "nanodet_m", "vision_transformer")
"""Networks that the tables of layers do not explain (the page's end says why); they are predicted all the same."""

REWRITTEN = datetime.date(2023, 11, 15)
"""ncnn's int8 convolutions on Arm were rewritten in steps (Tencent/ncnn@c8662cce5, 80b3b9c6f, 4136de3b8), the last on this day.
With dot products its entries before and after have factors of their own: a Raspberry Pi 5 took 1.57 times as long for ResNet-18
in its entry of September 2023 (f38fc95e0) as in that of December (070dac995), 1.61 for VGG-16, 1.04 for MobileNet."""

# Elements that the table of layers does not list and that cost more than an addition: local response normalization, and
# networks whose activation is x sigmoid(x).
NORMALIZED = {"googlenet": (200704, 602112), "alexnet": (290400, 186624)}
SWISH = ("efficientnet_b0", "efficientnetv2_b0")


# The fit replaces these; the file that is being made must decide nothing.
START = {path: fit.as_factors(fit.START, 0.3, "start of the fit") for path in efficiency.PATHS}


@dataclass(frozen=True)
class Campaign:
    """One device, arithmetic and number of threads in the table: all its networks.

    rewritten: whether its software has the kernels that factors are shipped for, see REWRITTEN.
    """

    name: str
    chip: str
    core: str
    role: str
    path: str
    threads: int
    rewritten: bool
    samples: tuple[fit.Sample, ...]

    @property
    def label(self) -> str:
        return f"{self.name}, {self.path}, {self.threads} threads"


def figure(value: float) -> dict[str, Any]:
    return {"value": value, "kind": "derived", "source": "octosim/cost/ncnn_devices.toml"}


def device_of(row: Mapping[str, Any], rates: Mapping[str, float]) -> hardware.Device:
    """The profile a row names, at the row's clock, or one made of the row."""
    if "profile" in row:
        return hardware.at_clock(hardware.load(row["profile"]), row["clock_ghz"]).model_copy(update={"calibration": START})
    int8 = "sdot" if "sdot" in rates else "smlal"
    macs = {"int8" if key == int8 else key: figure(value) for key, value in rates.items()}
    units = {"value": row.get("units", 4), "kind": "derived", "source": "octosim/cost/ncnn_devices.toml"}
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


@functools.cache
def devices() -> dict[str, Any]:
    """The tables of ncnn_devices.toml: [[device]], and rates by core."""
    return tomllib.loads((Path(__file__).parent / "ncnn_devices.toml").read_text(encoding="utf-8"))


def networks(data: Path) -> dict[str, Any]:
    """The networks of a folder of measurements, see octosim.cost.fit.networks."""
    return fit.networks(data / LAYERS, data / SUMMARY)


def campaigns(data: Path) -> list[Campaign]:
    """The rows of the table that ncnn_devices.toml describes."""
    table = devices()
    nets = networks(data)
    ops = functools.cache(lambda name, float_dtype, int8: network_ops(name, nets, float_dtype, int8))
    rows = fit.measurements(data / BENCHMARK, needed=("powersave",))
    cores = [r.row.number("powersave", int, "benchncnn's 0, 1 or 2", lambda v: 0 <= v <= 2) for r in rows]
    found = []
    for row in table["device"]:
        rates = table["cores"].get(row.get("core"), {})
        device = device_of(row, rates)
        engine = device.engines[0]
        int8 = engine.accumulator
        has = engine.macs_per_clock.given()
        real = "float16" if "float16" in has else "float32"
        core = row.get("core") or engine.core or "Cortex-A" + device.title.split("Cortex-A")[1].split(",")[0]
        mine = [
            r for r, which in zip(rows, cores, strict=True)
            if r.device.startswith(row["match"]) and which == row.get("powersave", 0)
        ]  # fmt: skip
        for threads in row["threads"]:
            for path in (real, int8):
                some = {r.network: r for r in mine if r.threads == threads and r.is_int8 == (path == int8)}
                name = f"{row['name']}/{threads}"
                samples = tuple(
                    fit.Sample(
                        n.removesuffix("_int8"), name, cost.prepare(ops(n, real, path == int8), device, threads), r.time_s
                    )
                    for n, r in some.items()
                )
                rewritten = path != "sdot" or row["date"] >= REWRITTEN
                if samples:
                    role = row.get("role", "pool")
                    found.append(Campaign(row["name"], row["chip"], core, role, path, threads, rewritten, samples))
    if not any(c.role == "pool" for c in found):
        raise OctosimError(f"{data / BENCHMARK}: no measurement of a device that is known (octosim/cost/ncnn_devices.toml)")
    return found


def joined(some: Iterable[Campaign], fitted_only: bool = True) -> list[fit.Sample]:
    return [s for c in some for s in c.samples if not (fitted_only and s.network in NOT_FITTED)]


def base(path: str) -> str:
    """The float arithmetic beside an int8 one."""
    return {"smlal": "float32", "sdot": "float16"}.get(path, path)


class Pool:
    """Factors of all arithmetics from the campaigns with the role pool, with some left out; each set is fitted once.

    campaigns: of all roles.
    """

    def __init__(self, campaigns: Sequence[Campaign]) -> None:
        self.campaigns = campaigns
        self._fitted: dict[tuple[str, ...], fit.Array] = {}

    def without(self, key: str = "", value: str = "", rewritten: bool = True) -> dict[str, fit.Array]:
        """The factors without the campaigns whose `key` (chip, core) is `value`; of all campaigns if not given.

        rewritten: see Campaign.
        """
        among = [c for c in self.campaigns if c.role == "pool" and (not key or getattr(c, key) != value)]
        factors: dict[str, fit.Array] = {}
        for path in efficiency.PATHS:
            some = [c for c in among if c.path == path and (c.rewritten == rewritten or path != "sdot")]
            of = path, *(c.label for c in (*some, *(c for c in among if c.path == base(path))))
            if of not in self._fitted:
                self._fitted[of] = fit.fit(joined(some), path, factors, campaigns=True).factors[path]
            factors = {**factors, path: self._fitted[of]}
        return factors


def scores(predicted: fit.Array, measured: fit.Array) -> dict[str, float]:
    """Median and mean of |predicted / measured - 1|, the median ratio, and the rank correlation (Spearman)."""
    ratio = predicted - measured
    return {
        "median": fit.median_error(ratio),
        "mean": float(np.mean(np.abs(np.expm1(ratio)))),
        "bias": math.exp(float(np.median(ratio))),
        "rank": fit.rank_correlation(predicted, measured) if len(ratio) > 2 else math.nan,
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


def evaluate(
    pool: Pool, wanted: Iterable[str] | None = None, progress: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:  # fmt: skip
    """The figures of the page: for each campaign a roofline, uncalibrated twice, calibrated without the network.

    wanted: only campaigns on these chips; the fits still see all that they may.  progress: called with the share that is done.
    """
    all_ = pool.campaigns
    asked = all_ if wanted is None else [c for c in all_ if c.chip in set(wanted) and c.role == "pool"]
    found: dict[str, Any] = {"campaigns": [], "predictions": []}
    lefts: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    own: dict[tuple[str, str], dict[str, fit.Array]] = {}
    for done, c in enumerate(asked):
        samples = list(c.samples)
        y = measured(samples)
        without_chip = pool.without("chip", c.chip, c.rewritten)
        uncalibrated = fit.log_times(samples, without_chip)
        kept = {key: getattr(c, key) for key in ("name", "path", "threads", "role", "rewritten")}
        row: dict[str, Any] = {**kept, "networks": len(samples)}
        roof = roofline(samples)
        row["roofline"] = scores(roof, y)
        row["uncalibrated"] = scores(uncalibrated, y)
        row["uncalibrated_core"] = scores(fit.log_times(samples, pool.without("core", c.core, c.rewritten)), y)
        together = [d for d in all_ if d.name == c.name and d.path == c.path]
        key = (c.name, base(c.path))
        known = without_chip | own.get(key, {})
        prior = without_chip[c.path]
        if (c.name, c.path) not in lefts:
            own_fit = fit.fit(joined(together), c.path, known, prior).factors[c.path]
            own.setdefault(key, {})[c.path] = own_fit
            every = joined(together, fitted_only=False)
            left = fit.leave_one_out(every, c.path, known, prior, NOT_FITTED)
            lefts[c.name, c.path] = {(s.network, s.campaign): value for s, value in zip(every, left.tolist(), strict=True)}
        mine = np.array([lefts[c.name, c.path][s.network, s.campaign] for s in samples])
        row["calibrated"] = scores(mine, y)
        found["campaigns"].append(row)
        parts = fit.part_times(samples, without_chip)
        for s, r, u, k, t, p in zip(samples, roof, uncalibrated, mine, y, parts, strict=True):
            found["predictions"].append(
                {**kept, "chip": c.chip, "network": s.network, "measured_s": math.exp(t), "roofline": float(r - t),
                 "uncalibrated": float(u - t), "calibrated": float(k - t), "parts_s": p.tolist()}
            )  # fmt: skip
        progress((done + 1) / len(asked))
    return found


def spread_of(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Standard deviation that makes INTERVAL hold four errors in five."""
    return float(np.quantile(np.abs([r[key] for r in rows]), 0.8)) / cost.INTERVAL


def efficiency_file(pool: Pool, found: Mapping[str, Any], command: str) -> str:
    """The text of octosim/hardware/efficiency.toml."""
    groups: dict[str, dict[str, Any]] = {"pool": {}}
    all_, full = pool.campaigns, pool.without()
    table = devices()
    predictions = found["predictions"]
    for path in efficiency.PATHS:
        some = [c for c in all_ if c.role == "pool" and c.path == path and c.rewritten]
        rows = [r for r in predictions if r["path"] == path and r["role"] == "pool" and r["rewritten"]]
        text = f"{SOURCE}: {len(some)} campaigns on {len({c.chip for c in some})} chips; spread with the chip left out"
        groups["pool"][path] = fit.as_factors(full[path], spread_of(rows, "uncalibrated"), text)
    for profile in dict.fromkeys(row["profile"] for row in table["device"] if "profile" in row):
        names = [row["name"] for row in table["device"] if row.get("profile") == profile and row.get("role", "pool") == "pool"]
        some = [c for c in all_ if c.name in names]
        chip = some[0].chip
        outside = pool.without("chip", chip)
        known = dict(outside)
        for path in efficiency.PATHS:
            mine = [c for c in some if c.path == path and c.rewritten]
            if not mine:
                continue
            several = len({c.name for c in mine}) > 1
            known = fit.fit(joined(mine), path, known, outside[path], campaigns=several).factors
            rows = [r for r in predictions if r["path"] == path and r["name"] in names and r["rewritten"]]
            text = f"{SOURCE}: {', '.join(c.label for c in mine)}; spread with the network left out"
            groups.setdefault(profile, {})[path] = fit.as_factors(known[path], spread_of(rows, "calibrated"), text)
    head = "# Efficiency factors of CPU cores (octosim/hardware/efficiency.py), fitted to measured times of whole networks."
    return f"{head}\n# Made by: {command}\n\n{efficiency.toml(groups)}"
