"""Reports: the page as a reader of HTML finds it, and runs and benches to report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

from octosim import train
from octosim.report import write_report

EVIL = "<script>alert(1)</script>&\"'$x^2$"

VOID = {"meta", "link", "br", "img", "hr", "input", "area", "base", "col", "embed", "source", "track", "wbr"}


class Page(HTMLParser):
    """Checks nesting, and gathers ids, attributes, tables (as text) and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.stack == [], f"never closed: {self.stack}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            self.attributes.append((tag, key, value or ""))
            if key == "id":
                self.ids.append(value)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "figcaption":
            self.captions.append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.stack, f"<{tag}/> means nothing outside SVG"
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]} at {self.getpos()}"
        self.stack.pop()

    def handle_data(self, data):
        if "td" in self.stack or "th" in self.stack:
            self.tables[-1][-1][-1] += data.strip()
        if "figcaption" in self.stack:
            self.captions[-1] += data
        if not {"script", "style"} & set(self.stack):
            self.words.append(data)

    def rows(self, first_heading: str, number: int = 0) -> list[dict[str, str]]:
        found = [table for table in self.tables if table[0][0] == first_heading]
        return [dict(zip(found[number][0], row, strict=True)) for row in found[number][1:]]


def manifest(seed=0, method="octo", cpu="CPU A", version="0.1.0", model="simplecnn", **parameters):
    return {
        "format": 1,
        "kind": "run",
        "decides": {
            "octosim": version,
            "model": model,
            "layers": [{"kind": "conv2d", "out": 16}, {"kind": "linear", "out": 10}],
            "data": {"name": "mnist", "sha256": "ab" * 32, "train_images": 60000, "test_images": 10000},
            "method": {"name": method, "parameters": {"lac": "channel", "prc": "ratio"} | parameters},
            "numerics": {"accumulator": "exact32"},
            "optimizer": {"name": "adam", "lr": 0.001},
            "batch_size": 100,
            "epochs": 2,
            "steps": None,
            "seed": seed,
        },
        "environment": {"cpu": cpu, "isa": "avx2", "threads": 2, "python": "3.11.7"},
        "command": f"octosim train --seed {seed}",
    }


def records(steps=40, accuracies=(0.9, 0.95)):
    rows = [{"step": s, "epoch": 1 + (s - 1) * 2 // steps, "loss": 2.0 / s + 0.1} for s in range(1, steps + 1)]
    for row, accuracy in zip((rows[steps // 2 - 1], rows[-1]), accuracies, strict=True):
        row |= {"test_accuracy": accuracy, "test_loss": 1 - accuracy}
    return rows


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def make_run(path: Path, rows=None, digest="a", **settings) -> Path:
    path.mkdir(parents=True)
    rows = records() if rows is None else rows
    (path / "manifest.json").write_text(json.dumps(manifest(**settings)))
    (path / "records.jsonl").write_text(lines(rows))
    (path / "timing.jsonl").write_text(lines([{"epoch": e, "wall_s": 6.0, "images_per_s": 9000.0 + e} for e in (1, 2)]))
    if digest:
        (path / "digest.txt").write_text(f"sha256:{digest * 64}  step {rows[-1]['step']}\n")
    return path


def layer(name="conv1", pass_="forward", predicted=1e-4, measured=3e-4):
    return {
        "layer": name,
        "pass": pass_,
        "macs": 43_200_000,
        "bytes": 1_234_567,
        "predicted": {"time_s": predicted, "bound": "memory"},
        "measured": {"median_s": measured, "p25_s": measured * 0.9, "p75_s": measured * 1.2, "n": 30},
    }


def bench(full=True):
    total = {"time_s": 0.0041, "p25_s": 0.004, "p75_s": 0.0045, "predicted_time_s": 0.0011, "macs": 2e8, "bytes": 1e7}
    data = {
        "format": 1,
        "kind": "bench",
        "model": "simplecnn",
        "batch_size": 100,
        "method": "octo",
        "device": {"name": "jetson-xavier-nx", "title": "NVIDIA Jetson Xavier NX", "training": "supported"},
        "environment": {"cpu": "CPU A", "isa": "avx512vnni", "threads": 2},
        "layers": [layer(), layer("conv1", "dW"), layer("fc1", "dX", 2.5e-5, 0.0123)],
        "total": total,
        "command": "octosim bench --profile jetson",
    }
    if full:
        data["fp32"] = {"layers": [layer(), layer("fc1", "dX", 5e-4, 6e-4)], "total": total | {"time_s": 0.0199}}
        what = "PyTorch FP32, best of eager"
        data["against"] = {"torch": {"time_s": 0.022, "ratio": 5.366, "version": "2.13.0", "what": what}}
    return data


def make_bench(path: Path, data=None) -> Path:
    path.write_text(json.dumps(bench() if data is None else data))
    return path


def report(tmp_path, *paths, **options):
    out = tmp_path / "report.html"
    counts = write_report(list(paths), out, step_of=train.step_of, **options)
    return counts, Page(out.read_text(encoding="utf-8"))


def with_accuracy(last):
    return records(accuracies=(0.5, last))
