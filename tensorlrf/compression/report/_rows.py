"""What a report says of layers and sums, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class GateChoice:
    """The gates of a recurrent matrix, tried with one low rank for all and with one for each.

    Parameters
    ----------
    apart : bool
        Whether each has its own.
    error_apart, error_together : float
        Relative error of the outputs, in the metric of the fit, where there is calibration; else of
        the weight.
    params_apart, params_together : int
        Of the factors.
    held_out : bool
        Whether the errors are on inputs held out.

    Examples
    --------
    >>> choice = tensorlrf.compression.GateChoice(True, 0.01, 0.2, 512, 512, True)
    >>> print(choice)
    apart, error 0.01 at 512 parameters, 0.2 at 512 together
    """

    apart: bool
    error_apart: float
    error_together: float
    params_apart: int
    params_together: int
    held_out: bool

    def __str__(self) -> str:
        words = ["apart", "together"]
        errors = [self.error_apart, self.error_together]
        params = [self.params_apart, self.params_together]
        kept, other = (0, 1) if self.apart else (1, 0)
        return (
            f"{words[kept]}, error {errors[kept]:.3g} at {params[kept]:,} parameters, "
            f"{errors[other]:.3g} at {params[other]:,} {words[other]}"
        )


@dataclass(frozen=True)
class LayerReport:
    """One module that owns parameters.

    Parameters
    ----------
    name, places
        Qualified names: the first one, and all.
    kind : str
        Its type before.
    eligible : bool
        Whether it could be factored; only such layers count in `keep_params`.
    format, rank
        Of its factors; None where it stays as it is.
    reason : str
        Why it stays; empty where it is factored.
    params_before, params_after : int
        Of the weight for an eligible layer (the bias stays), else all of its own.
    bytes_before, bytes_after : int
        Of the same.
    flops_before, flops_after : int or None
        2 x multiply-adds in one pass over the first calibration batch; None where that did not
        reach it.
    weight_error : float or None
        Relative Frobenius error of the factors as stored.
    output_error : float or None
        Relative error of the outputs without bias, root mean square, against the target of the fit:
        on the inputs held out where there are any, else on those fitted to.
    held_out : bool
        Whether it is on inputs held out.
    samples : int or None
        Input rows (for a conv: patches) that the fit is made of.
    data_aware : bool
        Whether the factors were fitted to the inputs.
    bias : str
        "corrected" or "added" where the affine form gave it something; else empty.
    path : str or None
        How it is executed, at the rows of the first calibration batch where known.
    shrinkage : float or None
        Where the factors were fitted to the inputs, how far the second moments of these were drawn
        towards their mean eigenvalue, 0 to 1; the less the more samples there are.
    metric : str or None
        Then in what its outputs are near: "outputs", or "loss"; of an embedding with a head that
        runs on its table "both", the sum of the relative errors of what each puts out.
    basis : str
        The layer whose right factor this one runs on too, counted there; else empty.
    gates : GateChoice or None
        Of a recurrent matrix with `SVD(gates="auto")`: how its gates are factored, and why.
    moments : str
        What there was of these second moments where memory had no room for all: a sketch of so many
        rows, with a bound of what it is off by, in the largest eigenvalue; else empty.
    """

    name: str
    places: tuple[str, ...]
    kind: str
    eligible: bool
    format: str | None
    rank: int | tuple[int, ...] | None
    reason: str
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    flops_before: int | None = None
    flops_after: int | None = None
    weight_error: float | None = None
    output_error: float | None = None
    held_out: bool = False
    samples: int | None = None
    data_aware: bool = False
    bias: str = ""
    path: str | None = None
    shrinkage: float | None = field(default=None, metadata={"later": True})
    metric: str | None = field(default=None, metadata={"later": True})
    moments: str = field(default="", metadata={"later": True})
    basis: str = field(default="", metadata={"later": True})
    gates: GateChoice | None = field(default=None, metadata={"later": True})

    @property
    def factored(self) -> bool:
        """Whether it has factors now."""
        return self.format is not None

    @property
    def share(self) -> float:
        """Parameters kept."""
        return self.params_after / self.params_before if self.params_before else 1.0


@dataclass(frozen=True)
class Totals:
    """Sums over layers.

    Parameters
    ----------
    params_before, params_after : int
    bytes_before, bytes_after : int

    Examples
    --------
    >>> tensorlrf.compression.Totals(1000, 250, 4000, 1000).share
    0.25
    """

    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int

    @property
    def share(self) -> float:
        """Parameters kept."""
        return self.params_after / self.params_before if self.params_before else 1.0


@dataclass(frozen=True)
class BatchNorms:
    """New statistics of batch normalisations, tried.

    Parameters
    ----------
    count : int
        How many there are.
    kept : bool
        Whether the new statistics stayed.
    error_before, error_after : float
        Relative error of the model's outputs on the held-out batches with the old ones, and with
        the new ones.
    """

    count: int
    kept: bool
    error_before: float
    error_after: float


@dataclass(frozen=True)
class SharedBasis:
    """One right factor for several layers, tried at the parameters that they have by themselves.

    Parameters
    ----------
    layers : tuple of str
        Their names.
    rank : int
        Of the right factor.
    ranks : tuple of int
        Those that the plan gave to each.
    error, error_apart : float
        Relative error of the outputs, root mean square over layers as the ranks of the plan weigh
        them: on the right factor in common, and by themselves, before either is fitted to what
        compressed layers deliver. Without calibration of the weights.
    held_out : bool
        Whether they are on inputs held out.
    kept : bool
        Whether the layers have it in common.
    """

    layers: tuple[str, ...]
    rank: int
    ranks: tuple[int, ...]
    error: float
    error_apart: float
    held_out: bool
    kept: bool


@dataclass(frozen=True)
class ExpertPool:
    """The inputs of one matrix of every expert of a mixture.

    Where few rows reach an expert, the second moments of its inputs are drawn towards those of all.

    Parameters
    ----------
    layers : str
        Their names, `*` for the part in which these differ.
    samples : tuple of int
        Rows that reach each in the given model, of those to fit to.
    credit : float
        Rows of its own for which those of all count with each, by how much experts differ.

    Examples
    --------
    >>> pool = tensorlrf.compression.ExpertPool("experts.*.up", (500, 12, 0), 57.2)
    >>> pool.few
    2
    >>> print(pool)
    2 of 3 experts had fewer than 58 rows: their moments are more those of all than their own
    """

    layers: str
    samples: tuple[int, ...]
    credit: float

    @property
    def few(self) -> int:
        """Experts with fewer rows than those of all count for."""
        return sum(n < self.credit for n in self.samples)

    def __str__(self) -> str:
        return (
            f"{self.few} of {len(self.samples)} experts had fewer than {math.ceil(self.credit):,} "
            "rows: their moments are more those of all than their own"
        )


@dataclass(frozen=True)
class FoldedNorms:
    """What became of batch normalisations that were to be folded before the fit.

    Parameters
    ----------
    norms : tuple of str
        Names of those that were.
    layers : tuple of str
        Of each the name of the layer that it went into.
    left : tuple of str
        "name: why" of the others.
    """

    norms: tuple[str, ...]
    layers: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """Lines that tell it."""
        into = [f"{n} into {layer}" for n, layer in zip(self.norms, self.layers, strict=True)]
        named = f": {', '.join(into)}" if into else ""
        first = f"batch normalisations folded before the fit, {len(into)}{named}"
        return [first, *(f"batch normalisation left, {told}" for told in self.left)]


@dataclass(frozen=True)
class Latency:
    """Median seconds of a forward pass on the example, measured in turn.

    Parameters
    ----------
    dense : float
        Of the given model.
    compressed : float
        Of the compressed one.
    """

    dense: float
    compressed: float
