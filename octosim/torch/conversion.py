"""Conversion of a network's modules, and what was observed of their passes."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from octosim import methods, numerics
from octosim.engine import registers
from octosim.engine.nodes import Method
from octosim.errors import OctosimError, suggest
from octosim.numerics import Accumulator
from octosim.torch.attention import EngineMultiHead
from octosim.torch.modules import EngineAverage, EngineBatchNorm, EngineConv, EngineLinear, EngineModule
from octosim.torch.products import Session

if TYPE_CHECKING:
    import pandas as pd

_KINDS: tuple[tuple[Any, Any], ...] = (
    (nn.Conv1d, EngineConv), (nn.Conv2d, EngineConv), (nn.Linear, EngineLinear), (nn.MultiheadAttention, EngineMultiHead),
    (nn.BatchNorm1d, EngineBatchNorm), (nn.BatchNorm2d, EngineBatchNorm), (nn.AdaptiveAvgPool2d, EngineAverage),
)  # fmt: skip


_PRODUCTS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear, nn.Bilinear,
    nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip
"""Layers with products, of which a network keeps those that are not converted."""


def convert(
    module: nn.Module,
    method: str | Method = "octo",
    accumulator: str | Accumulator = "exact32",
    skip: Sequence[str] = (),
    *,
    seed: int = 0,
    observe: int = 1,
    inplace: bool = False,
    **parameters: Any,
) -> nn.Module:
    """A copy of a module whose products run in octosim's core.

    method: a name with its parameters (lac="off" ...), or an object.  It decides the passes; the optimizer is PyTorch's.
    accumulator: the register of the int8 products, a name or a `numerics.Accumulator`.
    skip: names of submodules that stay as they are, with all below them.
    seed: of the method's random streams, 0 .. 2^64 - 1.
    observe: overflow and SQNR are observed in one of N training passes of a layer; 0: never.
    inplace: change the module, which else is copied.

    A converted layer has its original's name, parameters, attributes and hooks.  Warns of a method with an update of its own,
    and of layers with products that stay PyTorch's: subclasses, transposed and 3-D convolutions, recurrent ones.
    OctosimError for a method with values of its own between layers, for a layer that cannot be converted, for a name in `skip`
    that does not exist, where nothing can be converted, and for arguments of other types.
    """
    if not isinstance(module, nn.Module):
        raise OctosimError(f"convert takes a torch.nn.Module, not {type(module).__name__}")
    if isinstance(module, nn.DataParallel):
        raise OctosimError("octosim computes on the CPU with all its threads: convert the module without DataParallel")
    for name, value in (("seed", seed), ("observe", observe)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
            raise OctosimError(f"{name} is {value!r}, expected a whole number of at least 0 and less than 2^64")
    if isinstance(method, str):
        instance = methods.make(method, parameters)
    elif Method not in type(method).__mro__:
        raise OctosimError(f"method is {str(method)[:60]}, expected a name or a method with its parameters, as Octo(lac='off')")
    elif parameters:
        raise OctosimError(f"convert has no argument '{next(iter(parameters))}': a method that is an object has its parameters")
    else:
        instance = method
    cls = type(instance)
    if instance.values != "float32" or instance.layers or "optimizer" in instance.unused:
        raise OctosimError(f"method {instance.name} has values of its own between layers; octosim.torch needs float32 there")
    if cls.step is not Method.step or cls.update is not Method.update:
        text = f"method {instance.name} has an update of its own; here PyTorch's optimizer updates the weights"
        warnings.warn(text, stacklevel=2)
    found = numerics.find(accumulator) if isinstance(accumulator, str) else accumulator
    if not isinstance(found, Accumulator):
        raise OctosimError(f"accumulator is {found!r}, expected a name or a numerics.Accumulator")
    names = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    skipped = frozenset([skip] if isinstance(skip, str) else skip)
    for each in skipped:
        if each not in names:
            raise OctosimError(f"skip: the module has no submodule '{each}'" + suggest(str(each), names))
    session = Session(instance, found, seed, observe)
    try:
        module = module if inplace else copy.deepcopy(module)
    except RuntimeError as error:
        raise OctosimError(f"the module cannot be copied: {str(error).splitlines()[0]}") from None
    left: list[str] = []
    result = _converted(module, "", session, skipped, {}, left)
    if not session.layers:
        raise OctosimError(f"{type(module).__name__} has no layer that octosim.torch converts")
    if left:
        warnings.warn(f"these layers stay PyTorch's, in float32: {', '.join(left)}; name them in skip", stacklevel=2)
    return result


def _converted(
    module: nn.Module, name: str, session: Session, skip: frozenset[str], known: dict[nn.Module, nn.Module], left: list[str]
) -> nn.Module:  # fmt: skip
    """known: what became of modules, which may stand at several places.  left: takes what is not converted and not skipped."""
    if name in skip or isinstance(module, EngineModule | EngineMultiHead):
        return module
    if module not in known:
        known[module] = module
        for kind, replacement in _KINDS:
            if type(module) is kind and _is_plain(module):
                known[module] = _adopt(replacement, session, name or kind.__name__.lower(), module)
                return known[module]
        if isinstance(module, _PRODUCTS):
            left.append(f"{name or 'the module'} ({type(module).__name__})")
        for child_name, child in list(module._modules.items()):
            if child is not None:
                path = f"{name}.{child_name}" if name else child_name
                setattr(module, child_name, _converted(child, path, session, skip, known, left))
        _use_modules(module)
    return known[module]


def _adopt(replacement: Any, session: Session, name: str, original: nn.Module) -> nn.Module:
    """A layer in the place of another, whose hooks and plain attributes it keeps."""
    weight = getattr(original, "weight", None)
    if any(key.endswith(("_g", "_v", "_orig", "_mask")) for key in {**original._parameters, **original._buffers}):
        raise OctosimError(
            f"layer {name} makes its {'weight' if weight is not None else 'parameters'} from others (weight_norm, pruning); "
            "remove that from the layer before `convert`, or skip the layer"
        )
    made: nn.Module = replacement(session, name, original)
    for key, value in vars(original).items():
        if key.startswith(("_forward", "_backward", "_is_full_backward")) or not key.startswith("_") and key not in vars(made):
            made.__dict__[key] = value
    return made


def _use_modules(module: nn.Module) -> None:
    """Keeps transformers of PyTorch from passing by their modules in inference, by a function of their weights in float32."""
    if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer):
        if any(isinstance(each, EngineModule) for each in module.modules()):
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
            else:
                module.activation_relu_or_gelu = 0


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer without products is one that the engine has too; others stay PyTorch's."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size in (1, (1, 1))
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return module.affine and module.track_running_stats and module.momentum is not None
    return True


def _sessions(module: nn.Module | Session) -> list[Session]:
    """The sessions of a module's layers, each once."""
    if isinstance(module, Session):
        return [module]
    if not isinstance(module, nn.Module):
        raise OctosimError(f"expected a module that octosim.torch.convert made, or a Session, not {type(module).__name__}")
    sessions = list({id(each.session): each.session for each in module.modules() if isinstance(each, EngineModule)}.values())
    if not sessions:
        raise OctosimError(f"{type(module).__name__} was not converted by octosim.torch.convert")
    return sessions


def report(module: nn.Module | Session) -> pd.DataFrame:
    """What was observed since `convert` or `reset`, a row for each layer and pass: additions, saturations, wraps, outputs,
    inexact (outputs that are not the exact sum), largest_bits; sqnr_db of the pass's result against float32."""
    import pandas as pd

    rows = []
    for session in _sessions(module):
        for name in session.layers:
            for pass_ in ("forward", "dX", "dW"):
                counts, noise = session.counts.get((name, pass_)), session.noise.get((name, pass_))
                if counts is None and noise is None:
                    continue
                row: dict[str, Any] = {"layer": name, "pass": pass_}
                if counts:
                    told = registers.as_record(registers.total(counts))
                    row |= {key: v for key, v in told.items() if key != "would_overflow"}
                if noise:
                    row["sqnr_db"] = 10 * math.log10(noise[0] / noise[1]) if noise[0] and noise[1] else math.nan
                rows.append(row)
    return pd.DataFrame(rows)


def reset(module: nn.Module | Session) -> None:
    """Forgets what was observed."""
    for session in _sessions(module):
        session.counts.clear()
        session.noise.clear()


@contextlib.contextmanager
def observing(module: nn.Module | Session, observer: Any) -> Iterator[None]:
    """Tells an observer (`octosim.engine.nodes.Observer`) of the passes inside: operands, sums and results."""
    lists = [session.observers for session in _sessions(module)]
    for observers in lists:
        observers.append(observer)
    try:
        yield
    finally:
        for observers in lists:
            observers.remove(observer)
