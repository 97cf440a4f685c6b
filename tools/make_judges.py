"""Figures of other authors' code for tests/methods/judges.json; takes clones of their repositories, and PyTorch.

    python tools/make_judges.py --octo CLONE --niti CLONE --wage CLONE --banner CLONE tests/methods/judges.json

Their code is run as it is, but for what needs a GPU: NITI's devices are the CPU, and integer division truncates as in
PyTorch 1.7, the version of its Dockerfile.  Random numbers of stochastic rounding are the middle of their range.  No code is
taken, figures only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from kit.ramp import ramp


def rounded(values: Any, digits: int = 7) -> list[float]:
    return [float(f"{v:.{digits}g}") for v in np.asarray(values, np.float64).ravel()]


def load(path: Path, text: str | None = None) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    if text is None:
        spec.loader.exec_module(module)
    else:
        exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def octo(clone: Path) -> dict[str, Any]:
    """A convolution with compensation and normalization, forward and backward."""
    sys.path.insert(0, str(clone / "Octo Demo"))
    np.int = int  # type: ignore[attr-defined]
    np.random.random = lambda shape: np.full(shape, 0.5)  # type: ignore[assignment]
    from common import layers
    from quantizer.KMQATScheme import KMQATScheme

    x, w = np.maximum(ramp(7919, 2003, (4, 3, 5, 5)), 0), ramp(104729, 1999, (4, 3, 3, 3)) * 0.3
    mu, offset = ramp(3571, 997, (4, 4, 5, 5)) * 0.2, ramp(6841, 1009, (4, 4, 5, 5)) * 0.2
    conv = layers.Convolution(
        w, ramp(31, 97, (4,)) * 0.1, 1, 1, enable_fp_qat=True, enable_bp_gradient_quantization=True,
        qat_scheme=KMQATScheme.LossAwareCompensation,
    )  # fmt: skip
    lac = layers.Compensation(np.ones_like(mu), mu, offset)
    norm = layers.BatchNormalization(np.ones((4, 100)), np.zeros((4, 100)))
    y = conv.forward(x)
    n = norm.forward(lac.forward(y))
    dz = norm.backward(ramp(15485863, 2011, (4, 4, 5, 5)) * 0.01)
    dx = conv.backward(lac.backward(dz))
    kept = {"y": y[:2], "n": n[:2], "dz": dz[:2], "d_mu": lac.d_mu[:1], "dW": conv.dW, "dx": dx[:2]}
    return {name: rounded(values) for name, values in kept.items()}


def niti(clone: Path) -> dict[str, Any]:
    """Sums shifted to activations and to weight gradients of 3 and 5 bits."""

    class Truncating(torch.Tensor):
        def __floordiv__(self, other: Any) -> Any:
            return torch.div(self, other, rounding_mode="trunc")

    for name in ("cutlassconv_cuda", "int8pool_cuda", "int8mm_cuda", "int8conv_cuda"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["options"] = types.ModuleType("options")
    sys.modules["options"].args = types.SimpleNamespace(weight_frag=False, weight_decay=False, gpus="0", grad_bit=5)  # type: ignore
    path = clone / "ti_torch.py"
    module = load(path, path.read_text().replace("device='cuda'", "device='cpu'"))
    acc = torch.tensor((ramp(7919, 2003, (200,)) * 91234).astype(np.int32)).as_subclass(Truncating)
    codes, exponent = module.act_calc(acc, 3)
    found = {"act": codes.tolist(), "act_exponent": int(exponent)}
    for mu in (3, 5):
        codes, shift = module.grad_calc(acc, mu)
        found |= {f"grad{mu}": codes.tolist(), f"shift{mu}": int(shift)}
    return found


def wage(clone: Path) -> dict[str, Any]:
    """Weights, activations, errors, and updates before they are rounded stochastically."""
    module = load(clone / "models" / "wage_quantizer.py")
    module.SR = lambda x: x
    weights = torch.tensor(np.rint(ramp(104729, 1999, (120,)) * 64) / 128)
    steps = module.QG(torch.tensor(np.rint(ramp(3571, 997, (120,)) * 5000)), 8, 16, 8.0)
    return {
        "weights": rounded(module.QW(weights, 2, 4.0)),
        "activations": rounded(module.Q(module.C(torch.tensor(ramp(7919, 2003, (120,)) * 1.5), 8), 8)),
        "errors": rounded(module.QE(torch.tensor(ramp(31337, 2011, (120,)) * 0.003), 8)),
        "steps": rounded(steps),
    }


def banner(clone: Path) -> dict[str, Any]:
    """Range BN, forward and backward."""
    module = load(clone / "models" / "modules" / "quantize.py")
    torch.Tensor.uniform_ = lambda self, a=0, b=1: self.fill_((a + b) / 2)  # type: ignore
    norm = module.RangeBN(4, num_bits=8, num_bits_grad=8)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 0.5, 1.5, 2.0]), torch.tensor([0.1, -0.2, 0.3, 0.0])
    values = ramp(7919, 2003, (16, 4, 4, 4)) + 0.3 * ramp(31, 97, (1, 4, 1, 1))
    x = torch.tensor(values.astype(np.float32), requires_grad=True)
    y = norm.train()(x)
    y.backward(torch.tensor(ramp(15485863, 2011, (16, 4, 4, 4)).astype(np.float32) * 0.01))
    return {
        "y": rounded(y.detach()[:3]), "dx": rounded(x.grad[:3]), "dgamma": rounded(norm.weight.grad),
        "mean": rounded(norm.running_mean),
    }  # fmt: skip


def fake_quantization() -> dict[str, Any]:
    """PyTorch's own, with a zero point for activations and a scale a channel for weights."""
    x = torch.tensor((ramp(7919, 2003, (150,)) * 2 + 0.7).astype(np.float32))
    w = torch.tensor((ramp(104729, 1999, (5, 30)) * np.arange(1, 6)[:, None]).astype(np.float32))
    low, high = min(float(x.min()), 0), max(float(x.max()), 0)
    scale = float(np.float32((high - low) / 254))
    zero = int(np.rint(-127 - low / scale))
    zeros = torch.zeros(5, dtype=torch.int32)
    return {
        "x": rounded(torch.fake_quantize_per_tensor_affine(x, scale, zero, -127, 127), 9),
        "w": rounded(torch.fake_quantize_per_channel_affine(w, w.abs().amax(1) / 127, zeros, 0, -127, 127), 9),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    makers = {"octo": octo, "niti": niti, "wage": wage, "banner": banner}
    for name in makers:
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("out", type=Path)
    given = vars(parser.parse_args())
    found: dict[str, Any] = {}
    for name, make in makers.items():
        clone = given[name]
        commit = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        found[name] = {"commit": commit, "figures": make(clone)}
    found["qat"] = {"commit": f"torch {torch.__version__}", "figures": fake_quantization()}
    given["out"].write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
