"""Data sets: where they are found, what their files say, and the batches made of them."""

from octosim.data.fetch import fetch
from octosim.data.sets import ALIASES, SOURCES, Dataset, Source, available, find_given, load

__all__ = ["ALIASES", "SOURCES", "Dataset", "Source", "available", "fetch", "find_given", "load"]
