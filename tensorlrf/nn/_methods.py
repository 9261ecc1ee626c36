"""Which decompositions a layer can be given by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tensorlrf.decomposition import (
    blast,
    blr,
    cp,
    hierarchical,
    hodlr,
    kron,
    mode_sizes,
    monarch,
    svd,
    tr,
    tt,
    tt_matrix,
    tucker,
)
from tensorlrf.decomposition._rank import Rank
from tensorlrf.errors import ArgumentError, UnsupportedError, unknown
from tensorlrf.factors import Factors, TRFactors, TTFactors, TTMatrix
from tensorlrf.ops import train_order

Decomposition = Callable[..., Factors]
"""From a weight, a rank or an error, and options by keyword, to factors."""

_METHODS: dict[str, Decomposition] = {}
# A layer takes these itself, or has no use for them: it keeps copies, cut from any graph.
_NOT_OPTIONS = ("rank", "error", "differentiable", "batch_dims")


def register_method(name: str, decompose: Decomposition) -> None:
    """Make `decompose` known as `name`. Raises ArgumentError where the name is taken."""
    if name in _METHODS:
        raise ArgumentError(
            f"name={name!r} is registered already, for {_METHODS[name].__qualname__}; "
            "choose another"
        )
    _METHODS[name] = decompose


def method_names() -> tuple[str, ...]:
    """The names that are known, in order of registration."""
    return tuple(_METHODS)


def find_method(name: str) -> Decomposition:
    """The decomposition of that name. Raises ArgumentError that lists the names."""
    if name not in _METHODS:
        raise unknown("method", name, method_names())
    return _METHODS[name]


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Every option is one of the method's own. Raises ArgumentError that lists them."""
    _, *parameters = inspect.signature(find_method(name)).parameters
    valid = [option for option in parameters if option not in _NOT_OPTIONS]
    for option in options:
        if option not in valid:
            raise ArgumentError(
                f"{option}= is no option of method {name!r}; its options are {', '.join(valid)}"
            )


def tt_layer(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    row_sizes: Sequence[int] | None = None,
    column_sizes: Sequence[int] | None = None,
    order: int | None = None,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
) -> TTMatrix | TTFactors:
    """`tt_matrix` of a linear weight; `tt` of the kernel of a convolution, in the order in which
    its cores are convolutions. Raises ArgumentError for a kernel's row_sizes=, column_sizes= or
    order=, and what these raise."""
    sweeps: dict[str, Any] = {"gram": gram, "mean": mean}
    if gram is not None:
        sweeps |= {"n_iter_max": n_iter_max, "tol": tol}
    if tensor.ndim == 2:
        return tt_matrix(
            tensor,
            rank,
            error=error,
            row_sizes=row_sizes,
            column_sizes=column_sizes,
            order=order,
            **sweeps,
        )
    digits = {"row_sizes": row_sizes, "column_sizes": column_sizes, "order": order}
    for name, value in digits.items():
        if value is not None:
            raise ArgumentError(
                f"{name}={value!r} is for linear layers; the train of a convolution has its modes"
            )
    train: TTFactors = tt(tensor, rank, error=error, modes=train_order(tensor.ndim), **sweeps)
    return train


def tr_layer(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    sizes: Sequence[Sequence[int]] | None = None,
    init: str = "svd",
    n_iter_max: int | None = None,
    tol: float | None = None,
    gram: Any = None,
    mean: Any = None,
    random_state: Any = None,
) -> TRFactors:
    """`tr` of a linear weight, by default with two digits for the row and two for the column where
    these have them. Raises UnsupportedError for the kernel of a convolution, which does not run on
    a ring."""
    if tensor.ndim != 2:
        raise UnsupportedError(
            "a convolution does not run on a ring; use method 'tt', a train, for it"
        )
    return tr(
        tensor,
        rank,
        error=error,
        sizes=sizes or [row_digits(n) for n in tensor.shape],
        init=init,
        n_iter_max=n_iter_max,
        tol=tol,
        gram=gram,
        mean=mean,
        random_state=random_state,
    )


def row_digits(n: int) -> tuple[int, ...]:
    """Two balanced factors, or n itself where only a padded number has them: rings have none."""
    digits = mode_sizes(n, 2)
    return digits if math.prod(digits) == n else (n,)


register_method("svd", svd)
register_method("cp", cp)
register_method("tucker", tucker)
register_method("kron", kron)
register_method("tt", tt_layer)
register_method("tr", tr_layer)
register_method("blr", blr)
register_method("hierarchical", hierarchical)
register_method("hodlr", hodlr)
register_method("monarch", monarch)
register_method("blast", blast)
