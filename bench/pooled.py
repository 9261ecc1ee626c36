"""A sentence encoder with what its users read: the mean over a text's tokens."""

from __future__ import annotations

from torch import Tensor, nn


class Pooled(nn.Module):
    """(texts, width) from {input_ids, token_type_ids, attention_mask}, (texts, tokens) each."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, **batch: Tensor) -> Tensor:
        hidden = self.encoder(**batch).last_hidden_state  # (b, t, width)
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        mean: Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return mean
