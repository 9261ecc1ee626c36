"""Attention by landmarks in a model that was trained without."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn.attention._nystrom import LANDMARKS, check_landmarks, nystrom_attention
from tensorlrf.nn.packed._attention import FactoredMultiheadAttention

EXACT = "sdpa"
"""What models of transformers run by default."""

UNSERVED = ("position_bias", "softcap", "sliding_window", "s_aux", "head_mask")
"""What attentions of transformers may be asked for beside, and landmarks do not have."""


def use_nystrom_attention(model: nn.Module, landmarks: int | None = LANDMARKS) -> None:
    """Have a model attend by landmarks, see `nystrom_attention`; in place, weights as they are.

    It reaches models of transformers whose attention can be chosen (by their registry of attention
    functions, which is global: an entry "nystrom_64"), and every `FactoredMultiheadAttention`. What
    is saved of a model does not tell of it.

    Parameters
    ----------
    model : Module
        Of encoders; or one that holds such models.
    landmarks : int, optional
        None for attention over all keys again.

    Raises
    ------
    UnsupportedError
        Where the model, which stays as it is, has causal attention, or none that is reached.
    ArgumentError
        For landmarks below one.

    Examples
    --------
    >>> layer = torch.nn.TransformerEncoderLayer(16, 2, batch_first=True).eval()
    >>> layer.self_attn = tensorlrf.nn.factorize(layer.self_attn, "svd", 8)
    >>> tensorlrf.nn.use_nystrom_attention(layer, 32)
    >>> layer(torch.rand(2, 100, 16)).shape
    torch.Size([2, 100, 16])
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    if landmarks is not None:
        check_landmarks(landmarks)
    models = list(_selectable(model))
    own = [m for m in model.modules() if isinstance(m, FactoredMultiheadAttention)]
    if not models and not own:
        raise UnsupportedError(
            f"model is a {type(model).__name__} with no attention that can be chosen: there must "
            "be a model of transformers with set_attn_implementation, or a "
            "FactoredMultiheadAttention, which factorize and compress make of "
            "torch.nn.MultiheadAttention"
        )
    for chosen in models:
        _check(chosen, landmarks)
    word = EXACT if landmarks is None else _registered(landmarks) if models else ""
    for chosen in models:
        chosen.set_attn_implementation(word)
    for attention in own:
        attention.landmarks = landmarks


def _selectable(model: nn.Module) -> Iterator[Any]:
    """Models of transformers, not those within another one."""
    if callable(getattr(model, "set_attn_implementation", None)) and hasattr(model, "config"):
        yield model
        return
    for child in model.children():
        yield from _selectable(child)


def _check(model: Any, landmarks: int | None) -> None:
    can = getattr(model, "_can_set_attn_implementation", None)
    if can is not None and not can():
        raise UnsupportedError(
            f"the attention of {type(model).__name__} is written into it and cannot be chosen"
        )
    if landmarks is None:
        return
    for name, module in model.named_modules():
        if getattr(module, "is_causal", False) is True:
            raise UnsupportedError(
                f"{name} ({type(module).__name__}) is causal, and landmarks are means of segments, "
                "which look ahead; use_nystrom_attention is for encoders"
            )


def _registered(landmarks: int) -> str:
    """The word under which transformers finds it."""
    word = f"nystrom_{landmarks}"
    found = importlib.import_module("transformers")
    found.AttentionInterface.register(word, partial(_attend, landmarks))
    found.AttentionMaskInterface.register(word, _padding)
    return word


def _attend(
    landmarks: int,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: (batch, heads, T, d) to (batch, T, heads, d)."""
    asked = next((name for name in UNSERVED if more.get(name) is not None), None)
    if asked is not None:
        raise UnsupportedError(f"{type(module).__name__} has {asked}=, which landmarks do not have")
    mask = None
    if attention_mask is not None:
        if attention_mask.ndim != 2:
            raise UnsupportedError(
                f"{type(module).__name__} was given a mask of shape {tuple(attention_mask.shape)}; "
                "attention by landmarks takes one of padding, (batch, length)"
            )
        mask = attention_mask.bool().unsqueeze(1)  # (batch, 1, S)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    of_itself = query.shape[2] == key.shape[2]
    y = nystrom_attention(
        query,
        key,
        value,
        landmarks,
        mask=mask,
        query_mask=mask if of_itself else None,
        dropout_p=dropout,
        is_causal=bool(is_causal),
        scale=scaling,
    )
    return y.transpose(1, 2).contiguous(), None


def _padding(
    *args: Any, mask_function: Any = None, attention_mask: Tensor | None = None, **more: Any
) -> Tensor | None:
    """A mask function of transformers: of two-sided attention the padding, (batch, length)."""
    masks = importlib.import_module("transformers.masking_utils")
    if mask_function is not masks.bidirectional_mask_function:
        raise UnsupportedError(
            "the model asks for a mask that is not one of padding alone (causal, or a window); "
            "attention by landmarks does not have it, use_nystrom_attention(model, None)"
        )
    return attention_mask
