"""What a run will take, and what its end means: the first and the last lines of `octosim train`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octosim.cli.tables import Table
from octosim.cli.terminal import Estimate, clock, duration_text, hint, plural, print_json, say, time_text
from octosim.errors import OctosimError

if TYPE_CHECKING:
    from octosim.train import Config, Progress, Run

TRIAL_S, TRIAL_STEPS = 6.0, 6
"""A dry run times steps until so many seconds have passed, or so many were taken."""
INFERENCE = 1 / 3
"""An inference's share of a training step's time, for evaluations that were not timed."""


def steps_text(run: Run) -> str:
    c = run.config
    epochs = run.steps / run.steps_per_epoch
    whole = plural(round(epochs), "epoch") if epochs == round(epochs) else f"{epochs:.3g} epochs"
    return f"{run.steps:,} step{'s' * (run.steps != 1)} of {plural(c.batch_size, 'image')}, {whole} of {run.steps_per_epoch:,}"


def wrong_text(wrong: dict[str, Any], accumulator: str) -> str:
    return f"{100 * wrong['share']:.3g} % of {wrong['layer']}'s sums ({wrong['pass']}) overflowed {accumulator}"


class Outlook:
    """Is told of each step: says once when the run will end and, at the first counted step, what its register loses."""

    def __init__(self, run: Run) -> None:
        self._run, self._counted, self._estimate = run, False, Estimate(run.step, "step")

    def __call__(self, p: Progress) -> None:
        if self._run.overflow and not self._counted:
            self._counted = True
            rows = [row for row in self._run.overflow if row["outputs"]]
            worst = max(rows, key=lambda row: row["inexact"] / row["outputs"], default=None)
            if worst and worst["inexact"]:
                wrong = worst | {"share": worst["inexact"] / worst["outputs"]}
                hint(f"step {p.step}: {wrong_text(wrong, worst['accumulator'])}")
        self._estimate(p.step, p.steps)


def _register_bits(accumulator: str) -> int:
    """The width of a manifest's accumulator; 32 where the sums are in no register of a choice, as float32."""
    from octosim import numerics

    try:
        return numerics.find(accumulator).bits
    except OctosimError:
        return 32


def ending(folder: Path) -> list[str]:
    """What the user should know of a finished run: an accuracy that guessing reaches, a register that is too narrow."""
    from octosim.watch.runs import RunView

    view = RunView(folder)
    view.look()
    lines, bits = list[str](), _register_bits(view.accumulator)
    if view.state == "at chance" and view.accuracy is not None and view.chance is not None:
        lines.append(f"at chance: guessing reaches up to {100 * view.chance:.2f} % on these test images")
    wrong = view.saturated
    if wrong and wrong["share"]:
        remedy = "acc24" if bits < 24 else "exact32"
        lines.append(f"{wrong_text(wrong, view.accumulator)}; try --accumulator {remedy}")
    elif view.state == "at chance" and not wrong and bits < 32:
        lines.append(f"{view.accumulator} may be too narrow; --count-overflow 10 counts what it loses")
    return lines


def dry_run(config: Config, as_json: bool) -> None:
    """Builds the run, takes and times a few of its steps, and writes nothing."""
    from octosim import train as trainer

    run = trainer.Run(config)
    memory, counts = trainer.memory(run), trainer.parameter_counts(run)
    run.allow_replay = True
    times: list[float] = []
    began = time.monotonic()
    while len(times) < min(TRIAL_STEPS, run.steps) and (not times or time.monotonic() - began < TRIAL_S):
        start = time.monotonic()
        run.train_step()
        times.append(time.monotonic() - start)
    step_s = sorted(times[1:] or times)[len(times[1:] or times) // 2]
    evaluations = _evaluations(run.steps, {run.steps_per_epoch, config.eval_every or run.steps_per_epoch})
    batches = -(-len(run.data.test_labels) // config.batch_size)
    seconds = step_s * (run.steps + INFERENCE * evaluations * batches)
    if as_json:
        result = {"steps": run.steps, "steps_per_epoch": run.steps_per_epoch, "batch_size": config.batch_size}
        print_json(result | {"step_s": step_s, "seconds": seconds, "parameters": counts, "memory": memory})
        return
    say(f"{steps_text(run)}; {plural(evaluations, 'evaluation')} on {len(run.data.test_labels):,} test images")
    show_memory(counts, memory)
    timed = f"of {plural(len(times), 'step')} here"
    say(f"{time_text(step_s)} a step (median {timed}): about {duration_text(seconds)}, would end {clock(seconds)}")
    say("nothing was written")


def _evaluations(steps: int, periods: set[int]) -> int:
    """After every multiple of one or two periods, and after the last step."""
    twice = steps // math.lcm(*periods) if len(periods) > 1 else 0
    return sum(steps // period for period in periods) - twice + all(steps % period for period in periods)


def show_memory(counts: dict[str, int], memory: dict[str, dict[str, int]]) -> None:
    """How many numbers are trained, and the bytes of a step by what they hold."""
    if counts:
        say(f"{sum(counts.values()):,} parameters: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")
    if memory:
        table = Table("", title="memory of a step, MiB")
        for part in next(iter(memory.values())):
            table.add_column(part, justify="right", rank=0 if part == "peak" else 1)
        for name, parts in memory.items():
            table.add_row(name, *(f"{held / 2**20:.2f}" for held in parts.values()))
        table.show()
