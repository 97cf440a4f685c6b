"""The network of this report in PyTorch: a ResNet-14 for images of 32 x 32, and CIFAR-10 cut into two tasks."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from octosim import data

OLD, NEW = range(5), range(5, 10)
"""Classes to pretrain on, and to adapt to."""


class Block(nn.Module):
    """He et al.'s block of two convolutions; a 1 x 1 convolution on the shortcut where the shape changes."""

    def __init__(self, inputs: int, filters: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if inputs != filters:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, filters, 1, stride), nn.BatchNorm2d(filters))
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet14(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        sizes = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.blocks = nn.Sequential(*(Block(*size) for size in sizes))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


def task(classes: range, images: int | None = None) -> dict[str, np.ndarray]:
    """Images and labels (from 0) of these classes, as an .npz of octosim has them; of the training images the first
    `images`, of each class as many."""
    whole = data.load("cifar10")

    def chosen(x: np.ndarray, y: np.ndarray, each: int | None) -> tuple[np.ndarray, np.ndarray]:
        at = np.sort(np.concatenate([np.flatnonzero(y == label)[:each] for label in classes]))
        return x[at], (y[at] - classes[0]).astype(np.uint8)

    x_train, y_train = chosen(whole.train_images, whole.train_labels, None if images is None else images // len(classes))
    x_test, y_test = chosen(whole.test_images, whole.test_labels, None)
    return dict(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def tensor(images: np.ndarray) -> torch.Tensor:
    """Pixels in 0 .. 1, as octosim's networks take them."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float().div_(255).contiguous(memory_format=torch.channels_last)


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(images[i : i + 500]).argmax(1) == labels[i : i + 500]).sum()) for i in range(0, len(labels), 500)
        )
    return right / len(labels)
