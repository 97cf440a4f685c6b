"""The documentation's notebooks run, with few steps in every test run and as they stand in the slow tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import notebooks

for name in ("nbclient", "nbformat", "ipykernel"):
    pytest.importorskip(name)


def shown(notebook) -> str:
    return "".join(
        str(output.get("text", "")) + "".join(map(str, output.get("data", {}).values()))
        for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )  # fmt: skip


def check(path: Path, notebook) -> None:
    text = shown(notebook)
    if path.stem == "resnet18":
        assert "62 of 62 products have equal int32 sums" in text
        assert "saturations" in text and "image/png" in str(notebook.cells)
    else:
        assert "True" in text and "raspberry-pi-4" in text


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_with_few_steps(path: Path, tmp_path: Path) -> None:
    if path.stem == "resnet18":
        pytest.importorskip("torch")
        from kit import torchvision_models

        torchvision_models.torchvision()
    check(path, notebooks.execute(path, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_as_it_stands(path: Path, tmp_path: Path) -> None:
    if path.stem == "resnet18":
        pytest.importorskip("torch")
    notebook = notebooks.execute(path, tmp_path, reduced=False)
    check(path, notebook)
    if path.stem == "resnet18":
        ours = [cell.source for cell in notebook.cells]
        assert any("STEPS, BATCH = 50" in source for source in ours)


def test_the_prices_that_are_kept_are_todays() -> None:
    """The cost model moves without the notebook: its figures are predicted again, which takes no training."""
    import nbformat

    import octosim
    from octosim.methods.octo import Octo

    cells = nbformat.read(notebooks.DOCS / "notebooks" / "run.ipynb", 4).cells
    (cell,) = [cell for cell in cells if cell.source.startswith("octosim.cost(")]
    predicted = octosim.cost("lenet5", ["pi4", "pi5", "jetson"], method=Octo(lac="off"), batch_size=50)
    assert cell.outputs[0].data["text/plain"] == repr(predicted), "python tools/pictures.py run"


def test_what_is_kept_is_executed_and_small() -> None:
    import nbformat

    assert len(notebooks.NOTEBOOKS) >= 2
    for path in notebooks.NOTEBOOKS:
        held = nbformat.read(path, 4)
        check(path, held)
        assert path.stat().st_size < 150_000, path
        assert all(cell.execution_count for cell in held.cells if cell.cell_type == "code")
