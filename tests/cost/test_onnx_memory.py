"""Memory of ONNX files: quantized ones in each form, codes between layers, and what of them can be trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
from kit.onnx_nets import Builder  # noqa: E402

from octosim import hardware  # noqa: E402
from octosim.cost import memory, runtimes  # noqa: E402
from octosim.errors import OctosimError  # noqa: E402
from octosim.workload import CostQuery, Workload  # noqa: E402
from octosim.workload import source as workload_of  # noqa: E402

SIDE, CHANNELS = 16, 16
WEIGHTS, BIASES = CHANNELS * 9 * (3 + CHANNELS), 2 * CHANNELS
TENSOR = CHANNELS * SIDE * SIDE  # elements between and behind the two convolutions


def quantized(b: Builder, x: str, *scale: str) -> str:
    return b.add("DequantizeLinear", b.add("QuantizeLinear", x, *scale), *scale)


def file_of(kind: str, folder: Path) -> Path:
    """Two convolutions: in floats, around codes (QDQ, and with float weights that are quantized in the step: "fake"), or of
    quantized operators."""
    b, x = Builder(17), "x"
    scale = b.constant(np.float32(0.1)), b.constant(np.int8(0))
    if kind == "operators":
        x = b.add("QuantizeLinear", x, *scale)
    elif kind != "float":
        x = quantized(b, x, *scale)
    for inputs in (3, CHANNELS):
        floats, codes = np.ones((CHANNELS, inputs, 3, 3), np.float32), np.ones((CHANNELS, inputs, 3, 3), np.int8)
        if kind == "operators":
            bias = b.constant(np.ones(CHANNELS, np.int32))
            x = b.add("QLinearConv", x, *scale, b.constant(codes), *scale, *scale, bias, pads=[1] * 4)
            continue
        w = b.add("DequantizeLinear", b.constant(codes), *scale) if kind == "qdq" else b.constant(floats)
        w = quantized(b, w, *scale) if kind == "fake" else w
        x = b.add("Conv", x, w, b.constant(np.ones(CHANNELS, np.float32)), pads=[1] * 4)
        x = x if kind == "float" else quantized(b, x, *scale)
    x = b.add("DequantizeLinear", x, *scale) if kind == "operators" else x
    path = folder / f"{kind}.onnx"
    onnx.save(b.model(x, ("N", 3, SIDE, SIDE)), path)
    return path


def workload(path: Path, dtype: str | None = None, inference: bool = True) -> Workload:
    return workload_of(CostQuery(str(path), None, dtype, inference, None, False))


@pytest.mark.parametrize("kind", ["float", "qdq", "fake", "operators"])
def test_int8_inference_takes_the_same_in_every_form(kind: str, tmp_path: Path) -> None:
    """Weights and the tensors between layers have a byte an element, biases four."""
    pi = hardware.load("pi4")
    made = workload(file_of(kind, tmp_path), "int8")
    assert made.memory
    for batch, runtime, copies in ((1, "armnn", 1), (3, "armnn", 1), (3, "tflite", 0)):  # of an input with its border
        found = made.memory(pi, batch, hardware.load_runtime(runtime))
        assert 0 <= found["weights"] - WEIGHTS - 4 * BIASES < 50, "scales and zero points beside"
        assert found["activations"] == 2 * TENSOR * batch and found["workspace"] == copies * TENSOR * batch
        assert found["peak"] == sum(value for name, value in found.items() if name != "peak")


def test_memory_asks_the_runtime_what_it_keeps_between_layers(tmp_path: Path) -> None:
    """As the time does: int8 codes, float16 where a core has it, or float32."""
    made = workload(file_of("float", tmp_path), "int8")
    assert made.memory and made.largest
    tflite = hardware.load_runtime("tflite")
    floats = tflite.model_copy(update={"codes": "products"})
    halves = tflite.model_copy(update={"codes": "products", "float16": True})
    sizes = []
    for runtime in (tflite, floats, halves):
        pi5 = hardware.load("pi5")
        rules = runtimes.onnx_rules(runtime, pi5, "int8", True)["float_dtype"]
        sizes.append(made.memory(pi5, 1, runtime)["activations"])
        found = memory.memory(tmp_path / "float.onnx", 1, "int8", True, rules, None, runtime.border)
        assert made.memory(pi5, 1, runtime) == found
        assert made.largest(pi5, made.memory(pi5, 7, runtime)["peak"], runtime) == 7
    assert sizes == [2 * TENSOR, 8 * TENSOR, 4 * TENSOR]


@pytest.mark.parametrize(("kind", "why"), [("operators", "it has QLinearConv"), ("qdq", "'t.*' is stored quantized")])
@pytest.mark.parametrize("dtype", [None, "int8", "float32"])
def test_stored_codes_cannot_be_trained(kind: str, why: str, dtype: str | None, tmp_path: Path) -> None:
    path = file_of(kind, tmp_path)
    sentence = rf"{kind}\.onnx is quantized \({why}\), so no training step of it has a price; --inference prices its inference$"
    with pytest.raises(OctosimError, match=sentence):
        workload(path, dtype, inference=False)
    assert workload(path).dtype == "int8"


def test_fake_quantization_is_trained_on_float_weights(tmp_path: Path) -> None:
    """With passes that quantize, and gradients that go through them."""
    pi, own = hardware.load("pi4"), hardware.load_runtime("octosim")
    fake, plain = (workload(file_of(kind, tmp_path), inference=False) for kind in ("fake", "float"))
    ops, floats = (made.ops(pi, 2, own) for made in (fake, plain))
    assert sum(op.macs for op in ops) == sum(op.macs for op in floats) and len(ops) > len(floats)
    assert {op.name for op in ops if op.pass_ == "dX"} >= {"quantizelinear", "dequantizelinear"}
    assert fake.memory and plain.memory
    held, needed = fake.memory(pi, 2, own), plain.memory(pi, 2, own)
    assert held["gradients"] - needed["gradients"] < 50 and held["activations"] >= needed["activations"]
