"""The embedding on factors."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tensorlrf.decomposition.rank import Rank
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors
from tensorlrf.nn._fresh import Fresh, check_sizes
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._like import like_layer, take_over
from tensorlrf.nn.behaviour.lookups import scale_of
from tensorlrf.nn.obstacles import check_embedding
from tensorlrf.nn.tables.shell import SHELL, shell_of
from tensorlrf.ops import PathTable, best_embedding_path, embedding_paths
from tensorlrf.ops.buckets import BUCKETS
from tensorlrf.ops.checks import padding_row
from tensorlrf.ops.forms import form_of
from tensorlrf.ops.forms.lowering import EMBEDDING, Layer
from tensorlrf.ops.fused import check_layer_path


class FactoredEmbedding(FactoredLayer):
    """Rows of a table W (num_embeddings, embedding_dim) held as factors.

    The factors are copied. Rows of the path table are numbers of indices. The path "dense" is there
    to be asked for, and is chosen by neither the cost model nor `tune`: it makes the whole table,
    which takes the memory for which it was factored. Once frozen, by hand, the layer runs on it.

    Parameters
    ----------
    factors : Factors
        Of shape (num_embeddings, embedding_dim), of any format that `ops.embedding` has.
    padding_idx : int, optional
        As torch.nn.Embedding: what is looked up at this row has no gradient. A row of zeros stays
        one where its own factor is zero; else it moves with the others, which share its factors.
    scale : float
        By which what is looked up is multiplied, as Gemma's and BART's embeddings do. `weight` and
        `factors` are without it, so that a head on the same table is, too.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit.

    Examples
    --------
    >>> table = tensorlrf.nn.factorize(torch.nn.Embedding(100, 16), "svd", 4)
    >>> table(torch.tensor([[3, 99]])).shape
    torch.Size([1, 2, 16])
    """

    kind = nn.Embedding

    def __init__(
        self, factors: Factors, padding_idx: int | None = None, *, scale: float = 1.0
    ) -> None:
        super().__init__(factors, None, embedding_paths(factors))
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or math.isinf(scale):
            raise ArgumentError(f"scale={scale!r} must be a finite number")
        self.scale = float(scale)  # NaN on meta, where nobody knows it yet
        self.num_embeddings, self.embedding_dim = factors.shape
        self.padding_idx = padding_row(padding_idx, self.num_embeddings)
        self._layer = Layer("embedding", padding_idx=self.padding_idx)
        self._choose()

    @classmethod
    def from_factors(cls, factors: Factors, like: nn.Embedding) -> Self:
        """A layer that runs on `factors` in place of `like`.

        Parameters
        ----------
        factors : Factors
        like : Embedding
            It stays as it is.

        Returns
        -------
        FactoredEmbedding
            Its padding_idx, scale, dtype, device, training flag and requires_grad are those of
            `like`.

        Raises
        ------
        ShapeError
            Where the factors do not stand for a tensor of the weight's shape.
        UnsupportedError
            Where `like` is neither a plain torch.nn.Embedding nor a subclass that gives a multiple
            of what is looked up, or has max_norm, scale_grad_by_freq or sparse gradients.
        """
        check_embedding(like, "like")
        scale = scale_of(like)
        assert isinstance(scale, float)
        factors, _ = like_layer(factors, SimpleNamespace(weight=like.weight, bias=None))
        layer = cls(factors, like.padding_idx, scale=scale)
        take_over(layer, like)
        if type(like) is not nn.Embedding:
            vars(layer)[SHELL] = shell_of(like)  # no module of it: only what it was
        return layer

    @classmethod
    def new(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        *,
        rank: Rank,
        method: str = "svd",
        padding_idx: int | None = None,
        std: float | None = None,
        init: str = "normal",
        random_state: int | torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """A table to be trained from the start.

        Parameters
        ----------
        num_embeddings, embedding_dim : int
        rank : int, tuple, float or str
            As the decomposition takes it; a share counts parameters, and is an upper bound.
        method : str
            The word of a decomposition that serves such a layer; its form is what is trained. Sizes
            that a fit would choose by a weight are those that cost least, unless options say
            otherwise (`shapes=`, `row_sizes=`, `blocks=`).
        padding_idx : int, optional
            As torch.nn.Embedding: its row is zeros, where the format has one.
        std : float, optional
            Standard deviation of the entries of the weight that the factors stand for, by default
            that of torch's layer, 1.
        init : {"normal", "spectral"}
            Normal numbers in every tensor, all tensors of one norm, and no dense weight is made; or
            the factors of a random dense weight, brought back to its norm (Khodak et al. 2021).
        random_state : int or Generator, optional
            Torch's global generator is left alone.
        device, dtype
            As torch's layers take them.
        **options
            Of the method.

        Returns
        -------
        FactoredEmbedding

        Raises
        ------
        RankError, ShapeError, ArgumentError
            For what cannot be.
        UnsupportedError
            For a method whose sizes follow from a weight, such as "blr", unless by "spectral".

        References
        ----------
        He et al. 2015 (variance); Khodak et al. 2021, "Initialization and regularization of
        factorized neural layers".

        Examples
        --------
        >>> table = tensorlrf.nn.FactoredEmbedding.new(50_000, 512, rank=32, random_state=0)
        >>> table(torch.tensor([7])).shape, table.factors.n_params
        (torch.Size([1, 512]), 1616384)
        """
        check_sizes(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        std = 1.0 if std is None else std
        fresh = Fresh(std=std, init=init, random_state=random_state, device=device, dtype=dtype)
        shape = (num_embeddings, embedding_dim)
        table = cls(fresh.factors(shape, "embedding", method, rank, options), padding_idx)
        table.clear_padding()
        return table

    def forward(self, input: Tensor) -> Tensor:
        """Indices (...) of int32 or int64 to (..., embedding_dim)."""
        if isinstance(input, fx.Proxy):
            return self._traced(input)
        if input.dtype not in (torch.int64, torch.int32):
            raise ArgumentError(
                f"input has dtype {input.dtype}; indices are torch.int64 or torch.int32"
            )
        path = self._path(input)
        if path == "dense":
            rows = F.embedding(input, self._dense_weight(), self.padding_idx)
        else:
            rows = self._runs[path].run(input, *self._held(), None)
        return rows if self.scale == 1.0 else rows * self.scale

    def clear_padding(self) -> None:
        """Make the padding row zeros, by its row of the factor that holds the rows.

        It stays so in training. A train has none, and its padding row is as exact as the others.
        """
        if self.padding_idx is None:
            return
        factors = self.factors
        found = form_of(factors).row_of(factors, self.padding_idx)
        if found is not None:
            name, row = found
            with torch.no_grad():
                self.get_parameter(self._names[name])[row] = 0.0

    @property
    def timed_paths(self) -> tuple[str, ...]:
        """All but "dense".

        A table that is kept needs no product and always wins, and one that is rebuilt takes as much
        memory for a call; factoring has won that memory.
        """
        return tuple(path for path in self.paths if path != "dense")

    def _rows(self, x: Tensor) -> int:
        return x.numel()

    def _find_paths(self, factors: Factors) -> tuple[str, ...]:
        return embedding_paths(factors)

    def _check_fused(self) -> None:
        check_layer_path("fused", self.paths, self.factors, EMBEDDING)

    def _default_path_table(self, frozen: bool = False) -> PathTable:
        if frozen:
            return PathTable.single("dense")
        factors, paths = self.factors, self.timed_paths
        if len(paths) == 1:
            return PathTable.single(paths[0])
        return PathTable.from_choices(
            {n: best_embedding_path(factors, n, paths=paths) for n in BUCKETS}
        )

    def _bias_repr(self) -> str:
        return ""

    def _options_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        scale = "" if self.scale == 1.0 else f", scale={self.scale:.6g}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}{scale}"
