"""tools/claims.py: the tables of reports/claims are those of the records beside them."""

from __future__ import annotations

import importlib
import itertools
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from octosim.api import cost

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted(path for path in (ROOT / "reports/claims").glob("*.csv") if path.with_suffix(".toml").exists())


@pytest.fixture(scope="module")
def claims() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        yield importlib.import_module("claims")


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_document_has_the_records_table(path: Path, claims: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (path.parent / "README.md").read_text().splitlines()
    commands = [line for line in lines if line.startswith(f"python tools/claims.py studies/{path.stem}/records.csv")]
    words = [word for line in commands for word in line.split()]
    curves = [word for pair in itertools.pairwise(words) if pair[0] == "--curve" for word in pair]
    claims.main([str(path), *curves])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > 3 and [line for line in printed if line not in lines] == []
    assert (path.parent / f"{path.stem}.svg").exists() and f"]({path.stem}.svg)" in "\n".join(lines)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Two settings of octo with two seeds and metrics of two layers, and a run of fp32."""
    rows = [
        {
            "run": f"{method},{seed},{lac}", "method": method, "seed": seed, "step": step, "epoch": step,
            "test_accuracy": accuracy, "method.lac": lac, "method.same": 1 if lac else "",
            "metrics": f"{{'inert': {{'a': {share}, 'b': 0.5}}}}" if lac else "",
        }
        for method, lac, seed, accuracies, share in (
            ("octo", "off", 0, (0.1, 0.5), 0.1), ("octo", "off", 1, (0.1, 0.7), 0.3), ("octo", "feature", 0, (0.1, 0.9), 0.0),
            ("octo", "feature", 1, (0.1, 0.9), 0.0), ("fp32", "", 0, (0.1, 0.8), 0.0),
        )
        for step, accuracy in enumerate(accuracies, 1)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "records.csv", index=False)
    return tmp_path / "records.csv"


def test_seeds_are_one_row_and_metrics_are_means(records: Path, claims: ModuleType) -> None:
    rows = claims.rows_of(pd.read_csv(records, keep_default_na=False))
    assert [row.settings for row in rows] == [
        {"method": "octo", "lac": "off"}, {"method": "octo", "lac": "feature"}, {"method": "fp32", "lac": ""}
    ]  # fmt: skip
    assert [statistics.fmean(row.accuracies) for row in rows] == pytest.approx([60, 90, 80])
    assert rows[0].metrics == pytest.approx({"inert": (0.1 + 0.3) / 4 + 0.25}) and rows[2].metrics == {}
    assert rows[0].spread == pytest.approx(12.706 * 10, rel=1e-3) and rows[2].spread is None  # t, one degree of freedom


def test_a_figure_has_every_row(records: Path, claims: ModuleType, tmp_path: Path) -> None:
    claims.main([str(records), "--by", "method", "--plot", str(tmp_path / "a.svg")])
    text = (tmp_path / "a.svg").read_text()
    assert all(word in text for word in ("lac off", "lac feature", "method octo", "method fp32"))


def test_a_curve_beside_the_authors(
    records: Path, claims: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claims.main([str(records), "--curve", "fp32=12.5,79,83", "--plot", str(tmp_path / "a.svg")])
    text = (tmp_path / "a.svg").read_text()
    assert "fp32, here" in text and "fp32, authors' log" in text and "octo" not in text
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| fp32 | 1 | 10.0 | 12.5 | -2.5 |  |  |  |",
        "| fp32 | 2 | 80.0 | 79.0 | +1.0 |  |  |  |",
    ]


def test_a_curve_has_the_means_of_its_epochs_losses(
    claims: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the run's folder beside the records, and of the copy that is kept; an epoch without a test is not in it."""
    rows = [{"run": "a", "epoch": epoch, "test_accuracy": share} for epoch, share in ((1, 0.3), (2, 0.4), (3, ""))]
    pd.DataFrame(rows).assign(method="niti").to_csv(tmp_path / "records.csv", index=False)
    (tmp_path / "a").mkdir()
    steps = [{"epoch": epoch, "loss": loss} for epoch, loss in ((1, 3.0), (1, 1.0), (2, 1.5), (2, 1.0), (3, 0.5))]
    (tmp_path / "a" / "records.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    kept = tmp_path / "kept.csv"
    claims.main([str(tmp_path / "records.csv"), "--curve", "niti=31/2.5,40/1.25,50/1", "--keep", str(kept)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[2:] == [
        "| niti | 1 | 30.0 | 31.0 | -1.0 | 2 | 2.5 | -20.0 |",
        "| niti | 2 | 40.0 | 40.0 | +0.0 | 1.25 | 1.25 | +0.0 |",
    ]
    claims.main([str(kept), "--curve", "niti=31/2.5,40/1.25,50/1", "--plot", str(tmp_path / "a.svg")])
    assert "mean training loss" in (tmp_path / "a.svg").read_text()
    assert capsys.readouterr().out.splitlines() == printed and len(pd.read_csv(kept)) == 2


def test_curves_without_a_log(claims: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    epochs = [{"epoch": e, "test_accuracy": e / 10, "train_loss": 2 / e} for e in (1, 2)]
    rows = [{"run": m, "method": m} | e for m in ("fp32", "octo") for e in epochs]
    pd.DataFrame(rows).to_csv(tmp_path / "records.csv", index=False)
    claims.main([str(tmp_path / "records.csv"), "--curve", "octo", "--curve", "fp32", "--plot", str(tmp_path / "a.svg")])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| octo | 1 | 10.0 | 2 |", "| octo | 2 | 20.0 | 1 |", "| fp32 | 1 | 10.0 | 2 |", "| fp32 | 2 | 20.0 | 1 |",
    ]  # fmt: skip
    text = (tmp_path / "a.svg").read_text()
    assert "mean training loss" in text and "authors" not in text


def test_a_curve_goes_by_the_epochs_numbers(claims: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was tested after every second epoch only."""
    rows = [{"run": "a", "method": "fp32", "epoch": epoch, "test_accuracy": epoch / 10} for epoch in (2, 4)]
    pd.DataFrame(rows).to_csv(tmp_path / "records.csv", index=False)
    claims.main([str(tmp_path / "records.csv"), "--curve", "fp32=11,22,33"])
    assert capsys.readouterr().out.splitlines()[2:] == ["| fp32 | 2 | 20.0 | 22.0 | -2.0 |  |  |  |"]


def test_accuracy_against_what_a_step_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """tools/efficiency.py: `octosim cost`'s figures, fp32 in float16 where a framework trains in it, and measured steps."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    rows = [
        {"run": f"{method}{seed}", "method": method, "model": "lenet5", "data": "fashion-mnist-5k", "batch_size": 32,
         "batchnorm": True, "test_accuracy": accuracy}
        for method, seed, accuracy in (("octo", 0, 0.8), ("octo", 1, 0.9), ("fp32", 0, 0.95))
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "records.csv", index=False)
    arguments = [str(tmp_path / "records.csv"), "--out", str(tmp_path / "a"), "--image", "28x28x1", "--devices", "jetson"]
    importlib.import_module("efficiency").main([*arguments, "--here", "3", "--least", "90"])
    costs = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    assert costs[["method", "place", "type", "seeds"]].values.tolist() == [
        ["octo", "here", "", 2], ["fp32", "here", "", 1], ["octo", "jetson", "", 2], ["fp32", "jetson", "float16", 1]
    ]  # fmt: skip
    assert costs["accuracy"].tolist() == pytest.approx([85, 95, 85, 95])
    assert (costs["time_low_s"] <= costs["time_s"]).all() and (costs["time_s"] <= costs["time_high_s"]).all()
    expected = cost("lenet5", "jetson", batch_size=32, method="octo").totals["time_s"][0]
    assert costs["time_s"][2] == pytest.approx(expected, rel=1e-4)
    assert "(below: octo)" in (tmp_path / "a.svg").read_text() and "| fp32 | float16 |" in capsys.readouterr().out


def test_the_efficiency_that_is_kept_is_todays() -> None:
    """Of every method on a CPU and a GPU, with the parameters of its run."""
    kept = pd.read_csv(ROOT / "reports/claims/efficiency.csv", keep_default_na=False)
    devices = ["raspberry-pi-4", "jetson-xavier-nx"]
    rows = kept[kept["place"].isin(devices) & (kept["method"] != "fp32")]
    assert len(rows) >= 24
    for (method, model, batch, parameters), some in rows.groupby(["method", "model", "batch_size", "parameters"]):
        given = dict(text.split("=", 1) for text in parameters.split())
        today = cost(model, devices, method=method, batch_size=batch, image="32x32x3", parameters=given).totals
        for row in some.itertuples():
            seconds = today[today["device"] == row.place]["time_s"].item()
            assert row.time_s == pytest.approx(seconds, rel=0.01), f"{method} on {row.place}: python tools/efficiency.py"
