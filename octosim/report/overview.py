"""The first screen of the page: for each task sentences made from the records, a table and a labelled scatter plot."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from octosim.cost import compare
from octosim.outcome import is_classifier
from octosim.report.devices import Price
from octosim.report.figures import COLOURS, Figure, Figures, Legend, short_names, useful_range
from octosim.report.spread import differences, families, interval, reference
from octosim.report.states import learned, state_of, states_text
from octosim.report.tables import DASH, Cell, Group, Table, finals, percent, plural, significant

# ---- one task: a network on a data set, by one version on one CPU --------------------------------------------------


def mean(group: Group) -> float | None:
    """Mean accuracy over the seeds that finished above chance; None without any."""
    values = learned(group).values()
    return statistics.fmean(values) if values else None


Span = tuple[float, float]


def gap(group: Group, base: Group) -> tuple[float | None, Span | None]:
    """How many points a group's accuracy is from another's, over the seeds of both if there are such, and its 95 % interval."""
    pairs = differences(learned(group), learned(base))
    ours, theirs = mean(group), mean(base)
    if ours is None or theirs is None:
        return None, None
    return statistics.fmean(pairs) if pairs else 100 * (ours - theirs), interval(pairs)


@dataclass(frozen=True)
class Task:
    """Groups that may be compared, the reference first, then by accuracy; costs by the device's label and group.

    common: settings that all its groups have and groups of another task have not; its title says them.
    """

    model: str
    data: str
    groups: tuple[Group, ...]
    prices: dict[str, dict[int, Price]]
    common: tuple[str, ...] = ()

    @property
    def base(self) -> Group:
        return self.groups[0]

    @property
    def title(self) -> str:
        return ", ".join((f"{self.model} on {self.data}", *self.common))

    def label(self, group: Group) -> str:
        """A group's name beside the others of its task."""
        if not self.common:
            return group.label
        method = group.runs[0].decides["method"]["name"]
        return ", ".join((method, *(setting for setting in group.settings if setting not in self.common)))

    @property
    def is_classifier(self) -> bool:
        return is_classifier(self.base.runs[0].decides)


def tasks(groups: Sequence[Group], prices: Sequence[Price]) -> list[Task]:
    """The families of groups, in order of appearance."""
    found = []
    kinds = families(groups)
    for members in kinds:
        base = reference(members)
        common = tuple(s for s in base.settings if len(kinds) > 1 and all(s in group.settings for group in members))
        others = [group for group in members if group is not base]
        others.sort(key=lambda group: -(mean(group) or -1.0))
        by_device: dict[str, dict[int, Price]] = {}
        for price in prices:
            if any(price.group is group for group in members):
                by_device.setdefault(price.label, {})[id(price.group)] = price
        decides = base.runs[0].decides
        found.append(Task(decides["model"], decides["data"]["name"], (base, *others), by_device, common))
    return found


def ratio(price: Price, base: Price) -> compare.Ratio | None:
    """Time of a step as a multiple of the reference's."""
    return compare.ratio(price.step, base.step)


# ---- sentences --------------------------------------------------


def _listed(names: Sequence[str], most: int = 6) -> str:
    """a, b and c; of a long list the first ones and how many more."""
    shown, more = list(names[:most]), len(names) - most
    if more > 0:
        shown.append(f"{more} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def _points_text(far: float, span: Span | None) -> str:
    return f"{far:+.2f} points" + (f", {span[0]:+.2f} to {span[1]:+.2f}" if span else "")


def _points(value: float) -> str:
    return f"{abs(value):.2f} {'point' if f'{abs(value):.2f}' == '1.00' else 'points'}"


def mean_error(group: Group) -> float | None:
    """Mean test error over the seeds that finished, of a network without classes; None without any."""
    values = finals(group, "test_loss").values()
    return statistics.fmean(values) if values else None


def error_sentence(task: Task) -> str:
    """The mean squared test errors of a network without classes, the reference's first."""
    errors = [(task.label(group), mean_error(group)) for group in task.groups]
    said = [f"{label} {error:.4g}" for label, error in errors if error is not None]
    return f"Mean squared test error of {task.title}: {', '.join(said)}." if said else f"No run of {task.title} finished."


def accuracy_sentence(task: Task) -> str:
    """Which configurations hold the reference's accuracy, as far as the seeds can tell."""
    if not task.is_classifier:
        return error_sentence(task)
    base, ours = mean(task.base), task.label(task.base)
    if base is None:
        best = max(task.groups, key=lambda group: mean(group) or -1.0)
        if (reached := mean(best)) is None:
            return f"No run of {task.title} finished above chance."
        return f"{task.label(best)} reaches {percent(reached)} on {task.title}; no run of {ours} finished above chance."
    seeds = len(learned(task.base))
    kinds: dict[str, list[str]] = {"above": [], "same": [], "below": [], "unsure": []}
    for group in task.groups[1:]:
        far, span = gap(group, task.base)
        if far is None:
            continue
        pairs = differences(learned(group), learned(task.base))
        if len(pairs) >= 2 and not any(pairs):
            kinds["same"].append(task.label(group))
        elif span is None:
            kinds["unsure"].append(f"{task.label(group)} ({far:+.2f})")
        elif span[0] > 0 or span[1] < 0:
            kinds["above" if span[0] > 0 else "below"].append(f"{task.label(group)} ({_points(far)})")
        else:
            kinds["same"].append(task.label(group))
    words = {"above": "above it {}", "same": "no difference shown for {}", "below": "below it {}",
             "unsure": "too few seeds to say of {}"}  # fmt: skip
    parts = [words[kind].format(_listed(names)) for kind, names in kinds.items() if names]
    head = f"{task.title}: the reference {ours} reaches {percent(base)} ({plural(seeds, 'seed')})"
    return f"{'; '.join([head, *parts])}."


def cost_sentence(task: Task, device: str) -> str | None:
    """What the configurations cost on a device beside the reference; None where that says nothing."""
    priced = task.prices.get(device, {})
    base = priced.get(id(task.base))
    if base is None or len(priced) < 2:
        return None
    ratios = [(g, r) for g in task.groups[1:] if id(g) in priced and learned(g) and (r := ratio(priced[id(g)], base))]
    if not ratios:
        return None
    ours = task.label(task.base)
    held = [(g, r) for g, r in ratios if not _shown_below(g, task.base)]
    group, best = min(held or ratios, key=lambda pair: pair[1].value)
    span = f"({significant(best.low, 2)} to {significant(best.high, 2)})"
    far, between = gap(group, task.base)
    what = "the fastest without a shown loss of accuracy" if held else "the fastest"
    what += "" if far is None else f" ({_points_text(far, between)})"
    where = f" ({', '.join(task.common)})" if task.common else ""
    text = f"On {device}{where}, {task.label(group)} is {what}: {significant(best.value, 2)} times {ours}'s time {span}"
    if best.told == "cannot be told":
        text += ", so whether it is faster cannot be told"
    elif best.told == "slower":
        text += f": {'none of those' if held else 'nothing'} is faster than {ours} there"
    joules, theirs = priced[id(group)].step["energy_j"], base.step["energy_j"]
    if joules is not None and theirs:
        text += f", {significant(joules / theirs, 2)} times its energy"
    too_large = [task.label(group) for group in task.groups if id(group) in priced and priced[id(group)].fits == "no"]
    if too_large:
        text += f"; {_listed(too_large)} {'does' if len(too_large) == 1 else 'do'} not fit its memory"
    return text + " (predicted)."


def _shown_below(group: Group, base: Group) -> bool:
    """Whether a group's accuracy is below the reference's: by its interval, or without one by a point and more."""
    far, span = gap(group, base)
    return span[1] < 0 if span else far is not None and far < -1


def failures_sentence(tasks: Sequence[Task]) -> str:
    """Which runs did not end well, and where."""
    parts, total, bad = [], 0, 0
    for task in tasks:
        for group in task.groups:
            total += len(group.runs)
            counts = Counter(state_of(run).kind for run in group.runs)
            for kind, verb in (("diverged", "diverged"), ("at chance", "stayed at chance"), ("broken", "broke off"),
                               ("unfinished", "did not finish")):  # fmt: skip
                if n := counts.get(kind):
                    bad += n
                    details = list(dict.fromkeys(s.detail for s in map(state_of, group.runs) if s.kind == kind and s.detail))
                    told = "; ".join(details[:3]) + f"; {len(details) - 3} more" * (len(details) > 3)
                    where = f" ({told})" if told and kind in ("diverged", "broken") else ""
                    several = f" in {n} of {plural(len(group.runs), 'run')}" if len(group.runs) > 1 else ""
                    parts.append(f"{group.label} {verb}{several}{where}")
    if not bad:
        above = ", above chance" if all(task.is_classifier for task in tasks) else ""
        return f"{({1: 'The run', 2: 'Both runs'}).get(total, f'All {total} runs')} finished{above}."
    return "; ".join(parts) + "."


def sentences(tasks: Sequence[Task]) -> list[str]:
    """What the records say: accuracy, cost on each device, and what failed."""
    said = []
    for task in tasks:
        said += [accuracy_sentence(task), *(text for device in task.prices if (text := cost_sentence(task, device)))]
    return [*said, failures_sentence(tasks)]


def caveat_sentences(tasks: Sequence[Task]) -> list[str]:
    """What of their methods did not act in the runs, as their manifests say; one sentence a configuration and caveat."""
    found: dict[tuple[str, str], None] = {}
    for task in tasks:
        for group in task.groups:
            for run in group.runs:
                found |= dict.fromkeys((group.label, text) for text in run.caveats)
    return [f"{label}: {text}." for label, text in found]


# ---- the table --------------------------------------------------

BAR = 96.0  # width of a difference's picture


def difference_bar(mean: float, span: Span | None, limit: float) -> Markup:
    """A difference with its interval on an axis from -limit to limit; what lies beyond ends in an arrow."""

    def x(value: float) -> float:
        return BAR / 2 * (1 + max(-1.0, min(1.0, value / limit)))

    low, high = span or (mean, mean)
    parts = [f'<line class="axis" x1="{BAR / 2:g}" x2="{BAR / 2:g}" y1="0" y2="12"/>']
    if span:
        parts.append(f'<line class="span" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="6" y2="6"/>')
    if abs(mean) > limit:
        at, tip = (2.0, -1) if mean < 0 else (BAR - 2, 1)
        parts.append(f'<path class="dot" d="M{at + 2 * tip:g} 6l{-7 * tip} -4v8z"/>')
    else:
        parts.append(f'<circle class="dot" cx="{x(mean):.1f}" cy="6" r="3"/>')
    return Markup(f'<svg class="bar" viewBox="0 0 {BAR:g} 12" aria-hidden="true">{"".join(parts)}</svg>')


def _limit(values: Sequence[float]) -> float:
    """Half the width of the differences' axis: what most of them need, not the one that is far off."""
    sizes = sorted(abs(value) for value in values) or [1.0]
    return max(0.2, 1.25 * min(sizes[-1], 3 * statistics.median(sizes) + 0.5))


def task_table(task: Task) -> Table:
    """Method by accuracy, difference, cost on each device and state."""
    gaps: list[tuple[float | None, Span | None]]
    gaps = [(None, None) if group is task.base else gap(group, task.base) for group in task.groups]
    limit = _limit([edge for far, span in gaps if far is not None for edge in (far, *(span or ()))])
    several = any(len(group.runs) > 1 for group in task.groups)
    rows = []
    for group, (far, span) in zip(task.groups, gaps, strict=True):
        if far is None:
            difference = Cell("reference" if group is task.base else DASH)
        else:
            words = f"{far:+.2f}" + (f" ({span[0]:+.2f} to {span[1]:+.2f})" if span else "")
            difference = Cell(words, far, picture=difference_bar(far, span, limit))
        reached = mean(group)
        score = Cell(DASH) if reached is None else Cell(percent(reached), reached)
        if not task.is_classifier and (error := mean_error(group)) is not None:
            score = Cell(f"{error:.4g}", error)
        cells = [Cell(task.label(group)), score, difference]
        if several:
            seeds = len({run.decides["seed"] for run in group.runs})
            cells.append(Cell(f"{len(learned(group))} of {seeds}", len(learned(group))))
        cells.append(Cell(states_text(group)))
        for by in task.prices.values():
            cells += _cost_cells(by.get(id(group)), by.get(id(task.base)), reached is not None)
        rows.append(cells)
    columns = [("Method", "text"), ("Accuracy" if task.is_classifier else "Test error", "number")]
    columns += [("Difference (points)", "number")]
    columns += [("Seeds", "number")] * several
    columns += [("State", "text")] + [("time ×", "number"), ("J", "number"), ("MiB", "number")] * len(task.prices)
    bands = (("", 4 + several), *((label, 3) for label in task.prices))
    caption = f"{task.title}: test accuracy after the last epoch, mean over the seeds that finished above chance"
    if not task.is_classifier:
        caption = f"{task.title}: mean squared test error after the last epoch, mean over the seeds that finished"
    paired = any(differences(learned(group), learned(task.base)) for group in task.groups[1:])
    if any(far is not None for far, _ in gaps) and paired:
        caption += "; difference to the reference over the seeds that both have"
    if any(span for _, span in gaps):
        caption += ", with its 95 % interval (Student's t)"
    caption += "."
    if task.prices:
        caption += (
            f" Predicted for each device: a step's time as a multiple of {task.label(task.base)}'s, with the interval that"
            " should hold it four times in five, energy of the whole training, and a step's peak memory."
        )
    return Table(caption, tuple(columns), rows, bands=bands if task.prices else ())


def _cost_cells(price: Price | None, base: Price | None, finished: bool) -> list[Cell]:
    if price is None:
        return [Cell(DASH)] * 3
    times = Cell(DASH)
    if base is price:
        times = Cell("1", 1.0)
    elif base is not None and (r := ratio(price, base)):
        times = Cell(f"{significant(r.value, 2)} ({significant(r.low, 2)} to {significant(r.high, 2)})", r.value)
    joules = price.energy_j if finished else None  # a training that did not end has no price
    peak = price.step["peak_bytes"]
    return [
        times,
        Cell(DASH) if joules is None else Cell(significant(joules), joules),
        Cell(significant(peak / 2**20) + (", does not fit" if price.fits == "no" else ""), peak),
    ]


# ---- the scatter plot --------------------------------------------------

LABEL = 30
"""Characters of a point's label."""


def _apart(wanted: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Positions near `wanted`, in its order, at least `least` apart and within low .. high where they fit there."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    least = min(least, (high - low) / max(1, len(wanted) - 1)) if len(wanted) > 1 else least
    places = [min(max(wanted[i], low), high) for i in order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + least)
    if places and places[-1] > high:
        places[-1] = high
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - least)
    found = [0.0] * len(wanted)
    for i, place in zip(order, places, strict=True):
        found[i] = place
    return found


def measured_times(groups: Sequence[Group]) -> dict[int, float]:
    """Median wall seconds of finished runs by group; nothing where machines, instruction sets or threads differ."""
    walls: dict[int, float] = {}
    places = set()
    for group in groups:
        found = []
        for run in group.runs:
            times = [row["wall_s"] for row in run.timing if row.get("wall_s") is not None]
            if run.digest and times:
                found.append(sum(times))
                places.add(tuple(run.environment[key] for key in ("cpu", "isa", "threads")))
        if found:
            walls[id(group)] = statistics.median(found)
    return walls if len(places) == 1 and len(walls) > 1 else {}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, accuracy) that no other beats: cheaper and no worse, or better and no dearer."""

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] >= b[1]

    return [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]


def predicted_times(task: Task, device: str) -> dict[int, tuple[float, float, float]]:
    """Seconds of the whole training on a device with their interval, by group."""
    return {
        key: (price.time_s, price.step["time_low_s"] * price.steps, price.step["time_high_s"] * price.steps)
        for key, price in task.prices[device].items()
        if price.steps
    }


def images_interval(group: Group, accuracy: float) -> Span:
    """95 % interval of an accuracy over as many other test images (Wilson); it alone where their number is unknown."""
    n, z = group.runs[0].decides["data"].get("test_images"), 1.96
    if not isinstance(n, int) or n < 1:
        return accuracy, accuracy
    centre, half = accuracy + z * z / (2 * n), z * math.sqrt(accuracy * (1 - accuracy) / n + (z / (2 * n)) ** 2)
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def scatters(figures: Figures, task: Task) -> list[Figure]:
    """Accuracy against time on each device; without devices against measured time, where all is one machine's."""
    drawn = []
    for name, by in task.prices.items():
        device = next(iter(by.values())).device
        title = device.title if device.title.startswith(name) else name
        caption = f"Predicted for {title}, from its profile; grey: the interval that should hold the time four times in "
        caption += f"five; training there: {device.training.status}."
        drawn.append(scatter(figures, task, name, predicted_times(task, name), "Predicted", caption))
    if not task.prices and (walls := measured_times(task.groups)):
        caption = (
            "Wall time of octosim as it was recorded, median over seeds, other load on the machine included; what is "
            "simulated (registers other than exact32) takes longer here than on hardware that has it."
        )
        times = {key: (wall, wall, wall) for key, wall in walls.items()}
        drawn.append(scatter(figures, task, "measured", times, "Measured", caption))
    return [figure for figure in drawn if figure]


def scatter(
    figures: Figures, task: Task, place: str, times: dict[int, tuple[float, float, float]], kind: str, caption: str
) -> Figure | None:
    """Accuracy against time (with its interval, in seconds): each point labelled, runs off the axis as arrows at its edge."""
    shown = [(group, learned(group)) for group in task.groups if id(group) in times and learned(group)]
    if len(shown) < 2 or len({times[id(group)][0] for group, _ in shown}) < 2:  # else there is nothing to trade
        return None
    means = [100 * statistics.fmean(values.values()) for _, values in shown]
    spans = [times[id(group)] for group, _ in shown]
    low, high = useful_range(means)
    names = short_names([task.label(group) for group, _ in shown], LABEL)
    best = front([(span[0], mean) for span, mean in zip(spans, means, strict=True)])
    inside = [low <= mean <= high for mean in means]
    edges = [
        images_interval(group, mean / 100) if len(values) == 1 else (min(values.values()), max(values.values()))
        for (group, values), mean in zip(shown, means, strict=True)
    ]
    seen = [100 * edge for span, near in zip(edges, inside, strict=True) if near for edge in span]
    low, high = min(low, *seen), max(high, *seen)

    def paint(axes: Any) -> Legend:
        line = sorted((spans[i][0], means[i]) for i in best)
        axes.plot([x for x, _ in line], [y for _, y in line], color="#8c959f", linewidth=1.0, drawstyle="steps-post", zorder=1)
        for i, (group, _) in enumerate(shown):
            colour = COLOURS[4] if group is task.base else COLOURS[0]
            if not inside[i]:
                edge, marker = (low, "v") if means[i] < low else (high, "^")
                axes.plot(spans[i][0], edge, marker, color=COLOURS[1], markersize=8, zorder=3, clip_on=False)
                continue
            axes.plot(spans[i][1:], [means[i]] * 2, color="#c5ccd3", linewidth=2.5, zorder=1, solid_capstyle="round")
            axes.plot([spans[i][0]] * 2, [100 * edge for edge in edges[i]], color=colour, linewidth=1.2)
            fill = colour if i in best else "#ffffff"
            axes.plot(spans[i][0], means[i], "o", color=colour, mfc=fill, markersize=7, zorder=3)
        axes.set_ylim(low, high)
        axes.set_xlim(0, 1.05 * max(span[2] for span in spans))
        right = 1.03 * axes.get_xlim()[1]
        for i, place in enumerate(_apart(means, 0.055 * (high - low), low, high)):
            text = names[i] if inside[i] else f"{names[i]} ({means[i]:.1f} %)"
            axes.annotate(
                text, (spans[i][0], min(max(means[i], low), high)), (right, place), annotation_clip=False, va="center",
                fontsize=9, arrowprops={"arrowstyle": "-", "color": "#d0d7de", "linewidth": 0.8, "shrinkB": 4},
            )  # fmt: skip
        axes.set_xlabel(f"{kind} time of the whole training (s)")
        axes.set_ylabel("Test accuracy (%)")
        return []

    caption += " Points: mean over the seeds that finished above chance, vertical lines: all of them, black: the reference."
    if any(len(values) == 1 for _, values in shown):
        caption += " Of one seed, the line is the 95 % interval for as many other test images (Wilson)."
    caption += " Filled, on the line: no other is cheaper and as accurate. The accuracy axis is cut to where most lie"
    off = inside.count(False)
    caption += f"; {plural(off, 'configuration')} off it: the arrows at its edge." if off else "."
    points = zip(names, means, spans, strict=True)
    said = "; ".join(f"{name}: {mean:.2f} % for {significant(span[0])} s" for name, mean, span in points)
    return figures.make(f"Accuracy against time: {task.title}, {place}", f"Scatter plot. {said}.", 4.2, paint, caption)
