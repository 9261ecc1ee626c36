"""Cross-validation of ranks: entries are hidden, and told by factors of the others."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import check_sequence
from tensorlrf.decomposition.linalg.observed._observed import Observed, known_of, observe
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.decomposition.methods import Registered, find, names, registered
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import (
    ArgumentError,
    TensorlrfWarning,
    UnsupportedError,
    gathering,
    unknown,
    warn,
)
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.files.picture import picture


@dataclass(frozen=True)
class CrossValidation:
    """Errors of entries that a fit has not seen, for several ranks.

    Prints itself as a table; `to_json()`; `plot(path)`.

    Parameters
    ----------
    method : str
        As given.
    shape : tuple of int
        Of the tensor.
    ranks : tuple
        As given.
    errors : tuple of tuple of float
        Relative errors over the entries held out, for each rank one a fold.
    seen : tuple of tuple of float
        The same over the entries that were fitted.
    params : tuple of int
        Parameters of the factors of each rank.
    """

    method: str
    shape: tuple[int, ...]
    ranks: tuple[Any, ...]
    errors: tuple[tuple[float, ...], ...]
    seen: tuple[tuple[float, ...], ...]
    params: tuple[int, ...]

    @property
    def means(self) -> tuple[float, ...]:
        """Of the errors held out, over the folds."""
        return tuple(map(_mean, self.errors))

    @property
    def deviations(self) -> tuple[float, ...]:
        """Standard errors of these means."""
        return tuple(map(_standard_error, self.errors))

    @property
    def best(self) -> Any:
        """The rank of the least mean."""
        return self.ranks[self._least]

    @property
    def simplest(self) -> Any:
        """The rank of fewest parameters within one standard error of the least mean.

        Breiman et al. 1984, the rule of one standard error.
        """
        bound = self.means[self._least] + self.deviations[self._least]
        near = [k for k, mean in enumerate(self.means) if mean <= bound]
        return self.ranks[min(near, key=self.params.__getitem__)]

    @property
    def _least(self) -> int:
        return min(range(len(self.ranks)), key=self.means.__getitem__)

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """A picture of both errors against the parameters.

        Parameters
        ----------
        path : str or path
            Its suffix says of which kind (.png, .svg, .pdf).

        Raises
        ------
        UnsupportedError
            Where matplotlib is missing, which the extra `plot` brings.
        ArgumentError
            For another suffix.
        FileError
            Where the file cannot be written.
        """
        with picture(path, (6, 4), of="cross_validate(...).plot") as figure:
            axes = figure.subplots()
            order = sorted(range(len(self.ranks)), key=self.params.__getitem__)
            at = [self.params[k] for k in order]
            means = [self.means[k] for k in order]
            axes.errorbar(
                at, means, [self.deviations[k] for k in order], fmt=".-", label="held out"
            )
            axes.plot(at, [_mean(self.seen[k]) for k in order], ".--", label="fitted")
            for k in order:
                axes.annotate(str(self.ranks[k]), (self.params[k], self.means[k]), fontsize=7)
            axes.axvline(self.params[self._least], color="0.7", zorder=0)
            axes.set_xlabel(f"parameters of {self.method}, its rank beside the point")
            axes.set_ylabel("relative error")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)

    def __str__(self) -> str:
        folds = len(self.errors[0])
        title = f"{self.method} of {'x'.join(map(str, self.shape))}, {folds} folds"
        words = [str(rank) for rank in self.ranks]
        width = max(4, *map(len, words))
        lines = [title, f"{'rank':>{width}}{'parameters':>12}{'held out':>20}{'fitted':>10}"]
        for k, word in enumerate(words):
            held = f"{self.means[k]:.4f} +- {self.deviations[k]:.4f}"
            marks = [m for m in ("best", "simplest") if getattr(self, m) == self.ranks[k]]
            mark = f"  {', '.join(marks)}" if marks else ""
            lines.append(
                f"{word:>{width}}{self.params[k]:>12,}{held:>20}{_mean(self.seen[k]):>10.4f}{mark}"
            )
        return "\n".join(lines)


@without_autocast()
@threaded
def cross_validate(
    tensor: Any,
    method: str = "cp",
    ranks: Sequence[Any] = (1, 2, 3, 4, 5),
    *,
    mask: Any = None,
    weights: Any = None,
    folds: int = 5,
    options: Mapping[str, Any] | None = None,
    random_state: int | torch.Generator | None = None,
) -> CrossValidation:
    """How well a decomposition of each rank tells entries that it has not seen.

    The known entries are dealt out at random to the folds; the entries of one fold after the other
    are hidden, the decomposition is fitted to the rest, and its error over what was hidden counts.
    Where an entry is all that is left of a slice it is not hidden.

    Parameters
    ----------
    tensor : Tensor or array
        Of any float dtype, as the decomposition itself takes it.
    method : str
        Of those that take `mask=`: "cp", "tucker", "tt", "svd".
    ranks : sequence
        Each as the decomposition takes it: an int, or a tuple where the format has several.
    mask, weights : Tensor or array of the shape of `tensor`, optional
        As of the decomposition: what is hidden there is in no fold, and errors count by the
        weights.
    folds : int
        Parts that the known entries are dealt into, two at least.
    options : Mapping, optional
        Further options of the decomposition by their names, such as {"init": "svd"}.
    random_state : int or Generator, optional
        Of the deal, and of each fit that draws.

    Returns
    -------
    CrossValidation
        Which has a table, a plot, and the best rank.

    Raises
    ------
    ArgumentError
        For a method without `mask=`, an option that it does not have, and folds that cannot be.
    ShapeError, RankError, UnsupportedError
        What the decomposition raises.

    Warns
    -----
    TensorlrfWarning
        Once, where a rank has more free parameters than there are entries to tell.

    References
    ----------
    Wold 1978; Bro, Kjeldahl, Smilde & Kiers 2008, "Cross-validation of component models".

    Examples
    --------
    >>> planted = tensorlrf.CPFactors(torch.ones(2), tuple(torch.rand(n, 2) for n in (9, 8, 7)))
    >>> noisy = planted.to_dense() + 0.05 * torch.randn(9, 8, 7)
    >>> found = tensorlrf.cross_validate(noisy, "cp", (1, 2, 3), random_state=0)
    >>> found.ranks, len(found.errors[0])
    ((1, 2, 3), 5)
    """
    served = [name for name in names("tensor") if registered(name).takes("mask")]
    found = find(method, "tensor", others=served)
    if not found.takes("mask"):
        raise UnsupportedError(
            f"method={method!r} takes no mask=, so that no entry can be hidden from it; choose one "
            f"of {', '.join(served)}"
        )
    chosen = _checked_options(found, dict(options or {}))
    check_sequence(ranks, "ranks", "(1, 2, 3)")
    if not ranks:
        raise ArgumentError("ranks=() leaves nothing to compare; name at least one")
    seen = observe(tensor, known_of(tensor, mask), weights)
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= seen.count:
        raise ArgumentError(
            f"folds={folds!r} must be an int from 2 to {seen.count}, the number of known entries"
        )
    draws = generator(random_state, seen.data.device)
    parts = _dealt(seen, folds, draws)
    errors: list[tuple[float, ...]] = []
    fitted: list[tuple[float, ...]] = []
    params = []
    with gathering(TensorlrfWarning) as said:
        for rank in ranks:
            pairs = []
            for part in parts:
                if found.draws:
                    chosen["random_state"] = draws if random_state is None else random_state
                rest = torch.where(part, 0, seen.weights)
                fit = found.fit(seen.tensor, rank, weights=rest, **chosen)
                held = replace(seen, weights=torch.where(part, seen.weights, 0))
                pairs.append((held.error_of(fit.factors), fit.error))
            held_out, told = zip(*pairs, strict=True)
            errors.append(held_out)
            fitted.append(told)
            params.append(int(fit.factors.n_params))
    if said:
        warn(f"{len(said)} of {len(ranks) * folds} fits: {said[0]}", TensorlrfWarning)
    return CrossValidation(
        method, seen.shape, tuple(ranks), tuple(errors), tuple(fitted), tuple(params)
    )


def _checked_options(method: Registered, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the decomposition that are not given otherwise."""
    own = {"mask", "weights", "random_state", "error", "gram", "mean", "batch_dims"}
    for name in options:
        if name in own or not method.takes(name):
            valid = sorted(set(_taken(method)) - own)
            raise unknown("options", name, valid)
    return options


def _taken(method: Registered) -> list[str]:
    _, _, *options = inspect.signature(method.fit).parameters
    return options


def _dealt(seen: Observed, folds: int, draws: torch.Generator) -> list[Tensor]:
    """Masks of the entries of each fold; no slice, and no column of the matrix (n_0, the others),
    is left without an entry by one of them."""
    places = torch.nonzero(seen.weights.flatten())[:, 0]
    order = torch.randperm(len(places), generator=draws, device=places.device)
    parts = []
    for some in places[order].tensor_split(folds):
        part = torch.zeros(seen.weights.numel(), dtype=torch.bool, device=places.device)
        part[some] = True
        part = part.reshape(seen.shape)
        for shape in (seen.shape, (seen.shape[0], -1)):
            hidden, weights = part.reshape(shape), seen.weights.reshape(shape)
            for k in range(hidden.ndim):
                others = [j for j in range(hidden.ndim) if j != k]
                left = ((weights > 0) & ~hidden).sum(others, keepdim=True)
                hidden = hidden & (left > 0)
            part = hidden.reshape(seen.shape)
        parts.append(part)
    return parts


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float:
    mean, n = _mean(values), len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
