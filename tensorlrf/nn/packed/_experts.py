"""A mixture of experts with a layer for each matrix of each expert."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from tensorlrf.nn.packed._compared import Draw, differs_on, routed
from tensorlrf.nn.packed._routing import ARGUMENTS, by_expert, twin_of
from tensorlrf.nn.packed.unpacked import (
    Unpacked,
    bias_of,
    check_packed,
    linear_on,
    weight_of,
)

_UP = ("gate_up_proj", "up_proj")
_DOWN = "down_proj"
_NORM = "post_expert_norm"


def is_experts(module: nn.Module) -> bool:
    """Whether it is a mixture as transformers keeps it: one parameter (experts, ., .) for the way
    up, one for the way down, biases (experts, .) perhaps, and the router outside."""
    return is_mixture(module) and len({len(p) for p in _matrices(module)}) == 1


def is_mixture(module: nn.Module) -> bool:
    """Whether it is one but for how many experts each of its parameters is of."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    up = next((name for name in _UP if name in own), None)
    if up is None or set(own) - {up, _DOWN, f"{up}_bias", f"{_DOWN}_bias"} or _DOWN not in own:
        return False
    if own[up].ndim != 3 or own[_DOWN].ndim != 3 or module._buffers:
        return False
    if _gate_of(module, up) is None:
        return False
    return list(inspect.signature(type(module).forward).parameters)[1:] in ARGUMENTS


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module._parameters.values() if p is not None and p.ndim == 3]


def _gate_of(module: nn.Module, up: str) -> Callable[[Tensor], Tensor] | None:
    """What lies between the way up and the way down: where they do not say, one half of what goes
    up times the activation of the other."""
    own: Any = getattr(module, "_apply_gate", None)
    activation: Any = getattr(module, "act_fn", None)
    if up == _UP[0]:
        halves = partial(_gated, activation) if callable(activation) else None
        return own if callable(own) else halves
    return activation if callable(activation) else None


def _gated(activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    gate, passed = x.chunk(2, dim=-1)
    return passed * activation(gate)


class FactoredExperts(Unpacked, where=is_experts):
    """The experts of a mixture with a layer, dense or factored, for each matrix of each.

    Of the models of transformers that keep them in tensors (experts, out, in): `gate_up_proj` (or
    `up_proj`) and `down_proj` become lists of layers. A token goes through the experts that its
    router has chosen, one expert after the other.

    Parameters
    ----------
    like : Module
        Of which it has the activation and the gate.
    """

    stands_for = "mixture of experts"

    def __init__(self, like: Any) -> None:
        super().__init__()
        for name, child in like._modules.items():
            self.add_module(name, child)
        self.num_experts = int(like._parameters[_DOWN].shape[0])
        self._up = next(name for name in _UP if like._parameters.get(name) is not None)
        self._turned = _is_turned(like, self._up)
        # What the packed one is beside its parameters: no child, for nothing of it is called here
        # but the gate, which may be a method with settings of its own.
        vars(self)["_shell"] = [twin_of(like, dict.fromkeys(like._parameters))]

    @classmethod
    def from_packed(cls, module: Any) -> Self:
        """The same on the same memory; see `Unpacked.from_packed`."""
        check_packed(module, cls, "module")
        return cls._on(module)

    @classmethod
    def differs(cls, module: Any) -> str:
        """Both run on a few random tokens, every expert among their choices; see `Unpacked`."""
        unpacked = partial(cls._on, module)
        return differs_on(unpacked, module, routed, module._parameters[_DOWN])

    @classmethod
    def _on(cls, module: Any) -> Self:
        made = cls(module)
        for name in (made._up, _DOWN):
            weights, biases = module._parameters[name], module._parameters.get(f"{name}_bias")
            parts = weights.transpose(1, 2) if made._turned else weights
            layers = [
                linear_on(parts[k], None if biases is None else biases[k], module)
                for k in range(made.num_experts)
            ]
            setattr(made, name, nn.ModuleList(layers))
        return made.train(module.training)

    def pack(self, *, values: bool = True) -> nn.Module:
        """The module of before; see `Unpacked.pack`."""
        shell = vars(self)["_shell"][0]
        made = twin_of(shell, dict(shell._parameters))
        made._modules = {k: copy.deepcopy(self._modules[k]) for k in shell._modules}
        for name in (self._up, _DOWN):
            layers = list(self.get_submodule(name).children())
            weight = weight_of(layers, values=values, join=self._stacked)
            made._parameters[name] = weight
            if f"{name}_bias" in made._parameters:
                biases = bias_of(layers, values=values, join=_stacked_biases)
                made._parameters[f"{name}_bias"] = biases
        return made.train(self.training)  # type: ignore[no-any-return]  # of Any

    def _stacked(self, weights: list[Tensor]) -> Tensor:
        stacked = torch.stack(weights)
        return stacked.transpose(1, 2).contiguous() if self._turned else stacked

    def forward(
        self,
        hidden_states: Tensor,
        top_k_index: Any = None,
        top_k_weights: Any = None,
        *,
        router_indices: Any = None,
        routing_weights: Any = None,
    ) -> Tensor:
        """Tokens (n, hidden), their experts and the weights of these, (n, k), to (n, hidden)."""
        top_k_index = router_indices if top_k_index is None else top_k_index
        top_k_weights = routing_weights if top_k_weights is None else top_k_weights
        up, down = self.get_submodule(self._up), self.get_submodule(_DOWN)
        gate: Any = _gate_of(vars(self)["_shell"][0], self._up)
        last = self._modules.get(_NORM)

        def expert(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
            y: Tensor = second(gate(first(x)))
            return y if last is None else last(y)

        layers = zip(up.children(), down.children(), strict=True)
        experts = (partial(expert, first, second) for first, second in layers)
        return by_expert(hidden_states, top_k_index, top_k_weights, experts)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}"


def is_sorted_experts(module: nn.Module) -> bool:
    """Whether it is a mixture as Llama 4 has it: tokens come in as many equal parts as there are
    experts, and none is chosen here."""
    if not _has(module, {_UP[0], _DOWN}) or not callable(getattr(module, "act_fn", None)):
        return False
    return list(inspect.signature(type(module).forward).parameters)[1:] == ["hidden_states"]


class FactoredSortedExperts(FactoredExperts, where=is_sorted_experts):
    """Experts with a layer for each matrix, each of which gets a part of the tokens in turn."""

    @classmethod
    def differs(cls, module: Any) -> str:
        """Both run on a few random tokens for each expert; see `Unpacked`."""
        unpacked = partial(cls._on, module)

        def inputs(n: int, draw: Draw) -> tuple[Any, ...]:
            return (draw(3 * n),)

        return differs_on(unpacked, module, inputs, module._parameters[_DOWN])

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Tokens (experts n, hidden), those of one expert after those of another, to the same."""
        up, down = self.get_submodule(self._up), self.get_submodule(_DOWN)
        act: Any = vars(self)["_shell"][0].act_fn
        parts = hidden_states.reshape(self.num_experts, -1, hidden_states.shape[-1])
        given = []
        for x, first, second in zip(parts, up.children(), down.children(), strict=True):
            given.append(second(_gated(act, first(x))))
        return torch.cat(given)


def is_stack(module: nn.Module) -> bool:
    """Whether it is one matrix for each expert, as JetMoe has them: one parameter `weight`
    (experts, out, in), and rows come with how many of them there are for each."""
    if not _has(module, {"weight"}) or next(module.children(), None) is not None:
        return False
    return list(inspect.signature(type(module).forward).parameters)[1:] == ["inputs", "expert_size"]


class FactoredStack(Unpacked, where=is_stack):
    """A layer for each expert, each of which gets its rows of the input.

    Parameters
    ----------
    like : Module
        Of which it has all but the weight.
    """

    stands_for = "stack of experts"

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.num_experts = int(like.weight.shape[0])
        vars(self)["_shell"] = [twin_of(like, dict.fromkeys(like._parameters))]

    @classmethod
    def from_packed(cls, module: Any) -> Self:
        """The same on the same memory; see `Unpacked.from_packed`."""
        check_packed(module, cls, "module")
        return cls._on(module)

    @classmethod
    def _on(cls, module: Any) -> Self:
        made = cls(module)
        made.experts = nn.ModuleList(linear_on(part, None, module) for part in module.weight)
        return made.train(module.training)

    @classmethod
    def differs(cls, module: Any) -> str:
        """Both run on a few random rows, of unequal numbers; see `Unpacked`."""

        def inputs(n: int, draw: Draw) -> tuple[Any, ...]:
            sizes = [k % 3 + 1 for k in range(n)]
            return draw(sum(sizes)), sizes

        return differs_on(partial(cls._on, module), module, inputs, module.weight)

    def pack(self, *, values: bool = True) -> nn.Module:
        """The module of before; see `Unpacked.pack`."""
        shell = vars(self)["_shell"][0]
        made = twin_of(shell, {})
        layers = list(self.get_submodule("experts").children())
        made._parameters = {"weight": weight_of(layers, values=values, join=torch.stack)}
        return made.train(self.training)  # type: ignore[no-any-return]  # of Any

    def forward(self, inputs: Tensor, expert_size: Any) -> Tensor:
        """Rows (n, in) and how many there are for each expert, in order, to (n, out)."""
        layers = self.get_submodule("experts").children()
        parts = torch.split(inputs, expert_size, dim=0)
        return torch.cat([layer(x) for layer, x in zip(layers, parts, strict=True)])

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}"


def _has(module: nn.Module, names: set[str]) -> bool:
    """Whether its own parameters are these, all (experts, ., .), and it holds no buffers."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    return set(own) == names and all(p.ndim == 3 for p in own.values()) and not module._buffers


def _stacked_biases(biases: list[Tensor]) -> Tensor:
    return torch.stack(biases)


def _is_turned(module: Any, up: str) -> bool:
    """Whether the matrices are (in, out): the way up takes what the way down gives."""
    given = getattr(module, "is_transposed", None)
    if isinstance(given, bool):
        return given
    return bool(module._parameters[up].shape[1] == module._parameters[_DOWN].shape[2])
