"""LSTM, GRU and RNN with a layer for each matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from tensorlrf.errors import ArgumentError, ShapeError, unknown
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn.packed._abreast import Abreast, beside
from tensorlrf.nn.packed._parts import dense, halfway, is_quiet, product, side_by_side, versions
from tensorlrf.nn.packed._scan import (
    MODES,
    States,
    added,
    apart,
    backwards,
    given_states,
    scan,
)
from tensorlrf.nn.packed._ways import loop_is_faster
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

INPUT = "input"  # of layers that are called once for all steps
_PARTS = (INPUT, "recurrent", "projection")
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

    "auto" is the loop on a CPU where it should be faster by what both ways were measured to take:
    see `_ways`; else the kernel. `tensorlrf.tune` measures both and sets the faster.
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
            own = [tuple(s[k * turns + turn] for s in states) for turn in range(turns)]
            xs = [x] if turns == 1 else [x, self._turned(x, sizes)]
            ran = self._abreast(xs, sizes, own, ends)
            if ran is None:
                ran = [self._run(*of) for of in zip(xs, [sizes] * turns, own, ends, strict=True)]
            outputs, after = zip(*ran, strict=True)
            last += after
            x = outputs[0]
            if turns == 2:
                x = torch.cat([x, self._turned(outputs[1], sizes)], dim=-1)
            if self.dropout and k < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, tuple(torch.stack(parts) for parts in zip(*last, strict=True))

    def _turned(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """With every sequence from its end to its beginning, as the other direction runs."""
        return x.flip(0) if sizes is None else x[backwards(sizes.tolist(), x.device)]

    def _parts_at(self, end: str) -> list[Any]:
        return [getattr(self, part + end, None) for part in _PARTS]

    def _abreast(
        self, xs: list[Tensor], sizes: Tensor | None, states: list[States], ends: Sequence[str]
    ) -> list[tuple[Tensor, States]] | None:
        """All directions of a layer in one loop; None where one of them goes another way."""
        arriving, recurrent, projection = zip(*map(self._parts_at, ends), strict=True)
        alone = map(is_quiet, (*arriving, *recurrent, *projection))
        behind = zip(recurrent, projection, strict=True)
        if not all(alone) or not all(self._loops(pair, xs[0], sizes) for pair in behind):
            return None
        h, mode = states[0][0], MODES[self.mode]
        recurs = Abreast.of(recurrent, h)
        projects = None if projection[0] is None else Abreast.of(projection, h)
        if recurs is None or (projection[0] is not None and projects is None):
            return None
        bias, meet = None, apart(recurs)
        if mode.adds:
            bias, meet = recurs.bias, added(recurs.onto)
        arrives = self._arrived(arriving, xs, bias)
        before = tuple(map(beside, zip(*states, strict=True)))
        out, last = scan(mode, arrives, self._steps(xs[0], sizes), before, meet, projects)
        outputs = out.reshape(len(xs), *xs[0].shape[:-1], out.shape[-1]).unbind(0)
        after = (s.reshape(len(xs), *s.shape[-2:]).unbind(0) for s in last)
        return list(zip(outputs, zip(*after, strict=True), strict=True))

    def _arrived(self, arriving: Sequence[Any], xs: list[Tensor], more: Tensor | None) -> Tensor:
        """The products of all steps with the input, (turns, rows, gates * hidden), and a bias
        (turns, 1, gates * hidden) that is added to their own; of one direction without turns."""
        alike = Abreast.of(arriving, xs[0])
        if alike is None:
            made = beside([of(x).flatten(0, -2) for of, x in zip(arriving, xs, strict=True)])
            return made if more is None else made + more
        bias = alike.bias if more is None else more if alike.bias is None else alike.bias + more
        return alike.onto(bias, beside([x.flatten(0, -2) for x in xs]))

    def _steps(self, x: Tensor, sizes: Tensor | None) -> list[int]:
        """Rows of each step."""
        return [x.shape[1]] * x.shape[0] if sizes is None else sizes.tolist()

    def _run(
        self, x: Tensor, sizes: Tensor | None, states: States, end: str
    ) -> tuple[Tensor, States]:
        """One direction of a layer."""
        layers = self._parts_at(end)
        is_heard = not all(map(is_quiet, layers))
        if not is_heard and not self._loops(layers[1:], x, sizes):
            return self._kernel(x, sizes, states, layers)
        arriving, recurrent, projection = layers
        arrives, steps = arriving(x).flatten(0, -2), self._steps(x, sizes)

        def walk(recurs: Any, projects: Any) -> tuple[Tensor, States]:
            return scan(MODES[self.mode], arrives, steps, states, apart(recurs), projects)

        before = versions(layers) if is_heard else []
        out, last = walk(recurrent, projection)
        if is_heard and versions(layers) != before:
            # A hook, as of calibration, has put other weights in on the way: what goes on from here
            # is what these give from the first step on.
            out, last = walk(product(recurrent), product(projection))
        return out.reshape(*x.shape[:-1], out.shape[-1]), last

    def _loops(self, layers: Sequence[Any], x: Tensor, sizes: Tensor | None) -> bool:
        """Whether the recurrent layer and the projection, if there is one, are gone through step by
        step."""
        if self._recurrence != AUTO:
            return self._recurrence == LOOP
        recurrent, *_ = layers = [layer for layer in layers if layer is not None]
        if x.is_cuda or torch.compiler.is_compiling() or not isinstance(recurrent, FactoredLayer):
            return False
        if recurrent.is_frozen:
            return False
        steps, turns = len(x if sizes is None else sizes), 2 if self.bidirectional else 1
        return loop_is_faster(layers, self.hidden_size, math.prod(x.shape[:-1]), steps, turns)

    def _kernel(
        self, x: Tensor, sizes: Tensor | None, states: States, layers: list[Any]
    ) -> tuple[Tensor, States]:
        arriving, recurrent, projection = layers
        x, weight = halfway(arriving, x)
        weights = [weight, dense(recurrent)]
        biased = arriving.bias is not None or recurrent.bias is not None
        if biased:
            zeros = weight.new_zeros(weight.shape[0])
            weights += [zeros if b is None else b for b in (arriving.bias, recurrent.bias)]
        if projection is not None:
            weights.append(dense(projection))
        if x.is_cuda:
            weights = side_by_side(weights)
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
