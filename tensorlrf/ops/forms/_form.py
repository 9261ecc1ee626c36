"""A form: what layers on one format of factors do, told once.

Each layer that runs on the format is a method that takes the factors and gives paths, a name -> the
stages on it. From these the package makes all else: the code that runs, FLOPs and bytes, which path
to take, layers of torch to export. The path "dense", on the rebuilt weight, is every format's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from tensorlrf.errors import ShapeError, UnsupportedError
from tensorlrf.factors import Factors
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms.shared._slide import Conv
from tensorlrf.ops.forms.stages import Paths

F = TypeVar("F", bound=Factors)
Terms = list[tuple[str, Tensor]]
"""Tensors of a network, each with the letters of its modes."""


class Form(Generic[F]):
    """What layers on one format of factors do: subclass it, and `register_form` it.

    Each layer that the format has is a method that gives paths. The factors may be symbols (tensors
    of which only the sizes are known), so a method looks at shapes, never at numbers, and makes
    weights of the factors by calls of torch.

    Examples
    --------
    >>> from tensorlrf.ops.forms import form_of
    >>> form = form_of(tensorlrf.tt(torch.rand(4, 5, 6), 2))
    >>> form.has("conv"), form.has("linear")
    (True, False)
    """

    def linear(self, f: F) -> Paths:
        """The paths of a linear layer on factors of shape (m, n): from (..., n) to (..., m)."""
        raise NotImplementedError

    def conv(self, f: F, conv: Conv) -> Paths:
        """The paths of a convolution, from (B, g I, ...) to (B, O, ...).

        Parameters
        ----------
        f : Factors
            Of g > 1 groups each tensor is a stack, (g, ...).
        conv : Conv
            The shape of the kernel, and what makes stages.

        Returns
        -------
        dict
            Name of a path -> its stages.
        """
        raise NotImplementedError

    def embedding(self, f: F, padding_idx: int | None) -> Paths:
        """The paths of a lookup in a table (n, d): from indices (...) to (..., d)."""
        raise NotImplementedError

    # ---- folds that a form may override -----------------------------------------------------

    def kernels(self, f: F, conv: Conv) -> dict[str, tuple[int, ...]]:
        """Tensors that are the kernel of a convolution -> the shape in which a layer keeps them.

        They can then lie in channels_last, and no call reorders them.
        """
        return {}

    def dense(self, f: F, channels_last: bool) -> Tensor:
        """The weight, under autocast in the dtype that layers run in.

        A kernel is in channels_last where that is asked for and costs nothing.
        """
        return f._dense()

    def count_dense(self, f: F, counter: Counter) -> bool:
        """Count what `dense` takes; False to have its products counted as they stand there."""
        return False

    def rows_of(self, f: F) -> str | None:
        """The tensor of which row k belongs to row k of the whole alone; None where none does."""
        return None

    def row_of(self, f: F, row: int) -> tuple[str, int] | None:
        """The tensor, and the row of it, that row `row` of the whole has to itself; or None."""
        rows = self.rows_of(f)
        return None if rows is None else (rows, row)

    def bag(self, f: F, rows: Tensor) -> Tensor:
        """The rows (B, d) of a table that has `rows` (B, r) in place of the `rows_of` this one."""
        raise NotImplementedError

    def transposed(self, f: F) -> Factors:
        """Factors of the transpose of a matrix, on the same memory: of formats with embeddings."""
        raise UnsupportedError(f"{f!r} has no transpose as factors")

    def along(self, f: F, axis: int) -> dict[str, int] | None:
        """Tensors that go with the rows (axis 0) or the columns (1) of a matrix, and by which axis.

        Others go with all of them. None of a format that is not shared out so.
        """
        return None

    def part(self, f: F, axis: int, parts: int, k: int) -> F:
        """The k-th of equal parts of the rows (axis 0) or the columns (1) of a matrix, as factors.

        Raises ShapeError where what has to be divided cannot be, and UnsupportedError of a format
        that is not shared out.
        """
        along = self.along(f, axis)
        if along is None:
            raise UnsupportedError(
                f"factors is a {type(f).__name__}, whose {('rows', 'columns')[axis]} are not "
                "shared out over ranks; those of LowRank, KroneckerSum and BlockLowRank are"
            )
        tensors = f.tensors()
        for name, dim in along.items():
            size = tensors[name].shape[dim]
            if size % parts:
                raise ShapeError(
                    f"{name} of {f!r} has {size} {('outputs', 'inputs')[axis]} along its axis "
                    f"{dim}, which {parts} ranks do not divide"
                )
            tensors[name] = tensors[name].chunk(parts, dim)[k]
        shape = list(f.shape)
        shape[axis] //= parts
        return type(f).from_tensors(tensors, {**f.meta(), "shape": shape})

    def joined(self, parts: Sequence[F], axis: int) -> F:
        """The whole of what `part` gave, where its tensors are not theirs one behind the other."""
        raise NotImplementedError

    def groups(self, f: F) -> int:
        """How many groups a convolution on the factors has."""
        return 1

    def of_a_group(self, f: F) -> Factors:
        """The factors of one group."""
        return f

    def network(self, f: F, modes: str, fresh: Iterator[str]) -> Terms:
        """The factors as a network of tensors.

        Each has letters for its modes, those of the whole and `fresh` ones for what is summed over.
        """
        raise no_network(f)

    # ---- what follows -----------------------------------------------------------------------

    def has(self, layer: str) -> bool:
        """Whether the format has a "linear", "conv", "embedding" or "bag"."""
        return getattr(type(self), layer) is not getattr(Form, layer)


_FORMS: dict[type[Factors], Form[Any]] = {}


def register_form(format: type[F], form: Form[F]) -> None:
    """Have layers on factors of a format run as a form tells.

    Parameters
    ----------
    format : type
        A subclass of `Factors`.
    form : Form

    Raises
    ------
    TypeError
        Where the format has a form already.
    """
    if format in _FORMS:
        raise TypeError(
            f"{format.__name__} has a form already, {type(_FORMS[format]).__name__}; a format has "
            "one"
        )
    _FORMS[format] = form


def form_of(factors: Any) -> Form[Any]:
    """The form of the factors' format.

    Parameters
    ----------
    factors : Factors

    Returns
    -------
    Form
        One without layers where none is registered.

    Examples
    --------
    >>> from tensorlrf.ops.forms import form_of
    >>> list(form_of(tensorlrf.svd(torch.rand(8, 6), 2)).linear(tensorlrf.svd(torch.rand(8, 6), 2)))
    ['chain', 'fused']
    """
    return _FORMS.get(type(factors), _NONE)


def formats_with(layer: str) -> list[str]:
    """The names of the formats that have a "linear", "conv" or "embedding".

    Parameters
    ----------
    layer : str

    Returns
    -------
    list of str

    Examples
    --------
    >>> from tensorlrf.ops.forms import formats_with
    >>> "LowRank" in formats_with("embedding")
    True
    """
    return [format.__name__ for format, form in _FORMS.items() if form.has(layer)]


_NONE: Form[Any] = Form()


def no_network(factors: Factors) -> UnsupportedError:
    """The factors are no network of tensors with one letter a mode."""
    return UnsupportedError(
        f"operand is a {type(factors).__name__}; contract takes tensors, LowRank, CPFactors, "
        "TuckerFactors, TTFactors and TRFactors with one core a mode, so pass operand.to_dense()"
    )
