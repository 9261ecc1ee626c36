"""Tucker format: a core multiplied by a matrix along some or all of its modes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors._base import Factors
from tensorlrf.factors._terms import checked_each, filled, leading_basis, refuse_gram
from tensorlrf.factors.algebra import mode_product
from tensorlrf.factors.arrays import check_together


@dataclass(frozen=True, eq=False, repr=False)
class TuckerFactors(Factors):
    """A core multiplied by a matrix along each of some modes (Tucker, full or partial).

    It is `core x_{modes[0]} factors[0] x_{modes[1]} factors[1] ...` and unpacks as
    `core, factors`, like tensorly's TuckerTensor.

    Parameters
    ----------
    core : Tensor of shape (r_0, ..., r_{N-1})
        Along a mode that is left whole, r_k = n_k.
    factors : tuple of Tensor
        One matrix (n_k, r_k) for each mode in `modes`.
    modes : tuple of int, optional
        The modes that carry a factor, ascending. By default the first len(factors): all of them in
        a full Tucker. Fewer make a partial one, such as Tucker-2 on the channels of a conv kernel,
        modes (0, 1).

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Kolda & Bader 2009, eq. 4.1.

    Examples
    --------
    >>> core = torch.ones(2, 2, 3, 3)
    >>> f = tensorlrf.TuckerFactors(core, (torch.ones(8, 2), torch.ones(4, 2)))
    >>> f.shape, f.rank
    ((8, 4, 3, 3), (2, 2))
    """

    core: Tensor
    factors: tuple[Tensor, ...]
    modes: tuple[int, ...] = ()

    format: ClassVar[str] = "tucker"

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        modes = self.modes or range(len(self.factors))
        object.__setattr__(self, "modes", tuple(int(k) for k in modes))
        self.check()

    def __iter__(self) -> Iterator[Any]:
        return iter((self.core, self.factors))

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = list(self.core.shape)
        for k, f in zip(self.modes, self.factors, strict=True):
            sizes[k] = f.shape[0]
        return tuple(int(n) for n in sizes)

    @property
    def rank(self) -> tuple[int, ...]:
        """One rank for each mode in `modes`."""
        return tuple(int(f.shape[1]) for f in self.factors)

    def leading(self, rank: Any) -> TuckerFactors:
        core, ranks = self.core, checked_each(rank, self.rank)
        for k, r in zip(self.modes, ranks, strict=True):
            core = core.narrow(k, 0, r)
        cut = {"core": core}
        for k, (f, r) in enumerate(zip(self.factors, ranks, strict=True)):
            cut[f"factors.{k}"] = f[:, :r]
        return self._assemble(cut, self._context())

    def by_energy(self, gram: Tensor | None = None) -> TuckerFactors:
        refuse_gram(self, gram)
        # All in orthonormal bases, where the HOSVD of the whole is that of the core.
        bases, core = [], self.core.to(torch.float64)
        for k, f in zip(self.modes, self.factors, strict=True):
            basis, small = torch.linalg.qr(f.to(torch.float64))
            bases.append(basis)
            core = mode_product(core, small, k)
        turns = [leading_basis(core.movedim(k, 0).flatten(1)) for k in self.modes]
        turned = []
        for k, basis, turn, r in zip(self.modes, bases, turns, self.rank, strict=True):
            core = filled(mode_product(core, turn.T, k), k, r)
            turned.append(filled(basis @ turn, 1, r).to(self.dtype))
        return TuckerFactors(core.to(self.dtype), tuple(turned), self.modes)

    def tensors(self) -> dict[str, Tensor]:
        named = {"core": self.core}
        named.update((f"factors.{k}", f) for k, f in enumerate(self.factors))
        return named

    def meta(self) -> dict[str, Any]:
        return {"modes": list(self.modes)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        modes = tuple(meta["modes"])
        factors = tuple(tensors[f"factors.{k}"] for k in range(len(modes)))
        return {"core": tensors["core"], "factors": factors, "modes": modes}

    def check(self) -> None:
        check_together(self.tensors(), "TuckerFactors")
        modes, order = self.modes, self.core.ndim
        if len(modes) != len(self.factors):
            raise ArgumentError(
                f"TuckerFactors: modes={modes} names {len(modes)} modes for "
                f"{len(self.factors)} factors; give one matrix a mode"
            )
        if list(modes) != sorted(set(modes)) or any(not 0 <= k < order for k in modes):
            raise ArgumentError(
                f"TuckerFactors: modes={modes} must be ascending, without repeats, within 0 to "
                f"{order - 1} (the core has {order} modes)"
            )
        for k, f in zip(modes, self.factors, strict=True):
            if f.ndim != 2 or f.shape[1] != self.core.shape[k]:
                raise ShapeError(
                    f"TuckerFactors: the factor of mode {k} is {tuple(f.shape)}; it must be "
                    f"(n_{k}, {self.core.shape[k]}) to multiply a core of shape "
                    f"{tuple(self.core.shape)}"
                )

    def _dense(self) -> Tensor:
        dense = self.core
        # Last modes first: in a layer's weight the leading modes are the ones that grow most.
        for k, f in zip(reversed(self.modes), reversed(self.factors), strict=True):
            dense = mode_product(dense, f, k)
        return dense
