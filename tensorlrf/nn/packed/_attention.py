"""Multi-head attention with a layer for each of its four projections."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.nn.attention._nystrom import nystrom_attention
from tensorlrf.nn.packed.unpacked import (
    Unpacked,
    alone,
    bias_of,
    check_packed,
    linear_on,
    weight_of,
)

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class FactoredMultiheadAttention(Unpacked, packed=nn.MultiheadAttention):
    """Multi-head attention with a layer, dense or factored, for each of its four projections.

    These are `q_proj`, `k_proj`, `v_proj` and `out_proj` (Vaswani et al. 2017).

    `tensorlrf.nn.factorize(attention, ...)` and `compress` make it; `pack` gives an
    nn.MultiheadAttention again. It computes as that one does outside its fast path, which takes
    packed weights.

    Parameters
    ----------
    like : MultiheadAttention
        Of which it has the options.

    Examples
    --------
    >>> attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    >>> small = tensorlrf.nn.factorize(attention, "svd", 8)
    >>> x = torch.rand(2, 5, 32)
    >>> [tuple(t.shape) for t in small(x, x, x)]
    [(2, 5, 32), (2, 5, 5)]
    """

    stands_for = "MultiheadAttention"
    # By these nn.TransformerEncoderLayer knows that there are no packed weights for its fast path.
    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False
    q_proj: Any
    k_proj: Any
    v_proj: Any
    out_proj: Any
    landmarks: int | None = None
    """Those of `nystrom_attention`, which then runs in place of the softmax over all keys."""
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(self, like: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim = like.embed_dim
        self.kdim = like.kdim
        self.vdim = like.vdim
        self.num_heads = like.num_heads
        self.head_dim = like.head_dim
        self.dropout = like.dropout
        self.batch_first = like.batch_first
        self.add_zero_attn = like.add_zero_attn
        self._bias = like.in_proj_bias is not None
        self._is_packed = like._qkv_same_embed_dim
        for name in ("bias_k", "bias_v"):
            own = getattr(like, name)
            same = None if own is None else nn.Parameter(own.detach(), own.requires_grad)
            self.register_parameter(name, same)

    @classmethod
    def from_packed(cls, module: Any) -> Self:
        """The same on the same memory; see `Unpacked.from_packed`."""
        check_packed(module, cls, "module")
        made = cls(module)
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
        if module.in_proj_weight is not None:
            weights = list(module.in_proj_weight.chunk(3))
        biases = [None] * 3
        if module.in_proj_bias is not None:
            biases = list(module.in_proj_bias.chunk(3))
        for name, weight, bias in zip(_PROJECTIONS, weights, biases, strict=True):
            setattr(made, name, linear_on(weight, bias, module))
        made.out_proj = linear_on(module.out_proj.weight, module.out_proj.bias, module)
        return made.train(module.training)

    def pack(self, *, values: bool = True) -> nn.MultiheadAttention:
        """The module of torch; see `Unpacked.pack`."""
        made = nn.MultiheadAttention(
            self.embed_dim, self.num_heads, self.dropout, self._bias, self.bias_k is not None,
            self.add_zero_attn, self.kdim, self.vdim, self.batch_first, device="meta",
        )  # fmt: skip
        layers = [getattr(self, name) for name in _PROJECTIONS]
        if self._is_packed:
            made.in_proj_weight = weight_of(layers, values=values)
        else:
            for name, layer in zip(_PROJECTIONS, layers, strict=True):
                setattr(made, f"{name}_weight", weight_of([layer], values=values, join=alone))
        # Fitting may have given a bias to layers that had none.
        if self._bias or (values and any(layer.bias is not None for layer in layers)):
            made.in_proj_bias = bias_of(layers, values=values)
        out = self.out_proj
        made.out_proj.weight = weight_of([out], values=values, join=alone)
        if out.bias is not None:
            made.out_proj.bias = bias_of([out], values=values)
        for name in ("bias_k", "bias_v"):
            own = getattr(self, name)
            if own is not None:
                copied = own.detach().clone() if values else torch.empty_like(own, device="meta")
                setattr(made, name, nn.Parameter(copied, requires_grad=own.requires_grad))
        return made.train(self.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention: (outputs, weights or None)."""
        batched = query.ndim == 3
        self._check(query, key, value, batched=batched)
        if is_causal and attn_mask is None:
            raise ArgumentError("is_causal=True is a hint about attn_mask; give that too")
        if self.landmarks is not None and (need_weights or attn_mask is not None):
            raise UnsupportedError(
                f"with landmarks={self.landmarks} there are no weights of single keys, and no "
                "attn_mask: pass need_weights=False and key_padding_mask= alone, or set "
                "landmarks = None"
            )
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        # One tensor is turned once: layers that read it see that it is the same.
        turned = self._batch_first({id(t): t for t in (query, key, value)}, batched=batched)
        query, key, value = (turned[id(t)] for t in (query, key, value))
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], 1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], 1, -1)], dim=1)
        q, k, v = (self._heads(t) for t in (q, k, v))  # (batch, heads, length, head_dim)
        if self.add_zero_attn:
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
        causal = is_causal and key_padding_mask is None and not need_weights
        causal = causal and k.shape[2] == key.shape[1]
        mask = None if causal else self._mask(attn_mask, key_padding_mask, q, key.shape[1], k)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q / math.sqrt(self.head_dim)) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(dim=-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            out = weights @ v
        elif self.landmarks is not None:
            weights = None
            kept = None if mask is None else mask[:, :, 0] == 0  # (batch, 1, source)
            asked = kept if query is key and kept is not None else None
            asked = None if asked is None else asked[..., : q.shape[2]]
            out = nystrom_attention(
                q, k, v, self.landmarks, mask=kept, query_mask=asked, dropout_p=dropout
            )
        else:
            weights = None
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _batch_first(self, inputs: dict[int, Tensor], *, batched: bool) -> dict[int, Tensor]:
        turns = batched and not self.batch_first
        return {k: t.transpose(0, 1) if turns else t for k, t in inputs.items()}

    def _heads(self, t: Tensor) -> Tensor:
        return t.reshape(*t.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(
        self,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        q: Tensor,
        source: int,
        k: Tensor,
    ) -> Tensor | None:
        """What is added to the scores, (batch or 1, heads or 1, target or 1, source)."""
        batch, heads, target, _ = q.shape
        more = k.shape[2] - source  # keys that nobody gave are seen by all
        parts = []
        if attn_mask is not None:
            shapes = ((target, source), (batch * heads, target, source))
            if tuple(attn_mask.shape) not in shapes:
                raise ShapeError(
                    f"attn_mask has shape {tuple(attn_mask.shape)}; it must be {shapes[0]} or "
                    f"{shapes[1]}"
                )
            lead = (batch, heads) if attn_mask.ndim == 3 else (1, 1)
            full = attn_mask.reshape(*lead, target, source)
            parts.append(_added(full, "attn_mask", q.dtype))
        if key_padding_mask is not None:
            if tuple(key_padding_mask.shape) != (batch, source):
                raise ShapeError(
                    f"key_padding_mask has shape {tuple(key_padding_mask.shape)}; it must be "
                    f"{(batch, source)}"
                )
            parts.append(_added(key_padding_mask[:, None, None], "key_padding_mask", q.dtype))
        if not parts:
            return None
        mask = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return F.pad(mask, (0, more)) if more else mask

    def _check(self, query: Tensor, key: Tensor, value: Tensor, *, batched: bool) -> None:
        given = {"query": (query, self.embed_dim), "key": (key, self.kdim)}
        for name, (t, size) in {**given, "value": (value, self.vdim)}.items():
            if t.ndim != (3 if batched else 2) or t.shape[-1] != size:
                raise ShapeError(
                    f"{name} has shape {tuple(t.shape)}; it must have {size} features behind "
                    "length and batch, all three with or all three without a batch"
                )
        if key.shape[:-1] != value.shape[:-1]:
            raise ShapeError(
                f"key and value have shapes {tuple(key.shape)} and {tuple(value.shape)}; they "
                "must be of the same length and batch"
            )

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"


def _added(mask: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """A mask of floats: of one that says what is left out, -inf there."""
    if mask.dtype is torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    if not mask.is_floating_point():
        raise ArgumentError(
            f"{name} has dtype {mask.dtype}; it must be torch.bool or floating point"
        )
    return mask.to(dtype)
