"""Real time and memory on the machine at hand, beside other software and beside the cost model."""

from octosim.bench.steps import step_bench

__all__ = ["step_bench"]
