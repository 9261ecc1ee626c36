"""What the laws of methods look at: input that is hard, and what may not happen to it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tensorlrf.errors import TensorlrfWarning
from tensorlrf.factors import Factors

DEGENERATE: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "one entry": lambda w: torch.zeros_like(w).index_fill_(0, torch.tensor(1), 1.0).tril(),
    "dead rows": lambda w: w.clone().index_fill_(0, torch.arange(0, len(w), 2), 0.0),
    "dead columns": lambda w: w.clone().index_fill_(-1, torch.arange(0, w.shape[-1], 2), 0.0),
    "a thin tail": lambda w: w * torch.logspace(0, -30, w.shape[-1], dtype=w.dtype),
    "collinear": lambda w: w[:1] * w.flatten(1)[:, :1].reshape(-1, *[1] * (w.ndim - 1)),
}
"""From a weight without structure to one that has next to nothing in it."""


def true_error(factors: Factors, weight: Tensor) -> float:
    """In float64, of a weight that is not all zeros."""
    wide = weight.detach().double()
    return float((wide - factors.to(torch.float64).to_dense()).norm() / wide.norm())


def same(a: Factors, b: Factors) -> bool:
    """Bit for bit."""
    ours, theirs = a.tensors(), b.tensors()
    return list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


def finite(factors: Factors) -> Factors:
    """As they are, having seen that they and what they stand for are finite."""
    assert all(torch.isfinite(t).all() for t in (*factors.tensors().values(), factors.to_dense()))
    return factors


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of ours: of degenerate terms, or of few sweeps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TensorlrfWarning)
        yield


@contextmanager
def untouched(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, of which no entry may change nor be written to, nor the state of the process."""

    def state() -> tuple[Any, ...]:
        drawn = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
        settings = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
        return *drawn, *settings, [t._version for t in tensors]

    torch.manual_seed(7919)  # none that a law gives, which would go unseen
    before, values = state(), [t.detach().clone() for t in tensors]
    yield tensors
    assert state() == before
    assert all(torch.equal(t, value) for t, value in zip(tensors, values, strict=True))
