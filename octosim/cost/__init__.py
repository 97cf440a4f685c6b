"""What a step costs on a device: time, energy and memory from its operations."""

from octosim._callable import make_callable
from octosim.cost.model import (
    ASSUMED_EFFICIENCY,
    BACKWARD_SPREAD,
    INTERVAL,
    KINDS,
    PADDING,
    PARAMETERS,
    SOFTWARE_SPREAD,
    WAVE_EFFICIENCY,
    Machine,
    OpCost,
    Prepared,
    cost_json,
    factors_of,
    kind_of,
    path_of,
    place,
    predict,
    prepare,
    priced_factors,
    slowed,
    systolic_cycles,
    systolic_folds,
    times,
    total,
    vector,
)

__all__ = [
    "ASSUMED_EFFICIENCY", "BACKWARD_SPREAD", "INTERVAL", "KINDS", "Machine", "OpCost", "PADDING", "PARAMETERS",
    "Prepared", "SOFTWARE_SPREAD", "WAVE_EFFICIENCY", "cost_json", "factors_of", "kind_of", "path_of", "place", "predict",
    "prepare", "priced_factors", "slowed", "systolic_cycles", "systolic_folds", "times", "total", "vector",
]  # fmt: skip

make_callable(__name__)
