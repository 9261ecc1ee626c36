"""The tensor contraction layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.nn.regression._network import ROWS, Network, as_rows, symbols


class TensorContraction(nn.Module):
    """Every mode of the input multiplied by a matrix of its own: Y = X x_1 V_1 ... x_N V_N.

    The input keeps its modes, each smaller (or larger) than before: of activations (channels,
    height, width) what is left are a few combinations of channels, of rows and of columns.

    Parameters
    ----------
    in_shape : sequence of int
        Sizes n_1, ..., n_N of the modes behind those of the batch.
    factors : sequence of (Tensor of shape (r_k, n_k) or None)
        One a mode, all of one dtype and device; None leaves the mode whole. They are copied.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Kossaifi et al. 2017, "Tensor contraction layers for parsimonious deep nets", eq. 3.

    Examples
    --------
    >>> layer = tensorlrf.nn.TensorContraction.new((64, 7, 7), (16, 3, 3), random_state=0)
    >>> layer(torch.randn(2, 64, 7, 7)).shape
    torch.Size([2, 16, 3, 3])
    """

    def __init__(self, in_shape: Sequence[int], factors: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.in_shape = checked_shape("in_shape", in_shape)
        if len(factors) != len(self.in_shape) or all(f is None for f in factors):
            raise ArgumentError(
                f"factors has {len(factors)} entries for the {len(self.in_shape)} modes of "
                f"in_shape={self.in_shape}; give one matrix or None a mode, and one matrix at least"
            )
        sizes = list(self.in_shape)
        for k, (factor, n) in enumerate(zip(factors, self.in_shape, strict=True)):
            if factor is None:
                self.register_parameter(f"factors_{k}", None)
                continue
            if factor.ndim != 2 or factor.shape[1] != n or 0 in factor.shape:
                raise ShapeError(
                    f"factors[{k}] is {tuple(factor.shape)}; it must be (r, {n}) for mode {k}"
                )
            self.register_parameter(f"factors_{k}", nn.Parameter(factor.detach().clone()))
            sizes[k] = int(factor.shape[0])
        if len({(p.dtype, p.device) for p in self.parameters()}) > 1:
            raise ArgumentError("factors are of several dtypes or devices; use .to()")
        self.out_shape = tuple(sizes)
        self._network = self._planned()

    def _planned(self) -> Network:
        fresh = symbols()
        rows, *modes = (next(fresh) for _ in range(len(self.in_shape) + 1))
        terms, out, shapes = [rows + "".join(modes)], rows, [(ROWS, *self.in_shape)]
        for k, mode in enumerate(modes):
            factor = self._parameters[f"factors_{k}"]
            letter = mode if factor is None else next(fresh)
            out += letter
            if factor is not None:
                terms.append(letter + mode)
                shapes.append(tuple(factor.shape))
        return Network.of(f"{','.join(terms)}->{out}", shapes)

    @classmethod
    def new(
        cls,
        in_shape: Sequence[int],
        out_shape: Sequence[int | None],
        *,
        std: float = 1.0,
        random_state: int | torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A layer of random matrices that keep the variance of the input.

        Parameters
        ----------
        in_shape : sequence of int
        out_shape : sequence of (int or None)
            The size r_k of each mode of the output; None leaves it whole.
        std : float
            Standard deviation of an output for independent inputs of variance one.
        random_state : int or Generator, optional
            Torch's global generator is left alone.
        device, dtype
            As torch's layers take them.

        Returns
        -------
        TensorContraction

        Raises
        ------
        ArgumentError, ShapeError
            For sizes that cannot be.
        """
        sizes = checked_shape("in_shape", in_shape)
        given = tuple(out_shape)
        if len(given) != len(sizes):
            raise ShapeError(f"out_shape={given} must have one entry for each mode of {sizes}")
        wanted = checked_shape(
            "out_shape", [n if r is None else r for r, n in zip(given, sizes, strict=True)]
        )
        blank = torch.empty(0, device=device, dtype=dtype)
        meta = blank.device.type == "meta"
        draws = None if meta else generator(random_state, blank.device)
        count = sum(r is not None for r in given)
        factors: list[Tensor | None] = []
        for r, n, whole in zip(wanted, sizes, given, strict=True):
            each = std ** (1 / max(1, count)) / math.sqrt(n)
            drawn = blank.new_empty(r, n).normal_(0.0, each, generator=draws)
            factors.append(None if whole is None else drawn)
        return cls(sizes, factors)

    def forward(self, input: Tensor) -> Tensor:
        """Inputs (..., n_1, ..., n_N) to (..., r_1, ..., r_N)."""
        rows = as_rows(input, self.in_shape)
        y = self._network.run([rows, *self._held()])
        return y.reshape(*input.shape[: input.ndim - len(self.in_shape)], *self.out_shape)

    def _held(self) -> list[Any]:
        held = (getattr(self, f"factors_{k}") for k in range(len(self.in_shape)))
        return [factor for factor in held if factor is not None]

    def extra_repr(self) -> str:
        return f"{self.in_shape}, {self.out_shape}"


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    """As a tuple. Raises ArgumentError for what is no sequence of positive ints."""
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise ArgumentError(f"{name}={shape!r} must be sizes of at least 1, such as (64, 7, 7)")
    return sizes
