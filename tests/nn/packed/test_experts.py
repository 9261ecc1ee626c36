"""Experts in tensors with a layer for each matrix compute what transformers' own do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import tensorlrf
from tensorlrf.errors import UnsupportedError
from tensorlrf.nn import FactoredExperts, FactoredLinear
from tensorlrf.nn.packed.unpacked import unpacked_type, why_not_unpacked


def mixtral() -> nn.Module:
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = transformers.MixtralConfig(
        hidden_size=12, intermediate_size=8, num_local_experts=4, num_experts_per_tok=2
    )
    config._experts_implementation = "eager"
    return filled(MixtralExperts(config))


def gpt_oss() -> nn.Module:
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config = transformers.GptOssConfig(
        hidden_size=12, intermediate_size=8, num_local_experts=4, num_experts_per_tok=2
    )
    config._experts_implementation = "eager"
    return filled(GptOssExperts(config))


def llama4() -> nn.Module:
    from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

    config = transformers.Llama4TextConfig(
        hidden_size=12, intermediate_size=8, num_local_experts=4, pad_token_id=0
    )
    return filled(Llama4TextExperts(config))


def jetmoe() -> nn.Module:
    from transformers.models.jetmoe.modeling_jetmoe import JetMoeParallelExperts

    return filled(JetMoeParallelExperts(4, 12, 8))


ROWS = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
SORTED: dict[Any, tuple[Any, ...]] = {llama4: (ROWS,), jetmoe: (ROWS, [5, 0, 4, 3])}


def filled(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    return module.double().eval()


def routed(n: int = 9) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    x = torch.randn(n, 12, dtype=torch.float64)
    index = torch.stack([torch.randperm(3)[:2] for _ in range(n)])  # the last expert has none
    return x, index, torch.rand(n, 2, dtype=torch.float64)


@pytest.mark.parametrize("make", [mixtral, gpt_oss])
def test_same_outputs(make: Any) -> None:
    module = make()
    assert unpacked_type(module) is FactoredExperts
    assert why_not_unpacked(module) == ""
    own = FactoredExperts.from_packed(module)
    torch.testing.assert_close(own(*routed()), module(*routed()), rtol=1e-10, atol=1e-10)
    again = own.pack()
    assert type(again) is type(module)
    for name, p in module.named_parameters():
        assert torch.equal(again.get_parameter(name), p)
        assert again.get_parameter(name).data_ptr() != p.data_ptr()
    torch.testing.assert_close(again(*routed()), module(*routed()))


@pytest.mark.parametrize("make", [mixtral, gpt_oss])
def test_factored_is_its_own_dense_form(make: Any) -> None:
    small = tensorlrf.nn.factorize(make(), "svd", 3)
    assert sum(isinstance(m, FactoredLinear) for m in small.modules()) == 8
    want = small.pack()(*routed())
    torch.testing.assert_close(small(*routed()), want, rtol=1e-10, atol=1e-10)


def test_what_computes_something_else_stays() -> None:
    class Other(type(mixtral())):  # type: ignore[misc]
        def forward(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> torch.Tensor:
            return super().forward(hidden_states, top_k_index, 2 * top_k_weights)  # type: ignore[no-any-return]

    module = mixtral()
    module.__class__ = Other
    assert unpacked_type(module) is FactoredExperts
    assert "differs" in why_not_unpacked(module)
    with pytest.raises(UnsupportedError, match="differs"):
        FactoredExperts.from_packed(module)


@pytest.mark.parametrize("make", SORTED)
def test_experts_whose_rows_come_sorted(make: Any) -> None:
    module, given = make(), SORTED[make]
    kind = unpacked_type(module)
    assert kind is not None
    assert why_not_unpacked(module) == ""
    own = kind.from_packed(module)
    torch.testing.assert_close(own(*given), module(*given), rtol=1e-10, atol=1e-10)
    again = own.pack()
    assert type(again) is type(module)
    for name, p in module.named_parameters():
        assert torch.equal(again.get_parameter(name), p)
        assert again.get_parameter(name).data_ptr() != p.data_ptr()
    torch.testing.assert_close(again(*given), module(*given))
    small = tensorlrf.nn.factorize(module, "svd", 3)
    assert sum(isinstance(m, FactoredLinear) for m in small.modules()) == (8, 4)[make is jetmoe]
    torch.testing.assert_close(small(*given), small.pack()(*given), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", SORTED)
def test_sorted_experts_that_compute_something_else_stay(make: Any) -> None:
    class Llama(type(llama4())):  # type: ignore[misc]
        def forward(self, hidden_states: Any) -> Any:
            return 2 * super().forward(hidden_states)

    class Jet(type(jetmoe())):  # type: ignore[misc]
        def forward(self, inputs: Any, expert_size: Any) -> Any:
            return 2 * super().forward(inputs, expert_size)

    module = make()
    module.__class__ = Jet if make is jetmoe else Llama
    assert "differs" in why_not_unpacked(module)
