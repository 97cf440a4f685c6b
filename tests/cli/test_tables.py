"""Tables of every command at 80, 100 and 160 columns: nothing is cut, no number is broken, and what had no room is named."""

from __future__ import annotations

import functools
import io
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.pages import lines, make_run, records
from rich.cells import cell_len
from rich.console import Console

from octosim import train
from octosim.bench import kernels
from octosim.cli import studying, tables, watching
from octosim.cli.app import app
from octosim.cli.tables import Table
from octosim.study import State

WIDTHS = (80, 100, 160)
RUN = dict(model="lenet5", batch_size=20, limit=60, steps=2)


def rendered(table: Table, width: int | None) -> tuple[str, list[str]]:
    shown, left_out = table.fitted(width)
    out = io.StringIO()
    size = max(shown.width or 0, width or 0)
    Console(file=out, width=size, markup=False, emoji=False, highlight=False).print(shown, crop=False)
    return out.getvalue(), left_out


def cells_of(text: str) -> list[list[str]]:
    """The cells of each printed line, its title left out."""
    return [[cell.strip() for cell in line.strip("│\n").split("│")] for line in text.splitlines() if line.startswith("│")]


def check(table: Table, width: int | None) -> None:
    text, left_out = rendered(table, width)
    for line in text.splitlines():
        assert width is None or cell_len(line) <= width, line
        assert "…" not in line
    shown = [column for column in table.columns if column.head not in left_out]
    assert all(column.rank > 0 for column in table.columns if column.head in left_out)
    kept = max((column.rank for column in shown), default=0)
    assert all(column.rank >= kept for column in table.columns if column.head in left_out)
    printed = cells_of(text)
    for at, column in enumerate(shown):
        found = [line[at] for line in printed]
        wanted = [row[table.columns.index(column)].strip() for row in table.rows]
        if column.number:
            assert [cell for cell in found if cell] == [cell for cell in wanted if cell], column.head
        else:
            assert "".join("".join(found).split()) == "".join("".join(wanted).split()), column.head


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs of different rounding, and a study's folder."""
    folder = tmp_path_factory.mktemp("tables")
    for name, method in (("a", {"rounding": "half-up"}), ("b", {"rounding": "stochastic"})):
        config = train.Config(**RUN, parameters=method)
        train.train(train.create(config, folder / name, "test"), folder / name)
    invoke = typer.testing.CliRunner().invoke
    invoke(app, ["golden", "--shape", "linear,x=2x8,units=4", "--out", str(folder / "v")], catch_exceptions=False)
    mine = np.load(folder / "v/layer.npz")["forward"].copy()
    mine.flat[0] += 1_000_000
    mine.flat[1] -= 1
    np.save(folder / "mine.npy", mine)
    return folder


COMMANDS = [
    "profiles list", "profiles runtimes", "methods", "methods list", "methods show octo", "data list",
    "models list", "runs list {}", "data check fashion-mnist-5k", "show-env", "cost --model lenet5 --profile pi4",
    "cost --model resnet20 --profile pi4 --compare pi5,jetson,stm32h7",
    "cost --model lenet5 --profile pi4 --dtype float32 --compare pi5", "cost --model lenet5 --profile pi4 --advise",
    "audit {}/a", "diff {}/a {}/b", "export {}/a --to safetensors --out {}/export", "train --resume --out {}/a",
    "train --model lenet5 --limit 60 --batch-size 20 --steps 2 --dry-run", "profiles validate",
    "check {}/v/layer.npz --against {}/mine.npy --tensor forward", "bench --model mlp --batch-size 8 --limit 40 --seconds 0.01",
    "bench --kernels --seconds 0.002 --against torch",
]  # fmt: skip
ELSEWHERE = {"octosim study": "test_table_of_a_study"}


def test_names_are_folded_behind_commas() -> None:
    """A number at a name's end is not broken while its part fits."""
    assert tables.folded("seed=0,accumulator=exact32", 24) == "seed=0,\naccumulator=exact32"
    assert tables.folded("a,b, c d", 80) == "a,b, c d" and tables.folded("x" * 30, 10) == "x" * 30
    assert tables.folded("method=octo,seed=10,lac=off", 20) == "method=octo,seed=10,\nlac=off"


def test_no_help_is_cut_at_80_columns() -> None:
    def paths(command: Any, path: list[str]) -> Iterator[list[str]]:
        yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from paths(child, [*path, name])

    for path in paths(typer.main.get_command(app), []):
        done = typer.testing.CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"})
        assert done.exit_code == 0 and "Usage" in done.output, path
        assert not [line for line in done.output.splitlines() if cell_len(line.rstrip()) > 80 or "…" in line], path


def test_every_command_with_a_table_is_here() -> None:
    def wide(command: Any, path: str) -> Iterator[str]:
        if any(parameter.name == "wide" for parameter in command.params):
            yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from wide(child, f"{path} {name}")

    found = set(wide(typer.main.get_command(app), "octosim")) - set(ELSEWHERE)
    assert found and all(any(f"octosim {command} ".startswith(f"{path} ") for command in COMMANDS) for path in found)
    assert all(name in globals() for name in ELSEWHERE.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_tables_of_commands(command: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Table] = []
    shapes = {"a long name of a shape, b128": (64, 64, 64)}
    small = functools.partial(kernels.kernel_bench, shapes=shapes, elements=1 << 12, cube=32)
    monkeypatch.setattr(kernels, "kernel_bench", small)
    monkeypatch.setattr(kernels, "triad_bytes_s", functools.partial(kernels.triad_bytes_s, 1 << 16))
    if "torch" in command:
        pytest.importorskip("torch")
    monkeypatch.setattr(Table, "show", lambda self: found.append(self))
    done = typer.testing.CliRunner().invoke(app, shlex.split(command.replace("{}", str(runs))))
    assert found and done.exit_code in (0, 1), done.output or done.exception
    for table in found:
        for width in (*WIDTHS, None):
            check(table, width)


def test_table_of_a_study() -> None:
    """A loss that explodes is no wider than another."""
    states = [State(f"method=m{i},seed={i},accumulator=acc16", "broken", 18, 3000, 10.0**i, 0.1) for i in range(0, 39, 3)]
    for width in WIDTHS:
        check(studying._study_table("Methods", states), width)
        assert "not" not in rendered(studying._study_table("Methods", states), width)[1]


def test_what_has_no_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(tables, "say", said.append)
    monkeypatch.setattr(tables.out_console, "_width", 80)
    for arguments, expected in ((["profiles", "list"], ["not shown: accumulator, trains (--wide shows all)"]),
                                (["profiles", "list", "--wide"], [])):  # fmt: skip
        said.clear()
        assert typer.testing.CliRunner().invoke(app, arguments).exit_code == 0
        assert said == expected


def test_watch_at_all_widths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octosim import watch

    for name in ("method=octo,rounding=half-up,seed=0", "method=fp32,seed=0"):
        make_run(tmp_path / name, records())
        (tmp_path / name / "overflow.jsonl").write_text(lines([{"layer": "conv2", "pass": "dW", "inexact": 1, "outputs": 2}]))
    for width in WIDTHS:
        monkeypatch.setattr(watching.out_console, "_width", width)
        shown = watching._table(watch.open_watch(tmp_path))
        assert shown.width and shown.width <= width
    for height in (8, 10, 24):
        monkeypatch.setattr(watching.out_console, "_height", height)
        shown = watching._on_screen(watch.open_watch(tmp_path))
        assert len(watching.out_console.render_lines(shown)) < height or shown.row_count == 1
        assert shown.row_count == 2 or "not shown: " in str(shown.caption)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_table(data: st.DataObject) -> None:
    table = Table(title="t")
    kinds = data.draw(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=12))
    for number, (right, rank) in enumerate(kinds):
        table.add_column(f"head {number}", justify="right" if right else "left", rank=rank)
    for _ in range(data.draw(st.integers(0, 4))):
        table.add_row(*(
            data.draw(st.from_regex(r"-?[0-9]{1,9}(\.[0-9]{1,3})?( ms)?", fullmatch=True)) if right
            else data.draw(st.text("abc déf", max_size=40)) for right, _ in kinds
        ))  # fmt: skip
    least = sum(table._widths([i for i, (_, rank) in enumerate(kinds) if rank == 0], True)) + 3 * len(kinds) + 1
    for width in (40, *WIDTHS):
        if least <= width and any(rank == 0 for _, rank in kinds):
            check(table, width)
