"""Attention: its projections are linear layers, its two products those of each head."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from octosim.engine.layers import Linear
from octosim.engine.nodes import Node
from octosim.errors import OctosimError
from octosim.torch.modules import EngineLinear, EngineModule, checked, run_passes
from octosim.torch.products import Session


class _Batched(EngineModule):
    """One of attention's products: X W^T of each head of each sample, where X and W are both values; scales of its own each."""

    def __init__(self, session: Session, name: str, training: bool):
        super().__init__(session, name, Linear(), training)
        self.names = ("w", "b")
        node = Node(name, self.index, self.layer, (1,), (1,))
        node.params = {"w": np.zeros((1, 1), np.float32), "b": np.zeros(1, np.float32)}
        session.method.init(node, session.seed)
        self._own = {key: v for key, v in node.params.items() if key not in ("w", "b")}
        if self._own:
            raise OctosimError(
                f"layer {name}: method {session.method.name} trains {', '.join(self._own)} of each layer, which the products "
                "of attention cannot have; choose its parameters without (octo: lac=off), or skip the layer"
            )
        self.add_extra(node)

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self._columns,)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (..., rows, inputs), w (..., outputs, inputs) -> (..., rows, outputs)."""
        self._columns = w.shape[-2]
        lead, zeros = x.shape[:-2], torch.zeros(self._columns)
        rows, others = x.reshape(-1, *x.shape[-2:]), w.reshape(-1, *w.shape[-2:])
        made = [run_passes(self, a, b, zeros) for a, b in zip(rows, others, strict=True)]
        return torch.stack(made).reshape(*lead, x.shape[-2], self._columns)


class Attention(nn.Module):
    """softmax(Q K^T scale + mask) V, whose two products, six with the backward passes, run in octosim's core.

    q (..., length, depth), k (..., keys, depth), v (..., keys, values), float32, whose leading axes are broadcast, as
    torch.nn.functional.scaled_dot_product_attention has them; without its enable_gqa.
    """

    def __init__(self, session: Session, name: str, training: bool = True):
        super().__init__()
        self.name = name
        self.scores = _Batched(session, f"{name}.scores", training)
        self.mix = _Batched(session, f"{name}.mix", training)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The result and the weights (..., length, keys)."""
        name, axes = self.name, tuple(range(2, 65))
        q = checked(name, q, axes)
        k = checked(name, k, axes, -1, q.shape[-1])
        v = checked(name, v, axes)
        if k.shape[-2] != v.shape[-2]:
            raise OctosimError(f"layer {name}: {k.shape[-2]} keys and {v.shape[-2]} values")
        try:
            lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        except RuntimeError:
            shapes = ", ".join(str(tuple(each.shape)) for each in (q, k, v))
            raise OctosimError(f"layer {name}: inputs of shapes {shapes}, whose leading axes do not match") from None
        q, k, v = (each.expand(*lead, *each.shape[-2:]) for each in (q, k, v))
        factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        scores = self.scores(q, k) * factor
        if is_causal:
            if attn_mask is not None:
                raise OctosimError("attention takes either attn_mask or is_causal")
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        weights = functional.dropout(torch.softmax(scores, -1), dropout_p, dropout_p > 0)
        return self.mix(weights, v.transpose(-1, -2)), weights


def scaled_dot_product_attention(
    session: Session, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, *, name: str = "attention",
) -> Tensor:  # fmt: skip
    """torch.nn.functional.scaled_dot_product_attention in a session's arithmetic, for functions; modules hold `Attention`.

    name: calls of one name are one layer, in training: they share the running ranges and the steps of the random streams, and
    `report(session)` counts them together.
    """
    module = session.attentions.get(name)
    if module is None:
        module = session.attentions[name] = Attention(session, name)
    made: Tensor = module(query, key, value, attn_mask, dropout_p, is_causal, scale)[0]
    return made


class EngineMultiHead(nn.Module):
    """nn.MultiheadAttention with its parameters."""

    in_proj_weight: Any
    in_proj_bias: Any
    bias_k: Any
    _qkv_same_embed_dim = False  # nn.TransformerEncoderLayer would pass by this module, in float32, in inference

    def __init__(self, session: Session, name: str, original: Any):
        super().__init__()
        for key in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k", "bias_v"):
            self.register_parameter(key, getattr(original, key))
        if self.in_proj_weight is None or self.bias_k is not None or original.add_zero_attn:
            raise OctosimError(f"layer {name}: attention with kdim, vdim, add_bias_kv or add_zero_attn: not converted; skip it")
        self.heads, self.batch_first, self.dropout = original.num_heads, original.batch_first, original.dropout
        self.embed_dim, self.name = original.embed_dim, name
        made = [EngineLinear(session, f"{name}.{part}", _Rows(self, i)) for i, part in enumerate("qkv")]
        for projection in made:
            projection.weight = None  # rows of in_proj_weight
        self.projections = nn.ModuleList(made)
        self.out_proj = EngineLinear(session, f"{name}.out", original.out_proj)
        self.attention = Attention(session, name, original.training)
        self.train(original.training)

    def _project(self, i: int, x: Tensor) -> Tensor:
        size, module = self.embed_dim, cast(EngineModule, self.projections[i])
        rows = slice(i * size, (i + 1) * size)
        weight = self.in_proj_weight[rows]
        bias = torch.zeros(size) if self.in_proj_bias is None else self.in_proj_bias[rows]
        y = run_passes(module, x.reshape(-1, size), weight, bias)
        return y.reshape(*x.shape[:-1], self.heads, size // self.heads).transpose(-2, -3)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        checked(self.name, query, (2, 3), -1, self.embed_dim)
        for t in (key, value):
            checked(self.name, t, (query.ndim,), -1, self.embed_dim)
        single = query.ndim == 2
        if single and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        if not self.batch_first and not single:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        if single:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        q, k, v = (self._project(i, t) for i, t in enumerate((query, key, value)))
        mask = None
        if attn_mask is not None:
            mask = _added(attn_mask)
            mask = mask.reshape(-1, self.heads, *mask.shape[-2:]) if mask.ndim == 3 else mask
        if key_padding_mask is not None:
            padding = _added(key_padding_mask[:, None, None, :])
            mask = padding if mask is None else mask + padding
        y, weights = self.attention(q, k, v, mask, self.dropout if self.training else 0.0)
        y = self.out_proj(y.transpose(-2, -3).reshape(*query.shape[:-1], self.embed_dim))
        y = y.squeeze(0) if single else y if self.batch_first else y.transpose(0, 1)
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        return y, shown.squeeze(0) if single and shown is not None else shown


def _added(mask: Tensor) -> Tensor:
    """A mask of bools, true where attention is left out, as what is added to the scores."""
    return torch.zeros(mask.shape).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask


class _Rows(nn.Module):
    """One of the three projections of a multi-head attention, whose weights are rows of one matrix."""

    def __init__(self, attention: Any, i: int):
        super().__init__()
        size = attention.embed_dim
        self.weight = nn.Parameter(attention.in_proj_weight.detach()[i * size : (i + 1) * size].clone())
        self.bias = None
        self.training = attention.training
