"""A training step of octosim.torch beside plain PyTorch in float32 and, where they can be imported, QPyTorch and MPTorch.

    python tools/measure_torch.py [--model lenet5|resnet20] [--batch 20] [--rounds 15]

The steps are run in turns, round by round, in one process with one thread; printed are medians, and the median of each round's
ratio to PyTorch's step.  QPyTorch rounds tensors to 8-bit fixed point before and after float32 products; MPTorch rounds each
product and sum.  octosim computes int8 products with exact int32 sums, and with a register of 16 bits.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import octosim.torch


def lenet5() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.BatchNorm2d(16),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, 10),
    )  # fmt: skip


class _Block(nn.Module):
    def __init__(self, wide: int, filters: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(wide, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU(),
            nn.Conv2d(filters, filters, 3, 1, 1, bias=False), nn.BatchNorm2d(filters),
        )  # fmt: skip
        self.short = nn.Identity() if wide == filters else nn.Sequential(
            nn.Conv2d(wide, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.short(x))


def resnet20() -> nn.Module:
    blocks, wide = [], 16
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        for i in range(3):
            blocks.append(_Block(wide, filters, stride if i == 0 else 1))
            wide = filters
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet5": (lenet5, (1, 28, 28)), "resnet20": (resnet20, (3, 32, 32)),
}  # fmt: skip


def qpytorch(module: nn.Module) -> nn.Module:
    """Weights, activations and gradients in 8-bit fixed point, as QPyTorch's examples do it."""
    from qtorch import FixedPoint
    from qtorch.quant import Quantizer

    number = FixedPoint(wl=8, fl=5)

    class Rounded(nn.Module):
        def __init__(self, inner: Any):
            super().__init__()
            self.inner = inner
            self.of_x, self.of_w = (Quantizer(number, number, "nearest", "nearest") for _ in range(2))
            self.of_y = Quantizer(number, number, "nearest", "nearest")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            named = {"weight": self.of_w(self.inner.weight)}
            return self.of_y(torch.func.functional_call(self.inner, named, (self.of_x(x),)))

    for name, child in list(module.named_children()):
        wrapped = Rounded(child) if isinstance(child, nn.Conv2d | nn.Linear) else qpytorch(child)
        setattr(module, name, wrapped)
    return module


def mptorch(module: nn.Module) -> nn.Module:
    """Each product and sum rounded to 8-bit fixed point and a 16-bit accumulator."""
    from mptorch import FixedPoint
    from mptorch.quant import QAffineFormats, QConv2d, QLinear

    mac, narrow = FixedPoint(16, 8), FixedPoint(8, 5)
    formats = QAffineFormats(fwd_mac=(mac, mac), bwd_mac=(mac, mac), fwd_rnd="nearest", bwd_rnd="nearest",
                             weight_quant=(narrow, "nearest"), input_quant=(narrow, "nearest"))  # fmt: skip
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, QLinear(child.in_features, child.out_features, formats))
        elif isinstance(child, nn.Conv2d):
            setattr(module, name, QConv2d(child.in_channels, child.out_channels, child.kernel_size, formats, child.stride,
                                          child.padding, bias=child.bias is not None))  # fmt: skip
        else:
            mptorch(child)
    return module


def step_of(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description="octosim.torch beside PyTorch and emulations")
    parser.add_argument("--model", choices=MODELS, default="lenet5")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    build, shape = MODELS[given.model]
    base = build()
    x, y = torch.rand(given.batch, *shape), torch.randint(0, 10, (given.batch,))

    def convert(accumulator: str, observe: int) -> Callable[[nn.Module], nn.Module]:
        return lambda module: octosim.torch.convert(module, "octo", accumulator, observe=observe)

    kinds: dict[str, Callable[[nn.Module], nn.Module]] = {
        "PyTorch, float32": lambda module: module, "octosim.torch, exact32": convert("exact32", 0),
        "octosim.torch, exact32, observed": convert("exact32", 1), "octosim.torch, acc16": convert("acc16", 0),
        "QPyTorch, 8-bit fixed point": qpytorch, "MPTorch, 8-bit fixed point in 16 bits": mptorch,
    }  # fmt: skip
    steps: dict[str, Callable[[], None]] = {}
    for name, change in kinds.items():
        try:
            steps[name] = step_of(change(copy.deepcopy(base)), x, y)
            steps[name]()
        except Exception as error:  # a peer that is not installed, or does not build
            print(f"{name}: left out, {type(error).__name__}: {str(error).splitlines()[0][:100]}")
            steps.pop(name, None)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(given.rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    plain = times["PyTorch, float32"]
    print(f"{given.model}, batch {given.batch}, {given.rounds} rounds, CPU time of one thread")
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, plain, strict=True))
        print(f"{name:40s} {1e3 * statistics.median(taken):9.2f} ms  {ratio:6.2f}")


if __name__ == "__main__":
    main()
