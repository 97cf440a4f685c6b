"""Small studies."""

from __future__ import annotations

from pathlib import Path

from octosim import study

LONG = '[base]\nmodel = "lenet5"\nbatch_size = 20\nsteps = 160\n[[grid]]\naccumulator = ["exact32", "acc16"]\nseed = [0, 1]\n'


def file(folder: Path, text: str) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def rows_of(folder: Path, text: str) -> list[study.Row]:
    path = file(folder, text)
    return study.rows(study.read(path), path)


def same_records(one: Path, other: Path) -> bool:
    """Whether two studies' records and runs are equal to the byte."""
    runs = [path.name for path in one.iterdir() if path.is_dir()]
    names = ["records.csv", *(f"{run}/{name}" for run in runs for name in ("digest.txt", "records.jsonl"))]
    return bool(runs) and all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
