"""Batches for small models: token ids, pictures, sounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

VOCABULARY = 64
BATCHES, ROWS = 4, 8

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """A small random model of an architecture, and what it takes.

    make    the model
    batch   inputs of `ROWS` examples from a generator
    size    elements along the sequence, or pixels along an edge
    """

    make: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]

    def model(self, seed: int = 0) -> nn.Module:
        """With its own initialisation, torch's global generator as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make().eval()

    def batches(self, n: int = BATCHES, seed: int = 1) -> list[Batch]:
        """For calibration: dicts of the arguments of its forward."""
        draws = torch.Generator().manual_seed(seed)
        return [self.batch(draws) for _ in range(n)]


def _ids(draws: torch.Generator, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (ROWS, length), generator=draws)


def text(draws: torch.Generator) -> Batch:
    """Token ids (rows, 16), all attended to."""
    ids = _ids(draws, 16)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def plain_text(draws: torch.Generator) -> Batch:
    """Token ids (rows, 16) alone: of state-space models."""
    return {"input_ids": _ids(draws, 16)}


def text_to_text(draws: torch.Generator) -> Batch:
    """Token ids for an encoder (rows, 16) and a decoder (rows, 8)."""
    return {**text(draws), "decoder_input_ids": _ids(draws, 8)}


def pictures(edge: int) -> Callable[[torch.Generator], Batch]:
    """Pictures (rows, 3, edge, edge)."""
    return lambda draws: {"pixel_values": torch.randn(ROWS, 3, edge, edge, generator=draws)}


def pictures_and_text(edge: int) -> Callable[[torch.Generator], Batch]:
    """Pictures, and as many texts."""
    picture = pictures(edge)
    return lambda draws: {**picture(draws), **text(draws)}


def sounds(draws: torch.Generator) -> Batch:
    """Samples (rows, 2000) of unit variance."""
    return {"input_values": torch.randn(ROWS, 2000, generator=draws)}


def spectra_to_text(draws: torch.Generator) -> Batch:
    """Mel spectra (rows, 20, 32), and token ids for a decoder (rows, 8)."""
    spectra = torch.randn(ROWS, 20, 32, generator=draws)
    return {"input_features": spectra, "decoder_input_ids": _ids(draws, 8)}
