"""Networks of PyTorch through both of its ONNX exporters into octosim, as the table of reports/import/README.md.

    python tools/import_table.py rows.json                       all networks, both exporters; half an hour
    python tools/import_table.py rows.json --network resnet18 --exporter dynamo
    python tools/import_table.py trained.json --network mobilenet_v2 --trained 300
    python tools/import_table.py rows.json --table               print the rows of the file as a table

Each row: the network is built in PyTorch, its normalizations take the statistics of BATCH images, or it is trained on CIFAR-10
(--trained), it is exported, imported, and

    outputs   the float32 network's against onnxruntime's: the largest difference, relative to the largest output
    peer      the same of the layers that octosim hands to PyTorch (`bench.peers`) against the module itself
    loss      of a batch in one octo (INT8) step, and PyTorch's in float32
    SQNR      of the weights' gradients against PyTorch's in float32, in dB: with octosim's fp32, and of that INT8 step, of all,
              the median layer's and the least layer's
    simulated that of the same INT8 step simulated in PyTorch: float32 products of rounded values; in the file also that of a
              step with rounded weights, inputs or gradients alone
    ratio     the time of an octo step by that of PyTorch's float32 step: medians of steps that take turns, one thread

Rows that the file has already are kept, so that a run goes on where it was stopped.  Needs torch, torchvision, timm, onnx,
onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octosim import core, graph
from octosim.bench import peers
from octosim.bench.clock import LR, Clock, stepper
from octosim.data import load
from octosim.data.dataset import Dataset
from octosim.engine import Network
from octosim.engine.inputs import Input
from octosim.engine.nodes import Context
from octosim.errors import OctosimError
from octosim.graph import onnx
from octosim.methods import make
from octosim.train import Config, Run
from octosim.train.measure import errors

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from kit import torchvision_models  # noqa: E402

Array = np.ndarray[Any, Any]
BATCH, CLASSES = 16, 10
EXPORTERS = ("torchscript", "dynamo")
PARTS = ("weights", "inputs", "gradients")
"""What a simulated INT8 step rounds."""
OPSETS = {"torchscript": 17, "dynamo": 18}
LIMIT = 1e-4
"""Of the outputs' relative difference."""


def ds_cnn() -> Any:
    """MLPerf Tiny's keyword spotter."""
    from torch import nn

    def separable() -> list[Any]:
        parts = (nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 64, 1))
        return [layer for conv in parts for layer in (conv, nn.BatchNorm2d(64), nn.ReLU())]

    stem = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, 64, (10, 4), 2), nn.BatchNorm2d(64), nn.ReLU(), nn.Dropout(0.2)]
    blocks = [layer for _ in range(4) for layer in separable()]
    return nn.Sequential(*stem, *blocks, nn.Dropout(0.4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def autoencoder() -> Any:
    """MLPerf Tiny's anomaly detector."""
    from torch import nn

    layers, width = [], 640
    for units in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        layers += [nn.Linear(width, units), nn.BatchNorm1d(units), nn.ReLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 640))


def vision(name: str, side: int) -> Any:
    tv, timm = torchvision_models.modules()
    if hasattr(tv, name):
        return getattr(tv, name)(num_classes=CLASSES)
    return timm.create_model(name, num_classes=CLASSES, img_size=side)


@dataclass(frozen=True)
class Case:
    """shape: of an input, as PyTorch has it.  loss: of the network.  quantized: by onnxruntime, in QDQ form."""

    build: Callable[[], Any]
    shape: tuple[int, ...]
    loss: str = "cross-entropy"
    quantized: bool = False


def cases(side: int) -> dict[str, Case]:
    names = (
        "mobilenet_v2", "mobilenet_v3_small", "resnet18", "squeezenet1_1", "shufflenet_v2_x1_0", "efficientnet_b0",
        "densenet121", "vit_tiny_patch16_224", "deit_tiny_patch16_224",
    )  # fmt: skip
    shape = (3, side, side)
    found = {name: Case(lambda name=name: vision(name, side), shape) for name in names}  # type: ignore[misc]
    found["ds-cnn"] = Case(ds_cnn, (1, 49, 10))
    found["autoencoder"] = Case(autoencoder, (640,), "mse")
    found["resnet18-qdq"] = Case(lambda: vision("resnet18", side), shape, quantized=True)
    return found


def inputs(shape: tuple[int, ...], count: int, seed: int) -> Array:
    """Smooth random images, or vectors: each channel of a coarse grid, enlarged, with some noise."""
    rng = np.random.default_rng(seed)
    if len(shape) == 1:
        rows = rng.standard_normal((count, 8)) @ rng.standard_normal((8, *shape)) / 3
        return (rows + 0.1 * rng.standard_normal((count, *shape))).astype(np.float32)
    import torch

    coarse = torch.from_numpy(rng.standard_normal((count, shape[0], 6, 6)))
    fine = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear").numpy()
    return (fine + 0.2 * rng.standard_normal(fine.shape)).astype(np.float32)


def photographs(shape: tuple[int, ...], count: int, seed: int) -> tuple[Array, Array]:
    """Images of CIFAR-10, enlarged, about -1 .. 1, and their labels.  seed 0: the training images in an order of their own."""
    import torch

    data = load("cifar10")
    images, labels = (data.test_images, data.test_labels) if seed else (data.train_images, data.train_labels)
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    small = torch.from_numpy(images[chosen].astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    large = torch.nn.functional.interpolate(small, shape[1:], mode="bilinear").numpy()
    return large, labels[chosen].astype(np.int64)


def batch(case: Case, count: int, seed: int, trained: int = 0) -> tuple[Array, Array]:
    """Inputs and labels."""
    return photographs(case.shape, count, seed) if trained else (inputs(case.shape, count, seed), np.arange(count) % CLASSES)


def settled(case: Case, trained: int = 0) -> Any:
    """The module, in inference, with the statistics of a batch in its normalizations; or trained so many steps."""
    import torch

    torch.manual_seed(0)
    module = case.build()
    if trained:
        images, labels = map(torch.from_numpy, photographs(case.shape, BATCH * trained, 0))
        optimizer = torch.optim.Adam(module.train().parameters(), 1e-3)
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
        return module.eval()
    for each in module.modules():
        if hasattr(each, "momentum"):
            each.momentum = None  # a mean of all batches
    with torch.no_grad():
        module.train()(torch.from_numpy(inputs(case.shape, BATCH, 1)))
    return module.eval()


def export(module: Any, case: Case, exporter: str, path: Path) -> Path:
    """The ONNX file, its batch open; quantized where the case says so."""
    import torch

    x = torch.from_numpy(inputs(case.shape, 2, 2))
    batch: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if exporter == "dynamo" else {
        "dynamic_axes": {"x": {0: "batch"}, "y": {0: "batch"}}
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (x,), str(path), input_names=["x"], output_names=["y"], opset_version=OPSETS[exporter],
            dynamo=exporter == "dynamo", verbose=False, **batch,
        )  # fmt: skip
    if not case.quantized:
        return path
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = [{"x": inputs(case.shape, BATCH, 3)}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    prepared, made = path.with_suffix(".prepared.onnx"), path.with_suffix(".qdq.onnx")
    quant_pre_process(str(path), str(prepared))
    quantization.quantize_static(str(prepared), str(made), Reader(), quant_format=quantization.QuantFormat.QDQ)
    return made


def without_codes(path: Path) -> Path:
    """The file without its activations' QuantizeLinear and DequantizeLinear, whose limits stay: what an importer can equal."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(path))
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes, names = [], set()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in known:
            zero = known[node.input[2]]
            low = (int(np.iinfo(zero.dtype).min) - int(zero)) * float(known[node.input[1]])
            floor = numpy_helper.from_array(np.float32(low), f"{node.output[0]}.low")
            model.graph.initializer.append(floor)
            kind = "Max" if low == 0 else "Identity"
            nodes.append(helper.make_node(kind, [node.input[0], *([floor.name] if low == 0 else [])], [node.output[0]]))
            names.add(node.output[0])
        elif node.op_type == "DequantizeLinear" and node.input[0] in names:
            nodes.append(helper.make_node("Identity", [node.input[0]], [node.output[0]]))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    out = path.with_suffix(".floats.onnx")
    onnx.save(model, str(out))
    return out


def run_onnx(path: Path, x: Array) -> Array:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    out: Array = session.run(None, {session.get_inputs()[0].name: x})[0]
    return out.reshape(len(x), -1)


def relative(found: Array, wanted: Array) -> float:
    return float(np.abs(found.reshape(wanted.shape) - wanted).max() / np.abs(wanted).max())


def channels_last(x: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if x.ndim == 4 else x


def dataset(x: Array, labels: Array, loss: str) -> Dataset:
    labels = x if loss == "mse" else labels
    classes = () if loss == "mse" else tuple(map(str, range(CLASSES)))
    return Dataset("random", x, labels, x[:1], labels[:1], classes, "0" * 64)


def in_torch(
    imported: graph.Imported, run: Run, kind: str, x: Array
) -> tuple[Array, float, dict[str, Array], dict[str, dict[str, Array]]]:  # fmt: skip
    """Of PyTorch's module of the imported layers: its outputs of x in inference, its loss of a batch, its gradients, and those
    of simulated INT8 steps: "all", and with each of PARTS alone."""
    import torch

    module = peers.to_torch(imported.graph, run.network.nodes[0].in_shape)
    state = {name: torch.from_numpy(value) for name, value in peers.weights_to_torch(run.network).items()}
    missing, unknown = module.load_state_dict(state, strict=False)
    assert not unknown and not [name for name in missing if name.rpartition(".")[2] in ("weight", "bias")], (missing, unknown)
    for node in run.network.nodes:
        for key, name in (("mean", "running_mean"), ("var", "running_var")):
            if key in node.state:
                module.state_dict()[f"{node.index}.{name}"].copy_(torch.from_numpy(node.state[key]))
    with torch.no_grad():
        outputs = module.eval()(torch.from_numpy(x)).numpy().reshape(len(x), -1)
    images, labels = run.batch(1)
    given = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1) if images.ndim == 4 else images))
    target = given if kind == "mse" else torch.from_numpy(labels.astype(np.int64))
    loss_of = torch.nn.functional.mse_loss if kind == "mse" else torch.nn.functional.cross_entropy

    def gradients(module: Any) -> tuple[float, dict[str, Array]]:
        module.zero_grad()
        loss = loss_of(module(given), target)
        loss.backward()
        grads = {name: p.grad.numpy().copy() for name, p in module.named_parameters() if p.grad is not None}
        return float(loss.detach()), grads

    exact = gradients(module.train())
    simulated = {}
    for name, parts in ({"all": PARTS} | {part: (part,) for part in PARTS}).items():
        with in_int8(parts):
            simulated[name] = gradients(module)[1]
    return outputs, *exact, simulated


@contextmanager
def in_int8(parts: Sequence[str]) -> Iterator[None]:
    """PyTorch's convolutions and linear layers take and give values rounded as octo's codes are, as far as PARTS are given:
    inputs to 254 steps of their range, weights to +-127 steps, and gradients to +-127 steps of 0.95 of their largest.  Products
    of activations (attention) stay as they are."""
    import torch

    def within(t: Any, low: Any, high: Any) -> Any:
        scale = ((high - low) / 254).clamp_min(1e-30)
        return ((t.clamp(low, high) - low) / scale).round() * scale + low

    def symmetric(t: Any, ratio: float = 1.0) -> Any:
        largest = t.abs().max() * ratio
        return within(t, -largest, largest)

    class Rounded(torch.autograd.Function):
        """Rounds values, not their gradients."""

        @staticmethod
        def forward(_: Any, t: Any, is_weight: bool) -> Any:
            return symmetric(t) if is_weight else within(t, t.min().clamp_max(0), t.max().clamp_min(0))

        @staticmethod
        def backward(_: Any, dy: Any) -> Any:
            return dy, None

    class RoundedBack(torch.autograd.Function):
        """Rounds gradients."""

        @staticmethod
        def forward(_: Any, t: Any) -> Any:
            return t.clone()

        @staticmethod
        def backward(_: Any, dy: Any) -> Any:
            return symmetric(dy, 0.95)

    def quantized(product: Any) -> Any:
        def call(x: Any, w: Any, *rest: Any, **named: Any) -> Any:
            x = Rounded.apply(x, False) if "inputs" in parts else x
            w = Rounded.apply(w, True) if "weights" in parts else w
            y = product(x, w, *rest, **named)
            return RoundedBack.apply(y) if "gradients" in parts else y

        return call

    functional = torch.nn.functional
    products = functional.conv2d, functional.linear
    functional.conv2d, functional.linear = map(quantized, products)
    try:
        yield
    finally:
        functional.conv2d, functional.linear = products


def row(name: str, case: Case, exporter: str, folder: Path, seconds: float, trained: int) -> dict[str, Any]:
    import torch

    module = settled(case, trained)
    path = export(module, case, exporter, folder / f"{name}.onnx")
    imported = onnx.read(path, loss=case.loss)
    graph.save(imported, folder / name)
    x, _ = batch(case, 4, 4, trained)
    here = channels_last(x)
    network = Network(imported.graph, here.shape[1:], make("fp32", {}), 0, source=Input(True), initial=imported.weights)
    outputs = np.asarray(core.materialize_in_place(network.forward(here.copy(), Context(False, 0, 0))))
    reference = run_onnx(without_codes(path) if case.quantized else path, x)
    found: dict[str, Any] = {
        "network": name, "exporter": exporter, "trained": trained, "layers": len(imported.graph.layers),
        "parameters": sum(w.size for w in imported.weights.values()), "outputs": relative(outputs, reference),
    }  # fmt: skip
    if case.quantized:
        found["against_codes"] = relative(outputs, run_onnx(path, x))
    rows, labels = batch(case, BATCH, 3, trained)
    data = dataset(channels_last(rows), labels, case.loss)
    config = Config(
        model=str(folder / name), method="octo", batch_size=BATCH, epochs=1, lr=LR, normalize="none", optimizer="sgd"
    )
    run = Run(config, dataset=data)
    assert run.initial and not run.initial.unfit, run.initial and run.initial.sentences
    peer, wanted_loss, wanted, simulated = in_torch(imported, run, case.loss, x)
    with torch.no_grad():
        found["peer"] = relative(peer, reference if case.quantized else module(torch.from_numpy(x)).numpy())
    images, labels = run.batch(1)
    weights = [key for key in wanted if key.endswith(".weight") and wanted[key].ndim > 1]

    def compared(grads: dict[str, Array]) -> dict[str, Any]:
        """The errors of gradients, of all weights together."""
        return errors(*(np.concatenate([of[key].reshape(-1) for key in weights]) for of in (wanted, grads)))

    def gradients(network: Network) -> tuple[float, dict[str, Array], dict[str, Any]]:
        """The loss, the gradients and their errors."""
        loss, _ = network.gradients(images, labels, Context(True, 0, 1))
        made = {k.removeprefix("grad."): v for k, v in peers.weights_to_torch(network).items() if k.startswith("grad.")}
        return float(loss), made, compared(made)

    found["fp32_sqnr_db"] = gradients(network)[2]["sqnr_db"]
    del network
    loss, made, whole = gradients(run.network)
    each = {key: errors(wanted[key], made[key])["sqnr_db"] for key in weights}
    finite = {key: value for key, value in each.items() if value is not None}
    least = min(finite, key=lambda key: finite[key])
    found |= {
        "loss": loss, "torch_loss": wanted_loss, "sqnr_db": whole["sqnr_db"], "cosine": whole["cosine"],
        "simulated_sqnr_db": compared(simulated["all"])["sqnr_db"],
        "simulated_parts_db": {part: compared(simulated[part])["sqnr_db"] for part in PARTS},
        "sqnr_median_db": statistics.median(finite.values()), "sqnr_least_db": finite[least],
        "least": run.network.nodes[int(least.split(".")[0])].name, "weights": len(weights),
    }  # fmt: skip
    return found | ratio(run, imported, seconds)


def ratio(run: Run, imported: graph.Imported, seconds: float) -> dict[str, Any]:
    """Medians of steps that take turns, in seconds of one thread."""
    images, labels = run.batch(1)
    kinds = ("contiguous", "channels_last") if images.ndim == 4 else ("contiguous",)
    totals: list[float] = []
    times: dict[str, list[float]] = {}
    steps: list[tuple[Callable[[], None], list[float]]] = [(stepper(run, Clock(), []), totals)]
    others = peers.torch_steps(run.layers, images, labels, "sgd", LR, core.threads(), kinds, run.source)
    steps += [(step, times.setdefault(kind, [])) for kind, step in others.items()]
    for step, _ in steps:
        for _ in range(2):
            step()
    begun = time.perf_counter()
    while len(totals) < 3 or time.perf_counter() - begun < seconds:
        for step, values in steps:
            before = time.perf_counter()
            step()
            values.append(time.perf_counter() - before)
    best = min(times, key=lambda kind: statistics.median(times[kind]))
    own, other = statistics.median(totals), statistics.median(times[best])
    return {"octo_s": own, "torch_s": other, "torch": best, "ratio": own / other, "steps": len(totals)}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | exporter | layers | outputs | loss, INT8 | PyTorch | SQNR dB, fp32 | INT8 | simulated | median "
        "| least layer | octo / PyTorch |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "error" in r:
            lines.append(f"| {r['network']} | {r['exporter']} | {r['error']} | | | | | | | | | |")
            continue
        sqnr = [
            f"{r[key]:.1f}" for key in ("fp32_sqnr_db", "sqnr_db", "simulated_sqnr_db", "sqnr_median_db", "sqnr_least_db")
        ]  # fmt: skip
        losses = [f"{r[key]:.4f}" for key in ("loss", "torch_loss")]
        cells = r["network"], r["exporter"], str(r["layers"]), f"{r['outputs']:.1e}", *losses, *sqnr
        lines.append(f"| {' | '.join(cells)} ({r['least']}) | {r['ratio']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="JSON file of the rows, which is added to")
    parser.add_argument("--network", action="append", help="one of the table; repeatable")
    parser.add_argument("--exporter", choices=EXPORTERS, action="append")
    parser.add_argument("--side", type=int, default=96, help="pixels of an image's side (default 96)")
    parser.add_argument("--trained", type=int, default=0, help="steps on CIFAR-10 in PyTorch before the export (default 0)")
    parser.add_argument("--seconds", type=float, default=6, help="of timed steps a row (default 6)")
    parser.add_argument("--table", action="store_true", help="print the table of the file and stop")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.rows.read_text()) if given.rows.exists() else []
    if not given.table:
        import torch

        torch.set_num_threads(core.threads())
        there = {(r["network"], r["exporter"]) for r in rows if "error" not in r}
        rows = [r for r in rows if (r["network"], r["exporter"]) in there]
        known = cases(given.side)
        for name in given.network or known:
            for exporter in given.exporter or EXPORTERS:
                if (name, exporter) in there:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        rows.append(row(name, known[name], exporter, Path(folder), given.seconds, given.trained))
                    except OctosimError as error:
                        rows.append({"network": name, "exporter": exporter, "error": str(error).removeprefix(folder)})
                print(json.dumps(rows[-1]), flush=True)
                given.rows.write_text(json.dumps(rows, indent=1) + "\n")
    order = {name: at for at, name in enumerate(cases(given.side))}
    rows.sort(key=lambda r: (order[r["network"]], EXPORTERS.index(r["exporter"])))
    print(table(rows))
    wrong = [r["network"] for r in rows if r.get("outputs", 1) > LIMIT or "error" in r]
    if wrong:
        sys.exit(f"outputs differ by more than {LIMIT:g}, or the import fails: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
