"""octosim.report: the page is sound, self-contained HTML, says what it left out, and pools only what may be pooled."""

import json
import math
import os
import re
from pathlib import Path

import pytest
from kit.pages import EVIL, bench, layer, lines, make_bench, make_run, manifest, records, report, with_accuracy

from octosim import train
from octosim.errors import OctosimError
from octosim.report import write_report

# ------------------------------------------------------------------------------------------------------------- the page


def test_page_is_sound_and_self_contained(tmp_path):
    runs = [make_run(tmp_path / "runs" / f"octo-{s}", seed=s, digest="abc"[s]) for s in range(3)]
    counts, page = report(tmp_path, *runs, make_bench(tmp_path / "bench.json"), command="octosim report me")
    assert counts == {"runs": 3, "benches": 1, "skipped": []}
    assert len(page.ids) == len(set(page.ids))
    known = set(page.ids)
    loads = {"src", "srcset", "data", "poster", "action", "xlink:href", "href"}
    for tag, key, value in page.attributes:
        if key in loads:
            assert value == "data:," or (value.startswith("#") and value[1:] in known), (tag, key, value)
        for reference in re.findall(r"url\(([^)]*)\)", value):
            assert reference[1:] in known, (tag, key, value)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page.html)
    assert "octosim report me" in page.text
    assert page.tags.count("h1") == 1 and page.tags.count("main") == 1


def test_every_figure_has_a_caption_and_is_described(tmp_path):
    _, page = report(tmp_path, make_run(tmp_path / "run"), make_bench(tmp_path / "bench.json"))
    plots = [value for tag, key, value in page.attributes if (tag, key) == ("svg", "aria-labelledby")]
    assert len(plots) == page.tags.count("figure") == 5  # loss, accuracy, totals, INT8 layers, FP32 layers
    assert all(set(plot.split()) <= set(page.ids) for plot in plots)
    assert len(page.captions) == 5 and all(page.captions)
    for caption in page.captions[2:]:
        assert "different machines" in caption and "NVIDIA Jetson Xavier NX" in caption and "CPU A" in caption


def test_headings_never_skip_a_level(tmp_path):
    make_run(tmp_path / "runs" / "a"), make_run(tmp_path / "runs" / "b", seed=1, model="lenet5")
    _, page = report(tmp_path, tmp_path / "runs", make_bench(tmp_path / "bench.json"))
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))


def test_same_input_same_bytes(tmp_path):
    paths = [make_run(tmp_path / "run"), make_bench(tmp_path / "bench.json")]
    for name in ("a.html", "b.html"):
        write_report(paths, tmp_path / name, command="c")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_default_command_quotes_its_paths(tmp_path):
    _, page = report(tmp_path, make_run(tmp_path / "a run"))
    assert f"octosim report '{tmp_path}/a run' -o {tmp_path}/report.html" in page.text


def test_many_long_runs_stay_small(tmp_path):
    rows = [{"step": s, "epoch": 1, "loss": 1 + (s * 7919 % 1000) / 1000} for s in range(1, 4001)]
    for seed in range(24):
        make_run(tmp_path / "runs" / str(seed), rows, seed=seed // 3, lac="abc"[seed % 3])
    report(tmp_path, tmp_path / "runs")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_a_slowed_or_busy_machine_is_told(tmp_path):
    busy = "other programs kept 1.0 of 2 CPUs busy; the process was ready and waited for a CPU for 20 % of its time"
    for state, told in (({"slowed": ["clock capped"], "busy": busy}, True), ({"slowed": [], "busy": ""}, False)):
        _, page = report(tmp_path, make_bench(tmp_path / "b.json", bench() | {"state": state}))
        assert ("slowed down: clock capped." in page.text) == (f"was busy: {busy}." in page.text) == told


# ------------------------------------------------------------------------------------------------------------- escaping


def test_hostile_names_stay_text(tmp_path):
    data = bench()
    data |= {"model": EVIL, "method": EVIL, "command": EVIL}
    data["device"] |= {"title": EVIL, "training": EVIL}
    data["environment"]["cpu"] = EVIL
    data["layers"][0] |= {"layer": EVIL, "pass": EVIL, "predicted": {"time_s": 1e-4, "bound": EVIL}}
    data["against"] = {EVIL: {"time_s": 1.0, "ratio": 2.0, "version": EVIL, "what": EVIL}}
    run = make_run(tmp_path / EVIL.replace("/", ""), method=EVIL, model=EVIL, cpu=EVIL, lac=EVIL)
    _, page = report(tmp_path, run, make_bench(tmp_path / "b.json", data), tmp_path / "<b>none</b>", command=EVIL)
    assert page.tags.count("script") == 1 and "b" not in page.tags
    assert page.html.count("alert(1)") == page.html.count("alert(1)&lt;/script") + page.html.count("alert(1)&lt;script")
    assert EVIL in page.text and "<b>none</b>" in page.text
    assert page.rows("Run")[0]["Method"] == EVIL


@pytest.mark.parametrize("name", ["\x00\x1b[31m", "\ud800", "\uffff", "模型", "_hidden", "a\nb", "$", "$\\frac{$"])
def test_odd_characters_never_break_the_page(tmp_path, name):
    data = bench()
    data["layers"][0]["layer"] = data["device"]["title"] = name
    report(tmp_path, make_run(tmp_path / "run", method=name), make_bench(tmp_path / "b.json", data))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff\uffff]", text)


# ----------------------------------------------------------------------------------------------------------------- runs


def test_runs_table_shows_what_was_recorded(tmp_path):
    run = make_run(tmp_path / "run", records(accuracies=(0.9712, 0.9634)))
    _, page = report(tmp_path, run)
    (row,) = page.rows("Run")
    assert row["Test accuracy, last"] == "96.34 %" and row["Test accuracy, best"] == "97.12 %"
    assert row["Wall time"] == "12.0 s" and row["Images/s"] == "9,002"  # median of 9001 and 9002, rounded half-even
    assert row["Epochs"] == "2" and row["Digest"] == "a" * 12 and row["Status"] == "finished"
    assert row["Measured on"] == "CPU A, avx2, 2 threads" and row["Differs in"] == "–"
    assert float(row["Training loss"]) == pytest.approx((2 / 20 + 2 / 21) / 2 + 0.1, abs=5e-4)  # median over all 40


def test_only_differing_settings_are_listed(tmp_path):
    make_run(tmp_path / "runs" / "a", lac="off")
    make_run(tmp_path / "runs" / "b", lac="channel")
    make_run(tmp_path / "runs" / "c", method="fp32", lac="none")
    _, page = report(tmp_path, tmp_path / "runs")
    # fp32's parameters are compared with other fp32 runs only.
    assert [row["Differs in"] for row in page.rows("Run")] == ["lac=off", "lac=channel", "–"]


def test_runs_of_one_folder_name_are_told_apart(tmp_path):
    _, page = report(tmp_path, make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run", seed=1))
    assert [row["Run"] for row in page.rows("Run")] == [f"{tmp_path}/x/run", f"{tmp_path}/y/run"]


def test_a_run_named_twice_counts_once(tmp_path):
    run = make_run(tmp_path / "runs" / "a")
    counts, _ = report(tmp_path, tmp_path / "runs", run, tmp_path / "runs" / ".." / "runs" / "a")
    assert counts["runs"] == 1


def test_unfinished_run(tmp_path):
    make_run(tmp_path / "runs" / "a", digest="")
    (tmp_path / "runs" / "a" / "timing.jsonl").unlink()
    _, page = report(tmp_path, tmp_path / "runs")
    (row,) = page.rows("Run")
    assert row["Status"] == "unfinished" and row["Epochs"] == "2 of 2" and row["Wall time"] == row["Digest"] == "–"


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("records.jsonl", "", "no records yet"),
        ("records.jsonl", lines(records())[:-9], "records.jsonl: line 40 (the last) is cut off; the 39 before it"),
        ("records.jsonl", lines(records()) + '{"step": 4', "records.jsonl: line 41 (the last) is cut off"),
        (
            "records.jsonl",
            lines(records()).replace('"loss": 0.6}', '"loss": NaN}', 1),
            "not a finite number in 1 records, first at step 4",
        ),
        (
            "records.jsonl",
            lines(records()).replace('"loss": 0.6}', '"loss": Infinity}', 1),
            "not a finite number in 1 records",
        ),
        (
            "records.jsonl",
            lines(records()).replace('"loss": 0.6}', '"loss": 1' + "0" * 400 + "}", 1),
            "not a finite number in 1 records",
        ),
        ("records.jsonl", lines(records()) + '{"step": 3, "epoch": 1, "loss": 9}', "repeats 1 steps"),
        ("timing.jsonl", '{"epoch": 1, "wall_s": 6.0}\n{"epo', "timing.jsonl: line 2 (the last) is cut off"),
        ("digest.txt", "sha1:beef", "digest.txt is not of the form"),
        ("digest.txt", f"sha256:{'a' * 64}  step 39\n", "digest.txt is of step 39, but the records end at step 40"),
    ],
)
def test_damage_that_leaves_a_run_readable_is_noted(tmp_path, name, text, note):
    run = make_run(tmp_path / "run")
    (run / name).write_text(text)
    counts, page = report(tmp_path, run)
    assert counts == {"runs": 1, "benches": 0, "skipped": []}
    assert note in page.text
    assert page.rows("Run")[0]["Status"].endswith("see notes")
    assert "nan" not in page.rows("Run")[0].values()


def test_cut_off_records_keep_the_rest(tmp_path):
    run = make_run(tmp_path / "run")
    whole = (run / "records.jsonl").read_bytes()
    (run / "records.jsonl").write_bytes(whole[: whole.rindex(b"{") + 30])
    _, page = report(tmp_path, run)
    row = page.rows("Run")[0]
    assert row["Test accuracy, last"] == "90.00 %"  # the last line held the second evaluation


def test_the_later_of_two_lines_for_a_step_counts(tmp_path):
    rows = [{"step": 1, "epoch": 1, "loss": loss} for loss in (0.25, 0.75)]
    _, page = report(tmp_path, make_run(tmp_path / "run", rows))
    assert page.rows("Run")[0]["Training loss"] == "0.750"


def test_all_losses_nan_still_makes_a_page(tmp_path):
    rows = [row | {"loss": math.nan} for row in records(steps=3000)]
    _, page = report(tmp_path, make_run(tmp_path / "run", rows))
    assert page.rows("Run")[0]["Training loss"] == "–"
    assert page.rows("Run")[0]["Test accuracy, last"] == "95.00 %"


def test_an_evaluation_on_a_line_of_its_own_joins_its_step(tmp_path):
    rows = [{"step": 1, "epoch": 1, "loss": 0.5}, {"step": 1, "epoch": 1, "test_accuracy": 0.75}]
    _, page = report(tmp_path, make_run(tmp_path / "run", rows))
    row = page.rows("Run")[0]
    assert (row["Training loss"], row["Test accuracy, last"], row["Status"]) == ("0.500", "75.00 %", "finished")


# -------------------------------------------------------------------------------------------------------------- pooling


def test_seeds_are_summarised(tmp_path):
    for seed, last in enumerate((0.90, 0.93, 0.99)):
        make_run(tmp_path / "runs" / f"octo-{seed}", with_accuracy(last), seed=seed, digest="abc"[seed])
    make_run(tmp_path / "runs" / "z", with_accuracy(0.1), seed=3, digest="")  # unfinished: must not pull the mean down
    make_run(tmp_path / "runs" / "fp32", with_accuracy(0.97), method="fp32")
    _, page = report(tmp_path, tmp_path / "runs")
    single, octo = page.rows("Configuration")
    assert (octo["n"], octo["Mean"], octo["Min"], octo["Max"]) == ("3", "94.00 %", "90.00 %", "99.00 %")
    assert octo["Seeds"] == "0, 1, 2 (1 without an end left out)"
    assert (single["Configuration"], single["n"], single["Mean"]) == ("fp32", "1", "97.00 %")
    assert octo["Deviation (points)"] == "4.58" and single["Deviation (points)"] == "–"


@pytest.mark.parametrize("other", [{"cpu": "CPU B"}, {"version": "0.2.0"}, {"lac": "off"}])
def test_differing_machine_version_or_setting_is_never_pooled(tmp_path, other):
    for seed in (0, 1):
        make_run(tmp_path / "runs" / f"a{seed}", with_accuracy(0.9), seed=seed, digest="ab"[seed])
        make_run(tmp_path / "runs" / f"b{seed}", with_accuracy(0.8), seed=seed + 2, digest="cd"[seed], **other)
    _, page = report(tmp_path, tmp_path / "runs")
    first, second = page.rows("Configuration")
    assert (first["n"], first["Mean"], first["Min"]) == ("2", "90.00 %", "90.00 %")
    assert (second["n"], second["Mean"], second["Max"]) == ("2", "80.00 %", "80.00 %")
    assert first["Configuration"] != second["Configuration"]
    value = next(iter(other.values()))
    assert value in second["Configuration"]
    noted = "never pooled: a0, a1, b0, b1" in page.text
    assert noted == ("lac" not in other)


def test_instruction_sets_share_a_group_but_a_seed_counts_once(tmp_path):
    for name, isa in (("a", "ref"), ("b", "avx2"), ("c", "avx512vnni")):
        run = make_run(tmp_path / "runs" / name, with_accuracy(0.9))
        text = (run / "manifest.json").read_text()
        (run / "manifest.json").write_text(text.replace('"isa": "avx2"', f'"isa": "{isa}"'))
    make_run(tmp_path / "runs" / "d", with_accuracy(0.8), seed=1, digest="d")
    _, page = report(tmp_path, tmp_path / "runs")
    (row,) = page.rows("Configuration")
    assert (row["n"], row["Mean"]) == ("2", "85.00 %")
    assert "seed 0 was run 3 times with the same digest (a, b, c); it counts once" in page.text


def test_same_seed_with_another_digest_is_called_out(tmp_path):
    make_run(tmp_path / "runs" / "a", digest="a"), make_run(tmp_path / "runs" / "b", digest="b")
    _, page = report(tmp_path, tmp_path / "runs")
    assert "the runs of seed 0 ended with different digests (a, b)" in page.text
    assert not [table for table in page.tables if table[0][0] == "Configuration"]  # one seed: nothing to summarise


# ---------------------------------------------------------------------------------------------------------------- bench


def test_bench_tables_show_predicted_and_measured(tmp_path):
    _, page = report(tmp_path, make_bench(tmp_path / "bench.json"))
    rows, fp32 = page.rows("Layer"), page.rows("Layer", 1)
    assert [row["Layer"] for row in rows] == ["conv1", "conv1", "fc1", "Whole step"]
    assert rows[0] == {
        "Layer": "conv1",
        "Pass": "forward",
        "MACs": "43.2 M",
        "Bytes": "1.23 MB",
        "Predicted (ms)": "0.100",
        "Bound by": "memory",
        "Measured (ms)": "0.300",
        "Quartiles (ms)": "0.270 to 0.360",
        "n": "30",
    }
    assert (rows[-1]["Predicted (ms)"], rows[-1]["Measured (ms)"]) == ("1.10", "4.10")
    assert fp32[-1]["Measured (ms)"] == "19.9"
    assert "PyTorch FP32, best of eager (version 2.13.0) took 22.0 ms" in page.text and "5.37 times" in page.text


def test_bench_with_nothing_optional(tmp_path):
    data = bench(full=False)
    data["layers"] = [row | {"measured": None} for row in data["layers"]]
    data["total"] = {"time_s": None, "predicted_time_s": 0.0011, "macs": 1, "bytes": 2}
    _, page = report(tmp_path, make_bench(tmp_path / "bench.json", data))
    assert len([table for table in page.tables if table[0][0] == "Layer"]) == 1
    assert all(row["Measured (ms)"] == "–" and row["Predicted (ms)"] != "–" for row in page.rows("Layer"))


def test_nothing_measured_and_nothing_predicted_draws_no_figure(tmp_path):
    data = bench(full=False)
    data["layers"] = [row | {"measured": None, "predicted": None} for row in data["layers"]]
    data["total"] = {}
    _, page = report(tmp_path, make_bench(tmp_path / "bench.json", data))
    assert "figure" not in page.tags and len(page.rows("Layer")) == 4


def test_the_host_profile_is_not_called_another_machine(tmp_path):
    data = bench()
    data["device"] = {"name": "host", "title": "This machine"}
    _, page = report(tmp_path, make_bench(tmp_path / "bench.json", data))
    assert "different machines" not in page.text and "Both are for this machine" in page.captions[0]


def test_a_deep_network_draws_the_longest_rows_and_says_so(tmp_path):
    data = bench(full=False)
    data["layers"] = [layer(f"layer{i}", "dW", 1e-5, 1e-4 + i * 1e-5) for i in range(60)]
    _, page = report(tmp_path, make_bench(tmp_path / "bench.json", data))
    assert "Only the 40 longest of 60 rows are drawn" in page.captions[-1]
    assert len(page.rows("Layer")) == 61
    drawn = {name for name in re.findall(r"<text[^>]*>(layer\d+) dW</text>", page.html)}
    assert drawn == {f"layer{i}" for i in range(20, 60)}


# ------------------------------------------------------------------------------------------------------------ bad input


def change(data, dotted, value):
    """A copy of `data` with one field changed, or left out where value is Ellipsis."""
    copy = json.loads(json.dumps(data))
    *parents, last = dotted.split(".")
    inner = copy
    for key in parents:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(copy)


RUN_DAMAGE = [
    ("manifest.json", '{"format": 1,', "manifest.json is not valid JSON"),
    ("manifest.json", "\x80", "manifest.json is not valid JSON"),
    ("manifest.json", "[" * 100_000, "manifest.json is not valid JSON"),
    ("manifest.json", "[]", "expected a JSON object"),
    ("manifest.json", change(manifest(), "format", 2), "format is 2, this octosim reads format 1"),
    ("manifest.json", change(manifest(), "format", ...), "format is None"),
    ("manifest.json", change(manifest(), "kind", "study"), "kind is 'study', expected 'run'"),
    ("manifest.json", change(manifest(), "decides", ...), "decides.octosim is missing"),
    ("manifest.json", change(manifest(), "decides.model", ...), "decides.model is missing, expected a string"),
    ("manifest.json", change(manifest(), "decides.data.name", ["mnist"]), "decides.data.name"),
    ("manifest.json", change(manifest(), "decides.method", "octo"), "decides.method.name is missing"),
    ("manifest.json", change(manifest(), "decides.seed", True), "decides.seed is 'True', expected a whole number"),
    ("manifest.json", change(manifest(), "decides.seed", 0.5), "decides.seed"),
    ("manifest.json", change(manifest(), "environment.threads", math.nan), "environment.threads is 'nan'"),
    ("manifest.json", change(manifest(), "environment.cpu", None), "environment.cpu is missing"),
    ("manifest.json", None, "manifest.json cannot be read: No such file"),
    ("records.jsonl", None, "records.jsonl cannot be read: No such file"),
    ("records.jsonl", "{}}\n" + lines(records()), "records.jsonl: line 1 is not valid JSON"),
    ("records.jsonl", "[1]\n", "records.jsonl: line 1: expected an object"),
    ("records.jsonl", '{"epoch": 1, "loss": 1}\n', "line 1: field step is missing"),
    ("records.jsonl", '{"step": -1, "epoch": 1, "loss": 1}\n', "line 1: field step"),
    ("records.jsonl", '{"step": 1, "epoch": 1.5, "loss": 1}\n', "line 1: field epoch"),
    ("records.jsonl", '{"step": 1, "epoch": 1, "loss": "low"}\n', "line 1: field loss is not a number"),
    ("records.jsonl", '{"step": 1, "epoch": 1, "test_accuracy": 98.2}\n', "test_accuracy is 98.2, expected 0 to 1"),
    ("timing.jsonl", '{"epoch": 1, "wall_s": -1}\n', "timing.jsonl: line 1: field wall_s is '-1'"),
]


@pytest.mark.parametrize(("name", "text", "reason"), RUN_DAMAGE)
def test_broken_runs_are_skipped_with_the_reason_on_the_page(tmp_path, name, text, reason):
    make_run(tmp_path / "runs" / "good", seed=5)
    bad = make_run(tmp_path / "runs" / "bad")
    if text is None:
        (bad / name).unlink()
    else:
        (bad / name).write_text(text, encoding="latin-1")
    counts, page = report(tmp_path, tmp_path / "runs")
    assert (counts["runs"], [path for path, _ in counts["skipped"]]) == (1, [str(bad)])
    assert reason in counts["skipped"][0][1]
    assert counts["skipped"][0][1] in page.text and "1 path could not be read" in page.text
    with pytest.raises(OctosimError, match=re.escape(reason)):
        write_report([bad], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


BENCH_DAMAGE = [
    ("{", "bench.json is not valid JSON"),
    ("", "bench.json is not valid JSON"),
    (change(bench(), "format", 3), "format is 3"),
    (change(bench(), "kind", "run"), "kind is 'run', expected 'bench'"),
    (change(bench(), "layers", {}), "field layers is '{}', expected a list"),
    (change(bench(), "layers.1.pass", ...), "layers[1]: field pass is missing"),
    (change(bench(), "layers.0.macs", -1), "layers[0]: field macs is '-1', expected a number >= 0"),
    (change(bench(), "layers.0.measured.median_s", math.nan), "measured.median_s is 'nan'"),
    (change(bench(), "layers.2.predicted", 7), "field predicted is '7', expected an object or null"),
    (change(bench(), "fp32.total", ...), "fp32.: field total is missing"),
    (change(bench(), "fp32.layers.0.bytes", "many"), "fp32.layers[0]: field bytes"),
    (change(bench(), "total.time_s", math.inf), "total: field time_s is 'inf'"),
    (change(bench(), "against.torch.ratio", ...), "against.torch: field ratio is missing"),
    (change(bench(), "device.title", ...), "device.title is missing"),
]


@pytest.mark.parametrize(("text", "reason"), BENCH_DAMAGE)
def test_broken_bench_files_are_skipped(tmp_path, text, reason):
    bad = tmp_path / "bench.json"
    bad.write_text(text)
    counts, page = report(tmp_path, make_run(tmp_path / "run"), bad)
    assert (counts["runs"], counts["benches"]) == (1, 0)
    ((path, why),) = counts["skipped"]
    assert path == str(bad) and reason in why and why in page.text


def test_a_folder_is_searched_one_level_and_other_json_is_let_be(tmp_path):
    folder = tmp_path / "all"
    make_run(folder / "run")
    make_run(folder / "deeper" / "run")
    make_bench(folder / "bench.json")
    (folder / "settings.json").write_text('{"kind": "settings"}')
    (folder / "broken.json").write_text("{")
    counts, _ = report(tmp_path, folder)
    assert (counts["runs"], counts["benches"]) == (1, 1)
    assert [path for path, _ in counts["skipped"]] == [str(folder / "broken.json")]


def test_a_missing_path_is_named_but_the_rest_is_reported(tmp_path):
    counts, page = report(tmp_path, tmp_path / "nowhere", make_run(tmp_path / "run"))
    assert counts["skipped"] == [(str(tmp_path / "nowhere"), "no such file or folder")]
    assert str(tmp_path / "nowhere") in page.text


def test_nothing_to_report_on(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for paths in ([], [empty], [tmp_path / "nowhere"], [empty, tmp_path / "nowhere"]):
        with pytest.raises(OctosimError, match="nothing to report on") as raised:
            write_report(paths, tmp_path / "out.html")
        assert all(str(path) in str(raised.value) for path in paths)
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize("target", ["missing/out.html", "folder", "file/out.html"])
def test_unwritable_output(tmp_path, target):
    run = make_run(tmp_path / "run")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OctosimError, match="cannot write"):
        write_report([run], tmp_path / target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("where", "name"), [(os, "fsync"), (os, "replace")])
def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch, where, name):
    out = tmp_path / "report.html"
    out.write_text("old")
    run = make_run(tmp_path / "run")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, name, full)
    with pytest.raises(OctosimError, match="No space left on device"):
        write_report([run], out)
    assert out.read_bytes() == b"old" and sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]


def test_the_page_never_replaces_its_own_input(tmp_path):
    path = make_bench(tmp_path / "bench.json")
    before = path.read_bytes()
    with pytest.raises(OctosimError, match="choose another name"):
        write_report([path], path)
    assert path.read_bytes() == before


def test_a_method_without_an_optimizer_does_not_name_the_others_settings(tmp_path: Path) -> None:
    """niti's manifest has none: the others' labels do not list theirs for that.  Many runs are folded below their summary."""
    runs = []
    for method in ("octo", "niti"):
        for seed in range(7):
            config = train.Config(model="lenet5", method=method, batchnorm=False, batch_size=100, steps=1, seed=seed)
            run = train.create(config, tmp_path / f"{method}{seed}", "octosim train")
            train.train(run, tmp_path / f"{method}{seed}")
            runs.append(tmp_path / f"{method}{seed}")
    page = tmp_path / "page.html"
    write_report(runs, page)
    text = page.read_text()
    assert "optimizer." not in text.split('id="runs"')[1].split("</table>")[0] and "optimizer=null" not in text
    assert "Each of the 14 runs" in text and text.index("Over seeds") < text.index("Each of the 14 runs")
