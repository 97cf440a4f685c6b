"""The networks and the data of this report: ResNet-18 for images of 32 x 32 in PyTorch, and CIFAR-10 cut into two tasks."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from octosim import data

OLD, NEW = range(5), range(5, 10)
"""Classes to pretrain on, and to adapt to."""
WIDTH = 16
"""Filters of the first stage, a quarter of ResNet-18's, so that 20 minutes of one core pretrain it."""


class Block(nn.Module):
    """He et al.'s block of two convolutions; a 1 x 1 convolution on the shortcut where the shape changes."""

    def __init__(self, inputs: int, filters: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """The CIFAR form: a 3 x 3 convolution with stride 1 in front, then four stages of two blocks."""

    def __init__(self, classes: int, width: int = WIDTH):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        sizes = [width, *(width << stage for stage in range(4) for _ in range(2))]
        self.blocks = nn.Sequential(*(Block(a, b, 1 if a == b else 2) for a, b in zip(sizes, sizes[1:], strict=False)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(sizes[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


def task(classes: range, images: int | None = None) -> dict[str, np.ndarray]:
    """Images (N, 32, 32, 3) and labels (from 0) of these classes; of the training images the first `images`, as many of each
    class."""
    whole = data.load("cifar10")

    def chosen(x: np.ndarray, y: np.ndarray, each: int | None) -> tuple[np.ndarray, np.ndarray]:
        at = np.sort(np.concatenate([np.flatnonzero(y == label)[:each] for label in classes]))
        return x[at], (y[at] - classes[0]).astype(np.uint8)

    x_train, y_train = chosen(whole.train_images, whole.train_labels, None if images is None else images // len(classes))
    x_test, y_test = chosen(whole.test_images, whole.test_labels, None)
    return dict(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def tensor(images: np.ndarray) -> torch.Tensor:
    """Pixels in 0 .. 1, as octosim's networks take them; (N, 3, 32, 32)."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float().div_(255).contiguous(memory_format=torch.channels_last)


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of right answers, with running statistics."""
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(images[i : i + 500]).argmax(1) == labels[i : i + 500]).sum()) for i in range(0, len(labels), 500)
        )
    return right / len(labels)
