"""Studies: grids of runs, each trained in a process of its own."""

from octosim.study.study import (
    Row,
    State,
    Study,
    Tell,
    TrainAll,
    as_csv,
    check,
    in_processes,
    opened,
    read,
    records,
    rows,
    run,
    shipped,
    source,
    taken,
    text,
)

__all__ = [
    "Row", "State", "Study", "Tell", "TrainAll", "as_csv", "check", "in_processes", "opened", "read", "records", "rows", "run",
    "shipped", "source", "taken", "text",
]  # fmt: skip
