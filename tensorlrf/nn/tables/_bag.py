"""The bag of embeddings on factors: rows are summed in the space of the rank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Self

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, UnsupportedError, unknown
from tensorlrf.factors import Factors
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._like import like_layer, take_over
from tensorlrf.nn.obstacles import check_embedding
from tensorlrf.ops import PathTable, embedding_paths
from tensorlrf.ops.checks import padding_row
from tensorlrf.ops.forms import form_of, formats_with
from tensorlrf.ops.forms.lowering import EMBEDDING

MODES = ("sum", "mean")


class FactoredEmbeddingBag(FactoredLayer):
    """Sums or means of rows of a table W (num_embeddings, embedding_dim) held as factors.

    Both commute with the product L R: rows of L are put together, r numbers each, and the bags are
    multiplied by R. The largest of rows (mode "max") does not. The factors are copied.

    Parameters
    ----------
    factors : Factors
        Of shape (num_embeddings, embedding_dim): a LowRank.
    mode : {"mean", "sum"}
    padding_idx : int, optional
        As torch.nn.EmbeddingBag: the row is left out of bags.
    include_last_offset : bool
        Whether `offsets` end with the number of indices.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit.

    Examples
    --------
    >>> bags = tensorlrf.nn.factorize(torch.nn.EmbeddingBag(100, 16, mode="sum"), "svd", 4)
    >>> bags(torch.tensor([3, 99, 5]), torch.tensor([0, 2])).shape
    torch.Size([2, 16])
    """

    kind = nn.EmbeddingBag
    _layer = EMBEDDING

    def __init__(
        self,
        factors: Factors,
        mode: str = "mean",
        *,
        padding_idx: int | None = None,
        include_last_offset: bool = False,
    ) -> None:
        embedding_paths(factors)
        if not form_of(factors).has("bag"):
            raise UnsupportedError(
                f"factors is a {type(factors).__name__}, in which no rows are summed before they "
                f"are multiplied; use {' or '.join(formats_with('bag'))}"
            )
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
        super().__init__(factors, None, ("dense", "chain"))
        self.num_embeddings, self.embedding_dim = factors.shape
        self.mode = mode
        self.padding_idx = padding_row(padding_idx, self.num_embeddings)
        self.include_last_offset = include_last_offset
        self._choose()

    @classmethod
    def from_factors(cls, factors: Factors, like: nn.EmbeddingBag) -> Self:
        """A layer that runs on `factors` in place of `like`.

        Parameters
        ----------
        factors : Factors
        like : EmbeddingBag
            It stays as it is.

        Returns
        -------
        FactoredEmbeddingBag
            Its options, dtype, device, training flag and requires_grad are those of `like`.

        Raises
        ------
        ShapeError
            Where the factors do not stand for a tensor of the weight's shape.
        UnsupportedError
            Where `like` is not a plain torch.nn.EmbeddingBag, or takes the largest of rows, or has
            max_norm, scale_grad_by_freq or sparse gradients.
        """
        check_embedding(like, "like", nn.EmbeddingBag)
        factors, _ = like_layer(factors, SimpleNamespace(weight=like.weight, bias=None))
        layer = cls(
            factors, like.mode, padding_idx=like.padding_idx,
            include_last_offset=like.include_last_offset,
        )  # fmt: skip
        take_over(layer, like)
        return layer

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Indices (B, n), or (N,) with offsets (B,) of their bags, to (B, embedding_dim).

        `per_sample_weights`, like the input, are of mode "sum".
        """
        if isinstance(input, fx.Proxy):
            return self._traced(input, offsets, per_sample_weights)
        if input.dtype not in (torch.int64, torch.int32):
            raise ArgumentError(
                f"input has dtype {input.dtype}; indices are torch.int64 or torch.int32"
            )
        if self._path(input) == "dense":
            return self._bags(input, self._dense_weight(), offsets, per_sample_weights)
        factors = self.factors
        form = form_of(factors)
        rows = form.rows_of(factors)
        assert rows is not None
        bags = self._bags(input, factors.tensors()[rows], offsets, per_sample_weights)
        whole: Tensor = form.bag(factors, bags)
        return whole

    def _bags(
        self, input: Tensor, table: Tensor, offsets: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        """Of rows of a table (n, r): (B, r)."""
        return F.embedding_bag(
            input, table, offsets, mode=self.mode, per_sample_weights=weights,
            include_last_offset=self.include_last_offset, padding_idx=self.padding_idx,
        )  # fmt: skip

    @property
    def timed_paths(self) -> tuple[str, ...]:
        """None: beside one path there is "dense", which takes the memory that was won."""
        return ()

    def _rows(self, x: Tensor) -> int:
        return x.numel()

    def _find_paths(self, factors: Factors) -> tuple[str, ...]:
        return ("dense", "chain")

    def _default_path_table(self, frozen: bool = False) -> PathTable:
        return PathTable.single("dense" if frozen else "chain")

    def _bias_repr(self) -> str:
        return ""

    def _options_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode}{padding}"
