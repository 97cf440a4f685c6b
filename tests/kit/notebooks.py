"""The documentation's notebooks: executed as they stand, or with smaller settings for a test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kit.reader import DOCS

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
SMALL = [
    (r"\bSTEPS, BATCH = \d+, \d+", "STEPS, BATCH = 1, 2"), (r"steps=\d+", "steps=4"),
    (r"count_overflow=\d+", "count_overflow=2"),
]  # fmt: skip
BEFORE = f"""
import sys
sys.path.insert(0, {str(DOCS.parent / "tests")!r})
from kit import torchvision_models
torchvision_models.torchvision()
"""
"""A cell in front of a notebook with torchvision, whose compiled operators may be of another build of torch."""


def execute(path: Path, folder: Path, reduced: bool = True) -> Any:
    """The notebook after its execution in a folder; an exception where a cell fails."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            for pattern, replacement in SMALL if reduced else []:
                cell.source = re.sub(pattern, replacement, cell.source)
    needs = any("torchvision" in cell.source for cell in notebook.cells)
    if needs:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(BEFORE))
    nbclient.NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(folder)}}).execute()
    if needs:
        del notebook.cells[0]
    return notebook


def save(path: Path, notebook: Any) -> None:
    """Writes an executed notebook without times and the kernel's version."""
    import nbformat

    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        cell.execution_count = number
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    for cell in notebook.cells:
        cell.metadata = {}
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(nbformat.writes(notebook) + "\n")
