"""Factors for a layer that is trained from the start: of the variance that its dense layer has.

The entries of a weight on factors are sums of products, one number of each tensor in a product. Of
independent numbers of mean zero and variance s_t^2 in tensor t, an entry that has N such products
has the variance N prod_t s_t^2, and distinct products are uncorrelated. N is the entry of the whole
whose tensors are all ones; its mean over the entries follows from one run of the layer on ones, so
that no dense weight is made.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition.config import BUDGET
from tensorlrf.decomposition.methods import Kind, Registered, find
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank
from tensorlrf.decomposition.signatures import check_words
from tensorlrf.errors import ArgumentError, UnsupportedError, unknown
from tensorlrf.factors import Factors, Grouped
from tensorlrf.nn._groups import decompose_groups
from tensorlrf.ops import run_conv, run_linear

INITS = ("normal", "spectral")


def check_sizes(**sizes: Any) -> None:
    """Raise ArgumentError for what is no positive int."""
    for name, n in sizes.items():
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ArgumentError(f"{name}={n!r} must be an int of at least 1")


def kernel_shape(
    in_channels: int, out_channels: int, kernel: tuple[int, ...], groups: int
) -> tuple[int, ...]:
    """(out, in / groups, *kernel). Raises ArgumentError for sizes that cannot be."""
    check_sizes(in_channels=in_channels, out_channels=out_channels, groups=groups)
    if in_channels % groups or out_channels % groups:
        raise ArgumentError(
            f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}"
        )
    return (out_channels, in_channels // groups, *kernel)


class Fresh:
    """Draws factors, and a bias.

    std      of the entries of the weight
    init     "normal": independent numbers; "spectral": of a dense weight by the method
    """

    def __init__(
        self,
        *,
        std: float,
        init: str,
        random_state: int | torch.Generator | None,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        if isinstance(std, bool) or not isinstance(std, (int, float)) or not 0 < std < math.inf:
            raise ArgumentError(f"std={std!r} must be a standard deviation above zero")
        if init not in INITS:
            raise unknown("init", init, INITS)
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        if not self.dtype.is_floating_point:
            raise ArgumentError(f"dtype={dtype} must be a floating-point dtype")
        self.std, self.init = std, init
        # As torch's own layers choose it where none is given.
        self.device = torch.device(torch.get_default_device() if device is None else device)
        meta = self.device.type == "meta"
        self.draws = None if meta else generator(random_state, self.device)
        self.random_state = random_state

    def factors(
        self,
        shape: tuple[int, ...],
        layer: Kind,
        method: str,
        rank: Rank,
        options: dict[str, Any],
        groups: int = 1,
    ) -> Factors:
        """Of a weight (out, in / groups, ...) of a "linear", "conv" or "embedding".

        Raises UnsupportedError for a method without sizes of its own, and what it raises itself.
        """
        found = find(method, layer)
        each = (shape[0] // groups, *shape[1:])
        if self.init == "spectral" and self.draws is not None:
            weight = self._uniform(shape, math.sqrt(3) * self.std)
            factors = self._decomposed(found, layer, weight, rank, groups, options)
            return _scaled(factors, float(weight.double().norm()))
        config = _configured(found, options, each)
        blank = None if config is None else config.fresh_factors(rank, each, self.ones)
        if blank is None:
            raise UnsupportedError(
                f"method={method!r} finds the sizes of its factors by a weight; factor a dense "
                "layer by tensorlrf.nn.factorize, or take init='spectral', which makes one"
            )
        total = _sum_of(blank)
        parts = [self.normal(blank, total) for _ in range(groups)]
        return parts[0] if groups == 1 else Grouped.stack(parts)

    def ones(self, *sizes: int) -> Tensor:
        """A tensor of a blank, which tells sizes and counts products."""
        return torch.ones(sizes, dtype=torch.float64, device=self.device)

    def normal(self, blank: Factors, total: float) -> Factors:
        """Factors of the sizes of a blank, whose entries sum up to `total`."""
        std = _shares(blank, self.std, total / math.prod(blank.shape))
        drawn = {
            name: self._drawn(tuple(t.shape), std[name]) for name, t in blank.tensors().items()
        }
        return type(blank).from_tensors(drawn, blank.meta())

    def bias(self, n: int, fan_in: int) -> Tensor:
        """As torch's layers draw it: uniform, of at most 1 / sqrt(fan_in)."""
        return self._uniform((n,), 1 / math.sqrt(fan_in)).to(self.dtype)

    def _decomposed(
        self,
        found: Registered,
        layer: Kind,
        weight: Tensor,
        rank: Rank,
        groups: int,
        options: dict[str, Any],
    ) -> Factors:
        given = {**found.on[layer], **options}
        if found.draws:
            given["random_state"] = self.draws
        if groups > 1:
            factors: Factors = decompose_groups(found.for_layers, weight, groups, rank, **given)
        else:
            factors = found.for_layers(weight, rank, **given)
        return factors.to(self.dtype)

    def _drawn(self, shape: tuple[int, ...], std: float) -> Tensor:
        if len(shape) == 1:  # the weights of terms scale columns that are drawn
            return torch.full(shape, std, dtype=self.dtype, device=self.device)
        tensor = torch.empty(shape, dtype=self._wide, device=self.device)
        return tensor.normal_(0.0, std, generator=self.draws).to(self.dtype)

    def _uniform(self, shape: tuple[int, ...], most: float) -> Tensor:
        tensor = torch.empty(shape, dtype=self._wide, device=self.device)
        return tensor.uniform_(-most, most, generator=self.draws)

    @property
    def _wide(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def _configured(found: Registered, options: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """Its config, which has sizes for a weight of that shape; None where it has no config."""
    if found.config is None:
        return None
    valid = [f.name for f in fields(found.config) if f.name not in BUDGET]
    check_words(options, valid, found.name)
    for option in options:
        if option not in valid:
            raise ArgumentError(
                f"{option}= is no option of method {found.name!r}; its options are "
                f"{', '.join(valid)}"
            )
    config = found.config(**options)
    why = config.why_not(shape, 1)
    if why:
        raise UnsupportedError(f"method={found.name!r}: {why}; choose another one, such as 'svd'")
    return config


def _shares(ones: Factors, std: float, products: float) -> dict[str, float]:
    """The standard deviation of each tensor: such that all have the same norm, as gradient flow
    keeps it, and entries of the whole, sums of so many products, the given one; a vector has
    ones."""
    tensors = {name: t for name, t in ones.tensors().items() if t.ndim > 1}
    energy = std**2 / products * math.prod(float(t.numel()) for t in tensors.values())
    each = energy ** (1 / len(tensors))
    shares = {name: math.sqrt(each / t.numel()) for name, t in tensors.items()}
    return {name: shares.get(name, 1.0) for name in ones.tensors()}


def _sum_of(factors: Factors) -> float:
    """Of all entries of the whole: what the layer makes of an input of ones."""
    if factors.device.type == "meta":
        return float(math.prod(factors.shape))  # nothing is drawn there
    _, columns, *kernel = factors.shape
    x = torch.ones((1, columns, *kernel), dtype=factors.dtype, device=factors.device)
    if not kernel:
        return float(run_linear("chain", factors, x).sum())
    each, none = (1,) * len(kernel), (0,) * len(kernel)
    return float(run_conv("chain", factors, x, None, each, none, each).sum())


def _scaled(factors: Factors, norm: float) -> Factors:
    """All tensors by one factor, so that the whole has this norm."""
    wide = factors.to(torch.float64)
    own, doubled = (float(f.to_dense().norm()) for f in (wide, wide.map(lambda t: 2 * t)))
    if not 0 < own < math.inf:
        return factors
    degree = math.log2(doubled / own)  # of the whole as a polynomial of the tensors
    one = (norm / own) ** (1 / degree)
    return factors.map(lambda t: t * one)
