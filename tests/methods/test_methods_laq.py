"""LAQ and BLAQ against a direct transcription of their equations in float64, brute force, and the paper's toy."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from kit import few_levels
from kit import hooks as direct

from octosim import core, methods, train
from octosim.engine import optimizers
from octosim.engine.layers import Linear
from octosim.engine.nodes import Context, Node
from octosim.errors import OctosimError
from octosim.methods import laq

F = np.float32
ISAS = [name for name, supported in core.isas().items() if supported]


# ---- the fit --------------------------------------------------


def fit(w, d, bits, codes, exact=False):
    """beta n and alpha, in float64."""
    n = 1 if bits == 1 else 2 ** (bits - 1) - 1
    if bits == 1:
        return np.where(w < 0, -1, 1), (d * np.abs(w)).sum() / d.sum()
    if exact:
        return min(
            ((np.where(np.abs(w) >= t, np.sign(w), 0), (d * np.abs(w))[np.abs(w) >= t].sum() / d[np.abs(w) >= t].sum())
             for t in np.abs(w).ravel()),
            key=lambda found: (d * (w - found[1] * found[0]) ** 2).sum(),
        )  # fmt: skip
    alpha = 0.0
    for _ in range(10):
        beta, before = codes / n, alpha
        alpha = abs((beta * d * w).sum()) / (beta * d * beta).sum() if codes.any() else np.abs(w).max()
        codes = np.rint(np.clip(w / alpha, -1, 1) * n)
        if abs(alpha - before) <= 1e-6:
            break
    return codes, alpha


def tensors(seed: int, size: int = 8):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.4, size).astype(F), rng.uniform(0.1, 3, size).astype(F)


@pytest.mark.parametrize("seed", range(20))
def test_exact_ternary_is_the_best_of_all_codes(seed: int) -> None:
    w, d = tensors(seed)

    def error(codes):
        below = (d * codes**2).sum()
        alpha = (d * w * codes).sum() / below if below else 0
        return (d * (w - alpha * codes) ** 2).sum()

    best = min(error(np.array(codes)) for codes in itertools.product((-1, 0, 1), repeat=w.size))
    codes, alpha = few_levels.ternary_exact(w, d)
    assert (d * (w - alpha * codes) ** 2).sum() == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_binary_alpha_is_the_best(seed: int) -> None:
    w, d = tensors(seed)
    codes, alpha = few_levels.binary(w, d)
    errors = [(d * (w - a * codes) ** 2).sum() for a in (alpha * F(0.999), alpha, alpha * F(1.001))]
    assert np.array_equal(codes, np.where(w < 0, -1, 1)) and min(errors) == errors[1]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_iterated_fit_ends_where_both_equations_hold(bits: int) -> None:
    w, d = tensors(bits, 500)
    n, codes = laq.levels(bits), np.zeros(w.shape, np.int8)
    for _ in range(10):
        codes, alpha = few_levels.iterated(w, d, n, codes)
    beta = codes / n
    assert n == 2 ** (bits - 1) - 1 and np.abs(codes).max() <= n
    assert alpha == pytest.approx((d * beta * w).sum() / (d * beta**2).sum(), rel=1e-5)
    assert np.array_equal(codes, np.rint(np.clip(w / alpha, -1, 1) * n))


def test_zeros() -> None:
    zeros, ones = np.zeros(5, F), np.ones(5, F)
    for codes, alpha in (few_levels.iterated(zeros, ones, 3, zeros.astype(np.int8)), few_levels.ternary_exact(zeros, ones)):
        assert not codes.any() and alpha == 0
    assert few_levels.binary(zeros, ones)[1] == 0


# ---- whole steps --------------------------------------------------


def moments(optimizer, t, g, slots):
    """Direction, curvature and slots of Adam or SGD with momentum."""
    if optimizer == "sgd":
        v = 0.9 * slots["v"] + g
        return v, np.ones_like(g), {"v": v}
    b1, b2 = float(F(0.9)), float(F(0.999))  # the core takes them in float32
    m, v = b1 * slots["m"] + (1 - b1) * g, b2 * slots["v"] + (1 - b2) * g * g
    return m / (1 - 0.9**t), np.sqrt(v / (1 - 0.999**t)) + 1e-7, {"m": m, "v": v}


@pytest.mark.parametrize("name", ["laq", "blaq"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("bits", "ternary"), [(bits, "iterated") for bits in (1, 2, 3, 4, 8)] + [(2, "exact")])
def test_three_steps(name: str, optimizer: str, bits: int, ternary: str) -> None:
    parameters = {"weight_bits": bits, "ternary": ternary} | ({"period": 1, "blend": 0.7} if name == "blaq" else {})
    network, images, labels = direct.network_and_batch(name, parameters)
    network.method = direct.Recorder(network.method)
    made = optimizers.make(optimizer, 0.02)
    slots = {
        f"{n.name}.{k}": {s: np.zeros_like(v) for s in made.slots} for n in network.nodes for k, v in n.params.items()
    }
    weighted = [n for n in network.nodes if n.layer.weighted]
    exact, n_levels = ternary == "exact", 1 if bits == 1 else 2 ** (bits - 1) - 1
    model = {}
    for node in weighted:
        w = node.params["w"].astype(float)
        codes, alpha = fit(w, np.ones_like(w), bits, np.zeros_like(w), exact)
        assert np.array_equal(node.state["codes"], codes) and node.state["alpha"][0] == pytest.approx(alpha, rel=2e-6)
        alpha = float(node.state["alpha"][0])
        model[node.name] = dict(w=w, codes=codes, alpha=alpha, slots={s: np.zeros_like(w) for s in made.slots},
                                sign=np.zeros_like(w), flips=0, changes=0)  # fmt: skip
    biases = {n.name: n.params["b"].copy() for n in weighted}
    for step in (1, 2, 3):
        seen: list[dict] = []

        def gradients(step=step, seen=seen):
            loss, _ = network.gradients(images, labels, Context(True, 3, step, step))
            seen.append({key: dict(value) for key, value in network.method.seen.items()})
            return loss

        context, method = Context(True, 3, step, epoch=step), network.method.method
        update = optimizers.Update(made, method, context, 0.02, made.corrections(step), network.nodes, slots)
        method.step(network.nodes, gradients, update, context)
        assert len(seen) == (2 if name == "blaq" else 1)
        for node in weighted:
            at, own = seen[0][node.name], model[node.name]
            hat = own["codes"] * own["alpha"] / n_levels
            assert direct.close(at["y"], direct.forward(at["x"], hat) + at["b"])
            assert direct.close(at["dw"], direct.weight_grad(at["x"], at["dy"], hat.shape), 10 * np.abs(at["dw"]))
            if "dx" in at:
                assert direct.close(at["dx"], direct.input_grad(at["dy"], hat))
            w, g = own["w"], at["dw"].astype(float)
            direction, d, after = moments(optimizer, step, g, own["slots"])
            if name == "blaq":
                trial_w = np.clip(w - 0.02 * direction / d, -1, 1)
                codes, alpha = fit(trial_w, d, bits, own["codes"], exact)
                tried = seen[1][node.name]
                assert direct.close(tried["y"], direct.forward(tried["x"], codes * alpha / n_levels) + tried["b"])
                assert np.array_equal(tried["b"], at["b"])  # only the weights are tried
                trial_g = tried["dw"].astype(float)
                trial_d = moments(optimizer, step + 1, trial_g, after)[1]
                direction, _, after = moments(optimizer, step, 0.7 * g + 0.3 * trial_g, own["slots"])
                d = 0.7 * d + 0.3 * trial_d
            new = np.clip(w - 0.02 * direction / d, -1, 1)
            codes, alpha = fit(new, d, bits, own["codes"], exact)
            assert direct.close(node.params["w"], new)
            assert np.array_equal(node.state["codes"], codes) and node.state["alpha"][0] == pytest.approx(alpha, rel=2e-6)
            for key, value in after.items():
                assert np.allclose(slots[f"{node.name}.w"][key], value, rtol=1e-5, atol=1e-9)
            sign = np.sign(node.params["w"].astype(F) - at["w"])
            own["flips"] += (sign * own["sign"] < 0).sum()
            own["changes"] += (codes != own["codes"]).sum()
            own |= dict(w=node.params["w"].astype(float), codes=codes, alpha=float(node.state["alpha"][0]),
                        slots={k: v.astype(float) for k, v in slots[f"{node.name}.w"].items()},
                        sign=np.where(sign == 0, own["sign"], sign))  # fmt: skip
            # biases take the first pass's gradient
            if step == 1:
                step_b = moments(optimizer, 1, at["db"].astype(float), {s: np.zeros_like(at["db"]) for s in made.slots})
                assert np.allclose(node.params["b"], biases[node.name] - 0.02 * step_b[0] / step_b[1], rtol=1e-4, atol=1e-7)
    counted = network.method.method.metrics(network.nodes)
    assert counted["steps"] == 3
    for node in weighted:
        size, own = node.params["w"].size, model[node.name]
        assert counted["update_sign_flips"][node.name] == own["flips"] / size
        assert counted["level_changes"][node.name] == own["changes"] / size
    assert network.method.method.metrics(network.nodes)["steps"] == 0


def test_the_trial_leaves_running_statistics_alone() -> None:
    runs = [train.Run(train.Config(model="lenet5", method="blaq", batch_size=50, parameters={"period": p})) for p in (1, 2)]
    for run in runs:
        run.train_step()
    first, second = (run.network.tensors() for run in runs)
    for key in ("bn1.mean", "bn1.var", "bn1.gamma", "conv1.b"):
        assert np.array_equal(first[key], second[key])
    assert not np.array_equal(first["conv1.w"], second["conv1.w"])


# ---- the paper's toy: f(w) = c |w|^(3/2) with its own curvature --------------------------------------------------


class Newton:
    """An optimizer that knows the second derivative."""

    lr = 1.0
    optimizer = SimpleNamespace(slots=())

    def __init__(self, node: Node):
        self.node = node

    def newton(self, node, g, slots=None, *, direction=None, curvature=None, after=None):
        if direction is not None:
            direction[:] = g
        if curvature is not None:
            curvature[:] = F(0.75) / np.sqrt(np.abs(node.params["w"]))

    def all(self) -> None:
        w, d = self.node.params["w"], np.empty((1, 1), F)
        self.newton(self.node, None, curvature=d)
        w -= self.node.grads["w"] / d

    def rate(self, node) -> float:
        return self.lr

    def set_slots(self, node, slots) -> None:
        pass


def toy(name: str, steps: int, **parameters) -> list[float]:
    method = methods.make(name, {"weight_bits": 1, **parameters})
    node = Node("w", 0, Linear(1), (1,), (1,))
    node.params["w"] = np.array([[0.5]], F)
    method.init(node, 0)

    def gradients() -> float:
        w = node.state["codes"] * node.state["alpha"]
        node.grads["w"] = (F(1.5) * np.sign(w) * np.sqrt(np.abs(w))).astype(F)
        return float(np.abs(w[0, 0]) ** 1.5)

    found = []
    for step in range(1, steps + 1):
        method.step([node], gradients, Newton(node), Context(True, 0, step, 1))
        found.append(float(node.state["codes"][0, 0] * node.state["alpha"][0]))
    return found


def test_laq_oscillates_on_the_toy() -> None:
    """w_1 = w_0 - f'/f'' = -w_0, for ever."""
    assert toy("laq", 6) == pytest.approx([-0.5, 0.5, -0.5, 0.5, -0.5, 0.5], rel=1e-5)


@pytest.mark.parametrize("a", [0.6, 0.7])
def test_blaq_does_not(a: float) -> None:
    """The trial's gradient is the opposite: w_1 = w_0 (1 - 2 (2 a - 1))."""
    assert toy("blaq", 6, period=1, blend=a) == pytest.approx([0.5 * (3 - 4 * a) ** k for k in range(1, 7)], rel=1e-4)


# ---- runs --------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "parameters"), [("adam", {"weight_bits": 2, "ternary": "exact"}), ("sgd", {"weight_bits": 1})]
)
def test_blaq_is_the_same_everywhere_and_resumes(parameters: dict, optimizer: str, tmp_path: Path) -> None:
    """Epochs of two batches, every second one with the trial; metrics stand in the records of their ends."""
    before = core.isa(), core.threads()
    config = train.Config(
        model="mlp", method="blaq", parameters={"period": 2, **parameters}, optimizer=optimizer, batch_size=2500, epochs=3
    )
    digests = set()
    for isa, threads in [(ISAS[0], 2), (ISAS[-1], 1), (ISAS[-1], 3)]:
        core.set_isa(isa)
        core.set_threads(threads)
        run = train.Run(config)
        records = [run.advance() for _ in range(6)]
        digests.add(run.digest())
        assert [r["step"] for r in records if "metrics" in r] == [2, 4, 6] and records[1]["metrics"]["steps"] == 2
    core.set_isa(before[0])
    core.set_threads(before[1])

    def stop(progress: train.Progress) -> None:
        if progress.step == 4:  # the last checkpoint is of step 3, in the middle of the second epoch
            raise OSError

    with pytest.raises(OctosimError):
        train.train(train.create(config, tmp_path / "run", "test"), tmp_path / "run", stop, every=1)
    resumed = train.reopen(tmp_path / "run")
    assert resumed.step == 3 and train.train(resumed, tmp_path / "run")
    assert digests == {train.read_digest(tmp_path / "run")}
    assert train.verify(tmp_path / "run").equal


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("laq", {"weight_bits": 5}, "laq: weight_bits must be 1, 2, 3, 4 or 8, not 5"),
        ("blaq", {"weight_bits": 0}, "blaq: weight_bits must be"),
        ("blaq", {"blend": 1.5}, "blend must be in [0, 1]"),
        ("blaq", {"period": 0}, "period must be at least 1"),
        ("laq", {"period": 2}, "has no parameter 'period'"),
    ],
)
def test_refusals(name: str, parameters: dict, words: str) -> None:
    with pytest.raises(OctosimError) as caught:
        methods.make(name, parameters)
    assert words in str(caught.value)
