"""Which parameters a run trains: fine-tuning of a part of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from octosim.engine.nodes import Node
from octosim.errors import ArgumentError, suggest

UPDATES = ("all", "biases", "head")
STATISTICS = ("batch", "frozen")
BIASES = ("b", "beta")
"""Parameters that --update biases trains outside the head: what is added, of weighted layers and of normalizations."""


@dataclass(frozen=True)
class Selection:
    """The rules that choose the trained parameters of a network.

    train: patterns (fnmatch) of layer names; last: the last N weighted layers, each with the normalization behind it.  Together
    they name the trained layers; neither given, all are.  freeze: patterns of layers that are not trained after all.
    update: "all" parameters of these layers; "biases": BIASES alone, and the whole head; "head": the last weighted layer alone.
    channels: (pattern, share) of the output channels of weighted layers: of the trained ones that match, weights and biases of
    the first channels alone, in whole groups and at least one, are trained; the last pattern that matches a layer counts.
    statistics: of batch normalization: "frozen" normalizes with the running statistics, which stay as they are.
    rates: (pattern, factor) on the learning rate; the last pattern that matches a layer counts.
    """

    train: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    last: int | None = None
    update: str = "all"
    statistics: str = "batch"
    rates: tuple[tuple[str, float], ...] = ()
    channels: tuple[tuple[str, float], ...] = ()

    @property
    def everything(self) -> bool:
        """Whether all parameters are trained."""
        return not (self.train or self.freeze or self.channels) and self.last is None and self.update == "all"


ALL = Selection()
"""All parameters are trained."""


def make(
    train: Sequence[str], freeze: Sequence[str], train_last: int | None, update: str, batchnorm_statistics: str,
    rate: Sequence[str], channels: Sequence[str] = (),
) -> Selection:  # fmt: skip
    """The rules of a run's settings, see `train.Config`; OctosimError where one of `rate` is not PATTERN=FACTOR, or of
    `channels` not PATTERN=SHARE."""
    rates, shares = parse_rates("{rate}", rate), parse_shares("{channels}", channels)
    return Selection(tuple(train), tuple(freeze), train_last, update, batchnorm_statistics, rates, shares)


def parse_rates(option: str, rates: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """("conv*=0.1",) -> (("conv*", 0.1),); OctosimError where one is not PATTERN=FACTOR."""
    return _by_pattern(rates, float("inf"), f"{option} takes PATTERN=FACTOR with a factor above 0, as in conv*=0.1")


def parse_shares(option: str, shares: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """("conv*=0.25",) -> (("conv*", 0.25),); OctosimError where one is not PATTERN=SHARE."""
    return _by_pattern(shares, 1.0, f"{option} takes PATTERN=SHARE with a share above 0 and at most 1, as in conv*=0.25")


def _by_pattern(texts: Sequence[str], most: float, expected: str) -> tuple[tuple[str, float], ...]:
    found = []
    for text in texts:
        pattern, equals, factor = text.rpartition("=")
        try:
            value = float(factor)
        except ValueError:
            value = -1.0
        if not equals or not pattern or not 0 < value <= most or value == float("inf"):
            raise ArgumentError(f"{expected}, not '{text}'")
        found.append((pattern, value))
    return tuple(found)


def _owners(nodes: Sequence[Node]) -> dict[int, int]:
    """By node, the weighted layer that it belongs to: itself, or the one that its first input comes from; -1 without one."""
    found = {-1: -1}
    for node in nodes:
        found[node.index] = node.index if node.layer.weighted else found[node.inputs[0]]
    return found


def _matching(option: str, pattern: str, nodes: Sequence[Node]) -> set[int]:
    names = {node.name: node.index for node in nodes if node.params}
    found = {index for name, index in names.items() if fnmatchcase(name, pattern)}
    if not found:
        raise ArgumentError(f"{option} '{pattern}' matches no layer with parameters" + suggest(pattern, names))
    return found


def apply(selection: Selection, nodes: Sequence[Node]) -> None:
    """Marks the parameters that are not trained (`Node.frozen`), the layers that take part in the backward pass
    (`Node.backward`) and normalizations with running statistics (`Node.running`), and sets `Node.rate`.

    OctosimError where a rule names no layer, or nothing is left to train.
    """
    for name, value, known in (
        ("update", selection.update, UPDATES), ("batchnorm_statistics", selection.statistics, STATISTICS),
    ):  # fmt: skip
        if value not in known:
            raise ArgumentError(f"{{{name}}} must be one of {', '.join(known)}, not '{value}'")
    chosen = {node.index for node in nodes if node.params}
    weighted = [node.index for node in nodes if node.layer.weighted]
    owners = _owners(nodes)
    if selection.train or selection.last is not None:
        chosen = set()
        for pattern in selection.train:
            chosen |= _matching("{train}", pattern, nodes)
    if selection.last is not None:
        if not 1 <= selection.last <= len(weighted):
            raise ArgumentError(
                f"{{train_last}} must be in 1 .. {len(weighted)}, the network's weighted layers, not {selection.last}"
            )
        last = set(weighted[-selection.last :])
        chosen |= {node.index for node in nodes if node.params and owners[node.index] in last}
    for pattern in selection.freeze:
        chosen -= _matching("{freeze}", pattern, nodes)
    if selection.update == "head":
        chosen &= set(weighted[-1:])
    for pattern, factor in selection.rates:
        for index in _matching("{rate}", pattern, nodes):
            nodes[index].rate = factor
    for node in nodes:
        kept = set(node.params) if node.index in chosen else set()
        if selection.update == "biases" and node.index != weighted[-1]:
            kept &= set(BIASES)
        node.frozen = set(node.params) - kept
    _choose_channels(selection.channels, nodes)
    if not any(node.trained for node in nodes):
        raise ArgumentError("{train}, {train_last}, {freeze} and {update} leave nothing to train")
    needs = {-1: False}
    for node in nodes:
        node.backward = needs[node.index] = bool(node.trained) or any(needs[i] for i in node.inputs)
        normalizes = node.layer.stem == "bn" and node.backward
        node.running = normalizes and (selection.statistics == "frozen" or node.frozen >= set(node.params))
        source = nodes[node.inputs[0]]
        if node.running and source.normalized and source.layer.weighted:  # statistics that stay do not subtract a bias
            source.zero_grad_params = set() if source.layer.bias else {"b"}


def _choose_channels(shares: Sequence[tuple[str, float]], nodes: Sequence[Node]) -> None:
    """Sets `Node.outputs` of the layers that rules name; OctosimError where one names no weighted layer."""
    for pattern, share in shares:
        for index in _matching("{channels}", pattern, [node for node in nodes if node.layer.weighted]):
            node = nodes[index]
            filters, group = node.out_shape[-1], node.layer.outputs_of_a_group(node.in_shape)
            count = group * max(1, math.ceil(filters * share / group))
            node.outputs = None if count >= filters else count


def trained(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """The trained parameters by layer."""
    return {node.name: sorted(node.trained) for node in nodes if node.trained}
