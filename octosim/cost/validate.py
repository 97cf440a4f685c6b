"""How far the cost model is off, as rows: against the sources of efficiencies, measured inferences, measured training steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octosim import cost, hardware
from octosim.cost import fit, fit_training, reference, runtimes

Rows = list[dict[str, Any]]


def efficiencies() -> Rows:
    """Each efficiency of a shipped profile that names its source's figure: that and the prediction, images or GMAC a second."""
    rows = []
    for name in hardware.names()[:-1]:
        device = hardware.load(name)
        for engine, dtype, ratio in reference.references(device):
            assert ratio.reproduces is not None
            published = ratio.reproduces.images_s or ratio.reproduces.gmac_s or math.nan
            predicted = reference.predicted(device, engine, dtype, ratio.reproduces, ratio.value)
            rows.append({"profile": name, "engine": engine.name, "type": dtype, "network": ratio.reproduces.network,
                         "measured": published, "predicted": predicted, "error": predicted / published - 1})  # fmt: skip
    return rows


def inference(
    path: Path, profile: str | None, layers: Path | None, summary: Path | None, device: str, runtime: str | None
) -> Rows:  # fmt: skip
    """Measured inferences against the model and against a roofline with nothing fitted, in seconds.

    A row's own profile, power mode and runtime come first, then profile and runtime.
    """
    if profile:
        hardware.load(profile)
    if runtime:
        hardware.load_runtime(runtime)
    rows = fit.measurements(path, device)
    nets = fit.networks(layers, summary) if layers else {}
    several = any(row.profile or row.runtime for row in rows)
    result = []
    for row in rows:
        name = row.profile or profile
        if name is None:
            raise row.row.error(f"{row.network} has no profile, and --profile does not say the device either")
        with row.row.placed():
            chip, software = _place(name, row.mode, row.runtime or runtime)
        ops, _ = fit.operations(row, chip, nets, "int8", software)
        total = cost.total(cost.predict(ops, chip, row.threads, software), chip)
        prepared = cost.prepare(ops, chip, row.threads, software)
        macs, moved = np.array([op.macs for op in ops], float), np.array([op.bytes for op in ops], float)
        roof = float(np.maximum(macs / (prepared.rate * prepared.cores), moved / prepared.bandwidth).sum())
        where = {"profile": chip.name, "runtime": software.name} if several else {}
        result.append(where | {
            "network": row.network, "precision": row.precision, "threads": row.threads or "all", "measured": row.time_s,
            "predicted": total["time_s"], "low": total["time_low_s"], "high": total["time_high_s"],
            "error": total["time_s"] / row.time_s - 1, "roofline_error": roof / row.time_s - 1,
            "inside": float(total["time_low_s"] <= row.time_s <= total["time_high_s"]),
        })  # fmt: skip
    return result


@functools.lru_cache
def _place(profile: str, mode: str, runtime: str | None) -> tuple[hardware.Device, hardware.Runtime]:
    """A device in a power mode, "" for none, and the software on it: the common one if not given."""
    chip = hardware.load(profile)
    chip = hardware.at_mode(chip, mode) if mode else chip
    software = hardware.load_runtime(runtime) if runtime else runtimes.default(chip, False)
    runtimes.check(software, chip, False)
    return chip, software


def training(path: Path, layers: Path | None, profile: str, runtime: str, only: str = "") -> Rows:
    """Measured training steps in seconds, each predicted by fits without its network (of few networks, another one too): their
    median.  The interval's width is that of the other networks' errors.  only: what the rows' device begins with."""
    device, software = hardware.load(profile), hardware.load_runtime(runtime)
    measured = fit_training.steps(path, layers, device, software, only)
    if software.backward is None:
        return _by_another_program(measured, device, software)
    errors = fit_training.leave_out(measured, device, software)
    width = {
        name: cost.INTERVAL * fit_training.spread_of(row for row in errors if row["network"] != name)
        for name in {step.network for step in measured}
    }
    rows = []
    for step in measured:
        mine = [row["error"] for row in errors if row["step"] is step]
        error = float(np.median(mine))
        predicted, inside = step.time_s * math.exp(error), float(np.mean(np.abs(mine) <= width[step.network]))
        rows.append(_named(step, measured) | {
            "measured": step.time_s, "predicted": predicted, "error": math.expm1(error), "inside": inside,
        })  # fmt: skip
    different = fit_training.differences(fit_training.networks(layers)) if layers else []
    if different:
        rows[0]["note"] = "; ".join(different)
    return rows


def _by_another_program(
    measured: Sequence[fit_training.Step], device: hardware.Device, software: hardware.Runtime
) -> Rows:  # fmt: skip
    """The steps as octosim would make them."""
    runtimes.check(software, device, True)
    rows = []
    for step in measured:
        predicted = sum(c.time_s for c in cost.predict(step.ops, step.device or device, step.threads, software))
        rows.append(_named(step, measured) | {
            "measured": step.time_s, "predicted": predicted, "error": predicted / step.time_s - 1,
            "note": runtimes.ANOTHER_PROGRAM,
        })  # fmt: skip
    return rows


def _named(step: fit_training.Step, measured: Sequence[fit_training.Step]) -> dict[str, Any]:
    """The first columns of a step; its threads where they tell it from others."""
    several = len({other.threads for other in measured}) > 1
    return {"network": step.network, "batch": step.batch} | ({"threads": step.threads or "all"} if several else {})


def said(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The figures of a table in a sentence."""
    error = [abs(row["error"]) for row in rows]
    lines = [f"median error {100 * float(np.median(error)):.1f} %, worst {100 * max(error):.0f} %, of {len(rows)}"]
    if len(rows) > 2 and "roofline_error" in rows[0]:
        plain = [abs(row["roofline_error"]) for row in rows]
        rank = fit.rank_correlation(*([row[key] for row in rows] for key in ("measured", "predicted")))
        lines[0] += f"; a roofline with nothing fitted {100 * float(np.median(plain)):.1f} %"
        lines[0] += f"; rank correlation {rank:.3f}"
    if "inside" in rows[0]:
        lines[0] += f"; {100 * float(np.mean([row['inside'] for row in rows])):.0f} % inside the interval"
    return lines + list(dict.fromkeys(row["note"] for row in rows if "note" in row))
