"""Scree: the singular values behind a decomposition, and what each rank would cost and lose."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._evbmf import singular_values
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition.analysis._scree_plot import Curve, plot_scree
from tensorlrf.decomposition.linalg.threads import threaded
from tensorlrf.decomposition.methods import find, names, registered
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.factors.autocast import without_autocast

_PRINTED = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
_SUCH_AS = {"shapes": "((m1, n1), (m2, n2))", "block": "64 or (64, 128)"}
"""Of options that a method needs."""


@dataclass(frozen=True)
class ScreeSpectrum:
    """One set of singular values. The lists have one entry for each rank from one on.

    Parameters
    ----------
    name : str
        What was unfolded, in words.
    values : tuple of float
        Singular values, descending.
    energy : tuple of float
        The share of the squared norm in the first r of them.
    errors : tuple of float
        Relative Frobenius error of keeping the first r here and all else elsewhere.
    params : tuple of int
        Parameters of the factors that this takes.
    """

    name: str
    values: tuple[float, ...]
    energy: tuple[float, ...]
    errors: tuple[float, ...]
    params: tuple[int, ...]

    def rank_within(self, error: float) -> int:
        """The smallest rank whose error is at most `error`; all of them where none is."""
        return next((r for r, e in enumerate(self.errors, 1) if e <= error), len(self.errors))


@dataclass(frozen=True)
class Scree:
    """The spectra of a tensor for one method.

    Prints itself as the ranks that some errors take; `to_json()`; `plot(path)`.

    Parameters
    ----------
    method : str
        As given.
    shape : tuple of int
        Of the tensor.
    spectra : tuple of ScreeSpectrum
        One for each set of singular values that is truncated by itself.
    """

    method: str
    shape: tuple[int, ...]
    spectra: tuple[ScreeSpectrum, ...]

    @property
    def n_params(self) -> int:
        """Parameters of the tensor itself."""
        return math.prod(self.shape)

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """A picture of the spectra, and of the errors against the parameters kept.

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
        total = self.n_params
        curves = [
            Curve(s.name, s.values, [n / total for n in s.params], s.errors) for s in self.spectra
        ]
        plot_scree(path, curves)

    def __str__(self) -> str:
        title = f"{self.method} of {'x'.join(map(str, self.shape))}, {self.n_params} parameters"
        width = max(len(s.name) for s in self.spectra)
        head = " " * width + "   of" + "".join(f"{f'error {e:g}':>18}" for e in _PRINTED)
        lines = [title, head]
        for s in self.spectra:
            cells = []
            for error in _PRINTED:
                r = s.rank_within(error)
                cells.append(f"{f'{r} ({s.params[r - 1] / self.n_params:.0%})':>18}")
            lines.append(f"{s.name:<{width}}{len(s.values):>5}{''.join(cells)}")
        return "\n".join(lines)


@without_autocast()
@threaded
def scree(
    tensor: Any,
    method: str = "svd",
    *,
    modes: Sequence[int] | None = None,
    shapes: Any = None,
    block: int | tuple[int, int] | None = None,
) -> Scree:
    """The singular values that a decomposition truncates, before any rank is chosen.

    The error of a Tucker format or a train with several ranks is at most the root of the sum of the
    squared errors at these ranks. CP has no such spectrum.

    Parameters
    ----------
    tensor : Tensor or array
        Of any float dtype, as the decomposition itself takes it; left as it is.
    method : str
        "svd": of the matrix (n_0, product of the others); parameters r (m + n).
        "tucker": of the unfolding of each of `modes` (all by default); parameters of the partial
        Tucker format with a factor for this mode alone.
        "tt": of the unfoldings (n_0 ... n_k, the others); parameters r (m + n) of that matrix.
        "kron": of the rearranged matrix (Van Loan & Pitsianis 1993) for `shapes`,
        ((m1, n1), (m2, n2)) of a weight `(m, n, *kernel)`; r counts terms.
        "blr": of all blocks of size `block` (an int or a pair) of a matrix, pooled; r counts the
        triplets kept in all blocks together.
    modes : sequence of int, optional
        For "tucker".
    shapes : pair of pairs of int
        For "kron", which needs it.
    block : int or pair of int
        For "blr", which needs it.

    Returns
    -------
    Scree

    Raises
    ------
    UnsupportedError
        For "cp", and for "blr" of more than two modes.
    ArgumentError
        For other methods and for options of another one.
    ShapeError
        For what does not fit.

    References
    ----------
    De Lathauwer et al. 2000; Oseledets 2011; Van Loan & Pitsianis 1993.

    Examples
    --------
    >>> spectra = tensorlrf.scree(torch.rand(8, 3) @ torch.rand(3, 6)).spectra
    >>> spectra[0].rank_within(1e-3)
    3
    """
    checked = as_tensor(tensor).detach()
    found = find(method, "scree") if method != "cp" else registered(method)
    if found.truncates is None:
        raise UnsupportedError(
            "method='cp' has no singular values: the terms of one rank are not among those of the "
            "next; use method='tucker' for the ranks of the modes, or fit_cp at several ranks"
        )
    options = _own(method, {"modes": modes, "shapes": shapes, "block": block})
    spectra = [_spectrum(name, parts) for name, parts in found.truncates(checked, **options)]
    return Scree(method, tuple(map(int, checked.shape)), tuple(spectra))


def _own(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """The method's own options of those given: there is no other, and none is missing."""
    own = {
        word: _options_of(unfoldings)
        for word in names("scree")
        if (unfoldings := registered(word).truncates)
    }
    for name, value in given.items():
        if value is not None and name not in own[method]:
            owner = next(word for word, options in own.items() if name in options)
            raise ArgumentError(f"{name}={value!r} belongs to method={owner!r}, not {method!r}")
        if value is None and name in own[method] and own[method][name].default is Parameter.empty:
            raise ArgumentError(f"method={method!r} needs {name}=, such as {_SUCH_AS[name]}")
    return {name: value for name, value in given.items() if value is not None}


def _options_of(unfoldings: Callable[..., Any]) -> dict[str, Parameter]:
    _, *options = signature(unfoldings).parameters.values()
    return {option.name: option for option in options}


def _spectrum(name: str, parts: Sequence[tuple[Tensor, int]]) -> ScreeSpectrum:
    """Of the unfoldings `parts`, pooled. A triplet of one costs its rows and columns."""
    found = [singular_values(tensor, mode) for tensor, mode in parts]
    values, order = torch.cat(found).sort(descending=True, stable=True)
    sides = [tensor.shape[mode] + tensor.numel() // tensor.shape[mode] for tensor, mode in parts]
    each = torch.cat(
        [torch.full((len(v),), side, device="cpu") for v, side in zip(found, sides, strict=True)]
    )
    costs = each[order.cpu()].cumsum(0)
    largest = float(values[0])
    squares = (values / largest).square() if largest > 0 else values
    total = float(squares.sum())
    # Summed from the small end: the difference from the total would lose the small errors.
    left_out = squares.flip(0).cumsum(0).flip(0)[1:]
    left_out = torch.cat([left_out, left_out.new_zeros(1)]) / (total if total > 0 else 1.0)
    return ScreeSpectrum(
        name,
        tuple(values.tolist()),
        tuple((1 - left_out).tolist()),
        tuple(left_out.sqrt().tolist()),
        tuple(costs.tolist()),
    )
