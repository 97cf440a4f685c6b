"""Pictures of predicted costs: bars over devices, and layers under a device's roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octosim import cost
from octosim.errors import OctosimError
from octosim.hw import Device
from octosim.trace import Op

COLOURS = {"int8": "#0072B2", "float32": "#E69F00", "float16": "#009E73"}  # Okabe-Ito
MARKERS = {"forward": "o", "dX": "s", "dW": "^"}


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise OctosimError(f"cannot write {path}: {error}") from None
    finally:
        _pyplot().close(figure)


def bars(records: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Times of records of `octosim cost --compare --json`, INT8 above float32 where both are there, with 80 % intervals."""
    several = len({record["batch_size"] for record in records}) > 1
    names = [f"{r['device']}, batch {r['batch_size']}" if several else r["device"] for r in records]
    both = "gain" in records[0]
    series = {"int8": [r["int8"] for r in records], "float32": [r["float32"] for r in records]} if both else {
        records[0]["dtype"]: [r["total"] for r in records]}  # fmt: skip
    figure, axes = _pyplot().subplots(figsize=(9, 1.6 + 0.55 * len(records) * (1.3 if both else 1)), layout="constrained")
    y, height = np.arange(len(records), dtype=float), 0.8 / len(series)
    for i, (dtype, totals) in enumerate(series.items()):
        time, low, high = (np.array([t[k] or np.nan for t in totals]) for k in ("time_s", "time_low_s", "time_high_s"))
        at = y + (i - (len(series) - 1) / 2) * height
        axes.barh(at, time, height, color=COLOURS[dtype], label=f"{dtype}, line: 80 % interval")
        axes.errorbar(time, at, xerr=[time - low, high - time], fmt="none", ecolor="black", elinewidth=0.9, capsize=2)
    right = max(t["time_high_s"] or 0 for totals in series.values() for t in totals)
    left = min(t["time_low_s"] or right for totals in series.values() for t in totals)
    axes.set_xscale("log")
    axes.set_xlim(left / 1.5, right * (right / left) ** 0.16 * 1.2)
    for i, record in enumerate(records if both else []):
        if record["gain"] is None:
            continue
        edge = max(record[side]["time_high_s"] for side in ("int8", "float32"))
        axes.annotate(f"{record['gain']:.2f} x", (edge, y[i]), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(y, names)
    axes.invert_yaxis()
    axes.set_xlabel("predicted time, s" + ("; at the right, how many times as fast INT8 is" if both else ""))
    axes.set_title(title, fontsize=11)
    axes.grid(axis="x", which="major", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22 if len(records) < 4 else -0.12), ncols=2, frameon=False)
    _save(figure, path)


def roofs(device: Device, threads: int | None = None) -> dict[str, tuple[float, float]]:
    """dtype -> (peak MAC/s of its engine, bytes/s of main memory), of types that run on the device."""
    found = {}
    for dtype in ("int8", "float16", "float32"):
        op = Op("probe", "forward", "gemm", "probe", (64, 64, 64), dtype, 1, 1)
        engines = [e for e in device.engines if dtype in e.macs_per_clock.given()]
        if engines:
            prepared = cost.prepare([op], device, threads)
            engine = prepared.runs[0].engine
            share = min(threads or engine.units.value, engine.units.value) / engine.units.value
            found[dtype] = (engine.peak_mac_s(dtype) * share, float(prepared.bandwidth[0]))
    return found


def roofline(device: Device, traces: Sequence[Sequence[Op]], title: str, path: Path, threads: int | None = None) -> None:
    """The matrix products of traces under the device's roofs: operations a byte against operations a second."""
    figure, axes = _pyplot().subplots(figsize=(9, 6), layout="constrained")
    limits = roofs(device, threads)
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for ops in traces:
        for c in cost.predict(ops, device, threads):
            if c.op.kind == "gemm" and c.op.bytes and c.time_s:
                place = (2 * c.op.macs / c.op.bytes, 2 * c.op.macs / c.time_s / 1e9)
                points.setdefault((c.dtype_used, c.op.pass_), []).append(place)
    x_all = [x for some in points.values() for x, _ in some] or [1.0, 100.0]
    knees = [2 * peak / bandwidth for peak, bandwidth in limits.values() if np.isfinite(bandwidth)]
    x = np.geomspace(min([*x_all, *knees]) / 3, max([*x_all, *knees]) * 3, 300)
    used = {dtype for dtype, _ in points}
    for dtype, (peak, bandwidth) in limits.items():
        if dtype in used:
            axes.loglog(x, np.minimum(2 * peak, x * bandwidth) / 1e9, color=COLOURS[dtype], lw=1.5,
                        label=f"{dtype} roof: {2 * peak / 1e9:,.0f} GOPS, {bandwidth / 1e9:.3g} GB/s")  # fmt: skip
    for (dtype, pass_), some in sorted(points.items()):
        axes.loglog([p[0] for p in some], [p[1] for p in some], MARKERS[pass_], color=COLOURS[dtype], mec="white", mew=0.5,
                    ms=8, label=f"{dtype} {pass_}")  # fmt: skip
    axes.set(xlabel="operations per byte of compulsory traffic (1 MAC is 2 operations)", ylabel="GOPS, predicted")
    axes.set_title(f"{title}: matrix products on {device.title}", fontsize=10)
    axes.grid(which="major", alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    _save(figure, path)
