"""Several nodes of ONNX that are one layer: found by their operators and constants before the nodes are walked."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

from octosim.onnxfile import OnnxModel, attribute


class Patterns:
    """Replaces nodes of a model.  A pattern begins at an operator that is rare elsewhere; its inner tensors have one user.

    Of a quantized file, patterns are looked for in the nodes without the pairs QuantizeLinear and DequantizeLinear between.
    """

    def __init__(self, model: OnnxModel):
        self.model = model
        self.nodes, before = _without_pairs(model)
        self.maker = {name: node for node in self.nodes for name in node.output if name}
        self.users: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.outside = {before.get(name, name) for name in model.outputs}
        self.gone: set[int] = set()
        self.put: dict[int, Any] = {}  # by id of the node whose place it takes

    def run(self) -> None:
        for node in self.nodes:
            rule = RULES.get(node.op_type) if not node.domain else None
            if rule and id(node) not in self.gone:
                with contextlib.suppress(LookupError, TypeError, ValueError):  # a malformed node is told where it is walked
                    rule(self, node)
        looked_at = iter(self.nodes)
        made = {*self.model.inputs, *self.model.constants}
        kept: list[Any] = []
        for node in self.model.nodes:
            if node.op_type in PAIR:
                node = node if node.input[0] in made else None  # of an inner tensor of a pattern
            else:
                seen = next(looked_at)
                node = self.put.get(id(seen)) if id(seen) in self.gone else node
            if node is not None:
                kept.append(node)
                made.update(node.output)
        self.model.nodes[:] = kept

    # ---- what rules use

    def user(self, node: Any, *kinds: str) -> Any:
        """The only user of a node's output, if it is of these kinds; else None."""
        users = self.users.get(node.output[0], [])
        alone = len(users) == 1 and node.output[0] not in self.outside
        return users[0] if alone and users[0].op_type in kinds else None

    def scalar(self, name: str) -> float | None:
        value = self.model.small(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def constant(self, node: Any) -> tuple[str, float | None]:
        """The other input of a node with a scalar: its name, and the scalar."""
        first, second = (self.scalar(name) for name in node.input[:2])
        return (node.input[1], first) if first is not None else (node.input[0], second)

    def made_by(self, name: str, *kinds: str) -> Any:
        node = self.maker.get(name)
        return node if node is not None and node.op_type in kinds and id(node) not in self.gone else None

    def replace(self, nodes: list[Any], op: str, inputs: list[str], **attributes: Any) -> None:
        """One node in place of several; the last of them makes the output.  Nothing where others take an inner tensor."""
        import onnx

        last, ids = nodes[-1], {id(node) for node in nodes}
        inner = [node.output[0] for node in nodes[:-1]]
        if self.outside.intersection(inner) or any(id(user) not in ids for name in inner for user in self.users.get(name, [])):
            return
        made = onnx.helper.make_node(op, inputs, [last.output[0]], name=last.name, domain="", **attributes)
        self.gone.update(id(node) for node in nodes)
        self.put[id(last)] = made
        for node in nodes[:-1]:
            self.put.pop(id(node), None)


PAIR = ("QuantizeLinear", "DequantizeLinear")


def _without_pairs(model: OnnxModel) -> tuple[list[Any], dict[str, str]]:
    """The nodes that quantize nothing, each of what stands before such a pair, and that by the pair's output."""
    before: dict[str, str] = {}
    found: list[Any] = []
    for node in model.nodes:
        inputs = [before.get(name, name) for name in node.input]
        if node.op_type in PAIR:
            before[node.output[0]] = inputs[0]
            continue
        if inputs != list(node.input):
            given, node = node, type(node)()
            node.CopyFrom(given)
            node.input[:] = inputs
        found.append(node)
    return found, before


def near(a: float | None, b: float) -> bool:
    return a is not None and math.isclose(a, b, rel_tol=1e-3)


def _gelu(p: Patterns, erf: Any) -> None:
    """x / 2 (1 + erf(x / sqrt 2)), its factors in any order."""
    scaled = p.made_by(erf.input[0], "Div", "Mul")
    plus = p.user(erf, "Add")
    if scaled is None or plus is None or not near(p.constant(plus)[1], 1):
        return
    x, factor = p.constant(scaled)
    if not near(factor, math.sqrt(2) if scaled.op_type == "Div" else math.sqrt(0.5)):
        return
    _times_half(p, [scaled, erf], plus, x)


def _times_half(p: Patterns, nodes: list[Any], plus: Any, x: str, **attributes: Any) -> None:
    """x / 2 times what `plus` makes: with the nodes before it a GELU."""
    times = p.user(plus, "Mul")
    if times is None:
        return
    other = next((name for name in times.input if name != plus.output[0]), "")
    if near(p.constant(times)[1], 0.5):
        last = p.user(times, "Mul")
        if last is not None and x in last.input:
            p.replace([*nodes, plus, times, last], "Gelu", [x], **attributes)
        return
    half = p.made_by(other, "Mul", "Div")
    if half is not None and p.constant(half)[0] == x and near(p.constant(half)[1], 0.5 if half.op_type == "Mul" else 2):
        p.replace([*nodes, plus, half, times], "Gelu", [x], **attributes)
        return
    last = p.user(times, "Mul", "Div")
    if last is not None and other == x and near(p.constant(last)[1], 0.5 if last.op_type == "Mul" else 2):
        p.replace([*nodes, plus, times, last], "Gelu", [x], **attributes)


def _gelu_tanh(p: Patterns, tanh: Any) -> None:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), as BERT and Keras have it."""
    scaled, plus = p.made_by(tanh.input[0], "Mul"), p.user(tanh, "Add")
    if scaled is None or plus is None or not near(p.constant(plus)[1], 1):
        return
    if not near(p.constant(scaled)[1], math.sqrt(2 / math.pi)):
        return
    inner = p.made_by(p.constant(scaled)[0], "Add")
    for x, cubic in () if inner is None else (inner.input[:2], inner.input[1::-1]):
        last = p.made_by(cubic, "Mul")
        if last is None or not near(p.constant(last)[1], 0.044715):
            continue
        power = p.made_by(p.constant(last)[0], "Pow", "Mul")
        if power is None:
            continue
        if power.op_type == "Pow":
            nodes, is_cube = [power], power.input[0] == x and near(p.scalar(power.input[1]), 3)
        else:
            square = next((each for name in power.input if (each := p.made_by(name, "Mul")) is not None), None)
            nodes = [square, power]
            is_cube = square is not None and list(square.input) == [x, x] and x in power.input
        if is_cube:
            _times_half(p, [*nodes, last, inner, scaled, tanh], plus, x, approximate="tanh")
            return


def _gated(name: str) -> Callable[[Patterns, Any], None]:
    """x times a function of x."""

    def rule(p: Patterns, node: Any) -> None:
        if node.op_type == "HardSigmoid" and not (
            near(attribute(node, "alpha", 0.2), 1 / 6) and near(attribute(node, "beta", 0.5), 0.5)
        ):
            return
        times = p.user(node, "Mul")
        if times is not None and node.input[0] in times.input:
            p.replace([node, times], name, [node.input[0]])

    return rule


def _hard(p: Patterns, clip: Any) -> None:
    """clip(x + 3, 0, 6) / 6, alone or times x."""
    limits = [p.scalar(name) for name in clip.input[1:3]] or [attribute(clip, "min"), attribute(clip, "max")]
    low, high = limits if len(limits) == 2 else (None, None)
    plus = p.made_by(clip.input[0], "Add")
    if plus is None or low != 0 or high != 6 or not near(p.constant(plus)[1], 3) or p.user(plus, "Clip") is None:
        return
    x = p.constant(plus)[0]
    user = p.user(clip, "Mul", "Div")
    if user is None:
        return

    def sixth(node: Any) -> bool:
        return near(p.constant(node)[1], 6 if node.op_type == "Div" else 1 / 6)

    if x in user.input and user.op_type == "Mul":
        last = p.user(user, "Mul", "Div")
        if last is not None and sixth(last):
            p.replace([plus, clip, user, last], "HardSwish", [x])
    elif sixth(user):
        last = p.user(user, "Mul")
        if last is not None and x in last.input:
            p.replace([plus, clip, user, last], "HardSwish", [x])
        else:
            p.replace([plus, clip, user], "HardSigmoid", [x], alpha=1 / 6, beta=0.5)


def _shuffle(p: Patterns, node: Any) -> None:
    """Channels split into groups, the two axes exchanged, and joined again."""
    shapes = p.model.shapes
    x, split = shapes.get(node.input[0]), shapes.get(node.output[0])
    turned = p.user(node, "Transpose")
    if x is None or split is None or turned is None or len(x) != 4 or len(split) != 5 or split[3:] != x[2:] or split[0] != x[0]:
        return
    last = p.user(turned, "Reshape")
    if last is not None and list(attribute(turned, "perm") or []) == [0, 2, 1, 3, 4] and shapes.get(last.output[0]) == x:
        p.replace([node, turned, last], "ChannelShuffle", [node.input[0]], groups=split[1])


def _layernorm(p: Patterns, power: Any) -> None:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) gamma + beta over the last axis, as files of opsets before 17 have it."""
    minus = p.made_by(power.input[0], "Sub")
    square = power.op_type == "Pow" and near(p.scalar(power.input[1]), 2) or power.input[0] == power.input[-1]
    mean = p.made_by(minus.input[1], "ReduceMean") if minus is not None else None
    variance = p.user(power, "ReduceMean")
    plus = p.user(variance, "Add") if variance is not None else None
    root = p.user(plus, "Sqrt") if plus is not None else None
    over = p.user(root, "Div") if root is not None else None
    if over is None or mean is None or not square or over.input[0] != minus.output[0] or mean.input[0] != minus.input[0]:
        return
    x, eps = minus.input[0], p.constant(plus)[1]
    rank = len(p.model.shapes.get(x, ()))
    for each in (mean, variance):
        axes = attribute(each, "axes")
        if axes is None and len(each.input) > 1:
            given = p.model.small(each.input[1])
            axes = None if given is None else given.tolist()
        if axes is None or [axis % max(1, rank) for axis in axes] != [rank - 1]:
            return
    scale = p.user(over, "Mul")
    shift = p.user(scale, "Add") if scale is not None else None
    if shift is None or eps is None:
        return
    gamma = next((name for name in scale.input if name in p.model.constants), "")
    beta = next((name for name in shift.input if name in p.model.constants), "")
    if gamma and beta:
        nodes = [mean, minus, power, variance, plus, root, over, scale, shift]
        p.replace(nodes, "LayerNormalization", [x, gamma, beta], axis=-1, epsilon=eps)


RULES: dict[str, Callable[[Patterns, Any], None]] = {
    "Erf": _gelu,
    "Tanh": _gelu_tanh,
    "Sigmoid": _gated("Swish"),
    "HardSigmoid": _gated("HardSwish"),
    "Clip": _hard,
    "Reshape": _shuffle,
    "Pow": _layernorm,
}


def join(model: OnnxModel) -> None:
    """Replaces the nodes of each pattern by one."""
    Patterns(model).run()

