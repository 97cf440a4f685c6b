"""A rewrite of a network's passes: what stands beside a batch normalization or an addition is done in its pass over memory.

Only passes change: nodes keep their numbers, which random streams and checkpoints go by.  A method's own passes, and those of
layers derived from these, are not touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octosim.engine.layers import Add, BatchNorm, Flatten, MaxPool, ReLU
from octosim.engine.layers.add import FusedAdd
from octosim.engine.layers.base import Unweighted
from octosim.engine.layers.batchnorm import FusedBatchNorm, PooledBatchNorm
from octosim.engine.nodes import Context, Method, Node


class Done(Unweighted):
    """A ReLU or a max pooling that the pass before it has done already."""

    def forward(self, node: Node, x: Any, method: Method, context: Context) -> Any:
        return x

    def input_grad(self, node: Node, dy: Any, method: Method, context: Context) -> Any:
        return dy


@dataclass(frozen=True)
class Fusion:
    """passes: of the nodes.  sums_y, sums_dx: nodes whose output, or input gradient, may stay int32 accumulators
    (`core.LazyDequant`): its only consumer takes them.  pairs: nodes whose gradients from two consumers stay apart
    (`core.LazyAdd`) until the addition in front of them sums them.  aliases: nodes that pass on what they are given."""

    passes: list[Any]
    sums_y: frozenset[int] = frozenset()
    sums_dx: frozenset[int] = frozenset()
    pairs: frozenset[int] = frozenset()
    aliases: frozenset[int] = frozenset()


def unfused(nodes: Sequence[Node], passes: list[Any]) -> Fusion:
    """Nothing is rewritten."""
    return Fusion(passes, aliases=frozenset(node.index for node in nodes if isinstance(node.layer, Flatten)))


def fuse(nodes: Sequence[Node], passes: list[Any], poolings: bool = True) -> Fusion:
    """Batch norm + ReLU, with the max pooling behind where wanted, and residual add + ReLU become one pass; normalizations and
    additions take accumulators."""
    users = Counter(i for node in nodes for i in node.inputs)
    fused, before = list(passes), unfused(nodes, passes)
    sums_y, sums_dx, pairs, aliases = set[int](), set[int](), set[int](), set(before.aliases)

    def alone(index: int, *kinds: type) -> bool:
        """Whether a node has one of these passes and one consumer."""
        return index >= 0 and type(fused[index]) in kinds and users[index] == 1

    for node in nodes:
        source = node.inputs[0]
        if type(fused[node.index]) is ReLU and alone(source, BatchNorm, Add):
            was = fused[source]
            fused[source] = FusedAdd(relu=True) if type(was) is Add else FusedBatchNorm(was.eps, was.momentum, relu=True)
            fused[node.index] = Done()
            aliases.add(node.index)
            if type(was) is Add and users[node.index] == 2:
                pairs |= {source, node.index}
        elif poolings and type(fused[node.index]) is MaxPool and alone(source, Done):
            norm, pool = nodes[source].inputs[0], fused[node.index]
            was = fused[norm]
            if type(was) is FusedBatchNorm and not nodes[norm].running and pool.usual and pool.kernel == pool.stride:
                fused[norm], fused[node.index] = PooledBatchNorm(was.eps, was.momentum, pool), Done()
                aliases.add(node.index)
        elif type(fused[node.index]) is BatchNorm and source >= 0 and nodes[source].normalized:
            sums_y.add(source)
    for node in nodes:
        source, between = node.inputs[0], list[int]()
        pair = source in pairs
        while alone(source, Done):
            between.append(source)
            source = nodes[source].inputs[0]
        if node.layer.weighted and (pair or alone(source, BatchNorm, FusedBatchNorm, PooledBatchNorm)):
            sums_dx.update((node.index, *between))
        if type(fused[node.index]) in (Add, FusedAdd):
            if not all(i >= 0 and nodes[i].backward for i in node.inputs):  # one of them takes the gradient
                fused[node.index] = FusedAdd(relu=fused[node.index].relu, shares_dy=True)
                continue
            first, second = max(node.inputs), min(node.inputs)
            while alone(first, Done):
                first = nodes[first].inputs[0]
            # backward, the first is done with the gradient before the second, or another user of the second's, gets it
            apart = all(second not in other.inputs for other in nodes[first + 1 : node.index])
            if first > second and apart and alone(first, BatchNorm, FusedBatchNorm):
                was = fused[first]
                fused[first] = FusedBatchNorm(was.eps, was.momentum, relu=was.relu, keeps_dy=True)
                fused[node.index] = FusedAdd(relu=fused[node.index].relu, shares_dy=True)
    return Fusion(fused, *map(frozenset, (sums_y, sums_dx, pairs, aliases)))
