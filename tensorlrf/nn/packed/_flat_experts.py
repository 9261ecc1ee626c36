"""A mixture whose experts stand one above the other in matrices, with a layer for each of them."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from tensorlrf.nn.obstacles import hooks_of
from tensorlrf.nn.packed._compared import Draw, differs_on, routed
from tensorlrf.nn.packed._routing import ARGUMENTS, by_expert, twin_of
from tensorlrf.nn.packed.unpacked import Unpacked, check_packed, linear_on, weight_of

_UP, _DOWN = ("w1", "v1"), "w2"
_NAMES = (*_UP, _DOWN)


def is_flat_experts(module: nn.Module) -> bool:
    """Whether it is a mixture as DBRX has it: a child of it keeps `w1`, `v1` and `w2` of all
    experts, (experts f, d) each, and the router is outside."""
    number = getattr(module, "num_experts", None)
    held = _held(module)
    if held is None or not isinstance(number, int) or number < 1:
        return False
    shapes = {tuple(p.shape) for p in held._parameters.values() if p is not None}
    if set(held._parameters) != set(_NAMES) or len(shapes) != 1:
        return False
    (shape,) = shapes
    if len(shape) != 2 or shape[0] % number or not callable(getattr(held, "activation_fn", None)):
        return False
    return list(inspect.signature(type(module).forward).parameters)[1:] in ARGUMENTS


def _held(module: nn.Module) -> nn.Module | None:
    """The one module inside it that has parameters; None where there is another number of them, or
    it has tensors of its own."""
    inside = list(module.modules())[1:]
    if module._parameters or any(one._buffers for one in module.modules()):
        return None
    held = [one for one in inside if one._parameters]
    return held[0] if len(held) == 1 and held[0] in module._modules.values() else None


class FactoredFlatExperts(Unpacked, where=is_flat_experts):
    """Experts with a layer, dense or factored, for each matrix of each: `w1` and `v1` on the way
    up, of which one goes through the activation, `w2` on the way down.

    Parameters
    ----------
    like : Module
        The packed one, of which it has the activation.
    """

    stands_for = "mixture of experts in flat matrices"

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.num_experts = int(like.num_experts)
        held = _held(like)
        assert held is not None
        for name, child in held.named_children():
            self.add_module(name, child)
        # The packed one and what holds its parameters, without these.
        inner = twin_of(held, dict.fromkeys(held._parameters))
        shell = twin_of(like, {})
        shell._modules = {k: inner if m is held else m for k, m in like._modules.items()}
        vars(self)["_shell"] = [shell, inner]

    @classmethod
    def from_packed(cls, module: Any) -> Self:
        """The same on the same memory; see `Unpacked.from_packed`."""
        check_packed(module, cls, "module")
        return cls._on(module)

    @classmethod
    def _on(cls, module: Any) -> Self:
        made, held = cls(module), _held(module)
        assert held is not None
        for name in _NAMES:
            parts = held.get_parameter(name).chunk(made.num_experts)  # (f, d)
            layers = [linear_on(part.T if name == _DOWN else part, None, module) for part in parts]
            setattr(made, name, nn.ModuleList(layers))
        return made.train(module.training)

    @classmethod
    def differs(cls, module: Any) -> str:
        """Both run on a few random tokens, every expert among their choices; see `Unpacked`."""
        held = _held(module)
        assert held is not None
        hooks = hooks_of(held)
        if hooks or "forward" in vars(held):
            told = ", ".join(hooks) or "a forward of its own instance"
            return f"what holds its matrices has {told}, which a new module would not have"

        def inputs(n: int, draw: Draw) -> tuple[Any, ...]:
            x, index, shares = routed(n, draw)
            return x[None], index, shares

        return differs_on(partial(cls._on, module), module, inputs, held.get_parameter(_DOWN))

    def pack(self, *, values: bool = True) -> nn.Module:
        """The module of before; see `Unpacked.pack`."""
        shell, inner = vars(self)["_shell"]
        held = twin_of(inner, {})
        for name in _NAMES:
            layers = list(self.get_submodule(name).children())
            join = _above_turned if name == _DOWN else torch.cat
            held._parameters[name] = weight_of(layers, values=values, join=join)
        made = twin_of(shell, {})
        made._modules = {k: held if m is inner else m for k, m in shell._modules.items()}
        return made.train(self.training)  # type: ignore[no-any-return]  # of Any

    def forward(self, hidden_states: Tensor, top_k_index: Any, top_k_weights: Any) -> Tensor:
        """Tokens (batch, ..., d), the experts (n, k) of all n of them and the shares of these, to
        (batch, ., d)."""
        activation: Any = vars(self)["_shell"][1].activation_fn
        gates, ups, downs = (self.get_submodule(name).children() for name in _NAMES)

        def expert(gate: nn.Module, up: nn.Module, down: nn.Module, x: Tensor) -> Tensor:
            # What modules give is Any to torch.
            return down(activation(gate(x)) * up(x))  # type: ignore[no-any-return]

        experts = (partial(expert, *own) for own in zip(gates, ups, downs, strict=True))
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        out = by_expert(x, top_k_index, top_k_weights, experts)
        return out.view(hidden_states.shape[0], -1, hidden_states.shape[-1])

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}"


def _above_turned(weights: list[Tensor]) -> Tensor:
    """(d, f) each, as (experts f, d)."""
    return torch.cat([weight.T for weight in weights]).contiguous()
