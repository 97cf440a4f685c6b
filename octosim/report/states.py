"""How runs ended: finished, at chance, diverged, unfinished or broken; and the accuracies that count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from octosim.outcome import chance, failed
from octosim.report.read import Run
from octosim.report.tables import Group, finals, last_value


@dataclass(frozen=True)
class State:
    """How a run ended.  kind: finished, at chance, diverged, unfinished or broken; detail: where, or why."""

    kind: str
    detail: str = ""


def state_of(run: Run) -> State:
    """The state of a run, from its records and from what the run or its study says of its end."""
    if run.digest is None:
        if run.failure:
            step = 1 + (0 if run.records.empty else int(run.records["step"].iloc[-1]))
            return State(*failed(run.failure, step))
        return State("unfinished", "" if run.records.empty else f"step {int(run.records['step'].iloc[-1])}")
    return State("at chance" if is_at_chance(run) else "finished")


def is_at_chance(run: Run) -> bool:
    """Whether the last evaluation of a run, finished or not, is no better than guessing."""
    accuracy, guessing = last_value(run.records["test_accuracy"]), chance(run.decides)
    return accuracy is not None and guessing is not None and accuracy <= guessing


def states_text(group: Group) -> str:
    """The states of a group's runs in one cell: "finished", or "2 of 3 at chance"; with where, where that is one place."""
    counts = Counter(state_of(run).kind for run in group.runs)
    details = {kind: {s.detail for s in map(state_of, group.runs) if s.kind == kind} for kind in counts}
    parts = []
    for kind, n in counts.items():
        if kind == "finished" and len(counts) > 1:
            continue
        text = kind if n == len(group.runs) else f"{n} of {len(group.runs)} {kind}"
        detail = details[kind].pop() if len(details[kind]) == 1 else ""
        parts.append(text + (f" ({detail})" if detail else ""))
    return "; ".join(parts)


def learned(group: Group) -> dict[int, float]:
    """Last test accuracy of the runs that finished above chance, by seed."""
    return finals(Group(group.label, tuple(run for run in group.runs if state_of(run).kind == "finished")))
