"""Frozen values that name an arithmetic.  They go into a run's manifest: what is here decides bits."""

from octosim.numerics.accumulator import ACCUMULATORS, EXACT32, Accumulator, Overflow, Proof, find
from octosim.numerics.formats import FLOAT32, INT8, INT8_BLOCKS, INT32, Format, mu_law, symmetric, unsigned
from octosim.numerics.mulaw import LARGEST_LINEAR, MuLaw, expanded, mu_levels, mu_tables, mu_thresholds
from octosim.numerics.reals import half_cosine, power
from octosim.numerics.rounding import Requantization, Rounding, fixed_point

__all__ = [
    "ACCUMULATORS", "EXACT32", "FLOAT32", "INT32", "INT8", "INT8_BLOCKS", "LARGEST_LINEAR", "Accumulator", "Format", "MuLaw",
    "Overflow", "Proof", "Requantization", "Rounding", "expanded", "find", "fixed_point", "half_cosine", "mu_law", "mu_levels",
    "mu_tables", "mu_thresholds", "power", "symmetric", "unsigned",
]  # fmt: skip
