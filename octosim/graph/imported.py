"""Imported networks: a folder with model.toml and weights.safetensors, an ONNX file, or a module of PyTorch."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

from safetensors.numpy import save as save_tensors

from octosim.engine.graph import as_graph
from octosim.errors import OctosimError
from octosim.files import is_onnx, read_tensors, write_atomic
from octosim.graph import onnx
from octosim.graph.model_file import read_file, to_toml
from octosim.graph.onnx import Imported

MODEL, WEIGHTS = "model.toml", "weights.safetensors"
SEQUENCES = ("SplitToSequence", "SequenceAt")


def is_imported(model: str) -> bool:
    """Whether a model's name is an ONNX file or a folder, which have weights too."""
    return is_onnx(model) or "/" in model and os.path.isdir(model)


def has_weights(model: str) -> bool:
    """Whether a model comes with weights: an ONNX file, or a folder with weights.safetensors."""
    return is_imported(model) and (not os.path.isdir(model) or os.path.lexists(os.path.join(model, WEIGHTS)))


def load(source: str | Path) -> Imported:
    """The network of an ONNX file, or of a folder that `save` wrote; OctosimError where there is none."""
    path = Path(source)
    try:
        files = [file for file in (path / MODEL, path / WEIGHTS) if file.exists()] if path.is_dir() else []
        states = [os.stat(file) for file in files or [path]]
    except (OSError, ValueError) as error:
        raise OctosimError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return _load(path, tuple((state.st_mtime_ns, state.st_size) for state in states))


@functools.lru_cache(maxsize=2)
def _load(path: Path, version: tuple[tuple[int, int], ...]) -> Imported:
    """version: times and sizes of the files, so that others of these names are read anew."""
    if not path.is_dir():
        return onnx.read(path)
    if not (path / MODEL).exists():
        raise OctosimError(f"{path}: no {MODEL} in this folder, as octosim import writes it")
    network = as_graph(read_file(path / MODEL))
    if not (path / WEIGHTS).exists():
        return Imported(network, {})
    return Imported(network, read_tensors(path / WEIGHTS)[0])


def save(imported: Imported, folder: Path) -> None:
    """Writes model.toml and weights.safetensors; the folder is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OctosimError(f"cannot make {folder}: {error.strerror}") from None
    write_atomic(folder / WEIGHTS, save_tensors(dict(sorted(imported.weights.items()))))
    write_atomic(folder / MODEL, to_toml(imported.graph).encode())


def from_torch(module: Any, example: Any) -> Imported:
    """The network of a torch.nn.Module and its weights, traced by torch.export.

    example: an input of the module, a float tensor (batch, channels, height, width).  OctosimError names every operator that
    cannot be trained.  Needs torch, onnx and onnxscript.
    """
    from octosim import onnxfile

    try:
        import torch
        from onnxscript import optimizer
    except ImportError as error:
        raise OctosimError(f"importing a PyTorch module needs torch, onnx and onnxscript: {error}") from None
    where = Path(type(module).__name__)
    if not isinstance(module, torch.nn.Module) or not isinstance(example, torch.Tensor):
        raise OctosimError(
            f"from_torch takes a torch.nn.Module and a tensor as an example, not {where} and {type(example).__name__}"
        )
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        # torch's own optimization would fold batch normalization into the weights
        program = torch.onnx.export(module, (example,), dynamo=True, optimize=False, verbose=False, external_data=False)
        assert program is not None
        if any(node.op_type in SEQUENCES for node in program.model.graph):
            optimizer.fold_constants(program.model)  # torch.chunk and torch.split are parts of a sequence before
            optimizer.remove_unused_nodes(program.model)
    except Exception as error:  # whatever the module's own code and the exporter raise
        cause: BaseException = error
        while cause.__cause__ is not None:  # torch wraps what the module's own code raises in advice
            cause = cause.__cause__
        text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(cause)).split())[:300]
        raise OctosimError(f"{where}: torch.export cannot trace it ({type(cause).__name__}: {text})") from None
    finally:
        for part, mode in modes:
            part.training = mode
    return onnx.convert(onnxfile.prepare(program.model_proto, where))
