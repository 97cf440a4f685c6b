"""Data sets: where they are found, what their files say, and the batches made of them."""

from octosim.data.dataset import Dataset, Options, parse_image
from octosim.data.fetch import fetch
from octosim.data.inspection import check
from octosim.data.sets import ALIASES, SOURCES, Source, available, find_given
from octosim.data.sources import ARRAYS, KINDS, from_arrays, is_own, load, open_source

__all__ = [
    "ALIASES", "ARRAYS", "KINDS", "SOURCES", "Dataset", "Options", "Source", "available", "check", "fetch", "find_given",
    "from_arrays", "is_own", "load", "open_source", "parse_image",
]  # fmt: skip
