"""What `octosim train --measure N` costs: measured steps beside plain ones of the same run, in process time on one thread.

    python tools/measure_cost.py lenet5 mnist 100 --pairs 40
    python tools/measure_cost.py resnet20 cifar10 128 --pairs 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from octosim import core, train
from octosim.train import measure

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("data")
parser.add_argument("batch_size", type=int)
parser.add_argument("--method", default="octo")
parser.add_argument("--pairs", type=int, default=10, help="a plain step and a measured one")
given = parser.parse_args()

core.set_threads(1)
count = 2 * given.pairs + 2
run = train.Run(train.Config(given.model, given.data, given.method, batch_size=given.batch_size, steps=count, measure=2))
run.meter = measure.Meter(run.layers, run.data.train_images.shape[1:], run.registers.accumulator)
times = []
for _ in range(count):
    started = time.process_time()
    run.train_step()
    times.append(time.process_time() - started)
plain, measured = (statistics.median(times[first::2]) for first in (2, 3))  # the first two make their memory
print(f"plain {1e3 * plain:.2f} ms, measured {1e3 * measured:.2f} ms, {len(run.measures)} records of "
      f"{sum(len(json.dumps(row)) + 1 for row in run.measures) / 1e3:.0f} kB a step")  # fmt: skip
for every in (10, 50, 100):
    print(f"--measure {every}: {100 * (measured - plain) / plain / every:.1f} % more time")
