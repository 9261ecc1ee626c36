"""The tensor regression layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from tensorlrf.decomposition.methods import registered
from tensorlrf.decomposition.rank import Rank, tucker_ranks
from tensorlrf.errors import ArgumentError, ShapeError, unknown
from tensorlrf.factors import Factors, TuckerFactors
from tensorlrf.factors.kinds import format_of
from tensorlrf.nn._fresh import Fresh
from tensorlrf.nn.regression._contraction import checked_shape
from tensorlrf.nn.regression._network import ROWS, Network, as_rows, symbols
from tensorlrf.ops import contract
from tensorlrf.ops.forms import form_of

METHODS = ("tucker", "cp", "tt")

Values = Callable[..., Tensor]


class TensorRegression(nn.Module):
    """A linear map between tensors whose weight is held as factors: Y = <X, W>_N + b.

    y[j_1, ..., j_M] is the sum over i_1, ..., i_N of x[i_1, ..., i_N] w[i_1, ..., i_N, j_1, ...].
    In the place of flattening and a linear layer it keeps the modes of activations, and has far
    fewer parameters. The whole W is never made.

    Parameters
    ----------
    factors : TuckerFactors, CPFactors, TTFactors, LowRank, or TRFactors with one core a mode
        Of shape (n_1, ..., n_N, m_1, ..., m_M). They are copied, and become parameters under the
        names of their tensors.
    order : int
        The number N of modes of the input.
    bias : Tensor of shape (m_1, ..., m_M), optional

    Raises
    ------
    ArgumentError, ShapeError, UnsupportedError
        Where these do not fit together.

    References
    ----------
    Kossaifi et al. 2020, "Tensor regression networks", eq. 6; Kossaifi et al. 2017.

    Examples
    --------
    >>> layer = tensorlrf.nn.TensorRegression.new((64, 7, 7), (10,), rank=0.05, random_state=0)
    >>> layer(torch.randn(2, 64, 7, 7)).shape
    torch.Size([2, 10])
    >>> layer.factors.rank
    (19, 2, 2, 3)
    """

    bias: nn.Parameter | None

    def __init__(self, factors: Factors, order: int, bias: Tensor | None = None) -> None:
        super().__init__()
        if not isinstance(factors, Factors):
            raise ArgumentError(f"factors is a {type(factors).__name__}; pass a factors object")
        modes = len(factors.shape)
        if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order < modes:
            raise ArgumentError(
                f"order={order!r} must be a number of input modes, from 1 to {modes - 1} for "
                f"factors of shape {factors.shape}"
            )
        self.in_shape, self.out_shape = factors.shape[:order], factors.shape[order:]
        if bias is not None and tuple(bias.shape) != self.out_shape:
            raise ShapeError(f"bias is {tuple(bias.shape)}; it must be None or {self.out_shape}")
        self._format, self._meta = type(factors), factors._context()
        self._names = {name: name.replace(".", "_") for name in factors.tensors()}
        for name, tensor in factors.tensors().items():
            own = nn.Parameter(tensor.detach().clone())
            self.register_parameter(self._names[name], own)
        own_bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_parameter("bias", own_bias)
        self._plan()

    def _plan(self) -> None:
        fresh, order = symbols(), len(self.in_shape)
        rows, *letters = (next(fresh) for _ in range(1 + len(self.in_shape + self.out_shape)))
        # As many as any format takes: a bond between two modes, a rank for each, and the ends.
        self._modes, self._bonds = "".join(letters), [next(fresh) for _ in range(len(letters) + 2)]
        found = self._network_of(self.factors)
        terms = [rows + self._modes[:order], *(modes for modes, _ in found)]
        shapes = [(ROWS, *self.in_shape), *(tuple(t.shape) for _, t in found)]
        expression = f"{','.join(terms)}->{rows + self._modes[order:]}"
        self._network = Network.of(expression, shapes)

    def _network_of(self, factors: Factors) -> list[tuple[str, Tensor]]:
        return form_of(factors).network(factors, self._modes, iter(self._bonds))

    @property
    def factors(self) -> Factors:
        """The factors object made of the parameters as they are now."""
        tensors = {name: getattr(self, own) for name, own in self._names.items()}
        return self._format._assemble(tensors, self._meta)

    @classmethod
    def new(
        cls,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        rank: Rank,
        method: str = "tucker",
        bias: bool = True,
        std: float | None = None,
        random_state: int | torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A layer to be trained from the start.

        Parameters
        ----------
        in_shape, out_shape : sequence of int
        rank : int, tuple or float
            As the decomposition of that word takes it for a tensor ``(*in_shape, *out_shape)``; a
            share counts parameters, and is an upper bound. Of a Tucker an int bounds every mode.
        method : {"tucker", "cp", "tt"}
            The form of the weight.
        bias : bool
            Drawn as torch's linear layer draws it.
        std : float, optional
            Standard deviation of the entries of W, by default that of torch's linear layer on the
            flattened input, 1 / sqrt(3 prod n_k).
        random_state : int or Generator, optional
            Torch's global generator is left alone.
        device, dtype
            As torch's layers take them.

        Returns
        -------
        TensorRegression

        Raises
        ------
        RankError, ArgumentError
            For what cannot be.
        """
        sizes, out = checked_shape("in_shape", in_shape), checked_shape("out_shape", out_shape)
        fan_in = math.prod(sizes)
        std = 1 / math.sqrt(3 * fan_in) if std is None else std
        fresh = Fresh(std=std, init="normal", random_state=random_state, device=device, dtype=dtype)
        ones = _blank(method, (*sizes, *out), rank, fresh.ones)
        factors = fresh.normal(ones, _sum_of(ones))
        drawn = fresh.bias(math.prod(out), fan_in).reshape(out) if bias else None
        return cls(factors, len(sizes), drawn)

    def forward(self, input: Tensor) -> Tensor:
        """Inputs (..., n_1, ..., n_N) to (..., m_1, ..., m_M)."""
        rows = as_rows(input, self.in_shape)
        y = self._network.run([rows, *(t for _, t in self._network_of(self.factors))])
        y = y.reshape(*input.shape[: input.ndim - len(self.in_shape)], *self.out_shape)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        factors = self.factors
        share = factors.n_params / math.prod(factors.shape)
        return (
            f"{self.in_shape}, {self.out_shape}, bias={self.bias is not None}, "
            f"format={format_of(factors)}, rank={factors.rank}, share={share:.1%}"
        )


def _blank(method: str, shape: tuple[int, ...], rank: Rank, values: Values) -> Factors:
    """Factors of the word's form for a tensor of that shape."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if method == "tucker":
        bound = tuple(min(rank, n) for n in shape) if type(rank) is int else rank
        ranks = tucker_ranks(bound, shape, range(len(shape)))
        core, matrices = values(*ranks), (values(n, r) for n, r in zip(shape, ranks, strict=True))
        return TuckerFactors(core, tuple(matrices))
    if len(shape) == 2 and method == "tt":  # a train of two modes is a product of two matrices
        method = "svd"
    made: Factors = registered(method).config().fresh_factors(rank, shape, values)
    return made


def _sum_of(factors: Factors) -> float:
    """Of all entries of the whole."""
    if factors.device.type == "meta":
        return float(math.prod(factors.shape))
    letters = symbols()
    modes = [next(letters) for _ in factors.shape]
    ones = [torch.ones(n, dtype=factors.dtype, device=factors.device) for n in factors.shape]
    return float(contract(f"{''.join(modes)},{','.join(modes)}->", factors, *ones))
