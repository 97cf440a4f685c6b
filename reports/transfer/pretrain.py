"""Pretrains ResNet-18 in PyTorch on CIFAR-10's first five classes and exports it: pretrain.py FOLDER [CPU_MINUTES [MINUTES]].

Writes FOLDER/pretrained.onnx with its batch normalizations, and pretrained.json.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from network import OLD, WIDTH, ResNet18, accuracy, task, tensor
from torch import nn

BATCH, LR, PAD = 100, 0.1, 4
SMALL = 0.5
"""The share of the time in which images are halved in height and width: a step takes a quarter of the time."""


def batches(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator):
    """An epoch in random order, each image moved by at most PAD pixels and half of them mirrored."""
    order = torch.randperm(len(labels), generator=generator)
    images = nn.functional.pad(images, (PAD,) * 4)
    rows = torch.arange(images.shape[2] - 2 * PAD)
    for i in range(0, len(order) - BATCH + 1, BATCH):
        at = order[i : i + BATCH]
        y, x, flip = (torch.randint(0, top, (BATCH, 1), generator=generator) for top in (2 * PAD + 1, 2 * PAD + 1, 2))
        columns = torch.where(flip > 0, rows.flip(0), rows) + x
        cut = images[at[:, None, None], :, (rows + y)[:, :, None], columns[:, None, :]]
        yield cut.permute(0, 3, 1, 2), labels[at]


def main() -> None:
    folder = Path(sys.argv[1])
    cpu, wall = (60 * float(v) for v in (*sys.argv[2:], *("20", "60")[len(sys.argv) - 2 :]))
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    old = task(OLD)
    images, labels = tensor(old["x_train"]), torch.from_numpy(old["y_train"].astype(np.int64))
    test = tensor(old["x_test"]), torch.from_numpy(old["y_test"].astype(np.int64))
    model = ResNet18(len(OLD)).to(memory_format=torch.channels_last)
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
            if share < SMALL:
                x = nn.functional.avg_pool2d(x, 2)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            steps += 1
            if steps % 50 == 0:
                print(f"step {steps}, {100 * share:.0f} %: loss {loss.item():.3f}", flush=True)
    seconds = time.process_time() - cpu_begun
    model = model.to(memory_format=torch.contiguous_format)
    torch.save(model.state_dict(), folder / "pretrained.pt")
    right = accuracy(model, *test)
    print(f"{steps} steps of {BATCH} in {seconds:.0f} s of CPU: {100 * right:.2f} % of the test images")
    told = dict(width=WIDTH, steps=steps, batch=BATCH, cpu_seconds=round(seconds), test_accuracy=right)
    (folder / "pretrained.json").write_text(json.dumps(told) + "\n")
    model.train()  # so that batch normalizations are not folded into the convolutions
    torch.onnx.export(
        model, torch.zeros(2, 3, 32, 32), folder / "pretrained.onnx", input_names=["input"], output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}}, dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
