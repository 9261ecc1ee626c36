"""PARAFAC2: slices of unequal rows whose factors have one cross product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors.arrays import as_dense, check_together


@dataclass(frozen=True, eq=False, repr=False)
class Parafac2Factors(Factors):
    """Slices `X_k = P_k B diag(weights * A[k]) C^T`, each with rows of its own (PARAFAC2).

    With orthonormal P_k the cross product of the evolving factor P_k B is B^T B in every slice. The
    whole is the slices upon each other, of `shape` (sum of their rows, J). Unpacks as `weights,
    factors, projections`, like tensorly's Parafac2Tensor.

    Parameters
    ----------
    weights : Tensor of shape (r,)
    factors : tuple of Tensor
        A (K, r), a row a slice; B (r, r); C (J, r).
    projections : Tensor of shape (sum of rows, r)
        P_0 upon P_1 upon the others.
    rows : tuple of int
        Of each slice.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Harshman 1972; Kiers, ten Berge & Bro 1999, eq. 4.

    Examples
    --------
    >>> a, b, c = torch.ones(2, 1), torch.ones(1, 1), torch.ones(4, 1)
    >>> f = tensorlrf.Parafac2Factors(torch.ones(1), (a, b, c), torch.ones(5, 1), (2, 3))
    >>> f.shape, [tuple(x.shape) for x in f.slices()]
    ((5, 4), [(2, 4), (3, 4)])
    """

    weights: Tensor
    factors: tuple[Tensor, Tensor, Tensor]
    projections: Tensor
    rows: tuple[int, ...]

    format: ClassVar[str] = "parafac2"

    def __post_init__(self) -> None:
        factors: Any = tuple(self.factors)
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "rows", tuple(int(n) for n in self.rows))
        self.check()

    def __iter__(self) -> Iterator[Any]:
        return iter((self.weights, self.factors, self.projection_list))

    @property
    def shape(self) -> tuple[int, ...]:
        return int(self.projections.shape[0]), int(self.factors[2].shape[0])

    @property
    def rank(self) -> int:
        return int(self.weights.shape[0])

    @property
    def projection_list(self) -> tuple[Tensor, ...]:
        """P_k (I_k, r) of every slice, as views."""
        return torch.split(self.projections, list(self.rows))

    def slices(self) -> list[Tensor]:
        """X_k (I_k, J) of every slice, as views of the whole.

        Returns
        -------
        list of Tensor
        """
        return list(torch.split(self.to_dense(), list(self.rows)))

    def evolving(self) -> list[Tensor]:
        """P_k B (I_k, r) of every slice: what its rows have of each component.

        Returns
        -------
        list of Tensor
        """
        return list(torch.split(self.projections @ self.factors[1], list(self.rows)))

    def rel_error(self, tensor: Any) -> float:
        """Relative Frobenius error over all slices.

        Parameters
        ----------
        tensor : sequence of Tensor or array, or one tensor
            The slices (I_k, J); or (K, I, J), where all have equal rows; or the slices upon each
            other.

        Returns
        -------
        float
            The error; against slices of zeros the absolute one.

        Raises
        ------
        ShapeError
            For other shapes.
        ArgumentError
            For what is not dense or has no values.
        """
        if isinstance(tensor, (list, tuple)) and all(hasattr(x, "ndim") for x in tensor):
            parts = [as_dense(part, f"tensor[{k}]") for k, part in enumerate(tensor)]
            expected = [(n, self.shape[1]) for n in self.rows]
            found = [tuple(part.shape) for part in parts]
            if found != expected:
                raise ShapeError(f"tensor has slices of {found}, the factors have {expected}")
            tensor = torch.cat(parts)
        elif getattr(tensor, "ndim", 2) == 3 and len(set(self.rows)) == 1:
            tensor = as_dense(tensor, "tensor")
            if tensor.shape[:2] == (len(self.rows), self.rows[0]):
                tensor = tensor.flatten(0, 1)
        return super().rel_error(tensor)

    def tensors(self) -> dict[str, Tensor]:
        named = {"weights": self.weights}
        named.update((f"factors.{k}", f) for k, f in enumerate(self.factors))
        return {**named, "projections": self.projections}

    def meta(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "weights": tensors["weights"],
            "factors": tuple(tensors[f"factors.{k}"] for k in range(3)),
            "projections": tensors["projections"],
            "rows": tuple(meta["rows"]),
        }

    def check(self) -> None:
        if len(self.factors) != 3:
            raise ArgumentError(
                f"Parafac2Factors: {len(self.factors)} factors; there are 3: A, B, C"
            )
        check_together(self.tensors(), "Parafac2Factors")
        sizes = {name: tuple(t.shape) for name, t in self.tensors().items()}
        r = self.weights.shape[0] if self.weights.ndim == 1 else 0
        if r == 0 or any(len(size) != 2 or size[1] != r for size in list(sizes.values())[1:]):
            raise ShapeError(
                f"Parafac2Factors: {sizes}; weights are (r,), all others (n, r) with one r"
            )
        if sizes["factors.0"][0] != len(self.rows) or sizes["factors.1"][0] != r:
            raise ShapeError(
                f"Parafac2Factors: {sizes} with {len(self.rows)} slices; A is a row a slice, B "
                "square"
            )
        if min(self.rows, default=0) < 1 or sum(self.rows) != sizes["projections"][0]:
            raise ShapeError(
                f"Parafac2Factors: rows={self.rows} must be at least 1 each and sum to the "
                f"{sizes['projections'][0]} rows of projections"
            )

    def _dense(self) -> Tensor:
        a, b, c = self.factors
        counts = torch.tensor(self.rows, device="cpu")
        slice_of = torch.arange(len(self.rows), device="cpu").repeat_interleave(
            counts, output_size=len(self.projections)
        )
        own = (a * self.weights)[slice_of.to(a.device)]  # (sum of rows, r)
        return ((self.projections @ b) * own) @ c.T
