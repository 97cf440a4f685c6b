"""The figures of the page: inline SVG from matplotlib; legends and captions in HTML, so that they wrap on a phone."""

from __future__ import annotations

import io
import math
import re
import statistics
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from octosim.outcome import is_classifier
from octosim.report.read import Run, lookup
from octosim.report.states import is_at_chance
from octosim.report.tables import Group, last_value, milliseconds, percent, plural


class Key(NamedTuple):
    """A line of a legend.  swatch: SVG.  artist: the same for matplotlib, for a figure in a file of its own."""

    swatch: Markup
    text: str
    artist: Any = None


Legend = list[Key]


@dataclass(frozen=True)
class Figure:
    """svg: inline and escaped.  caption: plain text under the figure.  files: pictures by name, where they were asked for."""

    title: str
    svg: Markup
    legend: Legend
    caption: str
    description: str
    files: dict[str, bytes]


# Okabe and Ito's colour-blind-safe palette; its three pale colours are darker here, and its yellow is left out, so that a line
# has 3:1 on white (WCAG 1.4.11).
COLOURS = ("#0072B2", "#D55E00", "#008A65", "#B8558C", "#000000", "#8A6D00", "#6A51A3")
# SVG stroke-dasharrays beside the colours, so that colour is never the only difference.
DASHES = ("", "7 3", "2 2", "8 3 2 3", "12 3", "4 4", "8 2 2 2 2 2")
PREDICTED, MEASURED = COLOURS[0], COLOURS[1]

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: smaller, selectable, in the reader's font
    "pdf.fonttype": 42,  # fonts that publishers take
    "svg.hashsalt": "octosim",  # same input, same bytes
    "text.parse_math": False,  # a "$" in a layer's name is a "$"
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "hatch.linewidth": 1.0,
}
WIDTH = 5.4  # inches; small enough to read on a phone, and two fit beside each other on a desk
POINTS = 30_000  # per page and kind of line: keeps the page small however many runs it holds


class Figures:
    """Draws figures and numbers them, so that ids stay unique on the page."""

    def __init__(self, files: bool = False) -> None:
        """files: also make each figure as SVG, PNG and PDF files."""
        self.made: list[Figure] = []
        self.files = files
        self._names: Counter[str] = Counter()

    def make(
        self, title: str, description: str, height: float, paint: Callable[[Any], Legend], caption: str,
        panels: tuple[int, int] | None = None,
    ) -> Figure:  # fmt: skip
        """A figure `height` inches tall; paint draws on the axes that it is given and returns the legend.

        panels: (rows, columns) of small multiples on common axes; paint is then given all of them in one list.
        """
        number = len(self.made) + 1
        with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # glyphs that the layout font lacks: the reader's font draws the text
            canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
            if panels:
                legend = paint(list(canvas.subplots(*panels, sharex=True, sharey=True, squeeze=False).flat))
            else:
                legend = paint(canvas.add_subplot())
            buffer = io.StringIO()
            canvas.savefig(buffer, format="svg", metadata={"Date": None})
            files = _files(canvas, self._file_name(title), title, legend) if self.files else {}
        svg = _inline(buffer.getvalue(), f"fig{number}", title, description)
        self.made.append(Figure(title, svg, legend, caption, description, files))
        return self.made[-1]

    def _file_name(self, title: str) -> str:
        """A name that says what the figure shows, unique in the folder without regard to case."""
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80].strip("-") or "figure"
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}-{self._names[name]}"


def _files(canvas: Canvas, name: str, title: str, legend: Legend) -> dict[str, bytes]:
    """The figure with title and legend, as it stands alone."""
    keys = [key for key in legend if len(key) > 2 and key[2] is not None]
    canvas.suptitle(title, fontsize=11, wrap=True)
    if keys:
        width, height = canvas.get_size_inches()
        canvas.set_size_inches(width, height + 0.3 + 0.2 * len(keys))
        labels = [key[1] if len(key[1]) <= 80 else key[1][:79] + "…" for key in keys]
        canvas.legend([key[2] for key in keys], labels, loc="outside lower left", fontsize=8, frameon=False)
    made = {}
    kinds: dict[str, dict[str, Any]] = {
        "svg": {"metadata": {"Date": None}}, "png": {"dpi": 160, "metadata": {"Software": None}},
        "pdf": {"metadata": {"CreationDate": None, "Producer": None, "Creator": None}},
    }  # fmt: skip
    for kind, options in kinds.items():
        content = io.BytesIO()
        canvas.savefig(content, format=kind, **options)
        made[f"{name}.{kind}"] = content.getvalue()
    return made


def _inline(document: str, prefix: str, title: str, description: str) -> Markup:
    """A matplotlib SVG file as an inline element: no prologue, metadata or page-wide style; own ids, title, desc."""
    body = document[document.index(">", document.index("<svg")) + 1 : document.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.S)
    body = re.sub(r'(\sid=")', rf"\1{prefix}-", body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{prefix}-', body)
    box = re.search(r'viewBox="[^"]*"', document)
    head = f'<svg class="plot" role="img" aria-labelledby="{prefix}-title {prefix}-desc" {box[0] if box else ""}>'
    titles = f'<title id="{prefix}-title">{escape(title)}</title><desc id="{prefix}-desc">{escape(description)}</desc>'
    return Markup(head + titles + body + "</svg>")


def line_key(colour: str, dashes: str, text: str) -> Key:
    swatch = Markup(
        f'<svg class="swatch" viewBox="0 0 36 10" aria-hidden="true"><line x1="0" y1="5" x2="36" y2="5" '
        f'stroke="{colour}" stroke-width="3" stroke-dasharray="{dashes}"/></svg>'
    )
    return Key(swatch, text, Line2D([], [], color=colour, linestyle=linestyle(dashes), linewidth=1.8))


def _bar_key(predicted: bool, text: str) -> Key:
    fill = f'fill="#fff" stroke="{PREDICTED}"' if predicted else f'fill="{MEASURED}"'
    lines = f'<path d="M4 10 14 0M12 10 22 0M20 10 30 0" stroke="{PREDICTED}"/>' if predicted else ""
    swatch = Markup(
        f'<svg class="swatch" viewBox="0 0 36 10" aria-hidden="true"><rect x=".5" y=".5" width="33" height="9" {fill}/>'
        f"{lines}</svg>"
    )
    bar = Patch(facecolor="#ffffff", edgecolor=PREDICTED, hatch="////") if predicted else Patch(facecolor=MEASURED)
    return Key(swatch, text, bar)


def linestyle(dashes: str) -> Any:
    return (0, tuple(float(part) / 2 for part in dashes.split())) if dashes else "-"


def _thin(x: pd.Series, y: pd.Series, points: int) -> tuple[pd.Series, pd.Series]:
    """At most `points` points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(y) <= points:
        return x, y
    y = y.reset_index(drop=True)
    x = x.reset_index(drop=True)
    stretch = y.index * (points // 2) // len(y)
    parts = y.dropna().groupby(stretch[y.notna()])
    keep = sorted(set(parts.idxmin()) | set(parts.idxmax()))
    return x[keep], y[keep]


def useful_range(values: Sequence[float], reach: float = 3.0) -> tuple[float, float]:
    """Where most values lie: those within `reach` quartile distances of the middle half, with a margin."""
    ordered = sorted(values)
    if len(ordered) < 4:
        low, high = ordered[0], ordered[-1]
    else:
        first, _, third = statistics.quantiles(ordered, n=4, method="inclusive")
        width = max(third - first, 0.1)
        inside = [v for v in ordered if first - reach * width <= v <= third + reach * width]
        low, high = inside[0], inside[-1]
    margin = max(0.08 * (high - low), 0.15)
    return low - margin, high + margin


def accuracy_axis(runs: Iterable[Run]) -> tuple[float, float]:
    """The lowest and highest test accuracy (%) for an axis: of the runs above chance, without those far below the others.

    Without a run above chance: of all.
    """
    values = [(100 * run.records["test_accuracy"].dropna(), is_at_chance(run)) for run in runs]
    drawn = [each for each, stuck in values if len(each) and not stuck] or [each for each, _ in values if len(each)]
    lowest = [float(each.min()) for each in drawn]
    return max(min(lowest), useful_range(lowest)[0]), max(float(each.max()) for each in drawn)


def short_names(labels: Sequence[str], most: int) -> list[str]:
    """Names of at most `most` characters, no two equal: without the settings that all labels have, cut in the middle."""
    parts = [label.split(", ") for label in labels]
    common = set(parts[0]).intersection(*parts[1:]) if len(parts) > 1 else set()
    told = [", ".join(part for part in each if part not in common) or each[0] for each in parts]
    names = [name if len(name) <= most else f"{name[: most // 3]}…{name[most // 3 + 1 - most :]}" for name in told]
    twice = {name for name, n in Counter(names).items() if n > 1}
    return [f"{at}: {name}"[:most] if name in twice else name for at, name in enumerate(names, start=1)]


FEW_LINES = 4  # configurations that one plot shows well; more get a panel each


def curves(figures: Figures, title: str, groups: Sequence[Group]) -> list[Figure]:
    """Loss and accuracy by step of groups that may be compared, the reference first."""
    drawn = [group for group in groups if any(not run.records.empty for run in group.runs)]
    if not drawn:
        return []
    column = "test_accuracy" if is_classifier(drawn[0].runs[0].decides) else "test_loss"
    evaluated = [group for group in drawn if any(run.records[column].notna().any() for run in group.runs)]
    loss, tested = f"Training loss: {title}", f"{TESTED[column].capitalize()}: {title}"
    points = min(600, max(60, POINTS // sum(len(group.runs) for group in drawn)))
    many = len(drawn) > FEW_LINES
    made = [_multiples(figures, loss, drawn, "loss") if many else _loss_figure(figures, loss, drawn, points)]
    if len(evaluated) > FEW_LINES:  # of many configurations, few may come as far as an evaluation
        made.append(_multiples(figures, tested, evaluated, column))
    elif evaluated:
        made.append(_test_figure(figures, tested, evaluated, column))
    return made


TESTED = {"test_accuracy": "test accuracy", "test_loss": "test error"}
"""What an evaluation's columns of the records are called: networks without classes have a mean squared error."""
COLUMNS = 3  # panels beside each other: each is still legible on a phone
PANEL_NAME = 23  # characters of a line above a panel


def band_of(lines: Sequence[pd.Series]) -> pd.DataFrame:
    """Columns min and max of lines by step; thinned lines have steps of their own."""
    aligned = pd.concat(lines, axis=1).sort_index().interpolate(method="index", limit_area="inside")
    return aligned.agg(["min", "max"], axis=1)


def _multiples(figures: Figures, title: str, groups: Sequence[Group], column: str) -> Figure:
    """A panel for each configuration, over the band that the reference's seeds span."""
    base, others = groups[0], list(groups[1:])
    count = sum(len(group.runs) for group in groups)
    longest = max(len(run.records) for group in groups for run in group.runs)
    window = min(1001, longest // 20) | 1 if column == "loss" else 1
    scale = 100 if column == "test_accuracy" else 1

    def lines(group: Group) -> list[pd.Series]:
        """The values of each run by step, smoothed and thinned."""
        found = []
        for run in group.runs:
            records = run.records[run.records[column].notna()]
            smooth = scale * records[column].rolling(window, center=True, min_periods=1).median()
            x, y = _thin(records["step"], smooth, max(40, POINTS // count // 2))
            found.append(pd.Series(y.to_numpy(), x.to_numpy()))
        return [line for line in found if len(line)]

    reference = lines(base)
    band = band_of(reference) if reference else None
    values = [(group, lines(group)) for group in others]
    everything = [line for part in (*(part for _, part in values), reference) for line in part]
    low, high = min(line.min() for line in everything), max(line.max() for line in everything)
    if column == "test_accuracy":  # a run at chance does not flatten the others, nor one far off in its loss
        low, high = accuracy_axis(run for group in groups for run in group.runs)
    else:
        tops = sorted(max(line.max() for line in part) for _, part in values if part) or [high]
        high = max(tops[len(tops) // 2], *(line.max() for line in reference)) if reference else tops[-1]

    shown = short_names([group.label for group in others], 3 * PANEL_NAME)
    filled = [textwrap.fill(name, PANEL_NAME, break_on_hyphens=False) for name in shown]
    names = {id(group): name for group, name in zip(others, filled, strict=True)}

    def ends(part: list[pd.Series]) -> list[float]:
        return [float(line.iloc[-1]) for line in part]

    def paint(panels: Any) -> Legend:
        for axes, (group, part) in zip(panels, values, strict=False):
            if band is not None:
                axes.fill_between(band.index, band["min"], band["max"], color="#c5ccd3", linewidth=1.5)
            for line in part:
                marker = "o" if len(line) == 1 else None
                axes.plot(line.index, line, color=COLOURS[0], linewidth=1.2, marker=marker, markersize=3)
            axes.set_title(names[id(group)], fontsize=8, loc="left", pad=3)
            axes.tick_params(labelsize=8)
        for axes in panels[len(values) :]:
            axes.set_visible(False)
        if column == "loss" and low > 0 and high / low > 10:
            panels[0].set_yscale("log")
            panels[0].set_ylim(low / 1.4, high * 1.2)
            ticks = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
            panels[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        else:
            margin = 0.05 * (high - low) or 1.0
            panels[0].set_ylim(low - margin, high + margin)
        for axes, (_, part) in zip(panels, values, strict=False):
            _mark_ends_off_the_frame(axes, ends(part))
        figure = panels[0].figure
        figure.supxlabel("Step", fontsize=10)
        figure.supylabel("Training loss" if column == "loss" else _axis(column), fontsize=10)
        return [
            line_key("#c5ccd3", "", f"{base.label}, all its runs"),
            line_key(COLOURS[0], "", "the panel's configuration, a line a run"),
        ]

    rows = -(-len(others) // COLUMNS)
    kind = "moving median of the training loss" if column == "loss" else f"{TESTED[column]} after each evaluation"
    caption = f"One panel a configuration, on common axes: {kind}, over the grey band of {base.label}. "
    caption += "What leaves the frame is cut off, so that one run far off does not flatten the others; triangles name "
    caption += "the runs that end off it."
    said = "; ".join(f"{group.label}: {', '.join(f'{end:.4g}' for end in ends(part))}" for group, part in values if part)
    description = f"Small multiples of {kind} against step. Last values: {said}."
    lines_above = max(name.count("\n") for name in names.values())
    return figures.make(title, description, 0.6 + (1.35 + 0.13 * lines_above) * rows, paint, caption, panels=(rows, COLUMNS))


def _mark_ends_off_the_frame(axes: Any, ends: list[float]) -> None:
    bottom, top = axes.get_ylim()
    below, above = [end for end in ends if end < bottom], [end for end in ends if end > top]
    for mark, place, off in (("▼", 0.08, below), ("▲", 0.92, above)):
        if off:
            told = " to ".join(dict.fromkeys((f"{min(off):.3g}", f"{max(off):.3g}")))
            axes.text(0.97, place, f"{mark} {plural(len(off), 'run')}: {told}", transform=axes.transAxes, fontsize=8,
                      ha="right", va="center", color="#9a3f00")  # fmt: skip


def _lines_legend(groups: Sequence[Group]) -> Legend:
    return [
        line_key(colour, dashes, f"{group.label} ({plural(len(group.runs), 'run')})")
        for group, colour, dashes in zip(groups, COLOURS, DASHES, strict=False)
    ]


def _loss_figure(figures: Figures, title: str, groups: Sequence[Group], points: int) -> Figure:
    everything = [run for group in groups for run in group.runs]
    longest = max(len(run.records) for run in everything)
    window = min(1001, longest // 20) | 1
    raw = len(everything) <= 6 and window > 1

    def paint(axes: Any) -> Legend:
        values = []
        for group, colour, dashes in zip(groups, COLOURS, DASHES, strict=False):
            for run in group.runs:
                records = run.records[run.records["loss"].notna()]
                smooth = records["loss"].rolling(window, center=True, min_periods=1).median()
                if raw:
                    x, y = _thin(records["step"], records["loss"], points)
                    axes.plot(x, y, color=colour, alpha=0.18, linewidth=0.8)
                x, y = _thin(records["step"], smooth, points)
                marker = "o" if len(records) == 1 else None
                axes.plot(x, y, color=colour, linestyle=linestyle(dashes), linewidth=1.8, marker=marker)
                values.append(smooth)
        low, high = (pd.concat(values).agg(name) for name in ("min", "max"))
        # Late training happens in a sliver of a linear axis; a logarithmic one needs values above zero.
        if low > 0 and high / low > 10:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
            axes.yaxis.set_minor_formatter(lambda v, _: "")
            axes.set_ylim(low / 1.6, high * 1.3)
        axes.set_xlabel("Step")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set_ylabel("Training loss" + (" (log scale)" if axes.get_yscale() == "log" else ""))
        axes.margins(x=0.01)
        return _lines_legend(groups)

    lines = f"a moving median over {window} records" if window > 1 else "every record as it is"
    behind = " The faint lines behind are the unsmoothed loss; spikes may leave the frame." if raw else ""
    caption = f"Loss on the training batches, one line a run: {lines}.{behind}"
    description = f"Line chart of training loss against step for {'; '.join(group.label for group in groups)}."
    return figures.make(title, description, 3.5, paint, caption)


def _axis(column: str) -> str:
    return "Test accuracy (%)" if column == "test_accuracy" else "Test error (mean squared)"


def _test_figure(figures: Figures, title: str, groups: Sequence[Group], column: str) -> Figure:
    is_accuracy = column == "test_accuracy"
    tables = [run.records[run.records[column].notna()] for group in groups for run in group.runs]
    axis = "epoch" if all(table["epoch"].is_unique for table in tables) else "step"

    def paint(axes: Any) -> Legend:
        for group, colour, dashes in zip(groups, COLOURS, DASHES, strict=False):
            for run in group.runs:
                table = run.records[run.records[column].notna()]
                axes.plot(
                    table[axis],
                    (100 if is_accuracy else 1) * table[column],
                    color=colour,
                    linestyle=linestyle(dashes),
                    linewidth=1.8,
                    marker="o",
                    markersize=4,
                )
        axes.set_xlabel(axis.capitalize())
        axes.set_ylabel(_axis(column))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if is_accuracy:
            low, high = accuracy_axis(run for group in groups for run in group.runs)
            margin = 0.05 * (high - low) or 1.0
            axes.set_ylim(low - margin, high + margin)
            _mark_ends_off_the_frame(axes, [100 * last for _, last in lasts])
        return _lines_legend(groups)

    what = "Accuracy" if is_accuracy else "Mean squared error"
    caption = f"{what} on the test images after each evaluation, by {axis}, one line a run. The axis does not start at 0."
    if is_accuracy:
        caption += " Runs at chance and far off are cut off; triangles name those that end off the frame."
    runs = (run for group in groups for run in group.runs)
    lasts = [(run.name, last) for run in runs if (last := last_value(run.records[column])) is not None]
    ends = "; ".join(f"{name}: {percent(last) if is_accuracy else f'{last:.4g}'}" for name, last in lasts)
    return figures.make(title, f"Line chart of {TESTED[column]} by {axis}. Last values: {ends}.", 3.5, paint, caption)


# label, predicted, measured, quartiles; in seconds
Bar = tuple[str, float | None, float | None, tuple[float, float] | None]


def draw_bars(figures: Figures, title: str, bars: list[Bar], limit: float, caption: str) -> Figure:
    def paint(axes: Any) -> Legend:
        for y, (_, predicted, measured, quartiles) in enumerate(bars):
            if predicted is not None:
                axes.barh(y - 0.2, 1e3 * predicted, 0.36, color="#ffffff", edgecolor=PREDICTED, hatch="////")
                axes.annotate(milliseconds(predicted), (1e3 * predicted, y - 0.2), (4, 0), **note)
            if measured is not None:
                spread = None
                if quartiles is not None:
                    below, above = max(0.0, measured - quartiles[0]), max(0.0, quartiles[1] - measured)
                    spread = [[1e3 * below], [1e3 * above]]
                axes.barh(y + 0.2, 1e3 * measured, 0.36, color=MEASURED, xerr=spread, error_kw={"elinewidth": 1.2})
                right = max(measured, quartiles[1] if quartiles else 0)
                axes.annotate(milliseconds(measured), (1e3 * right, y + 0.2), (4, 0), **note)
        axes.set_yticks(range(len(bars)), [label if len(label) <= 28 else label[:27] + "…" for label, *_ in bars])
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(0, 1e3 * limit * 1.17 or 1)
        axes.set_xlabel("Milliseconds")
        axes.grid(axis="y", visible=False)
        return [_bar_key(True, "predicted for the device"), _bar_key(False, "measured here (thin line: quartiles)")]

    note: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    parts = []
    for label, predicted, measured, _ in bars:
        pair = (("predicted", predicted), ("measured", measured))
        said = ", ".join(f"{what} {milliseconds(value)} ms" for what, value in pair if value is not None)
        parts.append(f"{label}: {said or 'no value'}")
    description = f"Bar chart. {'; '.join(parts)}."
    return figures.make(title, description, 1.0 + 0.46 * len(bars), paint, caption)


def quartiles_of(value: dict[str, Any] | None) -> tuple[float, float] | None:
    if value is None or value.get("p25_s") is None or value.get("p75_s") is None:
        return None
    return value["p25_s"], value["p75_s"]


def layer_bars(block: dict[str, Any]) -> list[Bar]:
    return [
        (
            f"{row['layer']} {row['pass']}",
            lookup(row, "predicted.time_s"),
            lookup(row, "measured.median_s"),
            quartiles_of(row.get("measured")),
        )
        for row in block["layers"]
    ]


def longest_bar(bars: Iterable[Bar]) -> float:
    return max((max(p or 0.0, m or 0.0, q[1] if q else 0.0) for _, p, m, q in bars), default=0.0)
