"""What fine-tuning adds to the weights of layers, each change of low rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from tensorlrf.adapters._merge import merged
from tensorlrf.adapters._peft import read, write
from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import LowRank
from tensorlrf.factors.kinds import check_format
from tensorlrf.files.arguments import PathLike


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """Changes of the weights of layers, as values.

    Parameters
    ----------
    terms : Mapping of str to LowRank
        Qualified name of a layer -> its change, of the shape of its weight as torch has it, (out,
        in) or (out, in, kh, kw): `left` is s B, with the scaling s of LoRA in it, and `right` is A.
    magnitudes : Mapping of str to Tensor, optional
        Name -> (out,), of a DoRA adapter: the norms that rows of the changed weight are given.
    errors : Mapping of str to float, optional
        Name -> relative error of a term that was cut off.
    base : str
        Name or path of the model that it is for; for the file alone.

    Raises
    ------
    ArgumentError
        For no terms, a term that is no LowRank, and magnitudes of other layers.
    ShapeError
        For magnitudes of another length.

    Examples
    --------
    >>> change = tensorlrf.LowRank(torch.ones(8, 2), torch.ones(2, 4))
    >>> tensorlrf.adapters.Adapter({"up": change})
    Adapter(1 layer, rank 2, 24 parameters)
    """

    terms: Mapping[str, LowRank]
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    base: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.terms, Mapping) or not self.terms:
            raise ArgumentError(
                f"terms={self.terms!r} must map names of layers to LowRank, at least one"
            )
        for name, term in self.terms.items():
            if not isinstance(name, str) or not name:
                raise ArgumentError(f"terms: {name!r} must be the qualified name of a layer")
            check_format(term, (LowRank,), f"terms[{name!r}]", "give a LowRank")
        for name, lengths in self.magnitudes.items():
            if name not in self.terms:
                raise ArgumentError(
                    f"magnitudes: {name!r} has no term; those of terms may have one"
                )
            rows = self.terms[name].shape[0]
            if tuple(lengths.shape) != (rows,):
                raise ShapeError(
                    f"magnitudes: {name!r} has shape {tuple(lengths.shape)}, and its layer {rows} "
                    "rows"
                )
        for own in ("terms", "magnitudes", "errors"):
            object.__setattr__(self, own, MappingProxyType(dict(getattr(self, own))))

    @property
    def ranks(self) -> dict[str, int]:
        """Name of a layer -> rank of its term."""
        return {name: term.rank for name, term in self.terms.items()}

    @property
    def n_params(self) -> int:
        """Numbers of all terms and magnitudes."""
        sizes = [m.numel() for m in self.magnitudes.values()]
        return sum(term.n_params for term in self.terms.values()) + sum(sizes)

    def __repr__(self) -> str:
        ranks, n = sorted({term.rank for term in self.terms.values()}), len(self.terms)
        of = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        more = ", with magnitudes" if self.magnitudes else ""
        layers = "1 layer" if n == 1 else f"{n} layers"
        return f"Adapter({layers}, {of}{more}, {self.n_params:,} parameters)"

    # ---- sums and ranks ----------------------------------------------------------------------

    def times(self, weight: float) -> Adapter:
        """`weight` times the change.

        Parameters
        ----------
        weight : float

        Returns
        -------
        Adapter

        Raises
        ------
        ArgumentError
            Where the weight is not finite.
        UnsupportedError
            With magnitudes, in which a change is not linear.
        """
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ArgumentError(f"weight={weight!r} must be a number")
        if not math.isfinite(weight):
            raise ArgumentError(f"weight={weight!r} must be finite")
        self._check_linear("times")
        return self._mapped(lambda term: LowRank(weight * term.left, term.right, term.shape))

    def plus(self, other: Adapter) -> Adapter:
        """Both changes: ranks of layers that both have add up, nothing is multiplied out or cut.

        Cut it afterwards by `reranked`.

        Parameters
        ----------
        other : Adapter

        Returns
        -------
        Adapter

        Raises
        ------
        ShapeError
            Where a layer has two shapes.
        UnsupportedError
            With magnitudes.
        """
        if not isinstance(other, Adapter):
            raise ArgumentError(f"other={other!r} must be an Adapter")
        self._check_linear("plus")
        other._check_linear("plus")
        terms = dict(self.terms)
        for name, term in other.terms.items():
            own = terms.get(name)
            if own is not None and own.shape != term.shape:
                raise ShapeError(
                    f"other: {name!r} has shape {term.shape}, and {own.shape} here; they are for "
                    "models of different sizes"
                )
            terms[name] = term if own is None else own.plus(
                term.left.to(own.left), term.right.to(own.right)
            )  # fmt: skip
        return replace(self, terms=terms, errors={}, base=self.base or other.base)

    def reranked(self, rank: int | None = None, *, error: float | None = None) -> Adapter:
        """The nearest changes of lower rank, each by the SVD of its product, which is not formed.

        Parameters
        ----------
        rank : int, optional
            Of each layer at most; or instead
        error : float, optional
            The smallest ranks whose relative errors are at most this.

        Returns
        -------
        Adapter
            With `errors`. Terms of a layer are in the order of their energy.

        Raises
        ------
        ArgumentError
            Unless one of the two is given, for a rank below one, and an error outside [0, 1).
        """
        check_asked(rank, error)
        terms, errors = {}, {}
        for name, term in self.terms.items():
            terms[name], errors[name] = cut(term, rank, error)
        return replace(self, terms=terms, errors=errors)

    # ---- models and files --------------------------------------------------------------------

    def merged_into(self, model: nn.Module) -> nn.Module:
        """A copy of the model with the change in its weights.

        A layer on factors of low rank gets `[left, s B] @ [right; A]`, which is exact; with
        magnitudes its rows are scaled, by norms that need no product.

        Parameters
        ----------
        model : Module
            It stays as it is.

        Returns
        -------
        Module

        Raises
        ------
        ArgumentError
            Where a layer is not in the model.
        ShapeError
            Where its weight has another shape.
        UnsupportedError
            For a layer of another kind than linear and convolution, and of another format of
            factors.
        """
        return merged(model, self.terms, self.magnitudes)

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write a folder as peft's `save_pretrained` does.

        It gets adapter_config.json, with lora_alpha equal to the rank of each layer, so that the
        scaling is one, and adapter_model.safetensors.

        Parameters
        ----------
        path : path
        overwrite : bool
            Whether to take the place of these two files.

        Raises
        ------
        FileError
            Where one of these files is there and `overwrite` is False, and where the system
            refuses.
        """
        write(path, self.terms, self.magnitudes, self.base, overwrite=overwrite)

    @classmethod
    def load(cls, path: PathLike) -> Adapter:
        """Read a folder that peft's `save_pretrained` wrote, LoRA, rsLoRA or DoRA.

        Parameters
        ----------
        path : path

        Returns
        -------
        Adapter

        Raises
        ------
        MissingFileError
            Where a file is not there.
        FileFormatError
            Where one is damaged.
        UnsupportedError
            For another kind of adapter, or one that has more than changes of low rank.
        """
        return cls(*read(path))

    def _mapped(self, change: Callable[[LowRank], LowRank]) -> Adapter:
        return replace(self, terms={name: change(term) for name, term in self.terms.items()})

    def _check_linear(self, what: str) -> None:
        if self.magnitudes:
            raise UnsupportedError(
                f"{what}: an adapter with magnitudes (DoRA) is no sum of changes; merge it into "
                "its model (merged_into), and extract what has changed"
            )


def check_asked(rank: int | None, error: float | None) -> None:
    """Exactly one of the two, in its range. Raises ArgumentError."""
    if (rank is None) == (error is None):
        raise ArgumentError(f"rank={rank!r} and error={error!r}: give one of the two")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ArgumentError(f"rank={rank!r} must be an int of at least 1")
    if error is not None and not (isinstance(error, (int, float)) and 0 <= error < 1):
        raise ArgumentError(f"error={error!r} must be a number in [0, 1)")


def cut(term: LowRank, rank: int | None, error: float | None) -> tuple[LowRank, float]:
    """The nearest of so low a rank, or within a relative error, and how far it is."""
    ordered = term.by_energy()
    left, right = ordered.left.to(torch.float64), ordered.right.to(torch.float64)
    # Both sides of a term have the root of its singular value as norm.
    energies = (left.square().sum(0) * right.square().sum(1)).clamp(min=0.0)
    whole = float(energies.sum())
    if error is not None:
        left_out = energies.flip(0).cumsum(0).flip(0)  # [k] with k terms kept
        rank = int((left_out > error**2 * whole).sum())
    r = min(max(rank or 1, 1), ordered.rank)
    lost = math.sqrt(float(energies[r:].sum()) / whole) if whole > 0 else 0.0
    return ordered.leading(r), lost
