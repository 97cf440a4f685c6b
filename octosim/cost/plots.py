"""Pictures of predicted costs: times over devices, and layers under a device's roofline."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octosim import cost
from octosim.cost.model import OpCost, cores_of
from octosim.errors import OctosimError
from octosim.hardware import Device
from octosim.trace import Op

COLOURS = {"int8": "#0072B2", "float16": "#009E73", "float32": "#E69F00"}  # Okabe-Ito
MARKERS = {"forward": ("o", 5), "dX": ("s", 9), "dW": ("^", 13)}
"""Shape and size by pass: one fits in another, for passes of a layer that lie on the same point."""


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    drawn = io.BytesIO()  # or a picture that cannot be drawn would leave half a file
    try:
        with _pyplot().rc_context({"svg.fonttype": "none"}):  # text stays text: smaller, in the reader's font
            figure.savefig(drawn, dpi=120, format=path.suffix.removeprefix(".") or "png")
        path.write_bytes(drawn.getvalue())
    except (OSError, ValueError) as error:
        raise OctosimError(f"cannot write {path}: {error}") from None
    finally:
        _pyplot().close(figure)


def bars(records: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Times of records of `octosim cost --compare --json`, each in the types that its device computes in, with 80 % intervals.

    Points, not bars: on the logarithmic axis, which seconds and milliseconds need, a bar's length says nothing.  Open points
    are of kernels that do not exist.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter

    several = len({record["batch_size"] for record in records}) > 1
    names = [f"{r['device']}, batch {r['batch_size']}" if several else r["device"] for r in records]
    both = "gain" in records[0]
    rows = [{dtype: r["types"][dtype] for dtype in COLOURS if dtype in r["types"]} for r in records]
    most = max(len(row) for row in rows)
    figure, axes = _pyplot().subplots(figsize=(9, 1.9 + (0.25 + 0.2 * most) * len(records)), layout="constrained")
    height = 0.8 / max(2, most)
    shapes = {"int8": "o", "float32": "s", "float16": "^"}
    for y, row in enumerate(rows):
        for i, (dtype, total) in enumerate(row.items()):
            at = y + (i - (len(row) - 1) / 2) * height
            low, high = total["time_s"] - total["time_low_s"], total["time_high_s"] - total["time_s"]
            fill = "white" if total["hypothetical"] else COLOURS[dtype]
            axes.errorbar(total["time_s"], at, xerr=[[low], [high]], fmt=shapes[dtype], color=COLOURS[dtype], elinewidth=2.5,
                          markerfacecolor=fill)  # fmt: skip
        if both:
            gain = records[y]["gain"]
            edge = max(total["time_high_s"] for total in row.values())
            text = "no float32" if gain is None else f"{gain:.2f} x"
            axes.annotate(text, (edge, y), (6, 0), textcoords="offset points", va="center")
    right, left = (f(t[k] for row in rows for t in row.values()) for f, k in ((max, "time_high_s"), (min, "time_low_s")))
    axes.set_xscale("log")
    axes.set_xlim(left / 1.5, right * (right / left) ** 0.16 * 1.3)
    axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
    axes.set_yticks(range(len(records)), names)
    axes.set_ylim(len(records) - 0.4, -0.6)
    beside = "\nat the right: how many times as fast as float32 INT8 is" if both else ""
    unreal = "; open: hypothetical" if any(total["hypothetical"] for row in rows for total in row.values()) else ""
    axes.set_xlabel(f"predicted time, logarithmic; line: 80 % interval{unreal}{beside}")
    axes.set_title(title, fontsize=11)
    axes.grid(axis="x", which="major", alpha=0.3)
    for y in range(1, len(records)):
        axes.axhline(y - 0.5, color="#d0d7de", linewidth=0.8)
    axes.set_axisbelow(True)
    dtypes = [dtype for dtype in COLOURS if any(dtype in row for row in rows)]
    handles = [Line2D([], [], color=COLOURS[dtype], marker=shapes[dtype], linewidth=2.5, label=dtype) for dtype in dtypes]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(dtypes), frameon=False)
    _save(figure, path)


def trainable(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Time and memory of a step over the number of trained layers, rows of `octosim cost --sweep trainable --json`."""
    figure, (times, memory) = _pyplot().subplots(1, 2, figsize=(11, 5), layout="constrained")
    own = rows[0]["dtype"]
    order = {last: at for at, last in enumerate(dict.fromkeys(row["train_last"] for row in rows))}
    names = ["all" if last is None else str(last) for last in order]
    for number, device in enumerate(dict.fromkeys(row["device"] for row in rows)):
        for dtype, style in {own: "-", "float32": "--"}.items():
            some = [(order[row["train_last"]], row["types"][dtype]) for row in rows
                    if row["device"] == device and dtype in row["types"]]  # fmt: skip
            at = [x for x, _ in some]
            times.plot(at, [p["time_s"] for _, p in some], style, color=f"C{number}", label=f"{device}, {dtype}")
            if dtype == own:
                band = [p["time_low_s"] for _, p in some], [p["time_high_s"] for _, p in some]
                times.fill_between(at, *band, color=f"C{number}", alpha=0.12, lw=0)
            if number == 0:  # the memory is the network's, on every device
                peaks = [p["peak_bytes"] / 2**20 for _, p in some]
                memory.plot(at, peaks, style, color=COLOURS[dtype], label=dtype)
    times.set_yscale("log")
    times.set_ylabel("s a step; shaded: 80 % interval")
    memory.set_ylabel("MiB at the peak of a step")
    memory.set_ylim(bottom=0)
    step = -(-len(names) // 12)
    for axes in (times, memory):
        axes.set_xticks(range(len(names))[::-step][::-1], names[::-step][::-1])
        axes.set_xlabel("trained layers, the last ones")
        axes.grid(alpha=0.3)
    lines, _ = times.get_legend_handles_labels()
    figure.legend(handles=lines, loc="outside lower center", ncols=min(4, len(lines)), frameon=False, fontsize=8)
    memory.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
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
            share = cores_of(engine, device, threads) / engine.units.value
            found[dtype] = (engine.peak_mac_s(dtype) * share, float(prepared.bandwidth[0]))
    return found


def roofline(device: Device, steps: Sequence[Sequence[OpCost]], title: str, path: Path, threads: int | None = None) -> None:
    """The matrix products of priced steps under the device's roofs: operations a byte against operations a second."""
    figure, axes = _pyplot().subplots(figsize=(9, 6), layout="constrained")
    limits = roofs(device, threads)
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    layers: list[tuple[float, float, str]] = []
    for costs in steps:
        for c in costs:
            if c.op.kind == "gemm" and c.op.bytes and c.time_s:
                place = (2 * c.op.macs / c.op.bytes, 2 * c.op.macs / c.time_s / 1e9)
                points.setdefault((c.dtype_used, c.op.pass_), []).append(place)
                if c.op.pass_ == "forward" and costs is steps[0]:
                    layers.append((*place, c.op.layer))
    x_all = [x for some in points.values() for x, _ in some] or [1.0, 100.0]
    knees = [2 * peak / bandwidth for peak, bandwidth in limits.values() if np.isfinite(bandwidth)]
    x = np.geomspace(min([*x_all, *knees]) / 3, max([*x_all, *knees]) * 3, 300)
    used = {dtype for dtype, _ in points}
    for dtype, (peak, bandwidth) in limits.items():
        if dtype in used:
            axes.loglog(x, np.minimum(2 * peak, x * bandwidth) / 1e9, color=COLOURS[dtype], lw=1.5,
                        label=f"{dtype} roof: {2 * peak / 1e9:,.0f} GOPS, {_gb_s(bandwidth)}")  # fmt: skip
    order = [*MARKERS]
    for (dtype, pass_), some in sorted(points.items(), key=lambda x: (x[0][0], order.index(x[0][1]))):
        marker, size = MARKERS[pass_]
        axes.loglog([p[0] for p in some], [p[1] for p in some], marker, color=COLOURS[dtype], ms=size, label=f"{dtype} {pass_}",
                    mfc=COLOURS[dtype] if pass_ == "forward" else "none")  # fmt: skip
    axes.set(xlabel="operations per byte of compulsory traffic (1 MAC is 2 operations)", ylabel="GOPS, predicted")
    axes.set_title(f"{title}: matrix products on {device.title}", fontsize=10)
    axes.grid(which="major", alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.draw_without_rendering()  # or the places of names would be those before the layout
    _name_layers(axes, layers)
    _save(figure, path)


def _gb_s(bandwidth: float) -> str:
    return f"{bandwidth / 1e9:.3g} GB/s" if np.isfinite(bandwidth) else "bandwidth unknown"


def _name_layers(axes: Any, layers: Sequence[tuple[float, float, str]]) -> None:
    """Names of layers above their points, where no other name is near; the first of some that lie together."""
    taken: list[Any] = []
    for x, y, name in layers:
        place = axes.transData.transform((x, y))
        if all(abs(place[0] - other[0]) > 7 * len(name) or abs(place[1] - other[1]) > 16 for other in taken):
            taken.append(place)
            axes.annotate(name, (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=7)
