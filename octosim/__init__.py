"""octosim: bit-exact simulation and profiling of INT8 training.

    >>> import octosim
    >>> run = octosim.train(model="lenet5", batch_size=20, steps=2)
    >>> run.finished
    True

`train`, `open`, `cost` and `study` are the Python API (docs/python.md); its parts are imported when they are first used.
"""

import sys

from octosim._moved import Finder

__version__ = "0.1.0"
__all__ = ["Config", "Cost", "Interrupted", "OctosimError", "Run", "Study", "cost", "open", "study", "train"]
sys.meta_path.append(Finder())

TYPE_CHECKING = False  # not of typing, whose import takes as long as all else here
if TYPE_CHECKING:
    from octosim.api import Cost, Interrupted, Run, Study
    from octosim.api import open_run as open
    from octosim.errors import OctosimError
    from octosim.train.config import Config

_PACKAGES = ("core", "cost", "data", "graph", "hardware", "methods", "numerics", "study", "testing", "torch", "train")


def __getattr__(name: str) -> object:
    import importlib

    if name in _PACKAGES:
        return importlib.import_module(f"octosim.{name}")
    if name == "OctosimError":
        return importlib.import_module("octosim.errors").OctosimError
    if name in __all__:
        api = importlib.import_module("octosim.api")
        return api.open_run if name == "open" else getattr(api, name)
    raise AttributeError(f"module 'octosim' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES, "__version__"})
