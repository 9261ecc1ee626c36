"""Contractions of factored tensors that are not layers, in an order that opt_einsum finds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Factors
from tensorlrf.ops.forms._form import form_of

Term = tuple[str, Tensor]


def contract(expression: str, *operands: Tensor | Factors) -> Tensor:
    """An einsum over tensors and factors, without rebuilding what the factors stand for.

    Each factors object is written as its own tensors, and opt_einsum orders the pairwise products
    of them all.

    Parameters
    ----------
    expression : str
        As in torch.einsum, with one letter a mode and an explicit output:
        `contract("oihw,i->ohw", factors, v)` multiplies one mode by a vector.
    *operands : Tensor or Factors
        Tensors, LowRank, CPFactors, TuckerFactors, TTFactors, or TRFactors with one core a mode; a
        factors object counts as one tensor of its `shape`.

    Returns
    -------
    Tensor
        Dense, differentiable in every operand.

    Raises
    ------
    ArgumentError, ShapeError, UnsupportedError
        Where the expression and the operands do not fit together.

    References
    ----------
    Smith & Gray 2018.

    Examples
    --------
    >>> f = tensorlrf.cp(torch.rand(4, 5, 6), 2)
    >>> v = torch.rand(5)
    >>> product = tensorlrf.ops.contract("ijk,j->ik", f, v)
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(product, torch.einsum("ijk,j->ik", f.to_dense(), v), atol=1e-5)
    True
    """
    from opt_einsum import contract as einsum

    inputs, arrow, output = expression.replace(" ", "").partition("->")
    letters = inputs.split(",")
    if not arrow or not all(c.isalpha() or c in ",->" for c in inputs + output):
        raise ArgumentError(
            f"expression={expression!r} must be letters with an explicit output, such as "
            "'ij,j->i'; ellipses are not served"
        )
    if len(letters) != len(operands):
        raise ArgumentError(
            f"expression={expression!r} names {len(letters)} operands; {len(operands)} were given"
        )
    fresh = _fresh_symbols(set(inputs + output))
    sizes: dict[str, int] = {}
    terms: list[Term] = []
    for k, (modes, operand) in enumerate(zip(letters, operands, strict=True)):
        shape = tuple(operand.shape)
        if len(shape) != len(modes):
            raise ShapeError(
                f"operand {k} has shape {shape}; expression={expression!r} gives it "
                f"{len(modes)} modes, {modes!r}"
            )
        for letter, n in zip(modes, shape, strict=True):
            if sizes.setdefault(letter, n) != n:
                raise ShapeError(
                    f"operand {k} has shape {shape}: mode {letter!r} has size {n} there and "
                    f"{sizes[letter]} in another operand of expression={expression!r}"
                )
        terms += _terms(operand, modes, fresh)
    for letter in output:
        if letter not in sizes:
            raise ArgumentError(
                f"expression={expression!r}: output mode {letter!r} is in no operand"
            )
    written = ",".join(modes for modes, _ in terms) + "->" + output
    result: Tensor = einsum(written, *(tensor for _, tensor in terms), optimize="auto")
    return result


def inner(a: Tensor | Factors, b: Tensor | Factors) -> Tensor:
    """Sum over all entries of a * b.

    Parameters
    ----------
    a, b : Tensor or Factors
        Of one shape.

    Returns
    -------
    Tensor
        A scalar; `inner(f, f)` is the squared Frobenius norm.

    Raises
    ------
    ArgumentError, ShapeError, UnsupportedError
        As `contract`.

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 6), 2)
    >>> torch.allclose(tensorlrf.ops.inner(f, f), f.to_dense().square().sum(), rtol=1e-4)
    True
    """
    if tuple(a.shape) != tuple(b.shape):
        raise ShapeError(f"a has shape {tuple(a.shape)}, b {tuple(b.shape)}; they must agree")
    symbols = _fresh_symbols(set())
    modes = "".join(next(symbols) for _ in a.shape)
    return contract(f"{modes},{modes}->", a, b)


def _terms(operand: Any, modes: str, fresh: Iterator[str]) -> list[Term]:
    """The tensors of an operand, each with the letters of its modes."""
    if isinstance(operand, Tensor):
        return [(modes, operand)]
    return form_of(operand).network(operand, modes, fresh)


def _fresh_symbols(taken: set[str]) -> Iterator[str]:
    from opt_einsum import get_symbol

    k = 0
    while True:
        symbol = get_symbol(k)
        k += 1
        if symbol not in taken:
            yield symbol
