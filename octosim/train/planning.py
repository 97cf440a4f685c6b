"""What a step of a recorded run does, from its manifest alone."""

from __future__ import annotations

from typing import Any

from octosim import data, graph, methods
from octosim.engine import optimizers, plan
from octosim.engine.inputs import Input
from octosim.errors import OctosimError
from octosim.trace import Op
from octosim.train.config import Config, from_json


def step_of(manifest: dict[str, Any], in_c: bool = False) -> tuple[list[Op], dict[str, int]]:
    """The operations of a training step and its memory (plan.memory), of a run's manifest; nothing is computed.

    in_c: the memory of the C program that `octosim export --to c --training` writes (plan.in_c).
    OctosimError where the manifest does not say enough, or names a data set, a method or a layer that is not known here.
    """
    decides = manifest["decides"]
    batch = decides.get("batch_size")
    if not isinstance(batch, int) or batch < 1:
        raise OctosimError(f"field decides.batch_size is {batch!r}, expected a whole number above 0")
    shape = _image_shape(manifest)
    methods.plugins.admit(decides["method"]["name"], "manifest.json")
    method = methods.make(decides["method"]["name"], decides["method"]["parameters"])
    held = decides.get("input")
    normalized = isinstance(held, dict)
    channels = (0.0,) * shape[-1], (1.0,) * shape[-1]
    source = Input(held.get("values") == "float32", *(channels if held.get("mean") else ())) if normalized else Input()
    # without a configuration a run trained its whole network, a batch at once
    config = from_json(manifest["config"], "manifest.json") if "config" in manifest else Config()
    network = plan.dry(
        graph.parse_network("manifest.json:", decides.get("layers")), shape, method, True, source, config.selection,
        config.accumulate,
    )  # fmt: skip
    step = plan.plan(network, batch, optimizers.make((decides.get("optimizer") or {}).get("name", "sgd"), None))
    return plan.ops(step), (plan.in_c if in_c else plan.memory)(step)


def _image_shape(manifest: dict[str, Any]) -> tuple[int, ...]:
    """Height, width and channels of a run's images, or the length of its vectors;
    the manifests of octosim 0.1 name the data set only."""
    told = manifest.get("data")
    if isinstance(told, dict):
        shape = told.get("image_shape")
        if isinstance(shape, list) and len(shape) in (1, 3) and all(type(n) is int and 0 < n < 2**16 for n in shape):
            return tuple(shape)
        raise OctosimError(f"field data.image_shape is {str(shape)[:40]}, expected height, width and channels, or values")
    name = manifest["decides"]["data"]["name"]
    known = next((row["shape"] for row in data.available() if row["name"] == name), None)
    if known is None:
        raise OctosimError(f"the shape of data set {name} is not known")
    return tuple(known)
