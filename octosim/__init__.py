"""octosim: bit-exact simulation and profiling of INT8 training."""

from importlib.metadata import version

__version__ = version("octosim")
