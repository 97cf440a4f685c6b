"""The report page: records in, one self-contained HTML file out.

Nothing is simulated or timed here.  Values are formatted, grouped, smoothed with a stated moving median and, over the
seeds of one configuration on one kind of machine, listed with mean and spread; devices' costs are the cost model's.

`read` checks what lies on disk, `tables`, `spread`, `devices` and `figures` make the parts, and `templates/report.html.j2` and
`report.md.j2` lay them out.  A new section is a function that makes `Table`s and `Figure`s, and a block in both templates.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from octosim.errors import OctosimError
from octosim.files import write_atomic
from octosim.report import errors, overview
from octosim.report.devices import StepOf, devices_table, labelled, prices
from octosim.report.figures import Bar, Figure, Figures, curves, draw_bars, layer_bars, longest_bar, quartiles_of
from octosim.report.read import Bench, Run, lookup, printable, read_all
from octosim.report.spread import differences_table, same_bits_table
from octosim.report.states import states_text
from octosim.report.tables import (
    Table,
    group_runs,
    layers_table,
    machines_sentence,
    milliseconds,
    plural,
    runs_table,
    seeds_table,
    significant,
    without_constants,
)

__all__ = ["write_report"]

BARS = 40  # rows of one figure; the table beside it has all


def _bench_section(figures: Figures, index: int, bench: Bench) -> dict[str, Any]:
    data = bench.data
    blocks = [(data["method"], data)] + ([("fp32", data["fp32"])] if data.get("fp32") else [])
    machines = machines_sentence(bench)
    totals: list[Bar] = [
        (name, block["total"].get("predicted_time_s"), block["total"].get("time_s"), quartiles_of(block["total"]))
        for name, block in blocks
    ]
    peers = []
    for name, peer in (data.get("against") or {}).items():
        totals.append((name, None, peer["time_s"], None))
        what = printable(str(peer.get("what") or name))
        version = f" (version {peer['version']})" if peer.get("version") else ""
        peers.append(
            f"{what}{version} took {milliseconds(peer['time_s'])} ms a step on the same machine: "
            f"{significant(peer['ratio'])} times as long as {data['method']}."
        )
    whole = []
    if longest_bar(totals) > 0:
        caption = f"Time of one whole training step, batch {data['batch_size']}. {machines}"
        whole.append(draw_bars(figures, f"One step of {data['model']}", totals, longest_bar(totals), caption))
    bars = [(name, layer_bars(block)) for name, block in blocks]
    drawn = []
    limit = longest_bar(bar for _, part in bars for bar in part)
    for name, part in bars:
        if longest_bar(part) == 0:
            continue
        slowest = sorted(part, key=lambda bar: -longest_bar([bar]))[:BARS]
        kept = [bar for bar in part if bar in slowest][:BARS]
        cut = f" Only the {BARS} longest of {len(part)} rows are drawn; the table has all." if len(part) > BARS else ""
        scale = " Same scale for both number formats." if len(bars) > 1 else ""
        drawn.append(draw_bars(figures, f"{name}, by layer and pass", kept, limit, f"{name}.{scale}{cut} {machines}"))
    training = data["device"].get("training")
    return {
        "id": f"bench-{index}",
        "title": f"{data['model']}, batch {data['batch_size']}, {data['method']}: {data['device']['title']}",
        "device": data["device"]["title"],
        "training": training if isinstance(training, str) else None,
        "peers": peers,
        "whole": whole,
        "by_layer": drawn,
        "tables": [layers_table(bench, name, block) for name, block in blocks],
    }


def write_report(
    paths: list[Path],
    out: Path,
    command: str | None = None,
    profiles: Sequence[str] = (),
    pictures: Path | None = None,
    step_of: StepOf | None = None,
) -> dict[str, Any]:
    """Write one self-contained HTML page, or with `out` ending in .md Markdown, about the runs and bench files at `paths`.

    paths:    run directories, bench JSON files, or folders that hold such (one level down).
    out:      the page; replaced atomically.
    command:  the command that remakes the page, shown on it; made from the arguments when None.
    profiles: devices for which the runs' time, energy and memory are predicted; equal ones once.
    step_of:  makes the operations that are priced on them: `octosim.train.step_of`.
    pictures: folder for the figures as SVG, PNG and PDF files; of Markdown, which links them, OUT-figures when None.
    Returns {"runs": int, "benches": int, "skipped": [(path, reason), ...]}.
    Raises OctosimError when nothing readable was found, for an unknown profile, or when a file cannot be written.
    """
    paths, out = [Path(path) for path in paths], Path(out)
    devices = labelled(profiles)
    if devices and step_of is None:
        raise OctosimError("write_report with profiles needs step_of=octosim.train.step_of, which makes what is priced")
    if out.suffix == ".md" and pictures is None:
        pictures = out.with_name(f"{out.stem}-figures")
    if pictures is not None and pictures.exists() and not pictures.is_dir():
        raise OctosimError(f"{pictures} is no folder to write figures in")
    found = read_all(paths)
    runs, benches, skipped = found.runs, found.benches, found.skipped
    if not runs and not benches:
        starts = [(path, reason, Path(path).name) for path, reason in skipped]
        told = [f"{path}{why.removeprefix(name)}" if why.startswith(name) else f"{path}: {why}" for path, why, name in starts]
        reasons = "; ".join(told) or "no path was given"
        raise OctosimError(f"nothing to report on: {reasons}")
    if out.resolve() in {bench.path.resolve() for bench in benches}:
        raise OctosimError(f"{out} is one of the files to report on; choose another name for the page.")
    runs = _distinct_names(runs)
    groups, notes = group_runs(runs)
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes] + notes
    notes += [
        f"{run.name}: in float32, as the method does not cover them: {', '.join(run.decides['float_layers'])}."
        for run in runs
        if run.decides.get("float_layers")
    ]
    figures = Figures(files=pictures is not None)
    priced, unpriced = prices(groups, devices, step_of) if step_of else ([], [])
    notes += unpriced + [f"{bench.name}: {text}" for bench in benches for text in _slowed(bench)]
    compared = overview.tasks(groups, priced)
    ordered = list({id(group): group for group in (*(g for task in compared for g in task.groups), *groups)}.values())
    places = {id(group): place for place, group in enumerate(ordered)}
    priced.sort(key=lambda price: places[id(price.group)])
    first = [{"table": overview.task_table(task), "figures": overview.scatters(figures, task)} for task in compared]
    named = [(task.title, [replace(group, label=task.label(group)) for group in task.groups]) for task in compared]
    drawn = [(title, curves(figures, title, part)) for title, part in named]
    measured = errors.sections(figures, runs, notes)
    own = command or shlex.join(["octosim", "report", *map(str, paths), "-o", str(out)])
    sources: list[Run | Bench] = [*runs, *benches]
    commands = [run.manifest["command"] for run in runs] + [bench.data["command"] for bench in benches]
    page = {
        "title": " and ".join(study.title for study in found.studies if study.title) or "octosim report",
        "about": [study.about for study in found.studies if study.about],
        "summary": _count_text(len(runs), len(benches), len(skipped)),
        "sentences": overview.sentences(compared) if compared else [],
        "caveats": overview.caveat_sentences(compared),
        "tasks": first,
        "commands": list(dict.fromkeys(commands)),
        "own_command": printable(own),
        "notes": notes,
        "skipped": [(printable(path), printable(reason)) for path, reason in skipped],
        "runs": _slim(runs_table(runs)) if runs else None,
        "seeds": _slim(seeds_table(ordered, states_text)),
        "differences": _slim(differences_table(ordered)),
        "same_bits": same_bits_table(runs),
        "devices": _slim(devices_table(priced)),
        "curves": [(title, part) for title, part in drawn if part],
        "errors": measured,
        "benches": [_bench_section(figures, index, bench) for index, bench in enumerate(benches, start=1)],
        "sources": [
            {
                "id": f"run-{index}" if isinstance(source, Run) else f"file-{index}",
                "name": source.name,
                "path": printable(str(source.path)),
                "digest": source.digest if isinstance(source, Run) else None,
                "command": source.manifest["command"] if isinstance(source, Run) else source.data["command"],
                "text": _lines(_passport(source)),
            }
            for index, source in enumerate(sources, start=1)
        ],
    }
    if pictures is not None:
        _write_pictures(figures.made, pictures)
        page["pictures"] = Path(os.path.relpath(pictures, out.parent)).as_posix()
    write_atomic(out, _render(page, out.suffix == ".md").encode(errors="replace"))
    return {"runs": len(runs), "benches": len(benches), "skipped": skipped}


def _slim(table: Table | None) -> Table | None:
    return without_constants(table) if table else None


def _slowed(bench: Bench) -> list[str]:
    """Says where the machine was slowed down while it measured, or had other work to do."""
    words, busy, said = lookup(bench.data, "state.slowed"), lookup(bench.data, "state.busy"), []
    if isinstance(words, list) and words:
        said.append(f"The machine that measured was slowed down: {printable(', '.join(map(str, words)))}.")
    if isinstance(busy, str) and busy:
        said.append(f"The machine that measured was busy: {printable(busy)}.")
    return said


def _passport(source: Run | Bench) -> dict[str, Any]:
    """What a reader needs to remake it; of a bench, all but the numbers that its tables already show."""
    if isinstance(source, Run):
        return source.manifest
    return {key: value for key, value in source.data.items() if key not in ("layers", "fp32")}


def _lines(value: Any, indent: str = "") -> str:
    """JSON for people: objects indented, but a list's items (a model's layers) one a line, so that it stays short."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(k, ensure_ascii=False)}: {_lines(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[\n" + ",\n".join(inner + json.dumps(item, ensure_ascii=False) for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def _distinct_names(runs: list[Run]) -> list[Run]:
    """Runs under different folders may share a folder name; those are named by their paths."""
    counts = Counter(run.name for run in runs)
    return [run if counts[run.name] == 1 else replace(run, name=printable(str(run.path))) for run in runs]


def _count_text(runs: int, benches: int, skipped: int) -> str:
    parts = [plural(runs, "training run")] if runs else []
    parts += [plural(benches, "bench", "benches")] if benches else []
    text = " and ".join(parts)
    return f"{text}; {plural(skipped, 'path')} could not be read" if skipped else text


def _write_pictures(figures: Sequence[Figure], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OctosimError(f"cannot make the folder {folder} for figures: {error.strerror}") from None
    for figure in figures:
        for name, content in figure.files.items():
            write_atomic(folder / name, content)


_MARKS = re.compile(r"([\\`*_\[\]<>|#~$&!])")


def _plain(text: Any) -> str:
    """Text that Markdown leaves alone, on one line."""
    return _MARKS.sub(r"\\\1", " ".join(str(text).split()))


def _fenced(text: str) -> str:
    """A code block that nothing in the text can end."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _render(page: dict[str, Any], markdown: bool) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=not markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": _plain, "fenced": _fenced}
    return environment.get_template("report.md.j2" if markdown else "report.html.j2").render(page)
