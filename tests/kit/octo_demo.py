"""Octo's released demo, transcribed in float64 from its equations (NHWC): one block of convolution, compensation, batch
normalization, ReLU and max pooling, a hidden layer, softmax; every parameter that the demo keeps a sample has the batch's axis.

    python tests/kit/octo_demo.py --steps 50 --batch-size 50

trains the demo's SimpleCNN on MNIST by it and by the method octo-reference, on the same batches, and prints how far the
losses part.  A value beside a rounding boundary gets another code for the least difference, so it also says how far the demo's
own curve moves when its initial parameters change by as little as their rounding to float32.
"""

from __future__ import annotations

import argparse

import numpy as np
from kit import passes as direct

from octosim import train
from octosim.engine.nodes import Node

Parameters = dict[str, np.ndarray]
DECAY = 0.1  # of mu and offset


def asymm(t: np.ndarray) -> tuple[np.ndarray, float]:
    """9-bit codes in +-255; the zero point is a float, rounding is to nearest."""
    scale = (t.max() - t.min()) / 510
    if scale == 0:
        return np.around(t), 1.0
    return np.around(t / scale + np.clip(255 - t.max() / scale, -255, 255)), scale


def symm(t: np.ndarray) -> tuple[np.ndarray, float]:
    scale = (t.max() - t.min()) / 254 or 1.0
    return np.around(t / scale), scale


def prc(t: np.ndarray) -> np.ndarray:
    return np.clip(t, 0.95 * t.min(), 0.95 * t.max())


def batchnorm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, tuple]:
    centered = x - x.mean(0)
    deviation = np.sqrt((centered**2).mean(0) + 1e-6)
    return gamma * (centered / deviation) + beta, (centered, deviation)


def batchnorm_grad(dy: np.ndarray, gamma: np.ndarray, kept: tuple) -> np.ndarray:
    """Through variance and mean one after the other, as the demo's chain of derivatives."""
    centered, deviation = kept
    dnormal = gamma * dy
    dcentered = dnormal / deviation
    dvariance = 0.5 * -((dnormal * centered) / deviation**2).sum(0) / deviation
    dcentered = dcentered + 2 / len(dy) * centered * dvariance
    return dcentered - dcentered.sum(0) / len(dy)


def step(p: Parameters, x: np.ndarray, labels: np.ndarray) -> tuple[float, Parameters]:
    """The task's loss of a batch, and all gradients."""
    (qx, sx), (qw, sw) = asymm(x), asymm(p["w"])
    y = direct.forward(qx, qw) * sx * sw
    y = y + p["alpha"] * p["mu"] + p["offset"]
    normal, kept = batchnorm(y, p["gamma"], p["beta"])
    a = np.maximum(normal, 0)
    n, height, width, channels = a.shape
    windows = a.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)
    which = windows.argmax(1)
    flat = windows.max(1).reshape(n, -1)
    hidden = np.maximum(flat @ p["w1"].T + p["b1"], 0)
    logits = hidden @ p["w2"].T + p["b2"]
    e = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = e / e.sum(1, keepdims=True)
    loss = -np.log(probabilities[np.arange(n), labels] + 1e-7).mean()

    dlogits = (probabilities - np.eye(logits.shape[1])[labels]) / n
    g = {"w2": dlogits.T @ hidden, "b2": dlogits.sum(0)}
    dhidden = (dlogits @ p["w2"]) * (hidden > 0)
    g |= {"w1": dhidden.T @ flat, "b1": dhidden.sum(0)}
    spread = np.zeros_like(windows)
    spread[np.arange(len(which)), which] = (dhidden @ p["w1"]).ravel()
    da = spread.reshape(n, height // 2, width // 2, channels, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(a.shape)
    dnormal = da * (a > 0)
    copies = np.ones((n, 1, 1, 1))
    g |= {"gamma": copies * (dnormal * kept[0] / kept[1]).sum(0), "beta": copies * dnormal.sum(0)}
    dout = batchnorm_grad(dnormal, p["gamma"], kept)
    g |= {"alpha": copies * (dout * p["mu"]).sum(0)}
    g |= {"mu": p["alpha"] * dout + DECAY * p["mu"], "offset": dout + DECAY * p["offset"]}
    (qx, sx), (qg, sg) = symm(prc(x)), symm(prc(dout))
    g["w"] = direct.weight_grad(qx, qg, p["w"]) * sx * sg
    return float(loss), g


def adam(p: Parameters, g: Parameters, m: Parameters, v: Parameters, t: int) -> None:
    for key in p:
        m[key] = 0.9 * m[key] + 0.1 * g[key]
        v[key] = 0.999 * v[key] + 0.001 * g[key] ** 2
        p[key] = p[key] - 1e-3 * (m[key] / (1 - 0.9**t)) / (np.sqrt(v[key] / (1 - 0.999**t)) + 1e-7)


def of_network(nodes: list[Node], batch: int) -> Parameters:
    """The parameters of octosim's network in the demo's shapes.  (The convolution's bias is subtracted by normalization.)"""
    conv, norm, *_, fc1, _, fc2 = (node.params for node in nodes if node.layer.stem not in ("pool", "flatten"))
    copies = np.ones((batch, 1, 1, 1))
    p = {"w": conv["w"], "alpha": copies * conv["lac_alpha"]}
    p |= {"mu": conv["lac_mu"][:batch], "offset": conv["lac_offset"][:batch]}
    p |= {"gamma": copies * norm["gamma"], "beta": copies * norm["beta"]}
    p |= {"w1": fc1["w"], "b1": fc1["b"], "w2": fc2["w"], "b2": fc2["b"]}
    return {key: value.astype(np.float64) for key, value in p.items()}


def losses(nodes: list[Node], batches: list[tuple[np.ndarray, np.ndarray]], moved: int | None = None) -> list[float]:
    """The demo's loss in each step of a training with Adam, from a network's initial parameters.

    moved: a seed; then each parameter changes at random by about float32's rounding, 2^-24 of it.
    """
    p = of_network(nodes, len(batches[0][1]))
    if moved is not None:
        random = np.random.default_rng(moved)
        p = {key: value * (1 + 2.0**-24 * random.uniform(-1, 1, value.shape)) for key, value in p.items()}
    m, v = ({key: np.zeros_like(value) for key, value in p.items()} for _ in range(2))
    found = []
    for t, (images, labels) in enumerate(batches, 1):
        loss, g = step(p, images / 255.0, labels)
        adam(p, g, m, v, t)
        found.append(loss)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--moved", type=int, default=5, help="how many such changes to try")
    args = parser.parse_args()
    config = train.Config(
        data=args.data, method="octo-reference", parameters={"rounding": "half-even", "lac_samples": args.batch_size},
        optimizer="adam", schedule="constant", batch_size=args.batch_size, steps=args.steps,
    )  # fmt: skip
    run = train.Run(config)
    batches = [run.batch(i) for i in range(1, args.steps + 1)]
    theirs = losses(run.network.nodes, batches)
    rows = [(f"demo, moved ({seed})", losses(run.network.nodes, batches, seed)) for seed in range(args.moved)]
    ours = [run.train_step() for _ in theirs]
    print(f"loss after {args.steps} steps: octo-reference {ours[-1]:.6f}, demo in float64 {theirs[-1]:.6f}")
    marks = sorted({min(mark, args.steps) for mark in (10, 20, 30, args.steps)})
    print("largest difference from the demo up to step", *marks)
    for name, found in [("octo-reference", ours), *rows]:
        apart = np.abs(np.subtract(found, theirs))
        print(f"{name:16}", *(f"{apart[:mark].max():.1e}" for mark in marks))


if __name__ == "__main__":
    main()
