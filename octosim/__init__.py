"""octosim: bit-exact simulation and profiling of INT8 training."""

__version__ = "0.1.0"
