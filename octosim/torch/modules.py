"""Modules of PyTorch that are layers of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from octosim import core
from octosim.engine.layers import BatchNorm, Conv2d, DepthwiseConv2d, GlobalAvgPool, Layer, Linear
from octosim.engine.nodes import Array, Context, Node
from octosim.errors import OctosimError
from octosim.torch.products import Session


def _array(t: Tensor) -> Array:
    """The memory of a float32 tensor on the CPU."""
    if t.device.type != "cpu":
        raise OctosimError(f"octosim computes on the CPU, and a tensor is on {t.device}; move the module with .cpu()")
    if t.dtype != torch.float32:
        raise OctosimError(f"octosim's passes take float32 tensors, not {t.dtype}; call .float() on the module and its input")
    return np.asarray(t.detach().contiguous().numpy())


def checked(name: str, t: Any, dims: tuple[int, ...], axis: int = 0, size: int | None = None) -> Tensor:
    """An input of a layer; OctosimError, with the layer's name, for one with another number of axes (`dims`), without values,
    or with another size on an axis."""
    if torch.jit.is_tracing():
        raise OctosimError(f"layer {name}: torch.jit.trace cannot record octosim's passes; trace the original module")
    if not isinstance(t, Tensor) or t.layout != torch.strided:
        what = f"a {t.layout} tensor" if isinstance(t, Tensor) else type(t).__name__
        raise OctosimError(f"layer {name}: the input is {what}, expected a dense tensor of PyTorch")
    where = f"layer {name}: an input of shape {tuple(t.shape)}"
    if t.ndim not in dims:
        raise OctosimError(f"{where}, expected {' or '.join(map(str, dims)) if len(dims) < 4 else f'at least {dims[0]}'} axes")
    if size is not None and t.shape[axis] != size:
        raise OctosimError(f"{where}, expected {size} {'columns' if axis == -1 else 'channels'}")
    if not t.numel():
        raise OctosimError(f"{where} has no values")
    return t


def run_passes(module: EngineModule, x: Tensor, *params: Tensor) -> Tensor:
    """A layer's passes, float32 under autocast too; `torch.compile` leaves them as they are."""
    if torch.compiler.is_compiling():  # here and not as a decorator, whose import takes as long as PyTorch's
        return cast(Tensor, torch.compiler.disable(_run)(module, x, *params))
    return _run(module, x, *params)


def _run(module: EngineModule, x: Tensor, *params: Tensor) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        x, params = x.float(), tuple(p.float() for p in params)
    return cast(Tensor, EnginePasses.apply(module, module.training, x, *params))


def _channels_last(t: Tensor) -> Tensor:
    return t.permute(0, *range(2, t.ndim), 1) if t.ndim > 2 else t


def _channels_first(t: Tensor) -> Tensor:
    return t.permute(0, t.ndim - 1, *range(1, t.ndim - 1)) if t.ndim > 2 else t


class EnginePasses(torch.autograd.Function):
    """A layer of the engine as a function: x in octosim's layout, then the parameters by name."""

    @staticmethod
    def forward(ctx: Any, module: EngineModule, training: bool, x: Tensor, *params: Tensor) -> Tensor:
        core.set_threads(torch.get_num_threads())
        session, layer = module.session, module.layer
        if training:
            module.step += 1
        context = Context(training, session.seed, module.step)
        values = _array(x)
        node = module.node(values.shape, params)
        observed = training and session.every > 0 and (module.step - 1) % session.every == 0
        with core.float_environment(), np.errstate(over="ignore", invalid="ignore"), session.counting(observed):
            try:
                if layer.weighted:
                    session.method.check(node, len(values))
                y = core.materialize_in_place(layer.forward(node, values, session.method, context))
            except core.CoreError as error:
                raise OctosimError(f"layer {node.name}, forward: {error}") from None
        if observed and layer.weighted:
            with session.quiet():
                wide = layer.product(node, len(values)).forward(values, node.params["w"])
            session.compare(node.name, "forward", y, wide + node.params["b"])
        ctx.module, ctx.node, ctx.context, ctx.observed, ctx.names = module, node, context, observed, module.names
        ctx.is_done = False
        ctx.values = values if observed and layer.weighted else None
        # PyTorch refuses a backward pass behind a change in place of what is saved by this name: x only where it is read again
        reads_x = ctx.values is not None or any(np.may_share_memory(values, each) for each in _arrays(node.saved))
        ctx.save_for_backward(*params, *([x] if reads_x else []))
        return torch.from_numpy(np.ascontiguousarray(y))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        module, node, context = ctx.module, ctx.node, ctx.context
        session, layer, method = module.session, module.layer, module.session.method
        if ctx.is_done:
            raise OctosimError(f"layer {node.name}: a second backward pass needs a second forward pass")
        _ = ctx.saved_tensors  # looks for changes in place
        ctx.is_done = True
        dx, gradient = None, _array(dy).copy()  # which a method may write over
        with core.float_environment(), np.errstate(over="ignore", invalid="ignore"), session.counting(ctx.observed):
            try:
                error = layer.weight_grad(node, gradient, method, context)
                if ctx.needs_input_grad[2] or not layer.weighted:
                    dx = core.materialize_in_place(layer.input_grad(node, error, method, context))
                grads = {name: core.materialize_in_place(g) for name, g in node.grads.items()}
            except core.CoreError as failed:
                raise OctosimError(f"layer {node.name}, backward: {failed}") from None
        if ctx.values is not None:
            product, real = layer.product(node, len(gradient)), _array(dy)
            with session.quiet():
                if "w" in grads:
                    session.compare(node.name, "dW", grads["w"], product.weight_grad(ctx.values, real))
                if dx is not None:
                    session.compare(node.name, "dX", dx, product.input_grad(real, node.params["w"]))
        node.saved, node.grads, ctx.values = {}, {}, None
        given = None if dx is None or not ctx.needs_input_grad[2] else torch.from_numpy(np.ascontiguousarray(dx))
        return None, None, given, *(_owned(grads.get(name)) for name in ctx.names)


def _arrays(saved: Any) -> Iterator[Array]:
    """The float32 arrays of what a layer saved: codes are never its input."""
    if isinstance(saved, np.ndarray):
        yield saved
    elif isinstance(saved, Mapping | tuple | list):
        for each in saved.values() if isinstance(saved, Mapping) else saved:
            yield from _arrays(each)


def _owned(g: Array | None) -> Tensor | None:
    return None if g is None else torch.from_numpy(np.array(g, np.float32))


class EngineModule(nn.Module):
    """A module that is a layer of the engine.  Parameters and buffers have PyTorch's names and layouts."""

    session: Session
    layer: Any
    weight: Any
    bias: Any
    num_batches_tracked: Any
    buffers_of: dict[str, str]

    def __init__(self, session: Session, name: str, layer: Layer, training: bool):
        super().__init__()
        self.session, self.name, self.layer, self.step = session, name, layer, 0
        self.buffers_of = {}
        self.index = len(session.layers)
        session.layers.append(name)
        self._extra: list[str] = []
        self.names: tuple[str, ...] = ()
        self.train(training)

    def node(self, shape: tuple[int, ...], params: Sequence[Tensor]) -> Node:
        """The layer at its place, with the parameters in octosim's layout."""
        node = Node(self.name, self.index, self.layer, shape[1:], self.out_shape(shape[1:]))
        node.in_place, node.is_first_or_last = False, False
        node.pool, node.observers = self.session.pool, self.session.observers
        self.session.registers.install([node])
        node.params = {name: _array(p) for name, p in zip(self.names, params, strict=True)}
        node.state = {name: getattr(self, buffer).detach().numpy() for name, buffer in self.buffers_of.items()}
        return node

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        raise NotImplementedError

    def add_extra(self, node: Node) -> None:
        """The method's own parameters and state, which a state_dict of the original module lacks."""
        for name in [name for name in node.params if name not in ("w", "b")]:
            self.register_parameter(name, nn.Parameter(torch.from_numpy(node.params[name])))
            self._extra.append(name)
            self.names = (*self.names, name)
        for name, values in node.state.items():
            self.register_buffer(name, torch.from_numpy(values))
            self._extra.append(name)
        self.buffers_of = {name: name for name in node.state}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):  # not a key, which the original's load_state_dict would refuse
            destination._metadata[prefix[:-1]]["step"] = self.step

    def _load_from_state_dict(  # noqa: PLR0913
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any, *rest: Any
    ) -> None:
        self.step = metadata.get("step", self.step)  # where the random streams go on
        own: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, own, *rest)
        missing += [key for key in own if key.removeprefix(prefix) not in self._extra]

    def _replicate_for_data_parallel(self) -> Any:
        raise OctosimError("octosim computes on the CPU with all its threads: call the module without DataParallel")

    def extra_repr(self) -> str:
        return f"{self.name}, method={self.session.method.name}, accumulator={self.session.accumulator.text}"


class EngineWeighted(EngineModule):
    """Weights and a bias.  bias None: zeros that are not trained."""

    def __init__(self, session: Session, name: str, layer: Layer, original: nn.Module, in_shape: tuple[int, ...]):
        super().__init__(session, name, layer, original.training)
        self.weight = original.weight
        self.bias = original.bias
        if self.weight.ndim == 4:
            self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)
        self.names = ("w", "b")
        node = self.node((1, *in_shape), self._parameters_now())
        session.method.init(node, session.seed)
        self.add_extra(node)

    def _parameters_now(self) -> list[Tensor]:
        bias = self.bias if self.bias is not None else torch.zeros(len(self.weight))
        return [self._weight(), bias, *(getattr(self, name) for name in self.names[2:])]

    def _weight(self) -> Tensor:
        return _channels_last(self.weight)

    def pass_(self, x: Tensor) -> Tensor:
        """x in octosim's layout."""
        return run_passes(self, x, *self._parameters_now())


def _pair(value: Any, rest: int) -> tuple[int, int]:
    """Of two axes; `rest` for the one that a 1-D layer lacks."""
    value = tuple(value)
    return (rest, value[0]) if len(value) == 1 else (value[0], value[1])


class EngineConv(EngineWeighted):
    """nn.Conv1d and nn.Conv2d."""

    def __init__(self, session: Session, name: str, original: Any):
        kernel, stride, dilation = (_pair(getattr(original, key), 1) for key in ("kernel_size", "stride", "dilation"))
        pad, before = (0, 0), None  # before: padding that is made before
        if isinstance(original.padding, str) or original.padding_mode != "zeros":
            before = tuple(original._reversed_padding_repeated_twice)
        else:
            pad = _pair(original.padding, 0)
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        if pad[0] >= reach[0] or pad[1] >= reach[1]:
            pad, before = (0, 0), tuple(original._reversed_padding_repeated_twice)
        layer: Layer = Conv2d(original.out_channels, kernel, stride, pad, dilation=dilation, groups=original.groups)
        if original.groups == original.in_channels == original.out_channels:
            layer = DepthwiseConv2d(kernel, stride, pad, dilation=dilation)
        super().__init__(session, name, layer, original, (*reach, original.in_channels))
        self.flat, self.before = isinstance(original, nn.Conv1d), before
        self.mode = "constant" if original.padding_mode == "zeros" else original.padding_mode
        self.channels = original.in_channels

    def _weight(self) -> Tensor:
        return _channels_last(self.weight.unsqueeze(2) if self.weight.ndim == 3 else self.weight)

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        try:
            shape: tuple[int, ...] = self.layer.out_shape(in_shape)
        except OctosimError as error:
            raise OctosimError(f"layer {self.name}: {error}") from None
        return shape

    def forward(self, x: Tensor) -> Tensor:
        axes = 3 - self.flat
        x = checked(self.name, x, (axes, axes + 1), -axes, self.channels)
        single = x.ndim == axes
        x = x.unsqueeze(0) if single else x
        if self.before and any(self.before):
            x = functional.pad(x, self.before, self.mode)
        x = x.unsqueeze(2) if self.flat else x
        y = _channels_first(self.pass_(_channels_last(x)))
        y = y.squeeze(2) if self.flat else y
        return y.squeeze(0) if single else y


class EngineLinear(EngineWeighted):
    """nn.Linear; leading axes are rows."""

    def __init__(self, session: Session, name: str, original: Any):
        nn.Module.__init__(self)
        self.outputs, self.inputs = original.weight.shape
        super().__init__(session, name, Linear(), original, (self.inputs,))

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.outputs,)

    def forward(self, x: Tensor) -> Tensor:
        x = checked(self.name, x, tuple(range(1, 65)), -1, self.inputs)
        y = self.pass_(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], y.shape[-1])


class EngineBatchNorm(EngineModule):
    """nn.BatchNorm1d and 2d, as the engine's: the running variance is the batch's own times n / (n - 1), as PyTorch's."""

    def __init__(self, session: Session, name: str, original: Any):
        super().__init__(session, name, BatchNorm(original.eps, original.momentum), original.training)
        self.weight, self.bias = original.weight, original.bias
        self.axes = (4,) if isinstance(original, nn.BatchNorm2d) else (2, 3)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(key, getattr(original, key))
        self.names, self.buffers_of = ("gamma", "beta"), {"mean": "running_mean", "var": "running_var"}

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def forward(self, x: Tensor) -> Tensor:
        x = checked(self.name, x, self.axes, 1, len(self.weight))
        if self.training:
            if x.numel() == len(self.weight):
                raise OctosimError(f"layer {self.name}: one value a channel has no variance; train with more, or call .eval()")
            self.num_batches_tracked += 1
        return _channels_first(run_passes(self, _channels_last(x), self.weight, self.bias))


class EngineAverage(EngineModule):
    """nn.AdaptiveAvgPool2d(1)."""

    def __init__(self, session: Session, name: str, original: Any):
        super().__init__(session, name, GlobalAvgPool(), original.training)

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape[2:]

    def forward(self, x: Tensor) -> Tensor:
        x = checked(self.name, x, (3, 4))
        y = run_passes(self, _channels_last(x if x.ndim == 4 else x.unsqueeze(0)))[:, :, None, None]
        return y if x.ndim == 4 else y.squeeze(0)


# ---- loss --------------------------------------------------


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Array, smoothing: float) -> Tensor:
        loss, gradient, _ = core.softmax_cross_entropy(_array(logits).copy(), labels, smoothing=smoothing)
        ctx.gradient = torch.from_numpy(gradient)
        return torch.tensor(float(loss))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        return ctx.gradient * dy, None, None


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy, float32 (), of logits float32 (N, classes) and labels of an integer type (N,), with the bits of
    octosim's own.

    OctosimError for other shapes and types and for a label that is not in 0 .. classes - 1: there is no `ignore_index`.
    """
    logits = checked("cross_entropy", logits, (2,))
    if torch.is_autocast_enabled("cpu"):
        logits = logits.float()
    kind = labels.dtype if isinstance(labels, Tensor) else None
    if kind is None or kind.is_floating_point or kind.is_complex or kind == torch.bool:
        what = kind or type(labels).__name__
        raise OctosimError(f"cross_entropy: labels are {what}, expected a tensor of integers, the class of each row")
    if labels.shape != logits.shape[:1]:
        raise OctosimError(f"cross_entropy: labels have shape {tuple(labels.shape)}, expected {tuple(logits.shape[:1])}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise OctosimError(f"cross_entropy: a label is {low if low < 0 else high}, expected 0 .. {logits.shape[1] - 1}")
    codes = np.ascontiguousarray(labels.detach().cpu().numpy().astype(np.int32))
    loss: Tensor = _CrossEntropy.apply(logits, codes, label_smoothing)
    return loss
