"""Data of the field that several of its rows are of, and where the peers are found."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

PEERS = Path(__file__).resolve().parents[1] / ".venv/peers"
"""Where `make .venv/peers` puts them."""


def peer(name: str) -> ModuleType:
    """A peer's module; exits with what brings it where it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SystemExit(f"{name} is not there; `make bench-peers` brings it") from None


def amino_acids(dtype: torch.dtype = torch.float64) -> Tensor:
    """Fluorescence of five mixtures of three amino acids, (5, 201, 61): sample, emission,
    excitation (Bro 1997), as the wheel of pygenten has it. The first three samples are one
    substance each."""
    spec = importlib.util.find_spec("pygenten")
    wheel = PEERS / "pygenten" if spec is None or not spec.origin else Path(spec.origin).parent
    path = wheel / "share/genten/data/aminoacid_data_dense.txt"
    if not path.is_file():
        raise SystemExit("pygenten, which has the data, is not there; `make .venv/peers` brings it")
    words = path.read_text().split()  # "tensor", 3, 5, 201, 61, entries, first index fastest
    shape = tuple(map(int, words[2:5]))
    entries = np.array(words[5:], dtype=np.float64).reshape(shape, order="F")
    return torch.from_numpy(np.ascontiguousarray(entries)).to(dtype)
