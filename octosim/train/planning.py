"""What a step of a recorded run does, from its manifest alone."""

from __future__ import annotations

from typing import Any

from octosim import data, graph, methods
from octosim.engine import optimizers, plan
from octosim.errors import OctosimError
from octosim.trace import Op


def step_of(decides: dict[str, Any]) -> tuple[list[Op], int]:
    """The operations of a training step and the most bytes that it needs, of a manifest's `decides`; nothing is computed.

    OctosimError where the manifest does not say enough, or names a data set, a method or a layer that is not known here.
    """
    batch = decides.get("batch_size")
    if not isinstance(batch, int) or batch < 1:
        raise OctosimError(f"field decides.batch_size is {batch!r}, expected a whole number above 0")
    shape = next((row["shape"] for row in data.available() if row["name"] == decides["data"]["name"]), None)
    if shape is None:
        raise OctosimError(f"the shape of data set {decides['data']['name']} is not known")
    method = methods.make(decides["method"]["name"], decides["method"]["parameters"])
    network = plan.dry(graph.parse("manifest.json:", decides.get("layers")), tuple(shape), method, float_layers=True)
    step = plan.plan(network, batch, optimizers.make((decides.get("optimizer") or {}).get("name", "sgd"), None))
    return plan.ops(step), plan.memory(step)["peak"]
