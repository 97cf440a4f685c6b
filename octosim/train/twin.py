"""A check of code of other packages: the first step that the core replays has the bits of the step that Python makes."""

from __future__ import annotations

from pathlib import Path

from octosim import extensions, graph, methods
from octosim.errors import OctosimError
from octosim.train import directory
from octosim.train.run import Batch, Run

LONGEST = 10
"""Steps after which a run that replays none, because it counts or measures each, is not compared any longer."""


class Twin:
    """A second run whose steps Python makes, beside one with a method or layers of other packages.

    What they compute in NumPy without `core.python` is no call of the core: a replay would leave it as it was in the recorded
    step, and train another network without a word.
    """

    def __init__(self, run: Run, folder: Path):
        layers = graph.plugins.identities(node.layer for node in run.network.nodes)
        self._what = [f"method {methods.name_of(run.method)}"] if extensions.identity(type(run.method)) else []
        self._what += [f"layer {name}" for name in layers]
        self._run: Run | None = None
        if self._what:
            began = directory.initial_tensors(folder, directory.read_manifest(folder)) if run.config.init is not None else None
            self._run, self._last = Run(run.config, run.layers, run.data, began), run.step + LONGEST
            saved = directory.load_checkpoint(folder)
            if saved:
                directory.restore(self._run, saved)

    def step(self, run: Run, batch: Batch) -> None:
        """Takes the step that a run took; OctosimError where a replay made other bits of it."""
        if self._run is None:
            return
        self._run.train_step(batch)
        if run.recorded.replays:
            mine, its = run.tensors(), self._run.tensors()
            different = [name for name, values in its.items() if values.tobytes() != mine[name].tobytes()]
            if different:
                raise OctosimError(
                    f"step {run.step} has other bits where the core replays it, in {', '.join(different[:3])}: "
                    f"{' and '.join(self._what)} must declare what NumPy computes (core.python) and draw from context.random; "
                    "see docs/python.md"
                )
        if run.recorded.replays or run.step >= self._last:
            self._run = None
