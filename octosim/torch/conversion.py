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
    accumulator: the register of the int8 products.  skip: names of submodules that stay as they are, with all below them.
    observe: overflow and SQNR are observed in one of so many training passes of a layer; 0: never.  inplace: change the module.

    OctosimError for a method with values of its own between layers or an update of its own, for a name in `skip` that does not
    exist, and where nothing can be converted.
    """
    if isinstance(module, nn.DataParallel):
        raise OctosimError("octosim computes on the CPU with all its threads: convert the module without DataParallel")
    instance = methods.make(method, parameters) if isinstance(method, str) else method
    cls = type(instance)
    if instance.values != "float32" or instance.layers or "optimizer" in instance.unused:
        raise OctosimError(f"method {instance.name} has values of its own between layers; octosim.torch needs float32 there")
    if cls.step is not Method.step or cls.update is not Method.update:
        text = f"method {instance.name} has an update of its own; here PyTorch's optimizer updates the weights"
        warnings.warn(text, stacklevel=2)
    found = numerics.find(accumulator) if isinstance(accumulator, str) else accumulator
    names = dict(module.named_modules())
    for name in skip:
        if name not in names:
            raise OctosimError(f"skip: the module has no submodule '{name}'" + suggest(name, names))
    session = Session(instance, found, seed, observe)
    module = module if inplace else copy.deepcopy(module)
    result = _converted(module, "", session, frozenset(skip))
    if not session.layers:
        raise OctosimError(f"{type(module).__name__} has no layer that octosim.torch converts")
    return result


def _converted(module: nn.Module, name: str, session: Session, skip: frozenset[str]) -> nn.Module:
    if name in skip and name or isinstance(module, EngineModule):
        return module
    for kind, replacement in _KINDS:
        if type(module) is kind and _is_plain(module):
            made: nn.Module = replacement(session, name or kind.__name__.lower(), module)
            return made
    for child_name, child in list(module.named_children()):
        setattr(module, child_name, _converted(child, f"{name}.{child_name}" if name else child_name, session, skip))
    return module


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer without products is one that the engine has too; others stay PyTorch's."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size in (1, (1, 1))
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return module.affine and module.track_running_stats and module.momentum is not None
    return True


def _session(module: nn.Module) -> Session:
    session = next((each.session for each in module.modules() if isinstance(each, EngineModule)), None)
    if session is None:
        raise OctosimError(f"{type(module).__name__} was not converted by octosim.torch.convert")
    return session


def report(module: nn.Module) -> pd.DataFrame:
    """What was observed since `convert` or `reset`, a row for each layer and pass: additions, saturations, wraps, outputs,
    inexact (outputs that are not the exact sum), largest_bits; sqnr_db of the pass's result against float32."""
    import pandas as pd

    session = _session(module)
    rows = []
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


def reset(module: nn.Module) -> None:
    """Forgets what was observed."""
    session = _session(module)
    session.counts.clear()
    session.noise.clear()


@contextlib.contextmanager
def observing(module: nn.Module, observer: Any) -> Iterator[None]:
    """Tells an observer (`octosim.engine.nodes.Observer`) of the passes inside: operands, sums and results."""
    observers = _session(module).observers
    observers.append(observer)
    try:
        yield
    finally:
        observers.remove(observer)
