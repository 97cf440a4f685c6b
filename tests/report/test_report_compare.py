"""The report's comparisons: intervals over seeds, equal bits, costs on devices, the Pareto front; Markdown and pictures."""

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.cli import octosim
from kit.pages import EVIL, bench, make_bench, make_run, manifest, records, report, with_accuracy

from octosim import cost, engine, graph, hardware, integrity, methods, train
from octosim.engine import plan
from octosim.errors import OctosimError
from octosim.report import figures, overview, spread, write_report

# ---- seeds --------------------------------------------------


@pytest.mark.parametrize(("degrees", "quantile"), list(enumerate(spread.T975, start=1)))
def test_student_quantiles(degrees, quantile):
    """The density, integrated from 0 to the quantile, is 0.475."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    x = np.linspace(0, quantile, 20001)
    y = scale * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    assert np.trapezoid(y, x) == pytest.approx(0.475, abs=3e-6)


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=40), st.integers(-9, 9))
def test_interval(values, shift):
    """Holds the mean in its middle, moves with the values, and is None where there is nothing to say."""
    found = spread.interval(values)
    if not any(values):
        assert found is None
        return
    low, high = found
    assert (low + high) / 2 == pytest.approx(np.mean(values)) and low <= high
    assert spread.interval(values[:2]) is None
    if any(moved := [v + shift for v in values]):
        assert spread.interval(moved) == pytest.approx((low + shift, high + shift))


def accuracies(folder, values, **settings):
    for seed, value in enumerate(values):
        make_run(folder / f"{len(list(folder.parent.rglob('manifest.json')))}", with_accuracy(value), seed=seed,
                 digest=f"{len(list(folder.parent.rglob('manifest.json'))):x}", **settings)  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs", "mean", "interval", "reading"),
    [
        # differences 1, 2, 3 points: mean 2, deviation 1, half width 4.3027 / sqrt(3)
        ((0.91, 0.92, 0.93), (0.90, 0.90, 0.90), "+2.00", "-0.48 to +4.48", "no difference shown, with 3 seeds only"),
        ((0.90, 0.91, 0.92), (0.95, 0.96, 0.971), "-5.03", "-5.18 to -4.89", "below, with 3 seeds only"),
        ((0.96, 0.961, 0.962, 0.963, 0.965, 0.965), (0.95,) * 6, "+1.27", "+1.05 to +1.48", "above"),
        ((0.9, 0.8), (0.8, 0.9), "+0.00", "–", "too few seeds to say (2)"),
        ((0.9, 0.8, 0.7), (0.9, 0.8, 0.7), "+0.00", "–", "equal with every seed"),
    ],
)
def test_paired_differences(tmp_path, ours, theirs, mean, interval, reading):
    accuracies(tmp_path / "runs", ours)
    accuracies(tmp_path / "runs", theirs, method="fp32")
    _, page = report(tmp_path, tmp_path / "runs")
    (row,) = page.rows("Compared")
    assert (row["Compared"], row["With"], row["n"]) == ("octo", "fp32", str(len(ours)))
    assert (row["Mean difference"], row["95 % interval"], row["Reading"]) == (mean, interval, reading)


def test_only_common_seeds_of_finished_runs_are_compared(tmp_path):
    accuracies(tmp_path / "runs", (0.9, 0.9, 0.9))
    for seed, digest in ((1, "d"), (2, ""), (3, "e")):
        make_run(tmp_path / "runs" / f"f{seed}", with_accuracy(0.8), seed=seed, digest=digest, method="fp32")
    _, page = report(tmp_path, tmp_path / "runs")
    assert not [table for table in page.tables if table[0][0] == "Compared"]  # seed 1 alone is in both


@pytest.mark.parametrize("other", [{"cpu": "CPU B"}, {"version": "0.2.0"}, {"model": "lenet5"}, {}], ids=str)
def test_other_machines_versions_and_networks_are_not_compared(tmp_path, other):
    accuracies(tmp_path / "runs", (0.9, 0.8, 0.7))
    accuracies(tmp_path / "runs", (0.7, 0.8, 0.6), method="fp32", **other)
    for path in (tmp_path / "runs").glob("[345]/manifest.json"):
        path.write_text(path.read_text().replace('"out": 16', f'"out": {16 + (other == {})}'))
    _, page = report(tmp_path, tmp_path / "runs")
    assert not [table for table in page.tables if table[0][0] == "Compared"]


def test_equal_bits_of_different_settings(tmp_path):
    for name, digest in (("off", "a"), ("channel", "a"), ("feature", "b")):
        make_run(tmp_path / "runs" / name, lac=name, digest=digest)
    make_run(tmp_path / "runs" / "again", lac="feature", digest="b")  # the same run twice is no news
    _, page = report(tmp_path, tmp_path / "runs")
    (row,) = page.rows("Digest")
    assert (row["Digest"], row["Seed"], row["Runs"], row["Equal to the bit"]) == ("a" * 12, "0", "2", "channel, off")


# ---- devices --------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two seeds of two methods, really trained."""
    folder = tmp_path_factory.mktemp("real") / "study"
    for method in ("octo", "fp32"):
        for seed in (0, 1):
            config = train.Config(model="lenet5", method=method, batch_size=50, steps=4, seed=seed)
            place = folder / f"{method}{seed}"
            assert train.train(train.create(config, place, f"octosim train --method {method} --seed {seed}"), place)
    return folder


def test_devices_table_agrees_with_cost(study, tmp_path):
    """A row a configuration and device, with what `octosim cost` says of the same step."""
    _, page = report(tmp_path, study, profiles=["pi4", "jetson", "coral-edge-tpu"])
    rows = {(row["Configuration"], row["Device"]): row for row in page.rows("Configuration", 1)}
    pi4 = hardware.load("pi4")
    for method in ("octo", "fp32"):
        done = octosim("cost", "--profile", "pi4", "--model", "lenet5", "--batch-size", "50", "--method", method, "--json")
        total = json.loads(done.stdout)["total"]
        row = rows[method, pi4.title.split(" (")[0]]  # as short as tells the devices apart
        assert float(row["Step (ms)"]) == pytest.approx(1e3 * total["time_s"], rel=0.005)
        assert float(row["Peak memory (MiB)"]) == pytest.approx(total["peak_bytes"] / 2**20, rel=0.005)
        assert float(row["Step (mJ)"].replace(",", "")) == pytest.approx(1e3 * total["energy_j"], rel=0.005)
        assert float(row["Training (s)"]) == pytest.approx(4 * total["time_s"], rel=0.005)
    assert "Fits: yes" in page.text
    assert "fp32: no cost predicted for" in page.text  # the Coral has no float units
    assert any("Predicted for Raspberry Pi 4" in caption for caption in page.captions)


def calibrated(folder, bandwidth="4.5", **fields):
    """A copy of pi4 as calibration makes one: the same name and title, other figures."""
    text = hardware.text_of("pi4")
    for field, value in fields.items():
        text = re.sub(rf'(?m)^{field} = ".*"$', f'{field} = "{value}"', text, count=1)
    path = folder / "my-pi4.toml"
    path.write_text(re.sub(r"(bandwidth_sustained_gb_s = \{ value = )[\d.]+", rf"\g<1>{bandwidth}", text))
    assert hardware.load(path) != hardware.load("pi4")
    return str(path)


PI = "Raspberry Pi 4 Model B"


@pytest.mark.parametrize("given, labels", [
    (["pi4", "pi4"], [PI]), (["pi4", "jetson", "raspberry-pi-4"], [PI, "NVIDIA Jetson Xavier NX 8 GB"]),
    (["pi4", "pi4-1800"], [f"{PI} (4x Cortex-A72, 1.5 GHz)", f"{PI} (4x Cortex-A72, 1.8 GHz)"]),
    (["pi4", "COPY", "COPY"], [f"{PI} (pi4)", f"{PI} (COPY)"]),
    (["raspberry-pi-4", "pi4-1800", "COPY"],
     [f"{PI} (raspberry-pi-4)", f"{PI} (4x Cortex-A72, 1.8 GHz)", f"{PI} (COPY)"]),
    (["pi4", "OTHER NAME"], [f"{PI} (pi4)", f"{PI} (OTHER NAME)"]), (["pi4", "OTHER TITLE"], [PI, "Mine"]),
])  # fmt: skip
def test_devices_of_a_report_are_told_apart(study, tmp_path, given, labels):
    """In the overview's columns, its sentences and the table; equal devices are one."""
    fields = {"OTHER NAME": {"name": "mine"}, "OTHER TITLE": {"title": "Mine"}}
    copy = calibrated(tmp_path, **next((fields[text] for text in given if text in fields), {}))

    def named(text):
        return re.sub("COPY|OTHER NAME|OTHER TITLE", copy, text)

    _, page = report(tmp_path, study, profiles=[named(text) for text in given])
    labels = [named(label) for label in labels]
    rows = [(row["Configuration"], row.get("Device", labels[0])) for row in page.rows("Configuration", 1)]
    assert sorted(rows) == sorted(itertools.product(("octo", "fp32"), labels))
    assert [table[0][1:] for table in page.tables if table[0][0] == ""] == [labels]  # the heads over columns
    assert all(page.text.count(f"On {label}, ") == 1 for label in labels)
    assert len({caption for caption in page.captions if "Predicted for" in caption}) == len(labels)


def test_measured_times_are_drawn_where_no_device_is_named(study, tmp_path):
    for folder in study.iterdir():  # four steps are no epoch, so nothing was timed
        (folder / "timing.jsonl").write_text(json.dumps({"epoch": 1, "wall_s": 1.0 + ("fp32" in folder.name)}) + "\n")
    _, page = report(tmp_path, study)
    assert any("Wall time of octosim as it was recorded" in caption for caption in page.captions)
    text = (study / "fp320/manifest.json").read_text()
    manifest = json.loads(text)
    manifest["environment"]["threads"] += 10
    sums = integrity.field_sums({key: value for key, value in manifest.items() if key != "sums"})
    (study / "fp320/manifest.json").write_text(json.dumps(manifest | {"sums": sums}))
    _, page = report(tmp_path, study)
    assert not any("as it was recorded" in caption for caption in page.captions)  # another number of threads
    (study / "fp320/manifest.json").write_text(text)


def test_networks_that_no_cost_can_be_given_are_noted(tmp_path):
    _, page = report(tmp_path, make_run(tmp_path / "run"), profiles=["pi4"])
    assert "octo: no cost predicted: manifest.json: layer 1" in page.text
    assert "Accuracy and cost" not in page.text


def test_an_unknown_profile_is_refused_before_anything_is_written(study, tmp_path):
    with pytest.raises(OctosimError, match="pi44"):
        write_report([study], tmp_path / "x.html", profiles=["pi44"])
    assert not list(tmp_path.iterdir())


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_front(points):
    """Every point is on the front or beaten by one of it; none of it beats another."""
    best = overview.front(points)
    assert best
    for i, (price, accuracy) in enumerate(points):
        beaten = any(points[j] != points[i] and points[j][0] <= price and points[j][1] >= accuracy for j in best)
        assert beaten == (i not in best)


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_every_method_has_a_price(method):
    made = engine.Network(graph.layers("lenet5", 10, False, (28, 28, 1)), (28, 28, 1), methods.make(method, {}), None)
    assert cost.total(cost.predict(plan.trace(made, 10), hardware.load("pi4")), hardware.load("pi4"))["time_s"] > 0


# ---- Markdown and pictures --------------------------------------------------


def test_markdown_links_its_pictures(study, tmp_path):
    made = make_bench(tmp_path / "b.json")
    done = octosim("report", str(study), str(made), "--profile", "pi4", "-o", "a b.md", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "a b.md").read_text()
    linked = re.findall(r"^!\[.+\]\((.+)\)$", text, re.M)
    assert len(linked) >= 5 and all((tmp_path / link.replace("%20", " ")).stat().st_size > 1000 for link in linked)
    folder = tmp_path / "a b-figures"
    assert {path.suffix for path in folder.iterdir()} == {".svg", ".png", ".pdf"}
    assert len(list(folder.iterdir())) == 3 * len(linked)
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in folder.glob("*.png"))
    assert all(path.read_bytes()[:5] == b"%PDF-" for path in folder.glob("*.pdf"))
    for block in re.findall(r"(?:^\|.*\|$\n)+", text, re.M):  # tables have as many cells in every line
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    headings = [len(marks) for marks in re.findall(r"^(#+) ", text, re.M)]
    assert headings[0] == 1 and all(b <= a + 1 for a, b in zip(headings, headings[1:], strict=False))


def test_pictures_of_a_page(study, tmp_path):
    """--figures; the same input gives the same bytes; the page itself does not need them."""
    for name in ("x", "y"):
        write_report([study], tmp_path / "page.html", command="c", pictures=tmp_path / name)
    pictures = sorted(path.name for path in (tmp_path / "x").iterdir())
    assert len(pictures) >= 4 and all((tmp_path / "x" / p).read_bytes() == (tmp_path / "y" / p).read_bytes() for p in pictures)
    assert "training-loss-lenet5" not in (tmp_path / "page.html").read_text()
    svg = (tmp_path / "x/training-loss-lenet5-on-fashion-mnist-5k.svg").read_text()
    assert "octo" in svg and "fp32" in svg  # the legend goes with the file


def test_hostile_names_stay_text_in_markdown(tmp_path):
    name = EVIL + "|*_[x](y)`\n# heading"
    run = make_run(tmp_path / "run", method=name, model=name, cpu=name)
    data = bench() | {"model": name, "command": "```\n# no heading"}
    write_report([run, make_bench(tmp_path / "b.json", data)], tmp_path / "page.md", command=name)
    text = (tmp_path / "page.md").read_text()
    outside = re.sub(r"^(`{3,})\n.*?\n\1$", "", text, flags=re.S | re.M)
    assert "<script" not in outside.replace("\\<", "") and "[x](" not in outside
    assert not re.search(r"^# (heading|no heading)", outside, re.M)


def test_pictures_in_a_place_that_cannot_be(study, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OctosimError, match="cannot make the folder .*file/x for figures"):
        write_report([study], tmp_path / "page.html", pictures=tmp_path / "file" / "x")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["file"]


# ---- runs that came to different ends --------------------------------------------------


def test_many_configurations_of_which_one_was_evaluated(tmp_path):
    """Four diverge in their first epoch: panels of the losses, and one plot of the accuracy that there is."""
    make_run(tmp_path / "runs/good")
    for share in range(4):
        make_run(tmp_path / f"runs/bad{share}", [{"step": 1, "epoch": 1, "loss": 2.0}], "", share=share)
    counts, page = report(tmp_path, tmp_path / "runs")
    assert counts["runs"] == 5
    assert "Test accuracy: simplecnn on mnist" in page.text and "Last values: good: 95.00 %." in page.html


def test_a_run_that_has_made_no_step(tmp_path):
    """Begun, or killed before its first record: a run without records; a finished one without them is damaged."""
    make_run(tmp_path / "runs/one")
    for name in ("begun", "damaged"):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "manifest.json").write_text(json.dumps(manifest(seed=1)))
    (tmp_path / "runs/damaged/digest.txt").write_text(f"sha256:{'a' * 64}  step 40\n")
    counts, page = report(tmp_path, tmp_path / "runs")
    assert counts["runs"] == 2 and [Path(path).name for path, _ in counts["skipped"]] == ["damaged"]
    assert "begun: records.jsonl holds no records yet." in page.text


def test_panels_are_told_apart(tmp_path):
    """Names over small multiples leave out what all have; cut ones differ."""
    labels = [f"octo, accumulator=exact32, {'x' * 80}{end}" for end in ("a", "b", "b")]
    names = figures.short_names(labels, 60)
    assert len(set(names)) == 3 and max(map(len, names)) <= 60 and not any("exact32" in name for name in names)
    assert figures.short_names(["octo, lr=1", "octo, lr=2", "octo"], 30) == ["lr=1", "lr=2", "octo"]
    assert figures.short_names(["octo, lr=1"], 30) == ["octo, lr=1"]
    for share in range(6):
        make_run(tmp_path / f"runs/{share}", rows=records(), a_parameter_with_a_long_name="on", share=share, seed=0)
    _, page = report(tmp_path, tmp_path / "runs")
    assert all(page.html.count(f">share={share}</text>") == 2 for share in range(1, 6))  # over loss and accuracy
