"""LSTM, GRU and RNN with a layer for each matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from tensorlrf.errors import ArgumentError, ShapeError, unknown
from tensorlrf.factors.kinds import two_matrices
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn.packed._scan import MODES, States, backwards, given_states, scan
from tensorlrf.nn.packed.unpacked import (
    Unpacked,
    alone,
    bias_of,
    check_packed,
    linear_on,
    weight_of,
)

AUTO, KERNEL, LOOP = "auto", "kernel", "loop"
RECURRENCES = (AUTO, KERNEL, LOOP)
LEAST_SAVED = 1 << 20
"""Bytes of the recurrent matrix that its factors must save for the loop to be the choice on a CPU:
a step of it takes some 50 us of Python, in which a core reads about so much."""

_PARTS = ("input", "recurrent", "projection")
_NAMES = ("ih", "hh", "hr")
"""What torch calls them."""


class FactoredRecurrent(Unpacked):
    """What FactoredLSTM, FactoredGRU and FactoredRNN have in common.

    Of each layer l and direction three layers, dense or factored: `input_l0` (gates * hidden, in),
    `recurrent_l0` (gates * hidden, h) and, with proj_size, `projection_l0`; the gates stacked as
    torch has them, `_reverse` behind the names of the other direction.

    The products with the input are one call for all steps. The recurrence has two ways:

    - "kernel": torch's own (oneDNN, cuDNN) on the dense recurrent matrix, made once a call. It is
      given the smaller of the two factors of the input's matrix; factors of other formats than low
      rank are made dense.
    - "loop": step by step on the factors, for large matrices of small rank, and whenever hooks are
      on the layers.

    "auto" is the loop on a CPU where the factors of the recurrent matrix save more reading than the
    Python of a step takes, else the kernel; `tensorlrf.tune` measures both and sets the faster.
    """

    mode: str
    renews = True
    _packed: ClassVar[type[nn.RNNBase]]

    def __init__(self, like: nn.RNNBase) -> None:
        super().__init__()
        self.mode = like.mode
        self.input_size = like.input_size
        self.hidden_size = like.hidden_size
        self.num_layers = like.num_layers
        self.bias = like.bias
        self.batch_first = like.batch_first
        self.dropout = like.dropout
        self.bidirectional = like.bidirectional
        self.proj_size = like.proj_size
        self._recurrence = AUTO

    @classmethod
    def from_packed(cls, module: Any) -> Self:
        """The same on the same memory; see `Unpacked.from_packed`."""
        check_packed(module, cls, "module")
        made = cls(module)
        for end in made._ends:
            for part, name in zip(_PARTS, _NAMES, strict=True):
                weight = getattr(module, f"weight_{name}{end}", None)
                if weight is not None:
                    bias = getattr(module, f"bias_{name}{end}", None)
                    setattr(made, part + end, linear_on(weight, bias, module))
        return made.train(module.training)

    def pack(self, *, values: bool = True) -> nn.RNNBase:
        """The module of torch; see `Unpacked.pack`."""
        # Fitting may have given a bias to layers that had none.
        layers = list(self.children()) if values else []
        biased = self.bias or any(layer.bias is not None for layer in layers)
        options: dict[str, Any] = {
            "num_layers": self.num_layers, "bias": biased, "batch_first": self.batch_first,
            "bidirectional": self.bidirectional,
        }  # fmt: skip
        if self.mode == "LSTM":
            options["proj_size"] = self.proj_size
        elif self.mode.startswith("RNN"):
            options["nonlinearity"] = self.mode.removeprefix("RNN_").lower()
        packed: Any = self._packed
        made: nn.RNNBase = packed(self.input_size, self.hidden_size, **options, device="meta")
        made.dropout = self.dropout  # in __init__ torch warns of one that has no use
        for end in self._ends:
            for part, name in zip(_PARTS, _NAMES, strict=True):
                layer = getattr(self, part + end, None)
                if layer is None:
                    continue
                own = weight_of([layer], values=values, join=alone)
                setattr(made, f"weight_{name}{end}", own)
                if biased and name != "hr":
                    setattr(made, f"bias_{name}{end}", bias_of([layer], values=values))
        return made.train(self.training)

    def gates_of(self, name: str) -> int:
        return 1 if name.startswith(_PARTS[2]) else MODES[self.mode].gates

    @property
    def _ends(self) -> list[str]:
        """Of the names of the layers: of each layer and direction, in order."""
        turns = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{k}{turn}" for k in range(self.num_layers) for turn in turns]

    @property
    def recurrence(self) -> str:
        """How it goes from step to step: "kernel", "loop" or "auto"; it can be set."""
        return self._recurrence

    @recurrence.setter
    def recurrence(self, way: str) -> None:
        if way not in RECURRENCES:
            raise unknown("recurrence", way, RECURRENCES)
        self._recurrence = way

    def get_extra_state(self) -> dict[str, str]:
        """The way that was set, for files."""
        return {"recurrence": self._recurrence}

    def set_extra_state(self, state: Any) -> None:
        """Take what `get_extra_state` gave."""
        self.recurrence = state["recurrence"]

    def flatten_parameters(self) -> None:
        """Nothing, where torch's own lays its weights side by side: here they are layers."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As torch's own: (outputs, last states), of a batch, one sequence or a PackedSequence."""
        if isinstance(input, PackedSequence):
            sizes = input.batch_sizes
            states = self._states(hx, int(sizes[0]), input.data, batched=True)
            if input.sorted_indices is not None:
                states = tuple(s.index_select(1, input.sorted_indices) for s in states)
            out, last = self._layers(input.data, sizes, states)
            if input.unsorted_indices is not None:
                last = tuple(s.index_select(1, input.unsorted_indices) for s in last)
            packed = PackedSequence(out, sizes, input.sorted_indices, input.unsorted_indices)
            return packed, self._told(last)
        self._check_input(input)
        batched = input.ndim == 3
        x = input if batched else input.unsqueeze(1)  # (steps, batch, in)
        x = x.transpose(0, 1) if batched and self.batch_first else x
        if not x.shape[0]:
            raise ShapeError(f"input has shape {tuple(input.shape)}: there is no step in it")
        states = self._states(hx, x.shape[1], x, batched=batched)
        out, last = self._layers(x, None, states)
        if not batched:
            return out.squeeze(1), self._told(tuple(s.squeeze(1) for s in last))
        return out.transpose(0, 1) if self.batch_first else out, self._told(last)

    # ---- one layer after the other ----------------------------------------------------------

    def _layers(self, x: Tensor, sizes: Tensor | None, states: States) -> tuple[Tensor, States]:
        """Of x (steps, batch, in) or, with `sizes`, (rows, in), and states (layers * turns, batch,
        size)."""
        last: list[States] = []
        turns = 2 if self.bidirectional else 1
        for k, ends in enumerate(zip(*[iter(self._ends)] * turns, strict=True)):
            outputs = []
            for turn, end in enumerate(ends):
                own = tuple(s[k * turns + turn] for s in states)
                out, after = self._turn(x, sizes, own, end, reverse=turn == 1)
                outputs.append(out)
                last.append(after)
            x = outputs[0] if turns == 1 else torch.cat(outputs, dim=-1)
            if self.dropout and k < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, tuple(torch.stack(parts) for parts in zip(*last, strict=True))

    def _turn(
        self, x: Tensor, sizes: Tensor | None, states: States, end: str, *, reverse: bool
    ) -> tuple[Tensor, States]:
        """One direction of a layer; the other one is the same on sequences turned round."""
        if not reverse:
            return self._run(x, sizes, states, end)
        if sizes is None:
            out, last = self._run(x.flip(0), sizes, states, end)
            return out.flip(0), last
        order = backwards(sizes.tolist(), x.device)
        out, last = self._run(x[order], sizes, states, end)
        return out[order], last

    def _run(
        self, x: Tensor, sizes: Tensor | None, states: States, end: str
    ) -> tuple[Tensor, States]:
        layers: list[Any] = [getattr(self, part + end, None) for part in _PARTS]
        is_heard = not all(map(_is_quiet, layers))
        if not is_heard and not self._loops(layers[1], x):
            return self._kernel(x, sizes, states, layers)
        arriving, recurrent, projection = layers
        arrives = arriving(x).reshape(-1, MODES[self.mode].gates * self.hidden_size)
        steps = [x.shape[1]] * x.shape[0] if sizes is None else sizes.tolist()
        walk = partial(scan, MODES[self.mode], arrives, steps, states)
        before = _versions(layers) if is_heard else []
        out, last = walk(recurrent, projection)
        if is_heard and _versions(layers) != before:
            # A hook, as of calibration, has put other weights in on the way: what goes on from here
            # is what these give from the first step on.
            out, last = walk(_product(recurrent), _product(projection))
        return out.reshape(*x.shape[:-1], out.shape[-1]), last

    def _loops(self, recurrent: Any, x: Tensor) -> bool:
        if self._recurrence != AUTO:
            return self._recurrence == LOOP
        if x.is_cuda or torch.compiler.is_compiling() or not isinstance(recurrent, FactoredLayer):
            return False
        if recurrent.is_frozen:
            return False
        numbers = math.prod(recurrent.factors.shape) - recurrent.factors.n_params
        return numbers * x.element_size() >= LEAST_SAVED

    def _kernel(
        self, x: Tensor, sizes: Tensor | None, states: States, layers: list[Any]
    ) -> tuple[Tensor, States]:
        arriving, recurrent, projection = layers
        x, weight = _halfway(arriving, x)
        weights = [weight, _dense(recurrent)]
        biased = arriving.bias is not None or recurrent.bias is not None
        if biased:
            zeros = weight.new_zeros(weight.shape[0])
            weights += [zeros if b is None else b for b in (arriving.bias, recurrent.bias)]
        if projection is not None:
            weights.append(_dense(projection))
        if x.is_cuda:
            weights = _side_by_side(weights)
        h = tuple(s.unsqueeze(0).contiguous() for s in states)
        hx: Any = h if len(h) > 1 else h[0]
        kernel: Callable[..., Any] = MODES[self.mode].kernel
        how = (biased, 1, 0.0, self.training, False)
        if sizes is None:
            out, *last = kernel(x, hx, weights, *how, False)
        else:
            out, *last = kernel(x, sizes, hx, weights, *how)
        return out, tuple(s.squeeze(0) for s in last)

    # ---- what is given ----------------------------------------------------------------------

    def _check_input(self, input: Any) -> None:
        if not isinstance(input, Tensor):
            raise ArgumentError(
                f"input is a {type(input).__name__}; pass a tensor or a PackedSequence"
            )
        if input.ndim not in (2, 3) or input.shape[-1] != self.input_size:
            order = "batch, steps" if self.batch_first else "steps, batch"
            raise ShapeError(
                f"input has shape {tuple(input.shape)}; it must be ({order}, {self.input_size}), "
                f"or (steps, {self.input_size}) of one sequence"
            )

    def _states(self, hx: Any, batch: int, x: Tensor, *, batched: bool) -> States:
        """(layers * turns, batch, size) of each; zeros where none are given."""
        n = len(self._ends)
        sizes = [self.proj_size or self.hidden_size, self.hidden_size][: MODES[self.mode].states]
        if hx is None:
            return tuple(x.new_zeros(n, batch, size) for size in sizes)
        wanted = [(n, batch, size) if batched else (n, size) for size in sizes]
        given = given_states(hx, wanted, self.stands_for)
        return given if batched else tuple(state.unsqueeze(1) for state in given)

    def _told(self, last: States) -> Any:
        return last if len(last) > 1 else last[0]

    def extra_repr(self) -> str:
        told = f"{self.input_size}, {self.hidden_size}, recurrence={self._recurrence}"
        options = {
            "num_layers": (self.num_layers, 1), "batch_first": (self.batch_first, False),
            "dropout": (self.dropout, 0.0), "bidirectional": (self.bidirectional, False),
            "proj_size": (self.proj_size, 0),
        }  # fmt: skip
        changed = [f"{k}={value}" for k, (value, default) in options.items() if value != default]
        return ", ".join([told, *changed])


def _is_quiet(layer: Any) -> bool:
    """Nobody listens to its calls, and it is a layer whose weight is known."""
    if layer is None:
        return True
    known = type(layer) is nn.Linear or isinstance(layer, FactoredLayer)
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
    return known and not any((*hooks, layer._backward_pre_hooks))


def _versions(layers: list[Any]) -> list[int]:
    """What torch has counted of changes of the parameters in place."""
    own = [p for layer in layers if layer is not None for p in layer.parameters()]
    return [0 if p.is_inference() else p._version for p in own]


def _product(layer: Any) -> Any:
    """The forward of a dense layer, which no hook hears; of another one the layer."""
    if type(layer) is not nn.Linear:
        return layer  # None, or one that no calibration writes to
    return partial(F.linear, weight=layer.weight, bias=layer.bias)


def _halfway(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(x', W') with W x = W' x': of a low-rank layer the product with the smaller factor."""
    if not isinstance(layer, FactoredLayer):
        return x, layer.weight
    pair = two_matrices(layer.factors)
    if pair is None or layer._path(x) == "dense":
        return x, layer._dense_weight()
    left, right = pair
    return F.linear(x, right), left


def _dense(layer: Any) -> Tensor:
    weight: Tensor = layer._dense_weight() if isinstance(layer, FactoredLayer) else layer.weight
    return weight


def _side_by_side(weights: list[Tensor]) -> list[Tensor]:
    """The same in one piece of memory, as cuDNN wants them."""
    flat = torch.cat([w.reshape(-1) for w in weights])
    parts = torch.split(flat, [w.numel() for w in weights])
    return [part.view(w.shape) for part, w in zip(parts, weights, strict=True)]


class FactoredLSTM(FactoredRecurrent, packed=nn.LSTM):
    """An LSTM with a layer, dense or factored, for each of its matrices.

    `tensorlrf.nn.factorize(lstm, ...)` and `compress` make it; `pack` gives an nn.LSTM again.

    Parameters
    ----------
    like : LSTM
        Of which it has the options.

    Examples
    --------
    >>> lstm = torch.nn.LSTM(32, 32, batch_first=True)
    >>> small = tensorlrf.nn.factorize(lstm, "svd", 8)
    >>> x = torch.rand(2, 5, 32)
    >>> [tuple(t.shape) for t in (small(x)[0], *small(x)[1])]
    [(2, 5, 32), (1, 2, 32), (1, 2, 32)]
    """

    stands_for = "LSTM"
    _packed = nn.LSTM


class FactoredGRU(FactoredRecurrent, packed=nn.GRU):
    """A GRU with a layer, dense or factored, for each of its matrices.

    Parameters
    ----------
    like : GRU
        Of which it has the options.

    Examples
    --------
    >>> small = tensorlrf.nn.factorize(torch.nn.GRU(32, 32), "svd", 8)
    >>> out, h = small(torch.rand(5, 2, 32))
    >>> out.shape
    torch.Size([5, 2, 32])
    """

    stands_for = "GRU"
    _packed = nn.GRU


class FactoredRNN(FactoredRecurrent, packed=nn.RNN):
    """A plain recurrent network with a layer, dense or factored, for each of its matrices.

    Parameters
    ----------
    like : RNN
        Of which it has the options.

    Examples
    --------
    >>> small = tensorlrf.nn.factorize(torch.nn.RNN(32, 32, nonlinearity="relu"), "svd", 8)
    >>> small.mode
    'RNN_RELU'
    """

    stands_for = "RNN"
    _packed = nn.RNN
