"""Networks as data: graphs, the table of models, model files and what a manifest stores."""

from octosim.engine.graph import INPUT, Entry, Graph, InputSpec, as_graph
from octosim.graph import plugins
from octosim.graph.imported import from_torch, has_weights, is_imported, load, save
from octosim.graph.model_file import KINDS, describe, is_file, parse, parse_network, to_toml
from octosim.graph.networks import NETWORKS
from octosim.graph.onnx import Imported
from octosim.graph.zoo import MODELS, VARIANTS, Model, find, layers, model_names, usual

__all__ = [
    "INPUT", "KINDS", "MODELS", "NETWORKS", "VARIANTS", "Entry", "Graph", "Imported", "InputSpec", "Model", "as_graph",
    "describe", "find",
    "from_torch", "has_weights", "is_file", "is_imported", "layers", "load", "model_names", "parse", "parse_network",
    "plugins", "save", "to_toml", "usual",
]  # fmt: skip
