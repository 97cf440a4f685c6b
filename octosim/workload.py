"""What a cost is asked of: a network, its arithmetic, and the operations that software makes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from octosim.errors import ArgumentError, OctosimError
from octosim.files import is_onnx
from octosim.settings import Settings
from octosim.trace import DTYPE_BYTES

LARGEST_IMAGE = 1 << 14
"""Largest height, width or number of channels of an input."""


SHORT_DTYPES = {"fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class CostQuery:
    """What the options of `octosim cost`, or the arguments of `octosim.cost`, say of the network and its arithmetic.

    model: a name, a file, or layers.  method: a name, or a method that has its parameters.  image: its text or its sizes.
    """

    model: Any
    method: Any
    dtype: str | None
    inference: bool
    image: str | tuple[int, ...] | None
    lenient: bool
    parameters: dict[str, Any] = field(default_factory=dict)
    batchnorm: bool = True
    runtime: str | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)
    classes: int | None = None


WHOLE_STEP: dict[str, Any] = {
    name: getattr(Settings(), name)
    for name in (
        "train", "freeze", "train_last", "update", "channels", "batchnorm_statistics", "accumulate", "float_layers",
    )
}
"""Settings of a run that decide the operations of its step, with their defaults: a step that trains everything."""


def selection_of(asked: CostQuery) -> tuple[Any, int]:
    """Which parameters are trained (`selection.Selection`), and the micro-batches of a step."""
    from octosim.engine.selection import make

    Settings(**asked.tuning).check_ranges()
    rules = WHOLE_STEP | asked.tuning
    accumulate: Any = rules.pop("accumulate")
    del rules["float_layers"]
    return make(**rules, rate=[]), accumulate


@dataclass(frozen=True)
class Workload:
    """A network to be priced.

    dtype: of its products.  inference: whether it is the forward pass alone.  ops: its operations on a device at a batch size
    with a runtime.  memory: the peak's parts, of the same; largest: the largest batch, on a device for N bytes with a runtime;
    None where they are not known.  check: raises where a batch is too large for the accumulators.  notes: what a reader of the
    operations' price should know.  network: without weights; None of an ONNX file.  in_half: fp32's network with float16
    products, from the same plans.  is_fixed: whether it has no other types of products: a quantized file.  others: of other
    types of products, as `typed` made them.
    fixed_batch: the only batch that an ONNX file takes; None: any.
    """

    method: str | None
    dtype: str
    ops: Callable[[Any, int, Any], list[Any]]
    batch: Callable[[int | None], int]
    memory: Callable[[Any, int, Any], dict[str, int]] | None = None
    largest: Callable[[Any, float, Any], int] | None = None
    check: Callable[[int], None] | None = None
    notes: Callable[[list[Any]], list[str]] = lambda found: []
    network: Any = None
    in_half: Callable[[], Workload] | None = None
    inference: bool = False
    is_fixed: bool = False
    others: dict[str, Workload] = field(default_factory=dict)
    fixed_batch: int | None = None


def batch_sizes(text: str | None) -> list[int | None]:
    if text is None:
        return [None]
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise OctosimError(f"--batch-size takes whole numbers with commas between them, as in 1,8,32, not '{text}'") from None
    for size in sizes:
        if size < 1:
            raise OctosimError(f"--batch-size must be at least 1, not {size}")
    return list(dict.fromkeys(sizes))


def dtype_of(dtype: str | None, model: Any, device: Any) -> str | None:
    """The type of products that a user's word says: an ONNX file that is priced first on a device with int8 units alone has
    int8 products; None where the method decides."""
    from octosim.hardware import DTYPES

    known = (*DTYPES, *SHORT_DTYPES)
    if dtype is not None and dtype not in known:
        raise ArgumentError(f"{{dtype}} must be one of {', '.join(known)}, not '{dtype}'")
    computes = {name for engine in device.engines for name in engine.macs_per_clock.given()}
    if dtype is None and is_onnx(model) and computes == {"int8"}:
        return "int8"
    return SHORT_DTYPES.get(dtype or "", dtype)


def source(asked: CostQuery) -> Workload:
    """The network that the options name."""
    return _onnx(asked) if is_onnx(asked.model) else _own(asked)


def _onnx(asked: CostQuery) -> Workload:
    from octosim.cost import memory as onnx_memory
    from octosim.cost import onnx as onnx_ops
    from octosim.cost import runtimes
    from octosim.cost.compare import placed

    if asked.method is not None:
        raise OctosimError("--method is for octosim's own networks; an ONNX file takes --dtype")
    if asked.image is not None:
        raise OctosimError("--image is for octosim's own networks; an ONNX file has the size of its inputs")
    if asked.classes is not None:
        raise OctosimError("--classes is for octosim's own networks; an ONNX file has its own")
    if not asked.batchnorm:
        raise OctosimError("--no-batchnorm is for octosim's own networks; export the ONNX file without it")
    for name, default in WHOLE_STEP.items():
        if asked.tuning.get(name, default) != default:
            raise OctosimError(
                f"--{name.replace('_', '-')} is for octosim's own networks; `octosim import {asked.model} -o net/` makes one"
            )
    if asked.parameters:
        raise OctosimError("--set is for the methods of octosim's own networks; an ONNX file has none")
    path = Path(asked.model)
    quantized = "" if asked.inference else onnx_ops.quantized_weights(path)
    if quantized:
        raise OctosimError(
            f"{path} is quantized ({quantized}), so no training step of it has a price; --inference prices its inference"
        )
    is_int8 = asked.inference and onnx_ops.is_int8(path, None, asked.shapes)
    if is_int8 and asked.dtype not in (None, "int8"):
        raise OctosimError(f"--dtype {asked.dtype}: {path} is quantized, so its inference has int8 products alone")
    kind = "int8" if is_int8 else asked.dtype or "float32"
    fixed = onnx_ops.fixed_batch(path, asked.shapes)

    def batch_of(batch: int | None) -> int:
        size = onnx_ops.batch_size(path, as_read(batch), asked.shapes)
        if batch not in (None, size):
            texts = [f"--shape {name}={'x'.join(map(str, sizes))}" for name, sizes in asked.shapes.items()]
            raise OctosimError(f"--batch-size must be {size}, as {' '.join(texts) or path} has it, not {batch}")
        return size

    def as_read(batch: int | None) -> int | None:
        """The batch as the file is read with: its own, else 1, is None, so that it is read once."""
        return None if batch == (fixed or 1) else batch

    def ops(device: Any, batch: int | None, runtime: Any) -> list[Any]:
        found = onnx_ops.ops(
            path, batch=as_read(batch), dtype=kind, lenient=asked.lenient, shapes=asked.shapes,
            **runtimes.onnx_rules(runtime, device, kind, asked.inference),
        )  # fmt: skip
        return _one_by_one(found, device, batch) if asked.inference else runtimes.training_ops(found, runtime, batch)

    def memory(device: Any, batch: int | None, runtime: Any) -> dict[str, int]:
        batch = 1 if device.one_image and not fixed else batch
        floats = runtimes.onnx_rules(runtime, device, kind, asked.inference)["float_dtype"]
        bordered = runtime.border and not device.is_bare
        found = onnx_memory.memory(path, as_read(batch), kind, asked.inference, floats, asked.shapes, bordered)
        return placed(found, device, asked.inference)

    def largest(device: Any, capacity: float, runtime: Any) -> int:
        """The batch that fits, of a model whose batch is symbolic."""
        if fixed:
            return 0
        try:
            return _largest_of_two(lambda batch: memory(device, batch, runtime)["peak"], capacity)
        except OctosimError:
            return 0

    return Workload(
        None, kind, ops, batch_of, memory, largest,
        notes=lambda found: onnx_ops.notes(found, asked.inference, asked.lenient), inference=asked.inference,
        is_fixed=is_int8, fixed_batch=fixed,
    )  # fmt: skip


def _one_by_one(ops: list[Any], device: Any, batch: int | None) -> list[Any]:
    """The operations of an inference of a batch, image by image where the device takes no more at a time."""
    return [replace(op, images=batch) for op in ops] if device.one_image and batch else ops


def _largest_of_two(peak: Callable[[int], int], capacity: float) -> int:
    """The largest batch for a number of bytes, of what grows by the same with each image."""
    one, two = peak(1), peak(2)
    return max(0, int((capacity - one) // max(1, two - one)) + 1)


def usual_method(dtype: str | None) -> str:
    """The method that a type of products asks for."""
    return "fp32" if dtype in ("float32", "float16") else "octo"


def computes_in(method: str, dtype: str | None) -> bool:
    """Whether a method, by its own name, has products of a type; None: of any."""
    return dtype is None or (method == "fp32") == (dtype != "int8")


def _own(asked: CostQuery) -> Workload:
    from octosim import graph, methods

    if asked.lenient:
        raise OctosimError("--lenient is for ONNX files; octosim's own networks have no unknown operators")
    if asked.shapes:
        raise OctosimError("--shape is for ONNX files; --image takes the size of an own network's images")
    method = usual_method(asked.dtype) if asked.method is None else asked.method
    made = methods.make(method, asked.parameters) if isinstance(method, str) else method
    if not computes_in(made.name, asked.dtype):
        raise OctosimError(f"--method {made.name} does not compute in {asked.dtype}")
    named = isinstance(asked.model, str)
    shape, classes = graph.usual(asked.model) if named else ((28, 28, 1), 10)
    if asked.classes is not None:
        if not 1 <= asked.classes <= LARGEST_IMAGE:
            raise OctosimError(f"--classes takes a number in 1 .. {LARGEST_IMAGE}, not {asked.classes}")
        classes = asked.classes
    if asked.image is not None:
        shape = _sizes(asked.image)
    stack = graph.layers(asked.model, classes, asked.batchnorm, in_shape=shape) if named else asked.model
    selection, accumulate = selection_of(asked)
    float_layers = asked.tuning.get("float_layers", False)
    found = of_network(stack, shape, made, asked.inference, selection, accumulate, asked.dtype == "float16", float_layers)
    return replace(found, method=method) if isinstance(method, str) else found


def _sizes(image: str | tuple[int, ...]) -> tuple[int, ...]:
    """Height, width and channels that a user says, or the number of values of vectors."""
    try:
        shape = tuple(int(part) for part in image.split("x")) if isinstance(image, str) else image
    except ValueError:
        shape = ()
    if len(shape) != 3 and (isinstance(image, str) or len(shape) != 1):
        raise OctosimError(f"--image takes HEIGHTxWIDTHxCHANNELS, as in 28x28x1, not '{image}'")
    if not all(1 <= size <= LARGEST_IMAGE for size in shape):
        raise OctosimError(f"--image takes sizes in 1 .. {LARGEST_IMAGE}, not {image}")
    return shape


def of_network(
    stack: Any, shape: tuple[int, ...], made: Any, inference: bool, selection: Any, accumulate: int, half: bool = False,
    float_layers: bool = False,
) -> Workload:  # fmt: skip
    """The source of layers with a method, by the method's own name.

    half: fp32's operations in float16.  float_layers: whether layers that the method does not cover are in float32.
    """
    from octosim import methods
    from octosim.cost import runtimes
    from octosim.cost.compare import placed
    from octosim.engine import buffers, plan

    network = plan.dry(stack, shape, made, float_layers, selection=selection, accumulate=accumulate)
    plans: dict[tuple[int, bool], plan.Plan] = {}
    matrices = sum(p.size for node in network.nodes for p in node.params.values() if p.ndim > 1)
    gradients = 0 if inference else sum(4 * node.chosen(key).size for node in network.nodes for key in node.trained)

    @functools.cache
    def plain() -> Any:
        """The network without the method."""
        return plan.dry(stack, shape, methods.make("fp32", {}), selection=selection, accumulate=accumulate)

    def planned_from(own: bool) -> Any:
        """What a plan is made of.  own: octosim runs it; other software infers the network, not the method."""
        return network if own or not inference else plain()

    def check(batch: int) -> None:
        if not inference:  # the sums that grow with the batch are those of dW
            network.check(batch)

    def planned(batch: int, runtime: Any) -> plan.Plan:
        """The plan that price and memory of a runtime follow from: octosim alone has poolings in the normalization."""
        own = runtime.name == "octosim"
        if (batch, own) not in plans:
            check(batch)
            plans[batch, own] = plan.plan_like(planned_from(own), batch, training=not inference, poolings=own)
        return plans[batch, own]

    def workload(half: bool) -> Workload:
        dtype = "float16" if half else "float32" if made.name == "fp32" else "int8"

        def ops(device: Any, batch: int, runtime: Any) -> list[Any]:
            found = plan.ops(planned(batch, runtime))
            if runtime.name != "octosim":
                if inference:
                    return _one_by_one(runtimes.inference_ops(found, runtime, dtype), device, batch)
                found = runtimes.training_ops(found, runtime, batch)
            return _one_by_one(runtimes.in_float16(found) if half else found, device, batch)

        def is_by_layers(device: Any, runtime: Any) -> bool:
            """Whether an inference's memory follows from its layers: other software, or a C program, makes no plan of calls."""
            return inference and (device.is_bare or runtime.name != "octosim")

        def by_layers(device: Any, batch: int, runtime: Any) -> dict[str, int]:
            in_c = runtime.name == "octosim" and any(engine.kind == "cpu" for engine in device.engines)
            software = runtimes.default(device, False) if runtime.name == "octosim" and not in_c else runtime
            between = runtimes.onnx_rules(software, device, dtype, True)["float_dtype"]
            bordered = software.border and not device.is_bare
            value = between or ("float32" if dtype == "int8" else dtype)
            found = buffers.memory(network.nodes, batch, DTYPE_BYTES[dtype], DTYPE_BYTES[value], in_c, bordered)
            return placed(found, device, True)

        def of_step(step: plan.Plan, device: Any, runtime: Any) -> dict[str, int]:
            parts = plan.in_c(step) if device.is_bare else plan.memory(step)
            if runtime.name != "octosim":
                parts = runtimes.with_all_gradients(parts, gradients)
            return placed(runtimes.in_half(parts, matrices, not inference) if half else parts, device, inference)

        def memory(device: Any, batch: int, runtime: Any) -> dict[str, int]:
            batch = 1 if device.one_image and inference else batch
            if is_by_layers(device, runtime):
                return by_layers(device, batch, runtime)
            return of_step(planned(batch, runtime), device, runtime)

        def largest(device: Any, capacity: float, runtime: Any) -> int:
            if is_by_layers(device, runtime):
                return _largest_of_two(lambda batch: by_layers(device, batch, runtime)["peak"], capacity)
            return plan.largest_batch(  # of an inference octosim's own, so that the network is the method's
                network, capacity, not inference, lambda step: of_step(step, device, runtime), runtime.name == "octosim"
            )

        return Workload(
            made.name, dtype, ops, lambda batch: batch or 100, memory, largest, check,
            network=network, in_half=lambda: workload(True), inference=inference,
        )  # fmt: skip

    return workload(half)


def typed(asked: CostQuery, first: Workload, dtype: str) -> Workload:
    """The same network in another type of products: INT8 by the method asked for (octo for ONNX files), floats without one."""
    if dtype == first.dtype:
        return first
    if dtype not in first.others and dtype == "float16" and first.method is not None:
        float32 = typed(asked, first, "float32")
        assert float32.in_half
        first.others[dtype] = replace(float32.in_half(), method=float32.method)
    elif dtype not in first.others:
        method = None if first.method is None else {"int8": "octo"}.get(dtype, "fp32")
        first.others[dtype] = source(replace(asked, method=method, dtype=dtype, parameters={}))
    return first.others[dtype]


@dataclass(frozen=True)
class Price:
    """What a workload costs on a device at a batch.

    costs: of its operations.  runtime: whose kernels run; hypothetical: why such a program does not exist there, else "".
    parts: of the peak of memory, None where they are not known.
    """

    work: Workload
    device: Any
    batch: int
    threads: int | None
    runtime: Any
    costs: list[Any]
    hypothetical: str
    parts: dict[str, int] | None

    @property
    def peak(self) -> int | None:
        return self.parts["peak"] if self.parts else None

    def record(self, asked: str | None) -> dict[str, Any]:
        """What `octosim cost --json` prints of one type.  asked: the runtime that a user named."""
        from octosim import cost
        from octosim.cost import runtimes

        work, found = self.work, cost.cost_json(self.costs, self.device, self.peak)
        ours = self.runtime.name == asked == "octosim" and not work.inference
        said = (
            cost.place(self.costs, self.device, self.threads), self.hypothetical, runtimes.ANOTHER_PROGRAM if ours else "",
            *work.notes([each.op for each in self.costs]),
        )  # fmt: skip
        found["notes"] += [text for text in said if text]
        about = {"batch_size": self.batch, "method": work.method, "dtype": work.dtype, "threads": self.threads}
        return about | {"runtime": self.runtime.name} | found | {"memory": self.parts}


def price(work: Workload, device: Any, batch: int, threads: int | None = None, asked: str | None = None) -> Price:
    """asked: the runtime that a user named; the common one of the device, type and network if not given."""
    from octosim import cost
    from octosim.cost import runtimes

    training = not work.inference
    runtime = runtimes.choose(asked, device, work.dtype, training, work.method is not None)
    costs = cost.predict(work.ops(device, batch, runtime), device, threads, runtime)
    parts = work.memory(device, batch, runtime) if work.memory else None
    hypothetical = runtimes.hypothetical(runtime, device, work.dtype, training)
    return Price(work, device, batch, threads, runtime, costs, hypothetical, parts)


def types_that(device: Any, inference: bool) -> set[str]:
    """The types that the device's engines compute products in, of a training step those of the engines that train."""
    engines = [engine for engine in device.engines if engine.trains or inference]
    return {dtype for engine in engines for dtype in engine.macs_per_clock.given()}


def as_computed(asked: CostQuery, first: Workload, device: Any) -> Workload:
    """The network in the widest type that the device has, where it has none as wide as the type asked for."""
    from octosim.hardware import DTYPES

    width = max((DTYPES.index(dtype) for dtype in types_that(device, asked.inference)), default=len(DTYPES))
    return first if width >= DTYPES.index(first.dtype) else typed(asked, first, DTYPES[width])


def types_of(device: Any, first: Workload, inference: bool) -> list[str]:
    """The types that the device computes products in for this work, the one asked for first.

    CPU cores train in float16 with no software that octosim knows the speed of.
    """
    if first.is_fixed:
        return [first.dtype]
    engines = [engine for engine in device.engines if engine.trains or inference]
    has = types_that(device, inference)
    if not inference and all(engine.kind == "cpu" for engine in engines):
        has.discard("float16")
    order = [first.dtype, *(dtype for dtype in ("int8", "float16", "float32") if dtype != first.dtype)]
    return [dtype for dtype in order if dtype in has or dtype == first.dtype or dtype == "int8" and has]
