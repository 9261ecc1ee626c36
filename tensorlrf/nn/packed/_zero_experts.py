"""A mixture of which some experts give back what they are given."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from tensorlrf.nn.packed._compared import Draw, differs_on, routed
from tensorlrf.nn.packed._experts import FactoredExperts, is_mixture

_UP, _DOWN = "gate_up_proj", "down_proj"


def is_zero_experts(module: nn.Module) -> bool:
    """Whether it is a mixture as LongCat-Flash has it: there are matrices on the way up of experts
    that have none on the way down."""
    up = module._parameters.get(_UP)
    down = module._parameters.get(_DOWN)
    return is_mixture(module) and up is not None and down is not None and len(up) > len(down)


class FactoredZeroExperts(FactoredExperts, where=is_zero_experts):
    """Experts with a layer for each matrix; tokens of those behind the last pass as they are.

    Their matrices, which nothing is multiplied by, stay in `unused`.
    """

    unused: nn.Parameter

    @classmethod
    def _on(cls, module: Any) -> Self:
        made = super()._on(module)
        whole = module._parameters[_UP]
        rest = whole.detach()[made.num_experts :]
        made.unused = nn.Parameter(rest, requires_grad=whole.requires_grad)
        return made

    @classmethod
    def differs(cls, module: Any) -> str:
        """Both run on a few random tokens, every expert among their choices; see `Unpacked`."""
        weight = module._parameters[_UP]

        def inputs(_: int, draw: Draw) -> tuple[Any, ...]:
            return routed(len(weight), draw)

        return differs_on(partial(cls._on, module), module, inputs, weight)

    def pack(self, *, values: bool = True) -> nn.Module:
        """The module of before; see `Unpacked.pack`."""
        made = super().pack(values=values)
        used = made._parameters[_UP]
        assert used is not None
        whole = torch.cat([used.detach(), self.unused.detach().to(used.device)])
        made._parameters[_UP] = nn.Parameter(whole, requires_grad=used.requires_grad)
        return made

    def forward(self, hidden_states: Tensor, top_k_index: Any, top_k_weights: Any) -> Tensor:  # type: ignore[override]  # which has two names for each
        """As of all experts; see `FactoredExperts`."""
        out = super().forward(hidden_states, top_k_index, top_k_weights)
        shares = (top_k_weights * (top_k_index >= self.num_experts)).sum(-1, keepdim=True)
        given: Tensor = hidden_states * shares
        return out + given.to(out.dtype)
