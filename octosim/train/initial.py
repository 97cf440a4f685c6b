"""Weights to begin a run with: another run's, or a safetensors file's; and what of them fits a network."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octosim import graph
from octosim.engine import Network
from octosim.engine.nodes import INPUT_RANGE, Array
from octosim.errors import ArgumentError, OctosimError
from octosim.files import is_onnx, parse_json, read_tensors

CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "weights.safetensors"
SLOT = "optimizer."
"""What the names of an optimizer's tensors begin with in a checkpoint."""
LISTED = 6
"""Tensors that a sentence names."""


def read(source: str) -> dict[str, Array]:
    """The tensors of a run directory (without an optimizer's), of a folder that `octosim import` made, of a safetensors file or
    of an ONNX file.

    OctosimError where there are none, or where a checkpoint's are not those that were saved.
    """
    path = Path(source)
    if os.path.isdir(path):
        inside = [path / name for name in (CHECKPOINT, WEIGHTS) if os.path.lexists(path / name)]
        if not inside:
            raise ArgumentError(f"{{init}} {source} has neither {CHECKPOINT}, as a run, nor {WEIGHTS}")
        path = inside[0]
    elif not os.path.lexists(path):
        raise ArgumentError(f"{{init}} {source} does not exist: expected a run directory or a .safetensors file")
    elif is_onnx(path):
        return graph.load(path).weights
    elif path.suffix.lower() in (".pth", ".pt"):
        raise ArgumentError(f"{{init}} {source}: a PyTorch file has no network; torch.onnx.export writes one with the weights")
    elif path.suffix.lower() != ".safetensors":
        raise ArgumentError(f"{{init}} {source}: expected a run directory, an imported network, a .safetensors or .onnx file")
    tensors, metadata = read_tensors(path)
    about = about_in(path, metadata)
    if isinstance(about, dict) and "sha256" in about:
        check_tensors(path, about, tensors)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(SLOT)}


def about_in(path: Path, metadata: dict[str, str]) -> Any:
    """What octosim wrote into the metadata of a safetensors file, None where that is nothing; OctosimError for no JSON."""
    text = metadata.get("octosim")
    return None if text is None else parse_json(text.encode(errors="surrogatepass"), f"{path}: its metadata")


def check_tensors(path: Path, about: dict[str, Any], tensors: dict[str, Array]) -> None:
    """OctosimError where a checkpoint's tensors are not those that were saved."""
    if about.get("sha256") != digest_of(tensors):
        raise OctosimError(f"{path}: its tensors are not as they were saved; the checkpoint is damaged")


def digest_of(tensors: dict[str, Array]) -> str:
    """SHA-256 over names, dtypes, shapes and little-endian bytes of tensors, in the order of their names."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        total.update(tensor.tobytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Fit:
    """What became of the tensors to begin with.

    taken: names; their tensors decide the bits, and sha256 is their digest.  tensors: those, until the first step.  unfit: what
    stood in the source and in the network with another type or shape, in words.  missing: the network's parameters that the
    source lacks.  unknown: the source's tensors that the network lacks.
    """

    taken: tuple[str, ...]
    sha256: str
    tensors: dict[str, Array]
    unfit: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def sentences(self) -> list[str]:
        said = [f"{len(self.taken)} of {len(self.taken) + len(self.unfit) + len(self.missing)} tensors taken"]
        if self.unfit:
            said.append(
                f"not taken: {_listed(self.unfit)}; they begin as in a new run, as is right for another number of classes "
                "or size of images"
            )
        if self.missing:
            said.append(f"not in it: {_listed(self.missing)}; they begin as in a new run")
        if self.unknown:
            said.append(f"no tensors of this network: {_listed(self.unknown)}")
        return said


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def fit(source: str, tensors: dict[str, Array], network: Network) -> Fit:
    """What a network took of tensors that it was built with; OctosimError where it took no weights."""
    own = network.tensors()
    parameters = [f"{node.name}.{key}" for node in network.nodes for key in node.params]
    used = {name: tensors[name] for name in sorted(tensors) if name in network.taken}
    unfit = tuple(
        f"{name} ({_kind(tensors[name])}, here {_kind(own[name])})"
        for name in own if name in tensors and name not in used
    )  # fmt: skip
    if not any(name in used for name in parameters):
        theirs = [f"{name} ({_kind(tensor)})" for name, tensor in sorted(tensors.items())]
        raise ArgumentError(
            f"{{init}} {source}: none of its tensors fits this network: it has {_listed(tuple(theirs)) or 'none'}; expected "
            f"{_listed(tuple(f'{name} ({_kind(own[name])})' for name in parameters))}"
        )
    missing = tuple(name for name in parameters if name not in tensors)
    unknown = (name for name in sorted(set(tensors) - set(own) - set(used)) if not name.endswith(f".{INPUT_RANGE}"))
    return Fit(tuple(used), digest_of(used), used, unfit, missing, tuple(unknown))


def _kind(tensor: Array) -> str:
    return f"{np.dtype(tensor.dtype).name} {' x '.join(map(str, tensor.shape)) or 'number'}"
