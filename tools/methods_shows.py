"""Three experiments on the methods (reports/methods/): each trains LeNet-5 on MNIST and prints a table.

    python tools/methods_shows.py logbtq     overflow by layer with and without the barrier, registers of 8, 12 and 16 bits
    python tools/methods_shows.py blaq       blaq against laq at 1 and 2 bits: accuracy and zig-zag
    python tools/methods_shows.py niti       the digest of a run on every instruction set of this machine

Figures depend on the seed and the steps alone, not on the machine.  --json FILE keeps the numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from octosim import core
from octosim.engine import quantizers
from octosim.engine.nodes import Array, Context, Convolution, Node
from octosim.methods import float32
from octosim.methods.logbtq import Logbtq
from octosim.numerics import ACCUMULATORS, MuLaw
from octosim.train import Config, Run

BITS = (8, 12, 16)
HEADROOM = 0  # of the mu-law accumulator: its bound is that of one product; with the method's 4 nothing saturates
Table = list[dict[str, Any]]


def trained(config: Config) -> Run:
    run = Run(config)
    while run.step < run.steps:
        run.train_step()
    return run


# ---- logbtq --------------------------------------------------


def inputs(run: Run, images: Array) -> dict[str, Array]:
    """What each weighted layer takes in inference, by name."""
    network, seen, method = run.network, dict[str, Array](), run.network.method

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(method, name)

        def forward(self, node: Node, x: Array, context: Context) -> Array:
            seen[node.name] = x.copy()
            return method.forward(node, x, context)

    network.method = Watched()  # type: ignore[assignment]
    network.forward(network.input(images), Context(False, 0, 0))
    network.method = method
    return seen


def overflow(run: Run, images: Array) -> dict[str, dict[str, float]]:
    """By layer: the share of outputs whose sum of int8 products leaves a register of each of BITS bits, and of encodings that
    saturate in the strict mu-law accumulator.  Codes of both kinds lie in the method's fixed bounds."""
    method, found = run.method, {}
    assert isinstance(method, Logbtq)
    strict = MuLaw(headroom=HEADROOM, group=1)
    for name, x in inputs(run, images).items():
        node = next(node for node in run.network.nodes if node.name == name)
        product, w = node.layer.product(node, len(x)), node.params["w"]
        m, k, n = product.shape
        rows = float32.windows(product.geometry, x).reshape(m, k) if isinstance(product, Convolution) else x
        columns = np.ascontiguousarray(w.reshape(n, k).T)
        a, b = (quantizers.symmetric(t, -u, u).q for t, u in ((rows, method.activation_bound), (columns, method.weight_bound)))
        needed = core.gemm_counted(a, b, ACCUMULATORS["acc32"])[1]
        ma, _ = core.encode_mu8(np.ascontiguousarray(rows), method.activation_bound)
        mb, _ = core.encode_mu8(columns, method.weight_bound)
        saturated = int(core.gemm_mu8(ma, mb, strict)[1][0])
        found[name] = {f"{bits} bits": needed.would_overflow(bits) / (m * n) for bits in BITS} | {
            "mu8": saturated / (2 * m * n * k), "max x": float(np.abs(x).max()), "max w": float(np.abs(w).max())
        }  # fmt: skip
    return found


def logbtq(data: str, steps: int, seed: int) -> Table:
    made = []
    for barrier in (0.0, 0.01, 1.0, 10.0):
        config = Config(model="lenet5", data=data, method="logbtq", parameters={"barrier": barrier}, steps=steps, seed=seed)
        run = trained(config)
        _, accuracy = run.network.evaluate(run.data.test_images[:2000], run.data.test_labels[:2000].astype(np.int32))
        for layer, rates in overflow(run, run.data.test_images[:20]).items():
            made.append({"barrier": barrier, "layer": layer, "test_accuracy": accuracy} | rates)
    return made


# ---- blaq --------------------------------------------------


def blaq(data: str, steps: int, seed: int, seeds: int = 3) -> Table:
    """Zig-zag: in a step, the share of weights whose update goes against the one before, and whose level changes."""
    made = []
    for bits, (method, more) in itertools.product((1, 2), (("laq", {}), ("blaq", {"period": 1}))):
        accuracies, flips, changes = [], [], []
        for each in range(seed, seed + seeds):
            parameters = {"weight_bits": bits, **more}
            config = Config(model="lenet5", data=data, method=method, parameters=parameters, steps=steps, seed=each)
            run = trained(dataclasses.replace(config, optimizer="adam"))
            metrics = run.method.metrics(run.network.nodes)
            accuracies.append(run.network.evaluate(run.data.test_images, run.data.test_labels.astype(np.int32))[1])
            weights = {node.name: node.params["w"].size for node in run.network.nodes if "w" in node.params}
            for kept, name in ((flips, "update_sign_flips"), (changes, "level_changes")):
                total = sum(metrics[name][layer] * size for layer, size in weights.items())
                kept.append(total / sum(weights.values()) / metrics["steps"])
        spread = statistics.stdev(accuracies) if seeds > 1 else math.nan
        made.append({
            "bits": bits, "method": method, "test_accuracy": statistics.mean(accuracies), "deviation": spread,
            "sign_flips": statistics.mean(flips), "level_changes": statistics.mean(changes),
        })  # fmt: skip
    return made


# ---- niti --------------------------------------------------


def niti(data: str, steps: int, seed: int) -> Table:
    made = []
    for isa in (name for name, supported in core.isas().items() if supported):
        core.set_isa(isa)
        run = trained(Config(model="lenet5", data=data, method="niti", batchnorm=False, steps=steps, seed=seed))
        made.append({"isa": isa, "digest": run.digest()})
    if len({row["digest"] for row in made}) != 1:
        raise SystemExit(f"the digests differ: {made}")
    return made


EXPERIMENTS = {"logbtq": (logbtq, 600), "blaq": (blaq, 600), "niti": (niti, 10)}


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--steps", type=int, help="of each run, batches of 100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    experiment, steps = EXPERIMENTS[args.experiment]
    rows = experiment(args.data, args.steps or steps, args.seed)
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(map(_cell, row.values())) + " |")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
