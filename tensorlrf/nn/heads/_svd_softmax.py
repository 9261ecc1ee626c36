"""A large head that looks at all words cheaply, and at the best of them exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn.heads._preview import KS, NUMBERS, Turned, read, rows_of
from tensorlrf.nn.obstacles import check_layer
from tensorlrf.nn.tensors import values_of
from tensorlrf.ops import time_calls

PARTS = 16
"""Of states, half of them to fit previews to and half to choose sizes on."""


@dataclass(frozen=True)
class HeadReport:
    """What an `SVDSoftmaxHead` finds, beside the exact logits, and how long it takes.

    Parameters
    ----------
    rows : int
        States that were looked at.
    recall : tuple of float
        Of the 1 and of the 10 best words by exact logits the share among as many by the head.
    window, top : int
        Its sizes.
    read, dense : int
        Numbers of the weight that it reads for one row, and those of the linear layer.
    seconds, dense_seconds : float
        Medians of a call with one row, measured in turn.

    Examples
    --------
    >>> head = tensorlrf.nn.SVDSoftmaxHead.from_linear(torch.nn.Linear(16, 99), window=8, top=20)
    >>> found = head.measure(torch.randn(50, 16))
    >>> found.rows, found.read < found.dense
    (50, True)
    """

    rows: int
    recall: tuple[float, ...]
    window: int
    top: int
    read: int
    dense: int
    seconds: float
    dense_seconds: float

    def __str__(self) -> str:
        told = ", ".join(f"top-{k} {r:.4f}" for k, r in zip(KS, self.recall, strict=True))
        return (
            f"preview of {self.window} columns, {self.top:,} words exact: recall {told} on "
            f"{self.rows:,} states; {self.read / self.dense:.1%} of the weight read for a row, "
            f"{self.dense_seconds / self.seconds:.2f}x as fast as the linear layer "
            f"({self.dense_seconds * 1e3:.3g} to {self.seconds * 1e3:.3g} ms)"
        )


class SVDSoftmaxHead(nn.Module):
    """Logits of a large vocabulary: all of them from a few columns, the largest of them exactly.

    With W = B T, B = U S (V, d) and T the right singular vectors, the first columns of B hold most
    of every logit. The preview is B_w (T h)_w of `window` columns; for the `top` words that it puts
    first the other columns are added, so that their logits are those of the linear layer. All
    others keep their preview, which is what a softmax divides by. Of so many rows that all words
    would be looked at for one or other of them, every logit is exact.

    Parameters
    ----------
    in_features, out_features : int
        As of torch.nn.Linear: d and V.
    window : int
        Columns of the preview, 1 to d; with d the head is the linear layer.
    top : int
        Words whose logits are exact in each row, 1 to V.
    bias : bool
    device, dtype
        Of the parameters.

    Attributes
    ----------
    preview : Parameter of shape (window, V)
        The first columns of B, each in one piece: a row of states is multiplied by it up to four
        times as fast as by (V, window), of which every word has a short row.
    rest : Parameter of shape (V, d - window)
        The other columns, by words, as rows of it are picked.
    turn : Parameter of shape (d, d)
        T.
    shift : buffer of shape (V,)
        What the other columns add on the mean of the states, which previews begin with.

    Raises
    ------
    ArgumentError
        For sizes that cannot be.

    References
    ----------
    Shim, Lee, Choi, Boo & Sung 2017, "SVD-Softmax: fast softmax approximation on large vocabulary
    neural networks", algorithm 1.

    Examples
    --------
    >>> linear = torch.nn.Linear(16, 1000)
    >>> head = tensorlrf.nn.SVDSoftmaxHead.from_linear(linear, window=8, top=100)
    >>> h = torch.randn(2, 16)
    >>> values, words = head.topk(h, 3)
    >>> torch.allclose(values, linear(h).gather(-1, words), atol=1e-5)
    True
    """

    shift: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        window: int,
        top: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value, most in (("window", window, in_features), ("top", top, out_features)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ArgumentError(
                    f"{name}={value!r} must be an int from 1 to {most:,}, of a head with "
                    f"{in_features:,} features and {out_features:,} words"
                )
        self.in_features, self.out_features = in_features, out_features
        self.window, self.top = window, top

        def blank(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.preview = blank(window, out_features)
        self.rest = blank(out_features, in_features - window)
        self.turn = blank(in_features, in_features)
        self.bias = blank(out_features) if bias else None
        self.register_buffer("shift", torch.zeros(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights as those of a new torch.nn.Linear, T the identity."""
        bound = 1 / math.sqrt(self.in_features)
        for part in (self.preview, self.rest, self.bias):
            if part is not None:
                nn.init.uniform_(part, -bound, bound)
        nn.init.eye_(self.turn)
        self.shift.zero_()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        window: int,
        top: int,
        states: Tensor | None = None,
    ) -> Self:
        """A head that computes what a linear layer does.

        Parameters
        ----------
        linear : Linear
            It stays as it is.
        window, top : int
            As of the head.
        states : Tensor of shape (..., d), optional
            Inputs of the layer, on which previews are then the nearest that there are in the mean
            square: by the singular vectors of W times the root of their second moments about their
            mean, in place of those of W.

        Returns
        -------
        SVDSoftmaxHead
            Of its dtype, device, training flag and requires_grad.

        Raises
        ------
        ArgumentError, ShapeError, UnsupportedError
            For what is no plain linear layer, sizes that cannot be, and states of another width or
            that are not finite.
        """
        check_layer(linear, nn.Linear, "linear")
        weight = values_of(linear.weight)
        with torch.no_grad(), without_autocast():
            return cls._made(linear, Turned.of(weight, states), window, top)

    @classmethod
    def _made(cls, linear: nn.Linear, turned: Turned, window: int, top: int) -> Self:
        V, d = turned.columns.shape
        head = cls(
            d, V, window=window, top=top, bias=linear.bias is not None, device="meta",
            dtype=linear.weight.dtype,
        )  # fmt: skip
        head._take(turned, linear.bias, linear.weight)
        return head.train(linear.training)

    @classmethod
    def calibrated(
        cls, linear: nn.Linear, states: Tensor, *, recall: Sequence[float] = (0.999, 0.99)
    ) -> Self:
        """The head that moves least of the weight and finds so many of the best words.

        Sizes are chosen on a half of the states and previews fitted to the other half; half of
        what may be missed is left for states that were not seen.

        Parameters
        ----------
        linear : Linear
        states : Tensor of shape (..., d)
            Inputs of the layer; a few thousand rows tell a recall of .999.
        recall : pair of float
            Of the best word, and of the ten best, each in (0, 1].

        Returns
        -------
        SVDSoftmaxHead

        Raises
        ------
        ArgumentError, ShapeError, UnsupportedError
            As `from_linear`, and for a recall that cannot be.
        """
        check_layer(linear, nn.Linear, "linear")
        wanted = tuple(recall)
        if len(wanted) != len(KS) or not all(0 < share <= 1 for share in wanted):
            raise ArgumentError(
                f"recall={recall!r} must be two shares in (0, 1], of the best word and of the ten "
                "best, such as (0.999, 0.99)"
            )
        rows = rows_of(states, linear.in_features)
        if len(rows) < 2:
            raise ArgumentError(f"states has {len(rows)} rows; give two at least")
        with torch.no_grad(), without_autocast():
            # In turn, but some neighbours together: those of one text are alike.
            parts = rows.chunk(PARTS)
            turned = Turned.of(values_of(linear.weight), torch.cat(parts[0::2]))
            bias = None if linear.bias is None else linear.bias.detach().to(rows.dtype)
            sizes = turned.least_moved(bias, torch.cat(parts[1::2]), wanted)
            return cls._made(linear, turned, *sizes)

    # ---- what it computes -------------------------------------------------------------------

    def forward(self, input: Tensor) -> Tensor:
        """States (..., d) to logits (..., V)."""
        turned = F.linear(input, self.turn)
        logits = turned[..., : self.window] @ self.preview  # (..., V)
        if self.bias is not None:
            logits = logits + self.bias
        if self.window == self.in_features:
            return logits
        others = turned[..., self.window :]
        if turned[..., 0].numel() * self.top >= self.out_features:
            return logits + F.linear(others, self.rest)
        logits = logits + self.shift
        best = logits.topk(self.top, dim=-1, sorted=False).indices  # (..., top)
        # Picked by one list of rows: several times as fast as by an index of two axes.
        picked = self.rest.index_select(0, best.flatten()).reshape(*best.shape, -1)
        missing = (picked @ others[..., None])[..., 0] - self.shift[best]
        return logits.scatter_add(-1, best, missing)

    def topk(self, input: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best words, by exact logits where k is at most `top`.

        Parameters
        ----------
        input : Tensor of shape (..., d)
        k : int

        Returns
        -------
        values, words : Tensor of shape (..., k)
            Falling.
        """
        values, words = self(input).topk(k, dim=-1)
        return values, words

    @property
    def weight(self) -> Tensor:
        """The weight (V, d) of the linear layer, made of the parts."""
        return torch.cat([self.preview.T, self.rest], dim=1) @ self.turn

    def to_linear(self) -> nn.Linear:
        """The torch.nn.Linear that it stands for, on parameters of its own."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        flag = self.preview.requires_grad
        linear.weight = nn.Parameter(self.weight.detach().clone(), requires_grad=flag)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=flag)
        return linear.train(self.training)

    def measure(self, states: Tensor, *, seconds: float = 1.0) -> HeadReport:
        """How many of the best words it finds, and how long it takes for one row.

        Parameters
        ----------
        states : Tensor of shape (..., d)
            Others than those that its sizes were chosen by.
        seconds : float
            That are spent on times, about.

        Returns
        -------
        HeadReport
        """
        rows = rows_of(states, self.in_features).to(self.preview.dtype)
        linear = self.to_linear()
        found = [0.0] * len(KS)
        with torch.no_grad(), without_autocast():
            for part in torch.split(rows, max(1, NUMBERS // self.out_features)):
                exact = linear(part)
                logits = torch.cat([self(row[None]) for row in part])
                for n, k in enumerate(min(k, self.out_features) for k in KS):
                    mine, best = logits.topk(k).indices, exact.topk(k).indices
                    both = (mine[:, :, None] == best[:, None]).any(1)
                    found[n] += float(both.double().mean(1).sum())
            one = rows[:1]
            times = time_calls(
                {"dense": lambda: linear(one), "head": lambda: self(one)},
                seconds=seconds, device=one.device,
            )  # fmt: skip
        return HeadReport(
            len(rows), tuple(share / len(rows) for share in found), self.window, self.top,
            self._read(), self.out_features * self.in_features,
            times.median("head"), times.median("dense"),
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"window={self.window}, top={self.top}, bias={self.bias is not None}"
        )

    # ---- how it is made ---------------------------------------------------------------------

    def _take(self, turned: Turned, bias: Tensor | None, like: Tensor) -> None:
        """Parts of B, T, and what B adds beyond the window on the mean, as copies like a tensor."""
        w, columns = self.window, turned.columns
        parts = {"preview": columns[:, :w].T, "rest": columns[:, w:], "turn": turned.turn}
        parts |= {} if bias is None else {"bias": bias.detach()}
        for name, part in parts.items():
            own = part.to(like.dtype).clone(memory_format=torch.contiguous_format)
            self.register_parameter(name, nn.Parameter(own, requires_grad=like.requires_grad))
        self.register_buffer("shift", turned.shift(w).to(like.dtype))

    def _read(self) -> int:
        """Numbers of the weight that are read for one row."""
        return read(self.in_features, self.out_features, self.window, self.top)
