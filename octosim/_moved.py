"""Where modules went: an old name still imports what is at its new place."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys

TYPE_CHECKING = False  # neither typing nor importlib.abc, whose imports take longer than all else of `import octosim`
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "accumulate": ("engine.registers",),
    "architectures": ("graph.zoo", "graph.model_file", "engine.network"),
    "audit": ("evidence.audit",),
    "calibrate": ("cost.fit",),
    "cluster": ("study.cluster",),
    "compare": ("cost.compare",),
    "costplot": ("cost.plots",),
    "diff": ("evidence.diff",),
    "efficiency": ("hardware.efficiency",),
    "golden": ("evidence.golden",),
    "host": ("hardware.detect",),
    "hostbench": ("bench.calibrate",),
    "hw": ("hardware.device",),
    "kernelbench": ("bench.kernels",),
    "layers": ("engine.layers",),
    "loader": ("data.batches",),
    "measure": ("train.measure",),
    "membench": ("bench.memory",),
    "methods.passes": ("methods.float32",),
    "models": ("engine.network", "engine.layers", "graph", "engine.plan"),
    "nodes": ("engine.nodes",),
    "observe": ("engine.probes",),
    "onnx_trace": ("cost.onnx",),
    "optim": ("engine.optimizers", "engine.schedules"),
    "peers": ("bench.peers",),
    "pool": ("core.memory",),
    "quant": ("engine.quantizers",),
    "rates": ("hardware.rates",),
    "recorded": ("engine.replay",),
    "stepclock": ("bench.clock",),
}
"""Old name -> new names, all below octosim.  An old module that became one is that one; of several, the first that has a name
gives it."""


class Finder:
    """Imports the modules of MOVED by their old names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        loader: Any = self  # a Loader by its methods: importlib.abc takes as long to import as all of this package
        return importlib.machinery.ModuleSpec(name, loader) if name.removeprefix("octosim.") in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """A module as any other."""

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        places = [importlib.import_module(f"octosim.{new}") for new in MOVED[old.removeprefix("octosim.")]]
        if len(places) == 1:
            sys.modules[old] = places[0]
            return

        def find(name: str) -> Any:
            for place in places:
                if hasattr(place, name):
                    return getattr(place, name)
            raise AttributeError(f"module '{old}' has no attribute '{name}'")

        vars(module)["__getattr__"] = find
