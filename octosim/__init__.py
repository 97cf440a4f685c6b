"""octosim: bit-exact simulation and profiling of INT8 training."""

import sys

from octosim._moved import Finder

__version__ = "0.1.0"
sys.meta_path.append(Finder())
