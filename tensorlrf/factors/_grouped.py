"""The factors of the groups of a convolution, stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError, unknown
from tensorlrf.factors._alike import stacked
from tensorlrf.factors._base import FORMATS, Factors
from tensorlrf.factors._terms import refuse_gram
from tensorlrf.factors.arrays import check_together


@dataclass(frozen=True, eq=False, repr=False)
class Grouped(Factors):
    """Factors of one format, rank and shape, one under the other along the first mode.

    Where a group stands for (m, n_1, ...) the whole is (g m, n_1, ...), as torch keeps the weight
    of a convolution with groups: the groups share no input, so nothing is shared between their
    factors. Made by `Grouped.stack([f_1, ..., f_g])`; `group(k)` gives f_k back.

    Parameters
    ----------
    parts : dict
        The tensors of the format by name, each with a leading dimension g.
    of : str
        Name of the format, such as "lowrank".
    groups : int
        The number of groups g.
    of_meta : dict
        `meta()` of the factors of one group.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    Examples
    --------
    >>> one = tensorlrf.LowRank(torch.ones(4, 2), torch.ones(2, 9), dense_shape=(4, 1, 3, 3))
    >>> whole = tensorlrf.factors.Grouped.stack([one, one])
    >>> whole.shape, whole.group(-1).shape
    ((8, 1, 3, 3), (4, 1, 3, 3))
    """

    parts: dict[str, Tensor]
    of: str
    groups: int
    of_meta: dict[str, Any]

    format: ClassVar[str] = "grouped"

    @classmethod
    def stack(cls, groups: Sequence[Factors]) -> Grouped:
        """The whole whose groups these are.

        Parameters
        ----------
        groups : sequence of Factors
            Of one format, rank, shape, dtype and device.

        Returns
        -------
        Grouped

        Raises
        ------
        ArgumentError, ShapeError
            Where there are none, or where they differ in one of these.
        """
        groups = tuple(groups)
        parts = stacked("group", groups, Grouped)
        return cls(parts, groups[0].format, len(groups), groups[0].meta())

    def group(self, k: int) -> Factors:
        """The factors of group k, views of the stack; k may count from the end."""
        if isinstance(k, bool) or not isinstance(k, int) or not -self.groups <= k < self.groups:
            raise ArgumentError(f"k={k!r} must be a group, from 0 to {self.groups - 1}")
        return self._format()._assemble({n: t[k] for n, t in self.parts.items()}, self.of_meta)

    @property
    def shape(self) -> tuple[int, ...]:
        first, *others = self.group(0).shape
        return (self.groups * first, *others)

    @property
    def rank(self) -> int | tuple[int, ...]:
        """The rank of one group; all have the same."""
        return self.group(0).rank

    @property
    def has_terms(self) -> bool:
        return self.group(0).has_terms

    def leading(self, rank: Any) -> Grouped:
        of = self.group(0).leading(rank)
        parts = {n: _within(self.parts[n], t.shape) for n, t in of.tensors().items()}
        meta = {"of": self.of, "groups": self.groups, "meta": of.meta()}
        return self._assemble(parts, meta)

    def by_energy(self, gram: Tensor | None = None) -> Grouped:
        refuse_gram(self, gram)
        return Grouped.stack([self.group(k).by_energy() for k in range(self.groups)])

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.parts)

    def meta(self) -> dict[str, Any]:
        return {"of": self.of, "groups": self.groups, "meta": dict(self.of_meta)}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        of, groups, inner = meta["of"], meta["groups"], meta["meta"]
        if not isinstance(of, str) or of not in FORMATS or FORMATS[of] is cls:
            raise unknown("of", of, [name for name in FORMATS if name != cls.format])
        if not isinstance(inner, Mapping):
            raise ArgumentError(f"Grouped: meta={inner!r} must be a mapping, that of {of!r}")
        # As the format names and orders them.
        parts = FORMATS[of]._assemble(tensors, inner).tensors()
        return {"parts": parts, "of": of, "groups": groups, "of_meta": dict(inner)}

    def _format(self) -> type[Factors]:
        return FORMATS[self.of]

    def check(self) -> None:
        check_together(self.parts, "Grouped")
        groups = self.groups
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise ArgumentError(f"Grouped: groups={groups!r} must be an int of at least 1")
        for name, t in self.parts.items():
            if t.ndim == 0 or t.shape[0] != groups:
                raise ShapeError(
                    f"Grouped: {name} is {tuple(t.shape)}; its first dimension must be the "
                    f"{groups} groups"
                )
        self.group(0).check()

    def _dense(self) -> Tensor:
        return torch.cat([self.group(k)._dense() for k in range(self.groups)])


def _within(stack: Tensor, sizes: Sequence[int]) -> Tensor:
    """The leading entries of each group, a view."""
    for dim, n in enumerate(sizes, start=1):
        stack = stack.narrow(dim, 0, n)
    return stack
