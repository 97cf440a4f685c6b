"""Predicted against measured training steps of octosim's models on this machine, with a profile of `profiles calibrate`.

    octosim profiles calibrate -o this-machine.toml
    python tools/validate_host.py --profile this-machine.toml --threads 1 --write

Measured by `octosim bench`'s own step measurement: whole steps, their median.  With one thread the thread's own time counts, so
that other programs on the machine do not; with more, wall-clock time, the least of --repeats medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from octosim import bench, core, hw, models
from octosim.errors import OctosimError
from octosim.train import Config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "host-validation.md"
BATCHES = {"vgg11": 10, "vgg-small-7": 25, "alexnet": 25, "mobilenet": 50}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", required=True, help="written by octosim profiles calibrate")
    parser.add_argument("--models", nargs="*", default=list(models.MODELS))
    parser.add_argument("--data", nargs="*", default=["fashion-mnist-5k", "cifar10"])
    parser.add_argument("--threads", nargs="*", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name}, else print it")
    args = parser.parse_args()
    device = hw.load(args.profile)
    if device.rates is None:
        raise SystemExit(f"{args.profile} has no measured rates; make it with octosim profiles calibrate")
    rows, errors = [], []
    for threads in args.threads:
        core.set_threads(threads)
        clock = time.thread_time if threads == 1 else time.perf_counter
        for data in args.data:
            for model in args.models:
                config = Config(model=model, data=data, method="octo", lr=1e-3, batch_size=BATCHES.get(model, 100))
                try:
                    records = [
                        bench.step_bench(config, device, against=[], seconds=args.seconds, command="", clock=clock)
                        for _ in range(args.repeats)
                    ]
                except OctosimError as error:
                    print(f"{model} on {data}: {error}")
                    continue
                for method in ("octo", "fp32"):
                    totals = [(r if method == "octo" else r["fp32"])["total"] for r in records]
                    measured, predicted = min(t["time_s"] for t in totals), totals[0]["predicted_time_s"]
                    error = predicted / measured - 1
                    errors.append(abs(error))
                    cells = (model, data, method, f"{config.batch_size}", f"{threads}", f"{predicted * 1e3:.3g}",
                             f"{measured * 1e3:.3g}", f"{100 * error:+.0f}")  # fmt: skip
                    rows.append(f"| {' | '.join(cells)} |")
                    print(rows[-1], flush=True)
    text = TEXT.format(
        rows="\n".join(rows), median=f"{100 * statistics.median(errors):.0f}", worst=f"{100 * max(errors):.0f}",
        count=len(rows), source=device.rates.source,
        spread=f"{100 * device.rates.spread:.0f}", threads=" ".join(map(str, args.threads)),
    )  # fmt: skip
    if args.write:
        PAGE.write_text(text)
    print(f"median error {100 * statistics.median(errors):.1f} %, worst {100 * max(errors):.1f} %")


TEXT = """# Predicted and measured steps on one machine

Training steps of octosim's own models, predicted from a profile that `octosim profiles calibrate` wrote, and measured as
`octosim bench` does. No layer of these models is among the shapes that calibration measures. Made by

    octosim profiles calibrate -o this-machine.toml
    python tools/validate_host.py --profile this-machine.toml --threads {threads} --write

The profile: {source}. Products lie within {spread} % of the fitted costs (one standard deviation). With one thread the
thread's own time counts (other programs ran on the machine), with more the wall clock's.

Chosen in view of errors: that calls are measured in turn, that passes know their channels, that a layer's own work and each
updated tensor count, and the larger shapes, after looking at steps on Fashion-MNIST of all models but vgg11 (the first form's
median error on six of them was 25 %). The steps of vgg11 and all on CIFAR-10 were looked at only afterwards.

**Median error {median} %, worst {worst} %, of {count} steps.**

| model | images | method | batch | threads | predicted, ms | measured, ms | error, % |
|---|---|---|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
