"""LSTMCell, GRUCell and RNNCell with a layer for each matrix."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from tensorlrf.errors import ShapeError
from tensorlrf.nn.packed._scan import MODES, Mode, States, given_states
from tensorlrf.nn.packed.unpacked import (
    Unpacked,
    alone,
    bias_of,
    check_packed,
    linear_on,
    weight_of,
)


class FactoredCell(Unpacked):
    """What FactoredLSTMCell, FactoredGRUCell and FactoredRNNCell have in common: one step.

    Two layers, dense or factored: `input` (gates * hidden, in) and `recurrent` (gates * hidden,
    hidden).
    """

    _packed: ClassVar[type[nn.RNNCellBase]]
    input: Any
    recurrent: Any

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.input_size: int = like.input_size
        self.hidden_size: int = like.hidden_size
        self.bias: bool = like.bias
        self.nonlinearity: str | None = getattr(like, "nonlinearity", None)

    @property
    def _mode(self) -> Mode:
        nonlinearity = self.nonlinearity
        name = self.stands_for.removesuffix("Cell")
        return MODES[name if nonlinearity is None else f"{name}_{nonlinearity.upper()}"]

    @classmethod
    def from_packed(cls, module: Any) -> Self:
        """The same on the same memory; see `Unpacked.from_packed`."""
        check_packed(module, cls, "module")
        made = cls(module)
        made.input = linear_on(module.weight_ih, module.bias_ih, module)
        made.recurrent = linear_on(module.weight_hh, module.bias_hh, module)
        return made.train(module.training)

    def pack(self, *, values: bool = True) -> nn.RNNCellBase:
        """The cell of torch; see `Unpacked.pack`."""
        # Fitting may have given a bias to layers that had none.
        layers = list(self.children()) if values else []
        biased = self.bias or any(layer.bias is not None for layer in layers)
        options: dict[str, Any] = {"bias": biased, "device": "meta"}
        if self.nonlinearity is not None:
            options["nonlinearity"] = self.nonlinearity
        made: Any = self._packed(self.input_size, self.hidden_size, **options)
        for layer, name in ((self.input, "ih"), (self.recurrent, "hh")):
            setattr(made, f"weight_{name}", weight_of([layer], values=values, join=alone))
            if biased:
                setattr(made, f"bias_{name}", bias_of([layer], values=values))
        return made.train(self.training)  # type: ignore[no-any-return]  # of Any

    def gates_of(self, name: str) -> int:
        return self._mode.gates

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """(batch, in) or (in,) and states likewise to the next ones, as torch's own."""
        if input.ndim not in (1, 2) or input.shape[-1] != self.input_size:
            raise ShapeError(
                f"input has shape {tuple(input.shape)}; it must be (batch, {self.input_size}) or "
                f"({self.input_size},)"
            )
        x = input if input.ndim == 2 else input[None]
        states = self._states(hx, x, batched=input.ndim == 2)
        after = self._mode.step(self.input(x), self.recurrent(states[0]), states)
        if input.ndim == 1:
            after = tuple(s.squeeze(0) for s in after)
        return after if len(after) > 1 else after[0]

    def _states(self, hx: Any, x: Tensor, *, batched: bool) -> States:
        n, shape = self._mode.states, (x.shape[0], self.hidden_size)
        if hx is None:
            return tuple(x.new_zeros(shape) for _ in range(n))
        given = given_states(hx, [shape if batched else shape[1:]] * n, self.stands_for)
        return given if batched else tuple(state[None] for state in given)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}"


class FactoredLSTMCell(FactoredCell, packed=nn.LSTMCell):
    """One step of an LSTM with a layer, dense or factored, for each of its two matrices.

    Parameters
    ----------
    like : LSTMCell
        Of which it has the options.

    Examples
    --------
    >>> cell = tensorlrf.nn.factorize(torch.nn.LSTMCell(32, 32), "svd", 8)
    >>> h, c = cell(torch.rand(4, 32))
    >>> h.shape
    torch.Size([4, 32])
    """

    stands_for = "LSTMCell"
    _packed = nn.LSTMCell


class FactoredGRUCell(FactoredCell, packed=nn.GRUCell):
    """One step of a GRU with a layer, dense or factored, for each of its two matrices.

    Parameters
    ----------
    like : GRUCell
        Of which it has the options.

    Examples
    --------
    >>> cell = tensorlrf.nn.factorize(torch.nn.GRUCell(32, 32), "svd", 8)
    >>> cell(torch.rand(4, 32)).shape
    torch.Size([4, 32])
    """

    stands_for = "GRUCell"
    _packed = nn.GRUCell


class FactoredRNNCell(FactoredCell, packed=nn.RNNCell):
    """One step of a plain recurrent network, with a layer for each of its two matrices.

    Parameters
    ----------
    like : RNNCell
        Of which it has the options.

    Examples
    --------
    >>> cell = tensorlrf.nn.factorize(torch.nn.RNNCell(32, 32), "svd", 8)
    >>> cell(torch.rand(4, 32)).shape
    torch.Size([4, 32])
    """

    stands_for = "RNNCell"
    _packed = nn.RNNCell
