"""Memory of an inference layer by layer: buffers that outputs share where their lifetimes do not overlap."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from octosim.engine.layers import Dropout, Flatten, Reshape
from octosim.engine.nodes import Node
from octosim.trace import with_peak


def is_view(node: Node) -> bool:
    """Whether a layer's output in inference is its input in memory."""
    return isinstance(node.layer, Flatten | Reshape | Dropout)


def assign(nodes: Sequence[Node], in_place: bool = False) -> tuple[dict[int, int], list[int]]:
    """The buffer of each node's output, by the node's index, of the network's input by -1; and the buffers' elements.

    in_place: whether layers that keep their input's shape write over it, where nothing else takes it.
    """
    users = Counter(i for node in nodes for i in node.inputs)
    owner = {-1: -1}
    for node in nodes:
        alone = len(node.inputs) == 1 and users[node.inputs[0]] == 1
        over = in_place and alone and not node.layer.weighted and node.in_shape == node.out_shape
        owner[node.index] = owner[node.inputs[0]] if is_view(node) or over else node.index
    last_use = {owner[i]: node.index for node in nodes for i in node.inputs}
    last_use[owner[nodes[-1].index]] = len(nodes)
    sizes: list[int] = []
    free: list[int] = []
    place: dict[int, int] = {}

    def take(size: int) -> int:
        fits = sorted((sizes[i], i) for i in free if sizes[i] >= size)
        if fits:
            free.remove(fits[0][1])
            return fits[0][1]
        if free:  # the largest free one grows
            largest = max(free, key=lambda buffer: sizes[buffer])
            free.remove(largest)
            sizes[largest] = size
            return largest
        sizes.append(size)
        return len(sizes) - 1

    place[-1] = take(math.prod(nodes[0].in_shape))
    for node in nodes:
        if owner[node.index] == node.index:
            place[node.index] = take(math.prod(node.out_shape))
            free += [place[i] for i, last in last_use.items() if last == node.index and i in place]
    return {i: place[of] for i, of in owner.items()}, sizes


def memory(nodes: Sequence[Node], batch: int, weight: int, value: int, in_c: bool, bordered: bool) -> dict[str, int]:
    """Bytes of an inference, as `engine.plan.memory` has them.

    weight, value: bytes of a matrix' element, in which products take their inputs too, and of a value between layers; numbers
    of channels have four.  in_c: as `octosim export --to c` writes it, whose layers have outputs of their own and whose
    products quantize their input; other software writes over inputs.  bordered: whether it copies a convolution's input with
    a border.
    """
    params = [values for node in nodes for values in node.params.values()]
    products = [node for node in nodes if node.layer.weighted]
    copied = [node for node in products if in_c and weight < value or bordered and len(node.in_shape) == 3]
    return with_peak({
        "weights": sum(values.size * (weight if values.ndim > 1 else 4) for values in params),
        "gradients": 0,
        "optimizer": 0,
        "activations": batch * value * sum(assign(nodes, not in_c)[1]),
        "workspace": batch * weight * max((math.prod(node.in_shape) for node in copied), default=0),
    })  # fmt: skip
