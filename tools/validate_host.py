"""Predicted against measured training steps of octosim's models on this machine, with a profile of `profiles calibrate`.

    octosim profiles calibrate -o this-machine.toml
    python tools/validate_host.py measure --models mlp lenet5 --threads 1 2 -o measured.jsonl
    python tools/validate_host.py compare --profile this-machine.toml --write measured.jsonl

`measure` times whole steps as `octosim bench` does, their median, and adds a line for each to the file, so that the models can
be measured some at a time, when the machine is quiet.  With one thread the thread's own time counts, so that other programs on
the machine do not; with more, wall-clock time.  `compare` prices the steps; of a step that was measured more than once the
least counts: other programs slow down some seconds, not all.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from octosim import bench, core, data, engine, graph, hardware, methods
from octosim.bench import calibrate
from octosim.cost import compare
from octosim.errors import OctosimError
from octosim.train import Config, write_atomic

PAGE = Path(__file__).resolve().parent.parent / "docs" / "host-validation.md"
BATCHES = {"vgg11": 10, "vgg-small-7": 25, "alexnet": 25, "mobilenet": 50}
DATA = ("fashion-mnist-5k", "cifar10")
KEY = ("model", "data", "method", "batch", "threads")


def measure(wanted: list[str], sets: list[str], threads: list[int], seconds: float, out: Path) -> None:
    """Adds a line to `out` for each step measured."""
    device = hardware.load("host")  # its prediction is not used
    for count in threads:
        core.set_threads(count)
        for name in sets:
            for model in wanted:
                config = Config(model=model, data=name, method="octo", lr=1e-3, batch_size=BATCHES.get(model, 100))
                try:
                    record = bench.step_bench(
                        config, device, against=[], seconds=seconds, command="", clock=calibrate.clock_for(count)
                    )
                except OctosimError as error:
                    raise SystemExit(f"{model} on {name}: {error}") from None
                for method, part in (("octo", record), ("fp32", record["fp32"])):
                    row = dict(zip(KEY, (model, name, method, config.batch_size, count), strict=True))
                    with open(out, "a") as file:
                        file.write(json.dumps(row | {"time_s": part["total"]["time_s"]}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The steps of a file, in the order of the page."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            row["time_s"] = float(row["time_s"])
            key = tuple(row[name] for name in KEY)
            found[key] = min(row, found.get(key, row), key=lambda one: one["time_s"])
        except (ValueError, KeyError, TypeError):
            raise SystemExit(f"{path}: line {number} is no measured step") from None
    places = {"threads": sorted({row["threads"] for row in found.values()}), "data": DATA, "model": list(graph.MODELS),
              "method": ("octo", "fp32")}  # fmt: skip
    return sorted(found.values(), key=lambda row: [places[key].index(row[key]) for key in places])


def predict(row: dict[str, Any], device: hardware.Device) -> float:
    """Seconds of a step."""
    source = data.SOURCES[row["data"]]
    stack = graph.layers(row["model"], len(source.classes), in_shape=source.shape)
    network = engine.Network(stack, source.shape, methods.make(row["method"], {}), None)
    return compare.time_of(engine.trace(network, row["batch"]), device, row["threads"])


def page(rows: list[dict[str, Any]], device: hardware.Device) -> tuple[str, str]:
    """The page, and its median errors in a line."""
    assert device.rates is not None
    errors: dict[int, list[float]] = {}
    lines = []
    for row in rows:
        predicted = predict(row, device)
        error = predicted / row["time_s"] - 1
        errors.setdefault(row["threads"], []).append(abs(error))
        cells = [str(row[key]) for key in KEY]
        cells += [f"{1e3 * predicted:#.3g}".rstrip("."), f"{1e3 * row['time_s']:#.3g}".rstrip("."), f"{100 * error:+.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    every = [e for some in errors.values() for e in some]
    by_threads = ", ".join(f"{100 * statistics.median(some):.0f} % of {len(some)} with {n}" for n, some in errors.items())
    summary = f"Median error {100 * statistics.median(every):.0f} %, worst {100 * max(every):.0f} %, of {len(every)} steps"
    summary += f"; {by_threads} thread{'s' * (max(errors) > 1)}"
    threads = " ".join(map(str, errors))
    text = TEXT.format(rows="\n".join(lines), summary=summary, source=device.rates.source, threads=threads,
                       spread=f"{100 * device.rates.spread:.0f}")  # fmt: skip
    return text, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    timing = commands.add_parser("measure", help="time steps")
    timing.add_argument("--models", nargs="*", default=list(graph.MODELS), choices=list(graph.MODELS))
    timing.add_argument("--data", nargs="*", default=list(DATA), choices=DATA)
    timing.add_argument("--threads", nargs="*", type=int, default=[1])
    timing.add_argument("--seconds", type=float, default=1.0)
    timing.add_argument("-o", "--out", type=Path, required=True, help="file to add the steps to")
    pricing = commands.add_parser("compare", help="price measured steps")
    pricing.add_argument("--profile", required=True, help="written by octosim profiles calibrate")
    pricing.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name}, else print it")
    pricing.add_argument("measured", type=Path)
    args = parser.parse_args()
    if args.command == "measure":
        measure(args.models, args.data, args.threads, args.seconds, args.out)
        return
    device = hardware.load(args.profile)
    if device.rates is None:
        raise SystemExit(f"{args.profile} has no measured rates; make it with octosim profiles calibrate")
    text, summary = page(read(args.measured), device)
    if args.write:
        write_atomic(PAGE, text.encode())
    print(summary if args.write else text)


TEXT = """# Predicted and measured steps on one machine

Training steps of octosim's own models, predicted from a profile that `octosim profiles calibrate` wrote, and measured as
`octosim bench` does. No layer of these models is among those that calibration measures. Made by

    octosim profiles calibrate -o this-machine.toml
    python tools/validate_host.py measure --threads {threads} -o measured.jsonl
    python tools/validate_host.py compare --profile this-machine.toml --write measured.jsonl

(each step once to three times, and the calibration three times, as guests of the same host came and went: steps of two threads
took up to twice as long at times).

The profile: {source}. Layers' passes lie within {spread} % of the fitted costs (one standard deviation). With one thread the
thread's own time counts, with more the wall clock's.

Chosen in view of errors: all that docs/cost-model.md says of measuring in steps, of the rows of dX, of blocks of columns and of
near and far operands, after looking at single layers of simplecnn, mlp, alexnet, vgg11 and resnet20 on Fashion-MNIST (one of
vgg11 on CIFAR-10), and at the totals of all models but vgg11 on Fashion-MNIST. The other steps on CIFAR-10 were looked at only
afterwards. No rate is fitted to any of these steps. The form before, which repeated the same calls, had a median error of 21 %
of these 64 steps, with the kernels of then.

**{summary}.**

| model | images | method | batch | threads | predicted, ms | measured, ms | error, % |
|---|---|---|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
