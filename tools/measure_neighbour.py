"""Training steps beside a busy neighbour: `while True: pass` in a process of its own, which runs and is stopped in turns.

    python tools/measure_neighbour.py simplecnn:mnist:100 lenet5:mnist:128 resnet20:cifar10:128 --threads 2

Says of each network the median step while the neighbour is stopped, while it runs, and their ratio.  Pairs of turns in which
still other programs took more than --others CPUs do not count; where no pair was quiet within --limit seconds, it says so.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import time

from octosim import core, train
from octosim.hardware import state

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("networks", nargs="+", metavar="MODEL:DATA:BATCH")
parser.add_argument("--method", default="octo")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--pairs", type=int, default=10, help="turns with the neighbour, and as many without, that count")
parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
parser.add_argument("--others", type=float, default=0.15, help="CPUs that still other programs may take")
parser.add_argument("--limit", type=float, default=60.0, help="seconds for each network")
given = parser.parse_args()


def turn(run: train.Run) -> tuple[list[float], float]:
    """The seconds of a turn's steps, two at least, and how many CPUs others took."""
    begun, before, taken = time.perf_counter(), state.used(), []
    while time.perf_counter() - begun < given.seconds or len(taken) < 2:
        if run.step >= run.steps_per_epoch:
            run.step = 0
        batch, start = run.batch(run.step + 1), time.perf_counter()
        run.train_step(batch)
        taken.append(time.perf_counter() - start)
    return taken, state.neighbours(before, state.used()).get("others", 0.0)


def measure(network: str, neighbour: subprocess.Popen[bytes]) -> str:
    model, data, batch = network.split(":")
    run = train.Run(train.Config(model, data, given.method, batch_size=int(batch), lr=1e-6))
    run.allow_replay = True
    turn(run)  # finds its memory and is recorded
    quiet: list[float] = []
    busy: list[float] = []
    pairs, took, until = 0, [0.0], time.perf_counter() + given.limit
    while pairs < given.pairs and time.perf_counter() < until:
        alone, others = turn(run)
        if others > given.others:
            continue
        neighbour.send_signal(signal.SIGCONT)
        beside, by = turn(run)
        used = state.used()
        time.sleep(0.1)  # how much there is beside the neighbour, which now may take a whole CPU
        rest = state.neighbours(used, state.used()).get("others", 1.0) - 1
        neighbour.send_signal(signal.SIGSTOP)
        after, others = turn(run)
        if others > given.others or rest > given.others:
            continue
        pairs, quiet, busy = pairs + 1, quiet + alone + after, busy + beside
        took.append(by)
    if not pairs:
        return f"{network}: the machine was never quiet"
    slow = statistics.quantiles(busy, n=10)[-1]
    rest, beside = statistics.median(quiet), statistics.median(busy)
    return (
        f"{network}: {1e3 * rest:.2f} ms quiet, {1e3 * beside:.2f} ms with {statistics.mean(took[1:]):.2f} CPUs taken: "
        f"{beside / rest:.2f} times; the slowest tenth from {slow / rest:.2f} on ({pairs} pairs)"
    )


core.set_threads(given.threads)
neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    time.sleep(0.2)
    neighbour.send_signal(signal.SIGSTOP)
    for network in given.networks:
        print(measure(network, neighbour), flush=True)
finally:
    neighbour.kill()
