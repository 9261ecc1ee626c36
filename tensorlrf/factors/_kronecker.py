"""A sum of Kronecker products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tensorlrf.errors import ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors._terms import checked, principal, refuse_gram
from tensorlrf.factors.arrays import check_together


@dataclass(frozen=True, eq=False, repr=False)
class KroneckerSum(Factors):
    """A sum over s of `kron(a[s], b[s])`.

    Entry (i1 m2 + i2, j1 n2 + j2) is the sum over s of `a[s, i1, j1] b[s, i2, j2]`.

    Parameters
    ----------
    a : Tensor of shape (s, m1, n1)
    b : Tensor of shape (s, m2, n2)
        Or `(s, m2, n2, *kernel)` for the kernel of a convolution, whose channels are a Kronecker
        product and whose taps all belong to b.
    dense_shape : tuple of int, optional
        `(m1 m2, n1 n2, *kernel)`, which is also the default.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Van Loan & Pitsianis 1993.

    Examples
    --------
    >>> a, b = torch.rand(1, 2, 3), torch.rand(1, 4, 5)
    >>> f = tensorlrf.KroneckerSum(a, b)
    >>> torch.equal(f.to_dense(), torch.kron(a[0], b[0]))
    True
    """

    a: Tensor
    b: Tensor
    dense_shape: tuple[int, ...] = ()

    format: ClassVar[str] = "kron"

    def __post_init__(self) -> None:
        self._check_sizes()
        object.__setattr__(self, "dense_shape", tuple(self.dense_shape) or self._product())
        self._check_shape()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense_shape

    def _product(self) -> tuple[int, ...]:
        _, m1, n1 = self.a.shape
        _, m2, n2, *kernel = self.b.shape
        return (int(m1 * m2), int(n1 * n2), *map(int, kernel))

    @property
    def rank(self) -> int:
        """The number of terms s."""
        return int(self.a.shape[0])

    def leading(self, rank: Any) -> KroneckerSum:
        s = checked(rank, self.rank)
        return self._assemble({"a": self.a[:s], "b": self.b[:s]}, self._context())

    def by_energy(self, gram: Tensor | None = None) -> KroneckerSum:
        refuse_gram(self, gram)
        # Rearranged, the sum is the matrix of low rank that _dense makes (Van Loan & Pitsianis).
        a, b = principal(self.a.flatten(1).T, self.b.flatten(1))
        return KroneckerSum(a.T.reshape(self.a.shape), b.reshape(self.b.shape), self.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"a": self.a, "b": self.b}

    def meta(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        return {"a": tensors["a"], "b": tensors["b"], "dense_shape": tuple(meta["shape"])}

    def check(self) -> None:
        self._check_sizes()
        self._check_shape()

    def _check_shape(self) -> None:
        if self.shape != self._product():
            raise ShapeError(
                f"KroneckerSum: shape={self.shape} is not {self._product()}, which a "
                f"{tuple(self.a.shape)} and b {tuple(self.b.shape)} multiply to"
            )

    def _check_sizes(self) -> None:
        check_together(self.tensors(), "KroneckerSum")
        if self.a.ndim != 3 or self.b.ndim < 3 or 0 in (*self.a.shape, *self.b.shape):
            raise ShapeError(
                f"KroneckerSum: a {tuple(self.a.shape)} and b {tuple(self.b.shape)} must be "
                "(s, m1, n1) and (s, m2, n2, *kernel), without zeros"
            )
        if self.a.shape[0] != self.b.shape[0]:
            raise ShapeError(
                f"KroneckerSum: a has {self.a.shape[0]} terms and b {self.b.shape[0]}; "
                "each term is one of both"
            )

    def _dense(self) -> Tensor:
        s, m1, n1 = self.a.shape
        _, m2, n2, *kernel = self.b.shape
        whole = self.a.reshape(s, -1).T @ self.b.reshape(s, -1)  # (m1 n1, m2 n2 *kernel)
        split = whole.reshape(m1, n1, m2, n2, *kernel)
        return split.transpose(1, 2).reshape(self.shape)
