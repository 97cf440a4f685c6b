"""The page's part on errors and overflow, from a real run's measures and from broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kit.pages import EVIL, Page, make_run

from octosim import train
from octosim.report import errors, figures, write_report
from octosim.train import measure

ROW = '{"step": 1, "layer": "a", "pass": "dW", "role": "accumulator", "against": "exact", "elements": 4, %s}'


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two measured steps."""
    folder = tmp_path_factory.mktemp("report") / "octo"
    config = train.Config(model="lenet5", batch_size=50, steps=4, measure=2)
    assert train.train(train.create(config, folder, "octosim train ..."), folder)
    return folder


def page(paths: list[Path], out: Path) -> Page:
    write_report(paths, out)
    return Page(out.read_text())


@pytest.fixture(scope="module")
def shown(measured: Path) -> Page:
    return page([measured], measured.parent / "page.html")


def test_a_measured_run(measured: Path, shown: Page) -> None:
    titles = ["SQNR of the operands (dB)", "SQNR of the results (dB): local, accumulated"]
    titles += [f"Overflow by width: {pass_}" for pass_ in ("forward", "dX", "dW")]
    titles += [f"Codes of dY: {layer}" for layer in ("conv1", "conv2", "fc1", "fc2", "fc3")]
    for title in titles:
        assert title in shown.text, title
    assert "Medians over 2 measured steps (2 to 4)." in shown.text
    assert sum(value == "img" for tag, key, value in shown.attributes if key == "role") == len(titles) + 2  # and two curves
    assert len(shown.ids) == len(set(shown.ids))
    rows = [json.loads(line) for line in (measured / "measures.jsonl").read_text().splitlines()]
    table = {(r["Layer"], r["Pass"], r["Role"], r["Against"]): r for r in shown.rows("Layer", 1)}
    assert set(table) == {(r["layer"], r["pass"], r["role"], r["against"]) for r in rows if r["role"] != "accumulator"}
    key = ("conv2", "dW", "gradient", "layer")
    assert errors.BINS == measure.BINS
    both = [r["sqnr_db"] for r in rows if (r["layer"], r["pass"], r["role"], r["against"]) == key]
    assert len(both) == 2 and table[key]["SQNR (dB)"] == f"{sum(both) / 2:.1f}"
    overflow = {(r["Layer"], r["Pass"]): r for r in shown.rows("Layer")}
    accounts = [r for r in rows if r["role"] == "accumulator" and (r["layer"], r["pass"]) == ("fc1", "forward")]
    row = overflow["fc1", "forward"]
    assert row["Sums counted"] == str(sum(r["outputs"] for r in accounts)) and row["Register"] == "exact32"
    assert row["Largest, bits"] == str(max(r["largest_bits"] for r in accounts)) and row["32 bits"] == "0 %"
    share = sum(r["would_overflow"]["16"] for r in accounts) / sum(r["outputs"] for r in accounts)
    assert row["16 bits"] == f"{100 * share:.1f} %"


def test_the_narrowest_register_that_held_all(measured: Path, shown: Page) -> None:
    """It is named in the figure's description, for whoever cannot see it."""
    rows = [json.loads(line) for line in (measured / "measures.jsonl").read_text().splitlines()]
    most = max(r["largest_bits"] for r in rows if r["role"] == "accumulator" and (r["layer"], r["pass"]) == ("conv2", "dX"))
    said = next(words for words in shown.words if "narrowest that holds all" in words and "conv1" not in words)
    assert f"conv2 {most} bits" in said


def test_runs_without_measures_have_no_such_part(tmp_path: Path) -> None:
    shown = page([make_run(tmp_path / "plain")], tmp_path / "page.html")
    assert "Errors and overflow" not in shown.text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1]", "measures.jsonl: line 1: expected an object; its measures are not shown."),
        ("{]\n{}", "measures.jsonl: line 1 is not valid JSON; its measures are not shown."),
        ('{"step": 1}', "measures.jsonl: line 1: field layer is missing, expected a string; its measures are not shown."),
        (ROW % '"would_overflow": {"x": 1}', "line 1: field would_overflow must hold whole numbers by width in bits"),
        (ROW % '"histogram": [1, 2]', "line 1: field histogram must be 51 whole numbers"),
        (ROW % '"sqnr_db": "40"', "line 1: field sqnr_db is '40', expected a number"),
        (ROW % '"outputs": 0.5', "line 1: field outputs is '0.5', expected a whole number"),
        ('{"step": 1', "measures.jsonl: line 1 (the last) is cut off"),
    ],
)
def test_broken_measures_are_said_and_left_out(line: str, words: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "broken")
    (run / "measures.jsonl").write_text(line)
    shown = page([run], tmp_path / "page.html")
    assert words in shown.text and "Errors and overflow" not in shown.text


def test_layers_with_any_name(measured: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "evil")
    rows = (measured / "measures.jsonl").read_text()
    (run / "measures.jsonl").write_text(rows.replace('"conv1"', json.dumps(EVIL)).replace('"fc1"', '"a\\u0000b"'))
    shown = page([run], tmp_path / "page.html")
    assert f"Codes of dY: {EVIL}" in shown.text and "Codes of dY: a\ufffdb" in shown.text
    assert shown.tags.count("script") == 1


def test_layers_whose_names_begin_alike(measured: Path, tmp_path: Path) -> None:
    """As those of imported networks: a map's rows are told apart, and a score near 0 dB has no sign."""
    names = [f"features.denseblock1.denselayer{i}.conv1" for i in (1, 2)]
    content = errors._Map(names, ["forward"], {(0, 0): ("#000000", "1"), (1, 0): ("#000000", "2")})
    drawn = errors._draw_map(figures.Figures(), "map", content, "map", "map", [])
    assert ">featu…yer1.conv1<" in drawn.svg and ">featu…yer2.conv1<" in drawn.svg
    rows = {("a", "dW", "gradient", "layer"): [{"sqnr_db": -0.3, "mse": 1.0}]}
    drawn = errors._sqnr_map(figures.Figures(), "map", rows, [("dW", "gradient", "layer")], "")
    assert drawn is not None and ">0</text>" in drawn.svg and ">-0<" not in drawn.svg


def test_only_so_many_runs(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "RUNS", 1)
    text = (measured / "measures.jsonl").read_text()
    runs = [make_run(tmp_path / f"run{seed}", seed=seed) for seed in range(errors.RUNS + 1)]
    for run in runs:
        (run / "measures.jsonl").write_text(text)
    shown = page(runs, tmp_path / "page.html")
    assert shown.text.count("Errors and overflow: ") == errors.RUNS
    assert f"of the first {errors.RUNS} measured runs only; left out: run{errors.RUNS}." in shown.text
