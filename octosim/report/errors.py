"""The page's part on errors and overflow, from the runs' measures.jsonl (octosim.measure)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup

from octosim.errors import OctosimError
from octosim.report.figures import COLOURS, Figure, Figures, Key, Legend, line_key, linestyle, short_names
from octosim.report.read import Run, check, printable, read_lines
from octosim.report.tables import DASH, Cell, Table, plural, significant

RUNS = 4  # runs of a page that get such a part
LAYERS = 6  # of which histograms are drawn

_FIELDS = (
    ("step", "a whole number"), ("layer", "a string"), ("pass", "a string"), ("role", "a string"), ("against", "a string"),
    ("elements", "a whole number"),
)  # fmt: skip
_WHOLE = ("outputs", "saturations", "wraps", "inexact", "largest_bits", "used_codes")
_REAL = ("sqnr_db", "mse", "bias", "max_error", "cosine", "zeros", "reference_zeros", "clipped")
_OPTIONAL = (
    *((name, "a whole number") for name in _WHOLE), *((name, "a number") for name in _REAL), ("would_overflow", "an object"),
    ("histogram", "a list"), ("unclipped_histogram", "a list"), ("accumulator", "a string"),
)  # fmt: skip
BINS = 51  # of a histogram: measure.BINS

Place = tuple[str, str, str, str]
"""Layer, pass, role, against."""

# What stands beside what in the two maps of SQNR: (pass, role) and, of results, against.
_OPERANDS = [
    ("forward", "weight"), ("forward", "activation"), ("dX", "weight"), ("dX", "error"), ("dW", "activation"), ("dW", "error"),
]  # fmt: skip
_RESULTS = [("forward", "activation"), ("dX", "error"), ("dW", "gradient")]
LOW_DB, HIGH_DB = 0, 60  # the ends of the colours
# Upper ends of the shares of sums that overflow, and their colours; none at all is white.
_SHARE_COLOURS = ((1e-4, "#c6dbef"), (1e-2, "#6baed6"), (0.1, "#2171b5"), (1.0, "#08306b"))


def _read(run: Run, notes: list[str]) -> dict[Place, list[dict[str, Any]]]:
    """The records of a run by key, in the order of the file; none where it was not measured."""
    path = run.path / "measures.jsonl"
    if not path.exists():
        return {}
    found: dict[Place, list[dict[str, Any]]] = {}
    for number, line in enumerate(read_lines(path, notes), start=1):
        where, row = f"{path.name}: line {number}", printable(line)
        check(where, row, _FIELDS, _OPTIONAL)
        overflow = row.get("would_overflow") or {}
        if not all(bits.isdecimal() and type(count) is int for bits, count in overflow.items()):
            raise OctosimError(f"{where}: field would_overflow must hold whole numbers by width in bits")
        for field in ("histogram", "unclipped_histogram"):
            counts = row.get(field) or [0] * BINS
            if len(counts) != BINS or not all(type(count) is int for count in counts):
                raise OctosimError(f"{where}: field {field} must be {BINS} whole numbers")
        found.setdefault((row["layer"], row["pass"], row["role"], row["against"]), []).append(row)
    return found


def _median(rows: list[dict[str, Any]], field: str) -> float | None:
    values = [row[field] for row in rows if isinstance(row.get(field), (int, float))]
    return statistics.median(values) if values else None


LAYER_NAME = 16
"""Characters of a layer's name beside a map."""


@dataclass(frozen=True)
class _Map:
    """A table in colours: labels of rows and columns; cells: (row, column) -> (colour, text)."""

    rows: list[str]
    columns: list[str]
    cells: dict[tuple[int, int], tuple[str, str]]
    gaps: tuple[int, ...] = ()  # columns before which there is a line


def _on(colour: str) -> str:
    """Black or white, whichever reads better on a colour."""
    red, green, blue = matplotlib.colors.to_rgb(colour)
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"


def _draw_map(
    figures: Figures, title: str, content: _Map, description: str, caption: str, legend: Legend, label: str = ""
) -> Figure:
    def paint(axes: Any) -> Legend:
        for (y, x), (colour, text) in content.cells.items():
            if colour != "#ffffff":
                box = matplotlib.patches.Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="#ffffff", linewidth=0.8)
                axes.add_patch(box).set_in_layout(False)  # cells lie within the axes; thousands of them cost seconds
            if text:
                cell = axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9, color=_on(colour))
                cell.set_in_layout(False)
        for x in content.gaps:
            axes.axvline(x, color="#000000", linewidth=1.5)
        axes.set_xlim(0, len(content.columns))
        axes.set_ylim(len(content.rows), 0)
        axes.set_xticks([x + 0.5 for x in range(len(content.columns))], content.columns, fontsize=9)
        axes.set_yticks([y + 0.5 for y in range(len(content.rows))], short_names(content.rows, LAYER_NAME), fontsize=9)
        axes.tick_params(length=0)
        axes.set_xlabel(label)
        axes.grid(visible=False)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        return legend

    return figures.make(title, description, 0.9 + 0.24 * len(content.rows), paint, caption)


def _box_key(colour: str, text: str) -> Key:
    swatch = Markup(
        f'<svg class="swatch" viewBox="0 0 36 10" aria-hidden="true"><rect x=".5" y=".5" width="33" height="9" '
        f'fill="{colour}" stroke="#57606a"/></svg>'
    )
    return Key(swatch, text, matplotlib.patches.Patch(facecolor=colour, edgecolor="#57606a"))


def _layers(measured: dict[Place, list[dict[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(key[0] for key in measured))


def _db_colour(value: float) -> str:
    share = min(1.0, max(0.0, (value - LOW_DB) / (HIGH_DB - LOW_DB)))
    return str(matplotlib.colors.to_hex(matplotlib.colormaps["cividis"](share)))


def _sqnr_map(
    figures: Figures,
    title: str,
    measured: dict[Place, list[dict[str, Any]]],
    columns: list[tuple[str, str, str]],
    caption: str,
    gaps: tuple[int, ...] = (),
) -> Figure | None:
    """columns: (pass, role, against); None where nothing of it was measured."""
    layers, cells, said = _layers(measured), {}, []
    for y, layer in enumerate(layers):
        parts = []
        for x, (pass_, role, against) in enumerate(columns):
            rows = measured.get((layer, pass_, role, against))
            if not rows:
                continue
            value = _median(rows, "sqnr_db")
            if value is None and all(row.get("mse") == 0 for row in rows):
                cells[y, x] = (_db_colour(HIGH_DB), "exact")
            else:
                cells[y, x] = ("#ffffff", DASH) if value is None else (_db_colour(value), str(round(value)))  # no -0
            parts.append(f"{pass_} {role} against {against} {cells[y, x][1]}")
        said.append(f"{layer}: {', '.join(parts)}")
    if not cells:
        return None
    labels = [pass_ if pass_ == role else f"{pass_}\n{role}" for pass_, role, _ in columns]
    legend = [
        _box_key(_db_colour(value), text)
        for value, text in ((LOW_DB, f"{LOW_DB} dB or less"), (30, "30 dB"), (HIGH_DB, f"{HIGH_DB} dB or more, or exact"))
    ]
    description = f"Heat map of SQNR in dB by layer and pass. {'; '.join(said)}."
    return _draw_map(figures, title, _Map(layers, labels, cells, gaps), description, caption, legend)


def _sqnr_maps(figures: Figures, measured: dict[Place, list[dict[str, Any]]], steps: str) -> list[Figure]:
    operands = _sqnr_map(
        figures, "SQNR of the operands (dB)", measured, [(p, r, "operand") for p, r in _OPERANDS],
        f"The error of quantization alone: each operand of a product against the float32 tensor that it was made of. {steps} "
        "An empty cell: the operand is not quantized, its real values are not known, or the layer has no such pass.",
    )  # fmt: skip
    local = [(p, r, "layer") for p, r in _RESULTS]
    whole = [(p, r, "step") for p, r in (*_RESULTS, ("update", "update"))]
    results = _sqnr_map(
        figures, "SQNR of the results (dB): local, accumulated", measured, local + whole,
        "Left of the line each pass's local error: against the same pass in float32 on the inputs that the layer had. Right "
        f"of it the accumulated error: against the whole step in float32 from the same weights and batch. {steps}",
        gaps=(len(local),),
    )  # fmt: skip
    return [figure for figure in (operands, results) if figure]


# ---- overflow --------------------------------------------------


def _overflow(rows: list[dict[str, Any]]) -> dict[int, float]:
    """By width in bits, the share of the counted sums that would have left such a register; all steps together."""
    outputs = sum(row["outputs"] for row in rows) or 1
    widths = [int(bits) for bits in rows[0]["would_overflow"]]
    return {bits: sum(row["would_overflow"].get(str(bits), 0) for row in rows) / outputs for bits in widths}


def _counts(measured: dict[Place, list[dict[str, Any]]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Of each layer, in the network's order, and pass, the records of its register that hold counts."""
    found = {}
    order = _layers(measured)
    for (layer, pass_, role, _), rows in sorted(measured.items(), key=lambda item: order.index(item[0][0])):
        whole = [row for row in rows if row.get("would_overflow") and isinstance(row.get("outputs"), int)]
        if role == "accumulator" and whole:
            found[layer, pass_] = whole
    return found


def _overflow_maps(figures: Figures, counts: dict[tuple[str, str], list[dict[str, Any]]]) -> list[Figure]:
    bounds = [0.0, *(end for end, _ in _SHARE_COLOURS)]
    legend: Legend = [_box_key("#ffffff", "none")]
    for low, (high, colour) in zip(bounds, _SHARE_COLOURS, strict=False):
        legend.append(_box_key(colour, f"{100 * low:g} to {100 * high:g} %" if low else f"up to {100 * high:g} %"))
    drawn = []
    for pass_ in ("forward", "dX", "dW"):
        layers = [layer for layer, own in counts if own == pass_]
        if not layers:
            continue
        cells, said = {}, []
        for y, layer in enumerate(layers):
            shares = _overflow(counts[layer, pass_])
            enough = min((bits for bits, share in shares.items() if not share), default=None)
            said.append(f"{layer} {'more than all' if enough is None else f'{enough} bits'}")
            for x, (bits, share) in enumerate(shares.items()):
                colour = next((c for end, c in _SHARE_COLOURS if 0 < share <= end), "#ffffff")
                cells[y, x] = (colour, str(bits) if bits == enough else "")
        widths = list(_overflow(counts[layers[0], pass_]))
        labels = [str(bits) if bits % 4 == 0 else "" for bits in widths]
        caption = (
            f"Share of the counted sums of the {pass_} pass that leave a register of so many bits at least once. The number in "
            "a row is the narrowest register that held all of them."
        )
        description = f"Heat map of overflow by register width and layer; narrowest that holds all: {', '.join(said)}."
        content = _Map(layers, labels, cells)
        title = f"Overflow by width: {pass_}"
        drawn.append(_draw_map(figures, title, content, description, caption, legend, "Register, bits"))
    return drawn


def _overflow_table(counts: dict[tuple[str, str], list[dict[str, Any]]]) -> Table:
    shown = (8, 12, 16, 18, 20, 24, 32)
    rows = []
    for (layer, pass_), records in counts.items():
        shares = _overflow(records)
        totals = {key: sum(row.get(key) or 0 for row in records) for key in ("outputs", "saturations", "wraps", "inexact")}
        largest = max(row.get("largest_bits") or 0 for row in records)
        cells = [Cell(layer), Cell(pass_), Cell(str(records[0].get("accumulator") or DASH))]
        cells += [Cell(f"{value:,}", value) for value in totals.values()]
        cells.append(Cell(str(largest), largest))
        rows.append(cells + [_percent(shares.get(bits)) for bits in shown])
    heads = ("Sums counted", "Saturations", "Wraps", "Inexact sums", "Largest, bits", *(f"{bits} bits" for bits in shown))
    columns = (("Layer", "text"), ("Pass", "text"), ("Register", "text"), *((head, "number") for head in heads))
    caption = (
        "What happened in the run's register, and the share of sums that would have left a narrower one, in a sample of the "
        "measured steps' sums. Inexact: not the exact sum modulo 2^32."
    )
    return Table(caption, columns, rows)


def _percent(value: float | None) -> Cell:
    return Cell(DASH) if value is None else Cell(f"{significant(100 * value)} %", value)


# ---- codes --------------------------------------------------


def _summed(rows: list[dict[str, Any]], field: str) -> list[int]:
    return [sum(column) for column in zip(*(row[field] for row in rows), strict=False)]


def _histograms(figures: Figures, measured: dict[Place, list[dict[str, Any]]]) -> list[Figure]:
    """Codes of dY before and after clipping, of some layers where clipping changed them."""
    found = {}
    for (layer, _, role, against), rows in measured.items():
        whole = [row for row in rows if row.get("histogram") and row.get("unclipped_histogram")]
        if (role, against) == ("error", "operand") and layer not in found and whole:
            before, after = _summed(whole, "unclipped_histogram"), _summed(whole, "histogram")
            if before != after:
                found[layer] = before, after, whole
    names = _layers(measured)
    layers = sorted(found, key=names.index)
    if len(layers) > LAYERS:
        layers = [layers[round(i * (len(layers) - 1) / (LAYERS - 1))] for i in range(LAYERS)]
    return [_histogram(figures, layer, *found[layer]) for layer in layers]


def _histogram(figures: Figures, layer: str, before: list[int], after: list[int], rows: list[dict[str, Any]]) -> Figure:
    width = 255 / len(before)
    ends = [-127.5 + width * i for i in range(len(before) + 1)]

    def paint(axes: Any) -> Legend:
        legend = []
        for counts, colour, dashes, what in zip((before, after), COLOURS, ("7 3", ""), ("before", "after"), strict=False):
            shares = [100 * n / (sum(counts) or 1) for n in counts]
            axes.stairs(shares, ends, color=colour, linestyle=linestyle(dashes), linewidth=1.8, baseline=None)
            legend.append(line_key(colour, dashes, f"{what} clipping"))
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        axes.set_xlabel("Code")
        axes.set_ylabel("Share (%, log scale)")
        axes.set_xticks([-127, -64, 0, 64, 127])
        return legend

    clipped, used = _median(rows, "clipped"), _median(rows, "used_codes")
    facts = f"{100 * (clipped or 0):.3g} % of the values clipped, {used or 0:.0f} codes used (medians over measured steps)"
    caption = (
        f"The int8 codes of dY in {layer}: as its own extremes would have made them, and as clipping made them, in bins of "
        f"{width:g} codes. {facts[0].upper()}{facts[1:]}."
    )
    outer = [sum(counts[i] for i in (*range(5), *range(-5, 0))) / (sum(counts) or 1) for counts in (before, after)]
    description = (
        f"Two histograms of the codes of dY in {layer}. In the outermost ten bins before clipping {100 * outer[0]:.3g} % of "
        f"the codes, after it {100 * outer[1]:.3g} %; {facts}."
    )
    return figures.make(f"Codes of dY: {layer}", description, 2.4, paint, caption)


# ---- the whole part --------------------------------------------------


def _table(measured: dict[Place, list[dict[str, Any]]]) -> Table:
    def number(rows: list[dict[str, Any]], field: str, text: Callable[[float], str]) -> Cell:
        value = _median(rows, field)
        return Cell(DASH) if value is None else Cell(text(value), value)

    shown: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("SQNR (dB)", "sqnr_db", lambda v: f"{v:.1f}"),
        ("MSE", "mse", lambda v: f"{v:.2e}"),
        ("Bias", "bias", lambda v: f"{v:.2e}"),
        ("Largest error", "max_error", lambda v: f"{v:.2e}"),
        ("Cosine", "cosine", lambda v: f"{v:.4f}"),
        ("Clipped (%)", "clipped", lambda v: f"{100 * v:.3g}"),
        ("Codes used", "used_codes", lambda v: f"{v:.0f}"),
        ("Zeros (%)", "zeros", lambda v: f"{100 * v:.1f}"),
        ("Zeros in float32 (%)", "reference_zeros", lambda v: f"{100 * v:.1f}"),
    )
    rows = [
        [*map(Cell, key), *(number(records, field, text) for _, field, text in shown)]
        for key, records in measured.items()
        if key[2] != "accumulator"
    ]
    heads = tuple((head, "text") for head in ("Layer", "Pass", "Role", "Against"))
    return Table("Medians over the measured steps.", heads + tuple((head, "number") for head, _, _ in shown), rows)


def sections(figures: Figures, runs: Iterable[Run], notes: list[str]) -> list[dict[str, Any]]:
    """A part for each run that was measured, at most RUNS; what cannot be read or is left out goes to the notes."""
    made: list[dict[str, Any]] = []
    left = []
    for run in runs:
        own: list[str] = []
        try:
            measured = _read(run, own)
        except OctosimError as error:
            own.append(f"{error}; its measures are not shown.")
            measured = {}
        notes += [f"{run.name}: {note}" for note in own]
        if not measured:
            continue
        if len(made) == RUNS:
            left.append(run.name)
            continue
        steps = sorted({row["step"] for rows in measured.values() for row in rows})
        what = f"Medians over {plural(len(steps), 'measured step')} ({steps[0]} to {steps[-1]})."
        counts = _counts(measured)
        made.append(
            {
                "id": f"errors-{len(made) + 1}",
                "title": run.name,
                "figures": _sqnr_maps(figures, measured, what),
                "overflow": _overflow_maps(figures, counts),
                "overflow_table": _overflow_table(counts) if counts else None,
                "codes": _histograms(figures, measured),
                "table": _table(measured),
            }
        )
    if left:
        notes.append(f"Errors and overflow are shown of the first {RUNS} measured runs only; left out: {', '.join(left)}.")
    return made
