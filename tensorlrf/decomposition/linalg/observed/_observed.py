"""A tensor of which some entries are not known, and how much each of the others counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import as_tensor, check_dtype, working_dtype
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.errors import ArgumentError, ShapeError, TensorlrfWarning, UnsupportedError, warn
from tensorlrf.factors import Factors
from tensorlrf.factors.arrays import as_dense


@dataclass(frozen=True)
class Observed:
    """Entries X and their weights W, the loss of a model A being the sum of W (X - A)^2.

    data     X over `scale`, zero where nothing is known, in the working dtype
    weights  W of the same shape and dtype, zero there, the largest one
    alike    whether W is of zeros and ones
    scale    the user's tensor is scale * data
    dtype    of the user's tensor, and so of its factors
    """

    data: Tensor
    weights: Tensor
    alike: bool
    scale: float
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(int, self.data.shape))

    @cached_property
    def count(self) -> int:
        """Entries that count."""
        return int(torch.count_nonzero(self.weights))

    @property
    def complete(self) -> bool:
        """Whether all entries count alike, so that nothing is to be completed."""
        return self.alike and self.count == self.data.numel()

    @property
    def tensor(self) -> Tensor:
        """The user's tensor, zero where nothing is known."""
        return (self.data * self.scale).to(self.dtype)

    @cached_property
    def weighted(self) -> Tensor:
        """W X."""
        return self.data if self.alike else self.data * self.weights

    @cached_property
    def energy(self) -> float:
        """The sum of W X^2."""
        return _inner(self.weighted, self.data)

    @cached_property
    def spread(self) -> Tensor:
        """X, zero where nothing is known, over the share of entries that are: of a mask by chance
        its mean is the whole tensor."""
        return self.data * (self.data.numel() / self.count)

    def view(self, shape: Sequence[int], axes: Sequence[int] | None = None) -> Observed:
        """The same entries with their modes in the order `axes`, then in another shape."""
        axes = range(self.data.ndim) if axes is None else axes
        data, weights = (t.permute(*axes).reshape(*shape) for t in (self.data, self.weights))
        return replace(self, data=data, weights=weights)

    def reweighted(self, factor: Tensor) -> Observed:
        """With weights that are `factor`, in [0, 1], times these."""
        return replace(self, weights=self.weights * factor, alike=False)

    def filled(self, model: Tensor) -> Tensor:
        """W X + (1 - W) A for a model A: the expected tensor, of which W X has been seen (Srebro &
        Jaakkola 2003)."""
        return torch.addcmul(model, self.weights, self.data - model)

    def error(self, model: Tensor) -> float:
        """sqrt of the loss of a model over that of zero; Inf where it is no number."""
        rest = self.data - model
        squared = _inner(rest * self.weights, rest)
        return ratio(squared, self.energy) if math.isfinite(squared) else math.inf

    def error_of(self, factors: Factors) -> float:
        """The same of factors as they are, in the user's dtype and scale."""
        dense = factors.detach().to(self.data.dtype).to_dense()
        return self.error(dense / self.scale if self.scale != 1.0 else dense)

    def best_multiple(self, model: Tensor) -> float:
        """c for which c times the model has the least loss; one where it does not matter."""
        weighted = model * self.weights
        square = _inner(weighted, model)
        return _inner(weighted, self.data) / square if square > 0 else 1.0

    # ---- whether it can be done ------------------------------------------------------------------

    def check_slices(self, what: str = "mode {}") -> None:
        """Raise ArgumentError where nothing is known of a whole slice."""
        known = self.weights > 0
        for k in range(known.ndim):
            others = [j for j in range(known.ndim) if j != k]
            empty = (known.sum(others) == 0).nonzero()
            if len(empty):
                raise ArgumentError(
                    f"mask= and weights= leave nothing of {what.format(k)} at index "
                    f"{int(empty[0])} ({len(empty)} such of {known.shape[k]}): no model can tell "
                    "what is there; leave these slices out of the tensor"
                )

    def warn_unless_enough(self, unknowns: int, rank: Any) -> None:
        """TensorlrfWarning where a model has more `unknowns` than there are entries to tell."""
        warn_unless_enough(self.count, unknowns, rank)


def warn_unless_enough(count: int, unknowns: int, rank: Any) -> None:
    """TensorlrfWarning where a model has more `unknowns` than there are entries to tell."""
    if count < unknowns:
        warn(
            f"rank={rank} has {unknowns} free parameters for {count} observed entries: many models "
            "fit these, and what is hidden may be anything; ask for less, or choose by "
            "tensorlrf.cross_validate",
            TensorlrfWarning,
        )


def _inner(one: Tensor, other: Tensor) -> float:
    """<A, B>; of float32, within rows in that dtype, over rows in float64."""
    if one.dtype == torch.float64:
        return float(torch.dot(one.flatten(), other.flatten()))
    rows = (one * other).flatten(1).sum(1)
    return float(rows.to(torch.float64).sum())


def observed(
    tensor: Any, mask: Any, weights: Any, rank: Any, **others: Any
) -> tuple[Tensor, Observed | None]:
    """`tensor`, checked, and what is observed of it: None where all entries count alike, and the
    decomposition of all of them serves. See `observe`.

    Raises UnsupportedError for rank="auto" as well.
    """
    if mask is None and weights is None:
        return as_tensor(tensor), None
    seen = observe(tensor, mask, weights, **others)
    if isinstance(rank, str) and rank == "auto":
        raise UnsupportedError(
            "rank='auto' is an estimate from all entries; with mask= or weights= choose a rank by "
            "tensorlrf.cross_validate"
        )
    return seen.tensor, None if seen.complete else seen


def known_of(tensor: Any, mask: Any) -> Any:
    """The mask, or one that hides nothing of what has a shape."""
    if mask is not None:
        return mask
    return torch.ones(tuple(getattr(tensor, "shape", ())), dtype=torch.bool, device="cpu")


def observe(tensor: Any, mask: Any, weights: Any, **others: Any) -> Observed:
    """`tensor` with what is known of it, checked.

    mask     bool of the same shape, True where the tensor was observed, or None
    weights  of the same shape, none below zero, or None
    others   options that no completion has, by their names; None, False and 0 are not given

    What is hidden is never read. Raises UnsupportedError for one of the others, ArgumentError and
    ShapeError for what cannot be.
    """
    word = "mask" if mask is not None else "weights"
    for name, value in others.items():
        if value is not None and not (isinstance(value, int) and value == 0):
            raise UnsupportedError(f"{name}= does not go with {word}=; leave one of the two out")
    given = as_dense(tensor, "tensor")
    check_dtype(given.dtype, "tensor")
    given = given.detach()
    work = working_dtype(given.dtype)
    counts = _checked_weights(weights, given, work)
    known = _checked_mask(mask, given)
    if known is not None:
        counts = known.to(work) if counts is None else counts.masked_fill(~known, 0)
    assert counts is not None
    largest = float(counts.max()) if counts.numel() else 1.0
    if largest == 0.0:
        raise ArgumentError(
            f"{word}= hides all {given.numel()} entries; mask= is True where an entry is known"
        )
    data = as_tensor(given.masked_fill(counts == 0, 0)).to(work).contiguous()
    scale = scale_of(data)
    counts = (counts / largest).contiguous()
    alike = bool(((counts == 0) | (counts == 1)).all())
    return Observed(data / scale if scale != 1.0 else data, counts, alike, scale, given.dtype)


def _checked_mask(mask: Any, tensor: Tensor) -> Tensor | None:
    if mask is None:
        return None
    known = as_dense(mask, "mask")
    if known.dtype != torch.bool:
        raise ArgumentError(
            f"mask has dtype {known.dtype}; it must be bool, True where an entry is known: pass "
            "mask != 0, or numbers as weights="
        )
    _check_shape(known, tensor, "mask")
    return known.to(tensor.device)


def _checked_weights(weights: Any, tensor: Tensor, work: torch.dtype) -> Tensor | None:
    if weights is None:
        return None
    counts = as_dense(weights, "weights")
    if counts.dtype == torch.bool or counts.is_complex():
        remedy = "pass it as mask=" if counts.dtype == torch.bool else "cast it first"
        raise ArgumentError(f"weights has dtype {counts.dtype}; they are real numbers, {remedy}")
    _check_shape(counts, tensor, "weights")
    counts = counts.detach().to(tensor.device, torch.float64)
    odd = (~torch.isfinite(counts) | (counts < 0)).nonzero()
    if len(odd):
        index = tuple(odd[0].tolist())
        raise ArgumentError(
            f"weights has {float(counts[index]):g} at {index}; they must be finite and none below "
            "zero, which stands for an entry that is not known"
        )
    largest = float(counts.max()) if counts.numel() else 0.0
    return (counts / largest if largest > 0 else counts).to(work)


def _check_shape(given: Tensor, tensor: Tensor, name: str) -> None:
    if given.shape != tensor.shape:
        raise ShapeError(
            f"{name} has shape {tuple(given.shape)}, the tensor {tuple(tensor.shape)}; they must "
            "be the same"
        )
