"""Studies: grids of runs, each trained in a process of its own."""

from octosim._callable import make_callable
from octosim.study.study import (
    ENDED,
    Row,
    State,
    Study,
    Tell,
    TrainAll,
    as_csv,
    check,
    from_python,
    in_processes,
    in_this_process,
    news,
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
    "ENDED", "Row", "State", "Study", "Tell", "TrainAll", "as_csv", "check", "from_python", "in_processes", "in_this_process",
    "news", "opened", "read", "records", "rows", "run", "shipped", "source", "taken", "text",
]  # fmt: skip

make_callable(__name__)
