"""Networks as data: the table of models, model files and what a manifest stores."""

from octosim.graph.model_file import KINDS, describe, is_file, parse
from octosim.graph.zoo import MODELS, Model, find, layers

__all__ = ["KINDS", "MODELS", "Model", "describe", "find", "is_file", "layers", "parse"]
