"""Networks as data: graphs, the table of models, model files and what a manifest stores."""

from octosim.engine.graph import INPUT, Entry, Graph, InputSpec, as_graph
from octosim.graph.model_file import KINDS, describe, is_file, parse, parse_network, to_toml
from octosim.graph.zoo import MODELS, Model, find, layers

__all__ = [
    "INPUT", "KINDS", "MODELS", "Entry", "Graph", "InputSpec", "Model", "as_graph", "describe", "find", "is_file", "layers",
    "parse", "parse_network", "to_toml",
]  # fmt: skip
