"""The first screen: states of runs, sentences made from known records, ratios, what is cut off."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from kit.pages import make_run

from octosim import outcome, train
from octosim.cost import compare
from octosim.report import figures, overview, read, states, tables, write_report
from octosim.report.devices import labelled, prices


def runs_of(folder):
    found = read.read_all([folder])
    assert not found.skipped
    return found.runs


def set_accuracy(run, *values):
    """Rewrites a run's last evaluations; one line a value."""
    path = run / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [{key: v for key, v in line.items() if not key.startswith("test_")} for line in lines]
    for line, value in zip(lines[-len(values) :], values, strict=True):
        line["test_accuracy"] = value
        line["test_loss"] = 1.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def set_classes(run, units, images):
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["decides"]["layers"] = [{"kind": "Flatten"}, {"kind": "Linear", "units": units}]
    manifest["decides"]["method"]["parameters"] = {}
    manifest["decides"]["data"]["test_images"] = images
    path.write_text(json.dumps(manifest))


@pytest.fixture
def study(tmp_path):
    """fp32 at 80 %, good within 0.1 points of it, worse 2 points below, stuck at chance twice in three, gone by divergence."""
    folder = tmp_path / "study"
    accuracies = {
        "fp32": (0.80, 0.81, 0.79), "octo": (0.801, 0.809, 0.79), "niti": (0.78, 0.791, 0.77), "dorefa": (0.1, 0.69, 0.1),
    }  # fmt: skip
    folder_names: list[str] = []
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            run = make_run(folder / f"{method}-{seed}", seed=seed, method=method, digest="0123456789abcdef"[len(folder_names)])
            folder_names.append(run.name)
            set_accuracy(run, value)
            set_classes(run, 10, 1000)
    gone = make_run(folder / "gone", method="wage", digest="")
    set_classes(gone, 10, 1000)
    rows = [{"name": name.name, "state": "finished", "reason": ""} for name in folder.iterdir() if name.name != "gone"]
    reason = "step 18, layer conv2, forward: a value is NaN or infinite; a smaller learning rate may help"
    rows.append({"name": "gone", "state": "broken", "reason": reason})
    content = {"format": 1, "kind": "study", "title": "Which [holds]?", "about": "Asked\nhere.", "rows": rows}
    (folder / "study.json").write_text(json.dumps(content))
    return folder


def task_of(folder, *profiles):
    groups, _ = tables.group_runs(runs_of(folder))
    priced, _ = prices(groups, labelled(profiles), train.step_of)
    (task,) = overview.tasks(groups, priced)
    return task


def test_states(study):
    kinds = {run.name: states.state_of(run) for run in runs_of(study)}
    assert kinds["fp32-0"].kind == "finished" and kinds["dorefa-1"].kind == "finished"
    assert kinds["dorefa-0"].kind == kinds["dorefa-2"].kind == "at chance"
    assert kinds["gone"].kind == "diverged" and kinds["gone"].detail.endswith("layer conv2")


@pytest.mark.parametrize("units, images, accuracy, kind", [
    (10, 10_000, 0.105, "at chance"), (10, 10_000, 0.112, "finished"), (2, 100, 0.6, "at chance"), (2, 10_000, 0.6, "finished"),
    (100, 1000, 0.015, "at chance"), (100, 1000, 0.03, "finished"),
])  # fmt: skip
def test_chance_depends_on_classes_and_images(tmp_path, units, images, accuracy, kind):
    run = make_run(tmp_path / "runs" / "a")
    set_accuracy(run, accuracy)
    set_classes(run, units, images)
    assert states.state_of(runs_of(tmp_path / "runs")[0]).kind == kind


def test_classes_of_a_network_that_ends_with_a_convolution():
    """Its filters are the classes, not the units of an earlier squeeze and excitation."""
    rows = [{"kind": "Linear", "units": 4}, {"kind": "Conv2d", "filters": 10}, {"kind": "AvgPool"}]
    assert outcome.chance({"layers": rows, "data": {"test_images": 10_000}}) == pytest.approx(0.109)
    assert outcome.chance({"layers": [*rows, {"kind": "Linear", "units": 2}], "data": {"test_images": 100}}) == 0.65


@pytest.mark.parametrize("reason, kind", [
    ("its process ended with exit code -9", "broken"), ("step 4, layer fc1, dW: a value is NaN or infinite", "diverged"),
    ("", "unfinished"),
])  # fmt: skip
def test_state_of_what_did_not_finish(tmp_path, reason, kind):
    folder = tmp_path / "study"
    make_run(folder / "a", digest="")
    rows = [{"name": "a", "state": "broken", "reason": reason}]
    (folder / "study.json").write_text(json.dumps({"format": 1, "kind": "study", "rows": rows}))
    assert states.state_of(runs_of(folder)[0]).kind == kind


def test_sentences_are_true_of_known_records(study):
    task = task_of(study)
    assert [group.label for group in task.groups] == ["fp32", "octo", "niti", "dorefa", "wage"]
    accuracy, failures = overview.sentences([task])
    assert "the reference fp32 reaches 80.00 % (3 seeds)" in accuracy
    assert "no difference shown for octo" in accuracy and "below it niti (1.97 points)" in accuracy
    assert "too few seeds to say of dorefa (-12.00)" in accuracy  # its only seed that learned, against fp32's same seed
    assert re.fullmatch(r"dorefa stayed at chance in 2 of 3 runs; wage diverged \(step \d+, layer conv2\)\.", failures)


@pytest.mark.parametrize("switch", [True, False], ids=["a switch", "layers alone"])
def test_networks_are_told_apart_in_titles(tmp_path, switch):
    """Not in the name of every method; layers by a fingerprint only where no switch says more."""
    for number, (large, method) in enumerate((large, method) for large in (True, False) for method in ("fp32", "octo")):
        run = make_run(tmp_path / "runs" / str(number), method=method, digest=str(number))
        set_classes(run, 10 if large else 11, 1000)
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["decides"]["batchnorm"] = large if switch else True
        manifest["outcome"] = {"caveats": ["nothing acts"] * (method == "octo")}
        (run / "manifest.json").write_text(json.dumps(manifest))
    groups, _ = tables.group_runs(runs_of(tmp_path / "runs"))
    found = overview.tasks(groups, [])
    assert [[task.label(group) for group in task.groups] for task in found] == [["fp32", "octo"]] * 2
    ends = [task.title.rpartition(", ")[2] for task in found]
    assert ends == ["batchnorm=true", "batchnorm=false"] if switch else all(end.startswith("layers=") for end in ends)
    assert len({group.label for group in groups}) == 4  # what stands beside groups of both says which
    said = overview.caveat_sentences(found)
    assert len(said) == 2 and all(text.startswith("octo, ") and text.endswith(": nothing acts.") for text in said)
    write_report([tmp_path / "runs"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<li>octo, ") == 2 and page.index("What did not act") > page.index("<caption>")


FIRST = "On Raspberry Pi 4 Model B, {} is the fastest without a shown loss of accuracy ({}): {} times fp32's time ({})"


@pytest.mark.parametrize("times, said", [
    ({"octo": 0.5, "niti": 0.2, "dorefa": 0.3},  # dorefa's one seed that learned is 12 points below
     FIRST.format("octo", "+0.00 points, -0.25 to +0.25", "0.50", "0.44 to 0.57") + ", 0.50 times its energy (predicted)."),
    ({"octo": 0.99, "niti": 0.2, "dorefa": 0.3}, ", so whether it is faster cannot be told, "),
    ({"octo": 2, "niti": 0.2, "dorefa": 0.3}, ": none of those is faster than fp32 there, "),
    ({"niti": 2, "dorefa": 3},
     " niti is the fastest (-1.97 points, -2.11 to -1.82): 2.0 times fp32's time (1.7 to 2.3): nothing is "),
    ({"octo": 0.5, "wage": 0.1}, "On Raspberry Pi 4 Model B, octo is"),  # which diverged
    ({}, None),
])  # fmt: skip
def test_sentence_of_costs_is_true_of_known_times(study, times, said):
    """Each time known to 10 %, hence a ratio to 14 %."""
    task = task_of(study, "pi4")
    ((name, by),) = task.prices.items()
    known = {}
    for group in task.groups:
        if (factor := (times | {"fp32": 1}).get(group.label)) is not None:
            seconds = {"time_s": factor, "time_low_s": factor / 1.1, "time_high_s": 1.1 * factor, "energy_j": 3 * factor}
            known[id(group)] = replace(by[id(group)], step=by[id(group)].step | seconds)
    text = overview.cost_sentence(replace(task, prices={name: known}), name)
    assert text is None if said is None else said in text, text


def test_failures_of_nothing(tmp_path):
    for seed in range(2):
        make_run(tmp_path / "runs" / str(seed), seed=seed, digest=str(seed))
    assert overview.failures_sentence([task_of(tmp_path / "runs")]) == "Both runs finished, above chance."


def test_table_has_no_cost_of_a_training_that_did_not_end(study):
    task = task_of(study, "pi4")
    table = overview.task_table(task)
    heads = table.heads
    row = {cells[0].text: dict(zip(heads, (cell.text for cell in cells), strict=True)) for cells in table.rows}
    joules = next(head for head in heads if head.endswith(": J"))
    assert row["wage"][joules] == tables.DASH and row["wage"]["Accuracy"] == tables.DASH
    assert row["wage"]["State"].startswith("diverged") and row["dorefa"]["State"] == "2 of 3 at chance"
    assert row["dorefa"]["Seeds"] == "1 of 3" and float(row["octo"][joules].replace(",", "")) > 0
    assert sum(columns for _, columns in table.bands) == len(table.columns)


def test_ratio_of_independent_predictions(study):
    task = task_of(study, "pi4")
    by = task.prices["Raspberry Pi 4 Model B"]
    base, octo = by[id(task.groups[0])], by[id(task.groups[1])]
    found = overview.ratio(octo, base)
    assert found.value == pytest.approx(octo.step["time_s"] / base.step["time_s"])
    width = math.hypot(*(math.log(p.step["time_high_s"] / p.step["time_s"]) for p in (octo, base)))
    assert math.log(found.high / found.value) == pytest.approx(width)
    assert compare.Ratio(0.5, 0.3, 0.9).told == "faster" and compare.Ratio(0.9, 0.7, 1.1).told == "cannot be told"


@pytest.mark.parametrize("accuracy, images", [(0.85, 1000), (0.5, 10), (1.0, 100), (0.0, 7)])
def test_interval_of_images(study, accuracy, images):
    """Its edges are the accuracies from which the observed one is 1.96 standard errors away."""
    set_classes(study / "octo-0", 10, images)
    (group,) = (g for g in tables.group_runs([run for run in runs_of(study) if run.name == "octo-0"])[0])
    low, high = overview.images_interval(group, accuracy)
    assert 0 <= round(low, 12) <= accuracy <= round(high, 12) <= 1 and high > low
    for edge in (low, high):
        assert abs(accuracy - edge) == pytest.approx(1.96 * math.sqrt(edge * (1 - edge) / images), abs=1e-6)


def test_one_seed_does_not_fill_the_height_with_two_images(study, tmp_path):
    drawn = figures.Figures(files=False)
    for name in ("fp32-0", "octo-0"):
        set_accuracy(study / name, {"fp32-0": 0.854, "octo-0": 0.852}[name])
    groups, _ = tables.group_runs([run for run in runs_of(study) if run.name in ("fp32-0", "octo-0")])
    (task,) = overview.tasks(groups, [])
    times = {id(group): (seconds,) * 3 for seconds, group in enumerate(task.groups, 1)}
    figure = overview.scatter(drawn, task, "here", times, "Measured", "")
    ticks = [float(text) for text in re.findall(r">(8\d(?:\.\d)?)</text>", str(figure.svg))]
    assert max(ticks) - min(ticks) >= 3 and "Wilson" in figure.caption


def test_useful_range_leaves_out_what_is_far_off():
    low, high = overview.useful_range([81.0, 81.5, 82.0, 82.2, 82.4, 83.0, 10.0])
    assert 80 < low < 81 and 83 < high < 84
    low, high = overview.useful_range([50.0, 60.0])
    assert low < 50 and high > 60


def test_runs_at_chance_do_not_flatten_the_axis_of_accuracy(study, tmp_path):
    """Nor do runs far off, however many are at chance; the plot of a few lines names those that end off its frame."""

    def axis():
        return figures.accuracy_axis(run for run in runs_of(study) if run.name != "gone")

    low, high = axis()
    assert 76 < low < 77 and high == pytest.approx(81)
    for run in study.glob("dorefa-*"):
        set_accuracy(run, 0.1)
    for run in study.glob("niti-*"):
        set_accuracy(run, 0.1)
    low, high = axis()
    assert low == pytest.approx(79) and high == pytest.approx(81)
    write_report([study], tmp_path / "page.html")  # a panel a configuration
    assert (tmp_path / "page.html").read_text().count("▼ 3 runs: 10<") == 2
    write_report([*study.glob("fp32-*"), *study.glob("dorefa-*")], tmp_path / "page.html")  # one plot
    assert (tmp_path / "page.html").read_text().count("▼ 3 runs: 10<") == 1
    for run in study.glob("*-*"):
        set_accuracy(run, 0.1)
    assert axis() == (pytest.approx(10), pytest.approx(10))


@pytest.mark.parametrize("wanted", [[1.0, 1.0, 1.0], [5.0, 0.0, 5.0, 5.01], [0.5], [9.9, 9.95, 10.0]])
def test_labels_do_not_overlap(wanted):
    places = overview._apart(wanted, 1.0, 0.0, 10.0)
    ordered = sorted(places)
    assert all(b - a >= 1.0 - 1e-9 for a, b in zip(ordered, ordered[1:], strict=False))
    assert all(0 <= place <= 10 for place in places)
    assert sorted(range(len(wanted)), key=lambda i: wanted[i]) == sorted(range(len(wanted)), key=lambda i: places[i])


def test_constant_columns_go_into_the_caption():
    cell = tables.Cell
    table = tables.Table("Two.", (("A", "text"), ("B", "text"), ("C", "number")),
                         [[cell("x"), cell("same"), cell("1", 1)], [cell("x"), cell("same"), cell("1", 1)]])  # fmt: skip
    slim = tables.without_constants(table)
    assert [title for title, _ in slim.columns] == ["A", "C"] and slim.caption == "Two. The same in all rows: B: same."
    assert [[c.text for c in row] for row in slim.rows] == [["x", "1"], ["x", "1"]]


def test_page_opens_with_the_study_and_its_answer(study, tmp_path):
    for name in ("page.html", "page.md"):
        write_report([study], tmp_path / name, command="c", profiles=["pi4", "jetson"], pictures=tmp_path / "figs",
                     step_of=train.step_of)
        text = (tmp_path / name).read_text()
        plain = re.sub(r"\\(.)", r"\1", text) if name.endswith(".md") else text
        assert "Which [holds]?" in plain and "Asked here." in plain
        order = ("Which [holds]?", "the reference fp32 reaches", "Accuracy against time", "Over seeds")
        places = [plain.index(part) for part in order]
        assert places == sorted(places)
    names = {path.name for path in (tmp_path / "figs").iterdir()}
    assert any(name.startswith("accuracy-against-time") for name in names) and any("training-loss" in name for name in names)
    assert len({name.lower() for name in names}) == len(names)


def test_damaged_study_file_is_skipped(study, tmp_path):
    (study / "study.json").write_text('{"format": 1, "kind": "study", "rows": [{"name": 3}]}')
    found = read.read_all([study])
    assert len(found.runs) == 13 and [path for path, _ in found.skipped] == [str(study / "study.json")]


def test_runs_that_end_off_a_panel_are_named_in_it(study, tmp_path):
    write_report([study], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("▼ 3 runs: 10 to 69<") == 1 and page.count("▼") == 1  # dorefa's seeds at chance do not flatten the others


def test_the_band_of_the_reference_follows_its_lines(tmp_path):
    """Of seeds whose lines are thinned to steps of their own, the band is no wider than the lines are apart."""
    frames = [pd.DataFrame({"step": range(1, 901)}) for _ in range(2)]
    for number, frame in enumerate(frames):
        noise = np.random.default_rng(number).uniform(-0.02, 0.02, len(frame))
        frame["loss"] = 2.0 - frame["step"] / 600 + noise
    lines = [pd.Series(y.to_numpy(), x.to_numpy()) for x, y in (figures._thin(f["step"], f["loss"], 40) for f in frames)]
    band = figures.band_of(lines)
    assert band.index.is_monotonic_increasing and ((band["max"] - band["min"]).dropna() < 0.1).all()
    assert ((band["max"] - (2.0 - band.index.to_numpy() / 600)).dropna().abs() < 0.1).all()
