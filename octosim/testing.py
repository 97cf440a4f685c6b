"""The suite that octosim's own methods pass, for methods of other packages.

    from octosim.testing import check_method
    from mypackage.mymethod import Mine

    def test_mine(tmp_path):
        check_method(Mine, tmp_path)
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from octosim import core, data, graph, methods, train
from octosim.engine import plan, probes, registers
from octosim.engine.layers import BatchNorm, Conv2d, DepthwiseConv2d, Flatten, Linear, MaxPool, ReLU
from octosim.engine.nodes import ROLES, Array, Method
from octosim.errors import OctosimError
from octosim.numerics import ACCUMULATORS, EXACT32
from octosim.train import Config, Run

BATCH, STEPS = 8, 5
SHAPE = (10, 9, 2)


def check_method(cls: type[Any], folder: str | Path, parameters: dict[str, Any] | None = None) -> list[str]:
    """Holds a method to what octosim promises of each; returns the names of the checks that were made.

    cls: a frozen dataclass derived from `octosim.engine.nodes.Method`.  folder: an empty one, for run directories.
    parameters: of the method, in place of its defaults.

    AssertionError with a sentence where the method fails: declaration (attributes, documented parameters), digests (the same
    with every instruction set and number of threads, and where C replays the steps), resume (and verify), sums (its int8
    products are the exact sums of their operands), register (it trains in a narrow accumulator, and is counted), overflow (it
    refuses a layer whose sums could overflow), price (its step is planned without being executed).
    """
    return [check.__name__.removeprefix("_") for check in _CHECKS if check(cls, Path(folder), parameters or {}) is not None]


def _layers(cls: type[Any]) -> tuple[Any, ...]:
    """A small network of the layers that a method covers."""
    wanted = (Conv2d(4, 3, 1, 1), BatchNorm(), ReLU(), DepthwiseConv2d(3, 1, 1), ReLU(), MaxPool(2, 2), Conv2d(6, 3, 2), ReLU(),
              Flatten(), Linear(4))  # fmt: skip
    return tuple(
        layer for layer in wanted
        if (cls.covers is None or layer.stem in cls.covers or layer.stem in ("flatten", "pool"))
        and (cls.batchnorm or not layer.normalizes)
    )  # fmt: skip


def _network(cls: type[Any]) -> Any:
    return graph.parse("model:", graph.describe(_layers(cls)))


def _dataset() -> data.Dataset:
    rng = np.random.default_rng(7)
    labels = (np.arange(40) % 4).astype(np.uint8)
    images = (rng.integers(0, 128, (40, *SHAPE)) + 30 * labels[:, None, None, None]).astype(np.uint8)
    return data.Dataset("check", images, labels, images[:12], labels[:12], ("a", "b", "c", "d"), "0" * 64)


def _run(cls: type[Any], parameters: dict[str, Any], **changes: Any) -> Run:
    config = Config(model="layers.toml", data="check", batch_size=BATCH, steps=STEPS, method=cls(**parameters))
    return Run(dataclasses.replace(config, **changes), _network(cls), _dataset())


def _trained(run: Run, recorded: bool = True) -> str:
    run.allow_replay = recorded
    losses = [run.train_step() for _ in range(run.steps)]
    assert np.isfinite(losses).all(), f"{run.config.method}: the loss is {losses}, expected finite numbers"
    return run.digest()


@contextmanager
def _machine(isa: str, threads: int) -> Iterator[None]:
    before = core.isa(), core.threads()
    core.set_isa(isa)
    core.set_threads(threads)
    try:
        yield
    finally:
        core.set_isa(before[0])
        core.set_threads(before[1])


def _instruction_sets() -> list[str]:
    return [isa for isa, supported in core.isas().items() if supported]


# ---- the checks --------------------------------------------------


def _declaration(cls: type[Any], folder: Path, parameters: dict[str, Any]) -> bool:
    methods.plugins.check(cls.__qualname__, cls)
    for attribute in ("name", "summary", "paper"):
        value = getattr(cls, attribute)
        assert isinstance(value, str) and value and "\n" not in value, f"{cls.__qualname__}.{attribute} must be a line of text"
    assert set(cls.bits) == set(ROLES), f"{cls.__qualname__}.bits must name the type of each of {', '.join(ROLES)}"
    doc = inspect.cleandoc(cls.__doc__ or "")
    for field in dataclasses.fields(cls):
        assert field.default is not dataclasses.MISSING, f"parameter {field.name} of {cls.__qualname__} has no default"
        told = field.name not in vars(cls).get("__annotations__", ()) or f"{field.name}:" in doc or f"{field.name}," in doc
        assert told, f"the docstring of {cls.__qualname__} lacks '{field.name}: ...'"
    made = methods.make(methods.name_of(cls(**parameters)), methods.parameters(cls(**parameters)))
    assert made == cls(**parameters), f"{cls.__qualname__} is not made again of its parameters"
    return True


def _digests(cls: type[Any], folder: Path, parameters: dict[str, Any]) -> bool:
    found = {}
    for isa in _instruction_sets():
        for threads in (1, 2):
            with _machine(isa, threads):
                found[isa, threads] = _trained(_run(cls, parameters))
    found["made by Python", 1] = _trained(_run(cls, parameters), recorded=False)
    first = next(iter(found.values()))
    different = [str(key) for key, digest in found.items() if digest != first]
    assert not different, f"{cls.name}: other bits than with {next(iter(found))} with {', '.join(different)}"
    other = _trained(_run(cls, parameters, seed=1))
    assert other != first, f"{cls.name}: another seed gives the same bits"
    return True


def _resume(cls: type[Any], folder: Path, parameters: dict[str, Any]) -> bool:
    whole, stopped = folder / "whole", folder / "stopped"
    for each in (whole, stopped):
        run = _create(cls, each, parameters)
        if each == whole:
            assert train.train(run, each), "the run did not end"
            continue
        _stop(run, each, 2)
        again = train.reopen(each, _dataset())
        assert again.step == 2, f"{cls.name}: resumed at step {again.step}, expected 2"
        assert train.train(again, each), "the resumed run did not end"
    assert train.read_digest(whole) == train.read_digest(stopped), f"{cls.name}: a resumed run has other bits"
    verdict = train.verify(whole, dataset=_dataset())
    assert verdict.equal, f"{cls.name}: verify says {'; '.join(verdict.differences)}"
    return True


class _Stop(Exception):
    pass


def _stop(run: Run, folder: Path, step: int) -> None:
    def stop(p: train.Progress) -> None:
        if p.step > step:
            raise _Stop

    try:
        train.train(run, folder, stop, every=step)
    except _Stop:
        pass


def _create(cls: type[Any], folder: Path, parameters: dict[str, Any]) -> Run:
    config = Config(model="layers.toml", data="check", batch_size=BATCH, steps=STEPS, method=cls(**parameters))
    return train.create(config, folder, "octosim.testing.check_method", _network(cls), _dataset())


def _sums(cls: type[Any], folder: Path, parameters: dict[str, Any]) -> bool | None:
    """int8 products, in NumPy's integers."""
    run = _run(cls, parameters)
    observed = probes.watch(run.network)
    run.train_step()
    seen = 0
    for (layer, pass_), (product, zero) in observed.products.items():
        names = {"forward": ("x", "w"), "dX": ("dy", "w"), "dW": ("x", "dy")}[pass_]
        operands = {name: observed.tensors[layer, pass_, name] for name in names}
        sums = observed.tensors[layer, pass_, "sums"]
        if all(values.dtype == np.int8 for values in operands.values()) and sums.dtype == np.int32:
            seen += 1
            expected = numpy_sums(product, pass_, {name: v.astype(np.int64) for name, v in operands.items()}, zero)
            assert np.array_equal(sums.reshape(expected.shape), expected), f"{cls.name}: {layer}, {pass_}: sums are not exact"
    return bool(seen) or None


def numpy_sums(product: Any, pass_: str, operands: dict[str, Array], x_zero: int) -> Array:
    """The sums of a pass of integers, int64, from NumPy alone; flat but for the last axis."""
    g, depthwise = product.geometry, product.groups > 1
    w = operands["w"].reshape(g.filters, g.kernel_h, g.kernel_w, -1) if "w" in operands else None
    if pass_ == "dX":
        windows = registers.dy_windows(g, operands["dy"].reshape(g.y_shape))
        assert w is not None
        if depthwise:
            return np.asarray(np.einsum("bhwijc,cij->bhwc", windows, w[..., 0]).reshape(-1, g.channels))
        return np.asarray(np.einsum("bhwijf,fijc->bhwc", windows, w, optimize=True).reshape(-1, g.channels))
    windows = registers.x_windows(g, operands["x"].reshape(g.x_shape), x_zero)
    if pass_ == "forward":
        assert w is not None
        rule, other = ("bhwijc,cij->bhwc", w[..., 0]) if depthwise else ("bhwijc,fijc->bhwf", w)
        return np.asarray(np.einsum(rule, windows, other, optimize=True).reshape(-1, g.filters))
    dy = operands["dy"].reshape(g.y_shape)
    sums = np.einsum("bhwijc,bhwc->cij" if depthwise else "bhwijc,bhwf->fijc", windows, dy, optimize=True)
    return np.asarray(sums.reshape(g.filters, -1))


def _int8_passes(cls: type[Any], parameters: dict[str, Any]) -> set[str]:
    ops = plan.trace(_run(cls, parameters).network, BATCH)
    return {op.pass_ for op in ops if op.kind == "gemm" and op.dtype == "int8"}


def _register(cls: type[Any], folder: Path, parameters: dict[str, Any]) -> bool | None:
    passes = _int8_passes(cls, parameters) & {"forward", "dW"}
    if not passes or "accumulator" in cls.unused:
        return None
    found = {}
    for isa in _instruction_sets():
        with _machine(isa, 1):
            run = _run(cls, parameters, accumulator="acc16-wrap", count_overflow=1)
            try:
                run.train_step()
            except OctosimError:  # a loss that is not finite is the register's doing
                return True
            found[isa] = run.digest()
            assert {row["pass"] for row in run.overflow} >= passes, f"{cls.name}: its products are not counted"
    assert len(set(found.values())) == 1, f"{cls.name}: other bits in acc16-wrap with another instruction set"
    assert ACCUMULATORS["acc16-wrap"] == run.registers.accumulator
    return True


def _overflow(cls: type[Any], folder: Path, parameters: dict[str, Any]) -> bool | None:
    if not _int8_passes(cls, parameters) or cls.bits["accumulator"] != "int32":
        return None
    inputs = EXACT32.safe_depth(127, 127) + 1
    wide = graph.parse("model:", graph.describe((Flatten(), Linear(2))))
    try:
        plan.dry(wide, (1, 1, inputs), cls(**parameters), float_layers=True).check(1)
    except OctosimError:
        return True
    raise AssertionError(f"{cls.name}: `check` accepts a layer of {inputs} inputs, whose sums could overflow 32 bits")


def _price(cls: type[Any], folder: Path, parameters: dict[str, Any]) -> bool:
    network = plan.dry(_network(cls), SHAPE, cls(**parameters), float_layers=True)
    step = plan.plan(network, BATCH)
    ops = plan.ops(step)
    weighted = [node.name for node in network.nodes if node.layer.weighted]
    for name in weighted:
        passes = {op.pass_ for op in ops if op.layer == name and op.kind == "gemm"}
        assert {"forward", "dW"} <= passes, f"{cls.name}: the plan of layer {name} has products in {sorted(passes)} only"
    assert plan.memory(step)["peak"] > 0
    return True


_CHECKS: tuple[Callable[[type[Any], Path, dict[str, Any]], bool | None], ...] = (
    _declaration, _overflow, _price, _digests, _resume, _sums, _register,
)  # fmt: skip
"""Those that take no step of training first."""

__all__ = ["Method", "check_method", "numpy_sums"]
