"""Networks that published figures name, as inference operations, and the efficiencies that reproduce those figures.

An efficiency is what is left to explain when overheads, traffic, waves of tiles and passes have their price: it is solved for,
not divided out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from octosim import cost
from octosim.errors import OctosimError
from octosim.hardware import Device, Dtype, Engine, Figure
from octosim.hardware.device import RatioPerDtype
from octosim.hardware.figures import Count, Ratio, Reference
from octosim.trace import DTYPE_BYTES, Op


@dataclass
class _Builder:
    """Layers of one network for a batch, activations and additions fused, tensors in one type throughout."""

    batch: int
    dtype: str
    side: int = 224
    channels: int = 3
    ops: list[Op] = field(default_factory=list)

    def conv(self, filters: int, kernel: int, stride: int = 1, groups: int = 1, added: bool = False) -> None:
        size, out = DTYPE_BYTES[self.dtype], -(-self.side // stride)
        pixels, per_group = self.batch * out * out, self.channels // groups
        x, y = self.batch * self.channels * self.side**2 * size, pixels * filters * size
        w = filters * per_group * kernel**2 * size
        shape = (pixels, per_group * kernel**2, filters // groups)
        self.ops.append(Op(
            f"conv{len(self.ops)}", "forward", "gemm", f"conv {kernel}x{kernel}", shape, self.dtype,
            x + w + (y if added else 0), y, groups=groups, kernel=(kernel, kernel), stride=stride, weights=w,
        ))  # fmt: skip
        self.side, self.channels = out, filters

    def pool(self, window: int, stride: int) -> None:
        size, out = DTYPE_BYTES[self.dtype], -(-self.side // stride)
        x, y = self.batch * self.channels * self.side**2, self.batch * self.channels * out**2
        work = y * min(window**2, self.side**2)
        self.ops.append(Op(f"pool{len(self.ops)}", "forward", "elementwise", "pool", (work,), self.dtype, x * size, y * size))
        self.side = out

    def classifier(self, classes: int = 1000) -> None:
        self.pool(self.side, self.side)
        size = DTYPE_BYTES[self.dtype]
        w = self.channels * classes * size
        self.ops.append(Op("fc", "forward", "gemm", "linear", (self.batch, self.channels, classes), self.dtype,
                           self.batch * self.channels * size + w, self.batch * classes * size, weights=w))  # fmt: skip


def _resnet50(batch: int, dtype: str, first: bool = False) -> list[Op]:
    """first: the stride of a block in its first 1x1 convolution (version 1), else in the 3x3 one (1.5)."""
    net = _Builder(batch, dtype)
    net.conv(64, 7, 2)
    net.pool(3, 2)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            width, stride = 64 << stage, 2 if stage and not block else 1
            side, channels = net.side, net.channels
            if not block:
                net.conv(4 * width, 1, stride)
                net.side, net.channels = side, channels
            net.conv(width, 1, stride if first else 1)
            net.conv(width, 3, 1 if first else stride)
            net.conv(4 * width, 1, added=True)
    net.classifier()
    return net.ops


def _mobilenet_v2(batch: int, dtype: str) -> list[Op]:
    net = _Builder(batch, dtype)
    net.conv(32, 3, 2)
    for expand, filters, blocks, stride in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                            (6, 160, 3, 2), (6, 320, 1, 1)):  # fmt: skip
        for block in range(blocks):
            wide = net.channels * expand
            if expand > 1:
                net.conv(wide, 1)
            net.conv(wide, 3, 1 if block else stride, groups=wide)
            net.conv(filters, 1, added=block > 0)
    net.conv(1280, 1)
    net.classifier()
    return net.ops


NETWORKS: dict[str, Callable[[int, str], list[Op]]] = {
    "resnet50": _resnet50, "resnet50-v1": lambda batch, dtype: _resnet50(batch, dtype, True), "mobilenet_v2": _mobilenet_v2,
}  # fmt: skip


def _with_efficiency(engine: Engine, dtype: Dtype, value: float) -> Engine:
    known = engine.gemm_efficiency.given() if engine.gemm_efficiency else {}
    rows = {name: {"value": v, "kind": "derived", "source": "solved"} for name, v in (known | {dtype: value}).items()}
    return engine.model_copy(update={"gemm_efficiency": RatioPerDtype.model_validate(rows)})


def references(device: Device) -> list[tuple[Engine, Dtype, Ratio]]:
    """(engine, type, ratio) of each efficiency of a device that says what it reproduces."""
    found = []
    for engine in device.engines:
        for dtype in engine.gemm_efficiency.given() if engine.gemm_efficiency else ():
            ratio = getattr(engine.gemm_efficiency, dtype)
            if ratio.reproduces is not None:
                found.append((engine, dtype, ratio))
    return found


def predicted(device: Device, engine: Engine, dtype: Dtype, reference: Reference, efficiency: float) -> float:
    """images_s (or gmac_s of a product) of the reference with an efficiency in place of the profile's.

    Other engines of the reference have their own efficiency where that was measured alone, else the same one.
    """
    from octosim.cost import runtimes

    rate = 0.0
    for name in reference.engines or (engine.name,):
        each = next((e for e in device.engines if e.name == name), None)
        if each is None:
            raise OctosimError(f"profile {device.name}: {engine.name} reproduces a figure of engine {name}, which is not there")
        own = getattr(each.gemm_efficiency, dtype, None) if each.gemm_efficiency else None
        alone = each.name != engine.name and own is not None and own.reproduces is not None
        each = each if alone else _with_efficiency(each, dtype, efficiency)
        if reference.units:
            each = each.model_copy(update={"units": Count(value=reference.units, kind="derived", source="reference")})
        if reference.clock_ghz:
            each = each.model_copy(update={"clock_ghz": Figure(value=reference.clock_ghz, kind="derived", source="reference")})
        one = device.model_copy(update={"engines": (each,)})
        if reference.network == "product":
            side = reference.size or 1
            size = DTYPE_BYTES[dtype]
            op = Op("product", "forward", "gemm", "product", (side, side, side), dtype, 2 * side**2 * size, side**2 * size)
            seconds = sum(c.time_s for c in cost.predict([op], one, runtime=runtimes.default(one, False)))
            rate += side**3 / seconds / 1e9
        else:
            if reference.network not in NETWORKS:
                raise OctosimError(f"profile {device.name}: no reference network {reference.network!r}")
            ops = NETWORKS[reference.network](reference.batch, dtype)
            seconds = sum(c.time_s for c in cost.predict(ops, one, runtime=runtimes.default(one, False)))
            rate += reference.batch / seconds
    return rate
