"""Fine-tunes the pretrained network on the five other classes, with octo in INT8 and with PyTorch in float32, and compares:

    finetune.py FOLDER [--epochs 5] [--seeds 0,1,2] [--train-last 6] [--lr 0.02]

FOLDER is pretrain.py's.  Writes FOLDER/new/, 2,000 images of the new classes in train/ and their 5,000 test images in test/, a
folder of PNG files a class; FOLDER/net/ (octosim import); a run directory a seed; and adds its rows to results.csv beside this
script.  PyTorch trains the same layers from the same weights on the same batches (octosim's, augmentation included) with the
same learning rates.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from network import NEW, accuracy, task, tensor
from PIL import Image
from torch import nn

from octosim import data, train
from octosim.bench import peers

HERE = Path(__file__).parent
FIELDS = ("seed", "what", "train_last", "epochs", "lr", "test_accuracy", "cpu_s", "digest")
BATCH, MOMENTUM = 50, 0.9


def octosim(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "octosim", *map(str, arguments)], check=True)


def write_images(folder: Path) -> None:
    """The new task as a folder of images a class."""
    names, arrays = data.load("cifar10").classes, task(NEW, 2000)
    for part in ("train", "test"):
        for number, (image, label) in enumerate(zip(arrays[f"x_{part}"], arrays[f"y_{part}"], strict=True)):
            place = folder / part / names[NEW[label]]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:05}.png")


def in_torch(run: train.Run) -> nn.Module:
    """The network of a run before its first step, with its weights and statistics, in PyTorch."""
    model = peers.to_torch(run.layers, run.data.train_images.shape[1:])
    state = peers.weights_to_torch(run.network)
    for node in run.network.nodes:
        if node.layer.stem == "bn":
            state |= {f"{node.index}.running_{key}": node.state[key] for key in ("mean", "var")}
    wrong = model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state.items()}, strict=False)
    assert not wrong.unexpected_keys and all("num_batches" in name for name in wrong.missing_keys), wrong
    return model


def fine_tune(run: train.Run) -> nn.Module:
    """PyTorch's SGD with momentum on the batches, with the layers and with the learning rates of a run."""
    model, shape = in_torch(run), run.data.train_images.shape[1:]
    peers.freeze(model, run.layers, shape, run.config.selection)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1, momentum=MOMENTUM)
    for step in range(1, run.steps + 1):
        images, labels = run.batch(step)
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tensor(images)), torch.from_numpy(labels.astype(np.int64))).backward()
        optimizer.step()
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for name, default in (("--epochs", 5), ("--seeds", "0,1,2"), ("--train-last", 6), ("--lr", 0.02)):
        parser.add_argument(name, type=type(default), default=default)
    asked = parser.parse_args()
    new, net = asked.folder / "new", asked.folder / "net"
    if not new.exists():
        write_images(new)
    if not net.exists():
        octosim("import", asked.folder / "pretrained.onnx", "-o", net)
    torch.set_num_threads(1)
    rows = []
    for seed in map(int, asked.seeds.split(",")):
        about = {"seed": seed, "train_last": asked.train_last, "epochs": asked.epochs, "lr": asked.lr}
        out = asked.folder / f"octo-last{asked.train_last}-seed{seed}"
        octosim("train", "--model", net, "--data", new, "--method", "octo", "--train-last", asked.train_last, "--lr", asked.lr,
                "--batch-size", BATCH, "--epochs", asked.epochs, "--augment", "crop-flip", "--seed", seed, "--threads", 1,
                "--out", out)  # fmt: skip
        row = train.last_record(out)
        rows.append(about | {"what": "octo INT8", "test_accuracy": row["test_accuracy"], "digest": train.read_digest(out)})
        run = train.Run(train.read_config(out))
        before = time.process_time()
        model = fine_tune(run)
        spent = time.process_time() - before
        test = tensor(run.data.test_images), torch.from_numpy(run.data.test_labels.astype(np.int64))
        rows.append(about | {"what": "PyTorch FP32", "test_accuracy": accuracy(model, *test), "cpu_s": f"{spent:.1f}"})
        for row in rows[-2:]:
            print({key: row.get(key, "") for key in FIELDS}, flush=True)
    path = HERE / "results.csv"
    known = list(csv.DictReader(path.open())) if path.exists() else []
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*known, *rows])
    for seed in asked.seeds.split(","):
        octosim("verify", asked.folder / f"octo-last{asked.train_last}-seed{seed}")


if __name__ == "__main__":
    main()
