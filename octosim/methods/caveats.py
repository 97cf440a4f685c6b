"""What methods say of runs in which a part of them does not act."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from octosim.engine.nodes import Node

PASSED = ("relu", "clip", "pool", "flatten", "dropout", "avgpool")
"""Layers, by stem, behind which values are still those of a normalization, rectified or pooled."""
NAMED = 3


def layers_text(names: Sequence[str], of: int, what: str = "layers") -> str:
    """"in 2 of 20 layers (conv1, fc1)"."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"in {len(names)} of {of} {what} ({', '.join(names[:NAMED])}{more})"


def behind_norm(node: Node, nodes: Sequence[Node]) -> bool:
    """Whether a layer's input comes from batch normalization, without another product or sum between."""
    source = node.inputs[0]
    while source >= 0 and nodes[source].layer.stem in PASSED:
        source = nodes[source].inputs[0]
    return source >= 0 and nodes[source].layer.normalizes


def without_norm(nodes: Iterable[Node], what: str) -> list[str]:
    """A caveat where a network has no batch normalization at all."""
    normalized = any(node.layer.normalizes for node in nodes)
    return [] if normalized else [f"the network has no batch normalization: {what}"]
