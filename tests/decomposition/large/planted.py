"""Tensors of low rank plus noise, and what they are read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tensorlrf.factors import CPFactors, TuckerFactors
from tests.draws import seeded


def of_terms(
    shape: tuple[int, ...], rank: int, noise: float = 0.1, dtype: torch.dtype = torch.float64
) -> Tensor:
    """A sum of `rank` terms, entries of unit size, plus noise."""
    weights = torch.ones(rank, dtype=torch.float64, device="cpu")
    factors = tuple(seeded(n, rank, seed=k) for k, n in enumerate(shape))
    tensor = CPFactors(weights, factors).to_dense()
    tensor = tensor / tensor.square().mean().sqrt() + noise * seeded(*shape, seed=99)
    return tensor.to(dtype)


def of_core(
    shape: tuple[int, ...],
    ranks: tuple[int, ...],
    noise: float = 0.1,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """A core times a factor along each mode, entries of unit size, plus noise."""
    factors = tuple(seeded(n, r, seed=k) for k, (n, r) in enumerate(zip(shape, ranks, strict=True)))
    tensor = TuckerFactors(seeded(*ranks, seed=50), factors).to_dense()
    tensor = tensor / tensor.square().mean().sqrt() + noise * seeded(*shape, seed=99)
    return tensor.to(dtype)


def decaying(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, last: float = -9
) -> Tensor:
    """Singular values of the matrix (n_0, rest) fall from one to 10^last."""
    matrix = seeded(shape[0], int(np.prod(shape[1:])))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    falling = torch.logspace(0, last, len(s), dtype=torch.float64, device="cpu")
    return ((u * falling) @ v).reshape(shape).to(dtype)


class Sliced:
    """Nothing but shape, dtype and slicing; counts what is read."""

    def __init__(self, tensor: Tensor) -> None:
        self.array = tensor.numpy()
        self.shape, self.dtype = tuple(tensor.shape), self.array.dtype
        self.read = 0

    def __getitem__(self, index: Any) -> np.ndarray[Any, Any]:
        part = np.array(self.array[index])
        self.read += part.size
        return part


def npy(tensor: Tensor, folder: Path, *, fortran: bool = False) -> Path:
    """A file of it."""
    array = tensor.numpy()
    np.save(folder / "tensor.npy", np.asfortranarray(array) if fortran else array)
    return folder / "tensor.npy"


def slice_of(tensor: Tensor, folder: Path) -> Any:
    """A slice of a safetensors file."""
    save_file({"x": tensor.contiguous()}, folder / "x.safetensors")
    return safe_open(folder / "x.safetensors", "pt").get_slice("x")
