"""Pretrains ResNet-14 in PyTorch on CIFAR-10's first five classes and exports it: pretrain.py FOLDER [CPU_MINUTES [MINUTES]].

Writes FOLDER/pretrained.onnx, pretrained.pt (the state), and new.npz: 2,000 images of the other five classes, and their test
images.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from network import NEW, OLD, ResNet14, accuracy, task, tensor
from torch import nn

BATCH, LR = 100, 0.1


def batches(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator):
    """An epoch in random order, each image moved by at most 4 pixels and half of them mirrored."""
    order = torch.randperm(len(labels), generator=generator)
    for i in range(0, len(order) - BATCH + 1, BATCH):
        at = order[i : i + BATCH]
        x = nn.functional.pad(images[at], (4, 4, 4, 4))
        dy, dx = (int(v) for v in torch.randint(0, 9, (2,), generator=generator))
        x = x[:, :, dy : dy + 32, dx : dx + 32]
        flip = torch.rand(BATCH, generator=generator) < 0.5
        yield torch.where(flip[:, None, None, None], x.flip(3), x).contiguous(memory_format=torch.channels_last), labels[at]


def main() -> None:
    folder = Path(sys.argv[1])
    cpu, wall = (60 * float(v) for v in (*sys.argv[2:], *("20", "60")[len(sys.argv) - 2 :]))
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    np.savez(folder / "new.npz", **task(NEW, 2000))
    old = task(OLD)
    images, labels = tensor(old["x_train"]), torch.from_numpy(old["y_train"].astype(np.int64))
    test = tensor(old["x_test"]), torch.from_numpy(old["y_test"].astype(np.int64))
    model = ResNet14(5).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
    cpu_begun, begun, steps, share = time.process_time(), time.monotonic(), 0, 0.0
    while share < 1:
        model.train()
        for x, y in batches(images, labels, generator):
            share = max((time.process_time() - cpu_begun) / cpu, (time.monotonic() - begun) / wall)
            if share >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = LR * min(1.0, (steps + 1) / 100) * (1 + math.cos(math.pi * share)) / 2
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            steps += 1
            if steps % 50 == 0:
                print(f"step {steps}, {100 * share:.0f} %: loss {loss.item():.3f}", flush=True)
    print(f"{steps} steps of {BATCH} in {time.process_time() - cpu_begun:.0f} s of CPU: test {accuracy(model, *test):.4f}")
    model = model.to(memory_format=torch.contiguous_format)
    torch.save(model.state_dict(), folder / "pretrained.pt")
    batch = {"input": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        model, torch.zeros(1, 3, 32, 32), folder / "pretrained.onnx", input_names=["input"], output_names=["logits"],
        dynamic_axes=batch, dynamo=False, do_constant_folding=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
