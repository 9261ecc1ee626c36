"""Block terms: a sum of Tucker tensors, each of small ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors._tucker import TuckerFactors
from tensorlrf.factors.algebra import mode_product
from tensorlrf.factors.arrays import check_together


@dataclass(frozen=True, eq=False, repr=False)
class BlockTerm(Factors):
    """A sum of Tucker tensors of equal ranks: `sum_s cores[s] x_{modes[0]} factors[0][s] x ...`.

    As one Tucker tensor it has a block-diagonal core. Terms (L, L, 1) of De Lathauwer, a matrix of
    rank L times a vector, have modes (0, 2) and cores (1, L, n_1, 1).

    Parameters
    ----------
    cores : Tensor of shape (S, r_0, ..., r_{N-1})
        Along a mode that is left whole, r_k = n_k.
    factors : tuple of Tensor
        (S, n_k, r_k) for each mode in `modes`.
    modes : tuple of int, optional
        The modes that carry factors, ascending; by default the first len(factors).

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    De Lathauwer 2008, definitions 2.1 and 3.1.

    Examples
    --------
    >>> f = tensorlrf.BlockTerm(torch.ones(3, 2, 2, 4), (torch.ones(3, 6, 2), torch.ones(3, 5, 2)))
    >>> f.shape, f.rank, len(f.terms())
    ((6, 5, 4), (2, 2), 3)
    """

    cores: Tensor
    factors: tuple[Tensor, ...]
    modes: tuple[int, ...] = ()

    format: ClassVar[str] = "block_term"

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        modes = self.modes or range(len(self.factors))
        object.__setattr__(self, "modes", tuple(int(k) for k in modes))
        self.check()

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = list(self.cores.shape[1:])
        for k, f in zip(self.modes, self.factors, strict=True):
            sizes[k] = f.shape[1]
        return tuple(int(n) for n in sizes)

    @property
    def rank(self) -> tuple[int, ...]:
        """Of each term, one for each mode in `modes`."""
        return tuple(int(f.shape[2]) for f in self.factors)

    def terms(self) -> list[TuckerFactors]:
        """The Tucker tensors that are summed, as views.

        Returns
        -------
        list of TuckerFactors
        """
        parts = zip(self.cores, *self.factors, strict=True)
        return [TuckerFactors(core, tuple(own), self.modes) for core, *own in parts]

    def tensors(self) -> dict[str, Tensor]:
        named = {"cores": self.cores}
        named.update((f"factors.{k}", f) for k, f in enumerate(self.factors))
        return named

    def meta(self) -> dict[str, Any]:
        return {"modes": list(self.modes)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        modes = tuple(meta["modes"])
        factors = tuple(tensors[f"factors.{k}"] for k in range(len(modes)))
        return {"cores": tensors["cores"], "factors": factors, "modes": modes}

    def check(self) -> None:
        check_together(self.tensors(), "BlockTerm")
        modes, order = self.modes, self.cores.ndim - 1
        if len(modes) != len(self.factors) or not modes:
            raise ArgumentError(
                f"BlockTerm: modes={modes} names {len(modes)} modes for {len(self.factors)} "
                "factors; give one stack of matrices a mode, and one at least"
            )
        if list(modes) != sorted(set(modes)) or any(not 0 <= k < order for k in modes):
            raise ArgumentError(
                f"BlockTerm: modes={modes} must be ascending, without repeats, within 0 to "
                f"{order - 1} (each core has {order} modes)"
            )
        if 0 in self.cores.shape:
            raise ShapeError(f"BlockTerm: cores are {tuple(self.cores.shape)}, which has a zero")
        count = self.cores.shape[0]
        for k, f in zip(modes, self.factors, strict=True):
            wanted = (count, self.cores.shape[k + 1])
            if f.ndim != 3 or (f.shape[0], f.shape[2]) != wanted or 0 in f.shape:
                raise ShapeError(
                    f"BlockTerm: the factors of mode {k} are {tuple(f.shape)}; they must be "
                    f"({count}, n_{k}, {wanted[1]}), for cores {tuple(self.cores.shape)}"
                )

    def _dense(self) -> Tensor:
        total: Tensor | None = None
        for core, *own in zip(self.cores, *self.factors, strict=True):
            dense = core
            for k, f in zip(reversed(self.modes), reversed(own), strict=True):
                dense = mode_product(dense, f, k)
            total = dense if total is None else total + dense
        assert total is not None
        return total
