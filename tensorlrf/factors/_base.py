"""What every format of factors has in common."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors.algebra import relative_residual
from tensorlrf.factors.arrays import PLACES, as_dense
from tensorlrf.factors.autocast import autocast_is_on, without_autocast

FORMATS: dict[str, type[Factors]] = {}
FOUND = "_found"
"""An attribute of factors that is none of their value, and is not copied."""


@dataclass(frozen=True, eq=False, repr=False)
class Factors(ABC):
    """A tensor held as factors.

    A factors object is a value: a frozen bundle of tensors, checked once when it is made, never
    changed. It is a registered pytree, so `torch.func`, `torch.compile` and `torch.export` look
    through it. Subclasses are frozen dataclasses that say how their tensors make up the whole; one
    with a `format` enters `FORMATS` under that name, and files can hold it.

    Raises
    ------
    ArgumentError, ShapeError
        Where the tensors do not make up the format.
    TypeError
        Where a subclass takes the name of a format that is registered.

    Examples
    --------
    >>> f = tensorlrf.LowRank(torch.ones(6, 2), torch.ones(2, 4))
    >>> f
    LowRank(6x4, rank 2, 20 of 24 parameters = 83.3%, float32, cpu)
    >>> f.map(lambda t: 2 * t).to_dense()[0, 0]
    tensor(8.)
    """

    format: ClassVar[str]

    indices: ClassVar[frozenset[str]] = frozenset()
    """Names of tensors that say where something is, in whole numbers: what is done to all tensors
    is not done to these. All others are of one floating-point dtype. See `index_dtypes`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        name = cls.__dict__.get("format")
        if name is None:
            return
        if name in FORMATS:
            raise TypeError(f"format {name!r} is registered already, by {FORMATS[name].__name__}")
        FORMATS[name] = cls
        pytree.register_pytree_node(
            cls,
            _flatten,
            lambda leaves, context: _unflatten(cls, leaves, context),
            serialized_type_name=f"tensorlrf.{cls.__name__}",
            to_dumpable_context=json.dumps,
            from_dumpable_context=_context_from_json,
            flatten_with_keys_fn=_flatten_with_keys,
        )

    def __post_init__(self) -> None:
        self.check()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != FOUND}

    # ---- what a format supplies -------------------------------------------------------------

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that the factors stand for."""

    @property
    @abstractmethod
    def rank(self) -> int | tuple[int, ...]:
        """The rank, a tuple where the format has one per mode."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, in the order in which they are written to a file."""

    @abstractmethod
    def meta(self) -> dict[str, Any]:
        """What the tensors do not say, as JSON values."""

    def _context(self) -> dict[str, Any]:
        """`meta()` for whoever assembles the same format again and again.

        Values that were checked before may come as they are, without being JSON.
        """
        return self.meta()

    @classmethod
    @abstractmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        """Dataclass fields from `tensors()` and `meta()`; looks at names only, not at values."""

    @abstractmethod
    def check(self) -> None:
        """Raise an ArgumentError or ShapeError where the tensors do not make up the format."""

    @abstractmethod
    def _dense(self) -> Tensor:
        """The whole tensor, of shape `shape`; under autocast as torch's products are."""

    @classmethod
    def index_dtypes(cls, meta: Mapping[str, Any]) -> dict[str, torch.dtype]:
        """Names of the tensors in whole numbers that factors with this `meta()` have -> dtype."""
        return dict.fromkeys(cls.indices, PLACES)

    # ---- what a format with an order of its terms supplies ----------------------------------

    def leading(self, rank: Any) -> Self:
        """The first `rank` terms, as views.

        Parameters
        ----------
        rank : int or tuple of int
            One entry a rank, where the format has several; an int bounds all of them.

        Returns
        -------
        Factors

        Raises
        ------
        RankError
            For a rank below one or above that of the factors.
        UnsupportedError
            Where terms have no order: of a format other than LowRank, CPFactors, TuckerFactors,
            KroneckerSum, or a Grouped of these.
        """
        raise self._no_terms()

    def by_energy(self, gram: Tensor | None = None) -> Self:
        """The same whole, its terms in the order of what they add, the largest first.

        Then `leading(r)` is the best approximation of rank r that its format has in closed form: of
        a LowRank the truncated SVD (in the metric of `gram`), of a KroneckerSum that of Van Loan &
        Pitsianis, of a TuckerFactors the truncated HOSVD; terms of CPFactors are sorted by their
        norms.

        Parameters
        ----------
        gram : Tensor of shape (n, n), optional
            Of a LowRank (m, n) alone: second moments of the inputs of the layer.

        Returns
        -------
        Factors
            Of the same rank, dtype and device; computed in float64.

        Raises
        ------
        ArgumentError, ShapeError
            For a `gram` that does not fit, or of another format.
        UnsupportedError
            As for `leading`.

        References
        ----------
        Eckart & Young 1936; De Lathauwer, De Moor & Vandewalle 2000.
        """
        raise self._no_terms()

    def plus(self, left: Tensor, right: Tensor) -> Self:
        """`self + left @ right`, exactly: the terms of the product stand behind its own.

        `leading` of the rank that it had gives back what it was, bit for bit.

        Parameters
        ----------
        left : Tensor of shape (m, k)
        right : Tensor of shape (k, n)
            Of the dtype and on the device of the factors, for a whole that is, seen as a matrix as
            `LowRank` sees it, (m, n).

        Returns
        -------
        Factors
            Of the same format, of a rank that is higher by k.

        Raises
        ------
        ShapeError, ArgumentError
            Where the product does not fit.
        UnsupportedError
            Of a format other than LowRank, and CPFactors of a matrix: their sum with a product is
            of another format.

        Examples
        --------
        >>> f = tensorlrf.LowRank(torch.ones(6, 2), torch.ones(2, 4))
        >>> f.plus(torch.ones(6, 1), torch.ones(1, 4)).rank
        3
        """
        raise UnsupportedError(
            f"the sum of {type(self).__name__}{self.shape} and a product of low rank is no "
            f"{type(self).__name__} of a higher rank; LowRank, and CPFactors of a matrix, take "
            "such terms"
        )

    def _no_terms(self) -> UnsupportedError:
        return UnsupportedError(
            f"{type(self).__name__} is no sum of terms that have an order, so no first few of them "
            "stand for the whole; LowRank, CPFactors, TuckerFactors and KroneckerSum do"
        )

    @property
    def has_terms(self) -> bool:
        """Whether `leading` and `by_energy` serve it."""
        return type(self).leading is not Factors.leading

    # ---- what all formats have --------------------------------------------------------------

    def to_dense(self) -> Tensor:
        """The whole tensor, in the dtype of the factors, under autocast too.

        Returns
        -------
        Tensor
            Of shape `shape`; differentiable in the factors.
        """
        if torch.compiler.is_compiling() or not autocast_is_on():
            return self._dense()
        with without_autocast():
            return self._dense()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """Inverse of `tensors()` and `meta()`.

        Parameters
        ----------
        tensors : Mapping
            Name -> tensor.
        meta : Mapping
            What the tensors do not say.

        Returns
        -------
        Factors
            Checked, of the class that it is called on.

        Raises
        ------
        ArgumentError
            Where a tensor or an entry of `meta` is missing or does not fit.
        """
        try:
            factors = cls._assemble(tensors, meta)
        except KeyError as missing:
            raise ArgumentError(
                f"{cls.__name__}.from_tensors: {missing} is missing; got tensors {sorted(tensors)}"
                f" and meta {sorted(meta)}"
            ) from None
        factors.check()
        return factors

    @classmethod
    def _assemble(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> Self:
        """An object whose parts were checked before, or need no check; see `_unflatten`."""
        factors = object.__new__(cls)
        for name, value in cls._fields(tensors, meta).items():
            object.__setattr__(factors, name, value)
        return factors

    @property
    def dtype(self) -> torch.dtype:
        """Of all its tensors but indices."""
        return next(iter(self.tensors().values())).dtype

    @property
    def device(self) -> torch.device:
        """Where all its tensors are."""
        return next(iter(self.tensors().values())).device

    @property
    def n_params(self) -> int:
        """How many numbers are stored."""
        return sum(t.numel() for t in self.tensors().values())

    @property
    def n_bytes(self) -> int:
        """How many bytes are stored."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same format with `fn` applied to each tensor in floating point.

        Parameters
        ----------
        fn : Callable
            From a tensor to one of the same shape. Indices follow to its device.

        Returns
        -------
        Factors
            Of the same class, checked.
        """
        tensors, meta = self.tensors(), self.meta()
        indices = self.index_dtypes(meta)
        mapped = {name: fn(t) for name, t in tensors.items() if name not in indices}
        if indices:
            device = next(iter(mapped.values())).device
            moved = {name: t.to(device) for name, t in tensors.items() if name in indices}
            mapped = {name: {**mapped, **moved}[name] for name in tensors}
        return type(self).from_tensors(mapped, meta)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moved or cast, with the arguments of `torch.Tensor.to`."""
        return self.map(lambda t: t.to(*args, **kwargs))

    def detach(self) -> Self:
        """Cut from the autograd graph."""
        return self.map(Tensor.detach)

    def rel_error(self, tensor: Any) -> float:
        """Relative Frobenius error `‖tensor - to_dense()‖ / ‖tensor‖`.

        The residual itself is summed, in float64 and in blocks of leading rows: a difference of
        squared norms would cancel below 1e-4 in float32.

        Parameters
        ----------
        tensor : Tensor or array
            Of shape `shape`.

        Returns
        -------
        float
            The error; against an all-zero tensor the absolute one.

        Raises
        ------
        ShapeError
            For another shape.
        ArgumentError
            For what is not dense or has no values.
        """
        tensor = as_dense(tensor, "tensor")
        if self.device.type == "meta":
            raise ArgumentError(
                f"{type(self).__name__} is on the meta device and has no values; load them first"
            )
        if tuple(tensor.shape) != self.shape:
            raise ShapeError(
                f"tensor has shape {tuple(tensor.shape)}, the factors stand for {self.shape}"
            )
        residual, norm = relative_residual(tensor, self.to_dense())
        return residual / norm if norm > 0 else residual

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        dense = math.prod(self.shape)
        share = self.n_params / dense if dense else 1.0
        return (
            f"{type(self).__name__}({shape}, rank {self.rank}, {self.n_params:,} of {dense:,} "
            f"parameters = {share:.1%}, {str(self.dtype).removeprefix('torch.')}, {self.device})"
        )


Context = tuple[tuple[str, ...], dict[str, Any]]


def _flatten(factors: Factors) -> tuple[list[Any], Context]:
    named = factors.tensors()
    return list(named.values()), (tuple(named), factors.meta())


def _flatten_with_keys(factors: Factors) -> tuple[list[tuple[Any, Any]], Context]:
    leaves, (names, meta) = _flatten(factors)
    keys = [pytree.MappingKey[str, Any](n) for n in names]
    return list(zip(keys, leaves, strict=True)), (names, meta)


def _context_from_json(text: str) -> Context:
    names, meta = json.loads(text)
    return tuple(names), meta


def _unflatten(cls: type[Factors], leaves: Any, context: Context) -> Factors:
    # A pytree's leaves need not be tensors (tree_map to shapes, torch.func's own markers), so
    # nothing is checked here: the object that was flattened had been.
    names, meta = context
    return cls._assemble(dict(zip(names, leaves, strict=True)), meta)
