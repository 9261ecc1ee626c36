"""Tensor trains: a chain of three-way cores, of a tensor or of a matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors.algebra import chain_product
from tensorlrf.factors.arrays import check_together


class Train:
    """What is told core by core: trains, TT-matrices and rings."""

    cores: tuple[Tensor, ...]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.cores)

    @property
    def rank(self) -> tuple[int, ...]:
        """`(r_0, r_1, ..., r_N)`: one at both ends of a train, the same at those of a ring."""
        return (*(int(c.shape[0]) for c in self.cores), int(self.cores[-1].shape[-1]))

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, in the order in which they are written to a file."""
        return {f"cores.{k}": c for k, c in enumerate(self.cores)}


@dataclass(frozen=True, eq=False, repr=False)
class TTFactors(Train, Factors):
    """A tensor train: `X[i_0, ...] = cores[0][:, i_0, :] cores[1][:, i_1, :] ...`.

    Iterates over its cores, like tensorly's TTTensor.

    Parameters
    ----------
    cores : tuple of Tensor
        Core k is (r_k, n_k, r_{k+1}), with r_0 = r_N = 1.
    modes : tuple of int, optional
        The mode of the tensor that core k stands for; all in order by default. The kernel
        (O, I, kh, kw) of a convolution is a train of four convolutions in the order (0, 3, 2, 1).

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Oseledets 2011, eq. 1.2.

    Examples
    --------
    >>> f = tensorlrf.TTFactors((torch.ones(1, 4, 2), torch.ones(2, 5, 3), torch.ones(3, 6, 1)))
    >>> f.shape, f.rank
    ((4, 5, 6), (1, 2, 3, 1))
    """

    cores: tuple[Tensor, ...]
    modes: tuple[int, ...] = ()

    format: ClassVar[str] = "tt"

    def __post_init__(self) -> None:
        object.__setattr__(self, "cores", tuple(self.cores))
        modes = self.modes or range(len(self.cores))
        object.__setattr__(self, "modes", tuple(int(k) for k in modes))
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = dict(zip(self.modes, self.cores, strict=True))
        return tuple(int(sizes[k].shape[1]) for k in range(len(self.cores)))

    def meta(self) -> dict[str, Any]:
        return {"modes": list(self.modes)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        modes = tuple(meta["modes"])
        return {"cores": tuple(tensors[f"cores.{k}"] for k in range(len(modes))), "modes": modes}

    def check(self) -> None:
        if not self.cores:
            raise ArgumentError("TTFactors: cores=() is empty; give one core a mode")
        check_together(self.tensors(), "TTFactors")
        check_train("TTFactors", self.cores, 3)
        check_modes("TTFactors", self.modes, len(self.cores))

    def _dense(self) -> Tensor:
        train = chain_product(self.cores)
        order = [self.modes.index(k) for k in range(len(self.cores))]
        return train.reshape([c.shape[1] for c in self.cores]).permute(order)


@dataclass(frozen=True, eq=False, repr=False)
class TTMatrix(Train, Factors):
    """A matrix as a train over the digits of its rows and columns.

    `W[i, j] = cores[0][:, i_0, j_0, :] cores[1][:, i_1, j_1, :] ...` with the digits i_k of the row
    i and j_k of the column j, the first ones the leading ones. Iterates over its cores, like
    tensorly's TTMatrix.

    Parameters
    ----------
    cores : tuple of Tensor
        Core k is (r_k, m_k, n_k, r_{k+1}), with r_0 = r_d = 1.
    dense_shape : tuple of int, optional
        (m, n) with m <= prod m_k and n <= prod n_k: what is more are rows and columns of padding,
        which the matrix does not have. (prod m_k, prod n_k) by default.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Novikov et al. 2015.

    Examples
    --------
    >>> f = tensorlrf.TTMatrix((torch.ones(1, 2, 3, 4), torch.ones(4, 5, 2, 1)), dense_shape=(9, 6))
    >>> f.row_sizes, f.column_sizes, f.shape
    ((2, 5), (3, 2), (9, 6))
    """

    cores: tuple[Tensor, ...]
    dense_shape: tuple[int, ...] = ()

    format: ClassVar[str] = "tt_matrix"

    def __post_init__(self) -> None:
        object.__setattr__(self, "cores", tuple(self.cores))
        if not self.cores:
            raise ArgumentError("TTMatrix: cores=() is empty; give one core at least")
        check_together(self.tensors(), "TTMatrix")
        check_train("TTMatrix", self.cores, 4)
        shape = self.dense_shape or (math.prod(self.row_sizes), math.prod(self.column_sizes))
        object.__setattr__(self, "dense_shape", tuple(int(n) for n in shape))
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dense_shape

    @property
    def row_sizes(self) -> tuple[int, ...]:
        """The m_k of every core."""
        return tuple(int(c.shape[1]) for c in self.cores)

    @property
    def column_sizes(self) -> tuple[int, ...]:
        """The n_k of every core."""
        return tuple(int(c.shape[2]) for c in self.cores)

    def meta(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "order": len(self.cores)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        cores = tuple(tensors[f"cores.{k}"] for k in range(meta["order"]))
        return {"cores": cores, "dense_shape": tuple(meta["shape"])}

    def check(self) -> None:
        check_together(self.tensors(), "TTMatrix")
        check_train("TTMatrix", self.cores, 4)
        whole = (math.prod(self.row_sizes), math.prod(self.column_sizes))
        fits = len(self.shape) == 2 and all(
            0 < n <= padded for n, padded in zip(self.shape, whole, strict=True)
        )
        if not fits:
            raise ShapeError(
                f"TTMatrix: shape={self.shape} must be (m, n) with m <= {whole[0]} and "
                f"n <= {whole[1]}, the products of the cores' sizes"
            )

    def _dense(self) -> Tensor:
        d = len(self.cores)
        train = chain_product([c.flatten(1, 2) for c in self.cores])
        sizes = [n for c in self.cores for n in c.shape[1:3]]
        order = [*range(0, 2 * d, 2), *range(1, 2 * d, 2)]
        whole = (math.prod(self.row_sizes), math.prod(self.column_sizes))
        dense = train.reshape(sizes).permute(order).reshape(whole)
        return dense if whole == self.shape else dense[: self.shape[0], : self.shape[1]]


def check_train(owner: str, cores: Sequence[Tensor], order: int, *, ring: bool = False) -> None:
    """Cores of `order` modes whose ranks chain; at both ends the rank is one or, in a ring, the
    same."""
    layout = "(r, n, r')" if order == 3 else "(r, m, n, r')"
    for k, core in enumerate(cores):
        if core.ndim != order or 0 in core.shape:
            raise ShapeError(
                f"{owner}: cores[{k}] is {tuple(core.shape)}; it must be {layout}, without zeros"
            )
    for k in range(len(cores) - 1):
        if cores[k].shape[-1] != cores[k + 1].shape[0]:
            raise ShapeError(
                f"{owner}: cores[{k}] {tuple(cores[k].shape)} ends with rank "
                f"{cores[k].shape[-1]} but cores[{k + 1}] {tuple(cores[k + 1].shape)} begins with "
                f"{cores[k + 1].shape[0]}; neighbours share their rank"
            )
    ends = cores[0].shape[0], cores[-1].shape[-1]
    if ring and ends[0] != ends[1]:
        raise ShapeError(
            f"{owner}: cores[0] begins with rank {ends[0]} and the last core ends with {ends[1]}; "
            "in a ring these are one rank"
        )
    if not ring and ends != (1, 1):
        raise ShapeError(
            f"{owner}: cores[0] begins with rank {ends[0]} and the last core ends with {ends[1]}; "
            "the boundary ranks of a train are 1"
        )


def check_modes(owner: str, modes: Sequence[int], order: int) -> None:
    """A permutation of all modes."""
    if sorted(modes) != list(range(order)):
        raise ArgumentError(
            f"{owner}: modes={tuple(modes)} must be an order of all {order} modes, such as "
            f"{tuple(range(order))}"
        )
