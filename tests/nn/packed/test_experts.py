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


def dbrx() -> nn.Module:
    from transformers.models.dbrx.configuration_dbrx import DbrxFFNConfig
    from transformers.models.dbrx.modeling_dbrx import DbrxExperts

    config = DbrxFFNConfig(hidden_size=12, ffn_hidden_size=8, moe_num_experts=4, moe_top_k=2)
    return filled(DbrxExperts(config))


def longcat(zeros: int = 0) -> nn.Module:
    """Which says nothing of its gate; so many experts give back what they are given."""
    from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashExperts

    config = transformers.LongcatFlashConfig(
        hidden_size=12,
        expert_ffn_hidden_size=8,
        n_routed_experts=4 - zeros,
        zero_expert_num=zeros,
        num_layers=1,
    )
    return filled(LongcatFlashExperts(config))


def muse_spark() -> nn.Module:
    """With a normalisation of what each expert puts out."""
    from transformers.models.muse_spark.configuration_muse_spark import MuseSparkTextConfig
    from transformers.models.muse_spark.modeling_muse_spark import MuseSparkExperts

    config = MuseSparkTextConfig(
        moe_hidden_size=12,
        moe_intermediate_size=8,
        num_local_experts=4,
        hidden_size=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=1,
    )
    config._experts_implementation = "eager"
    return filled(MuseSparkExperts(config))


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


@pytest.mark.parametrize("make", [mixtral, gpt_oss, longcat, muse_spark])
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


@pytest.mark.parametrize("make", [mixtral, gpt_oss, longcat, muse_spark])
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


def given_flat(n: int = 9) -> tuple[torch.Tensor, ...]:
    x, index, shares = routed(n)
    return x.view(3, n // 3, 12), index, shares


def test_experts_above_each_other() -> None:
    module = dbrx()
    kind = unpacked_type(module)
    assert kind is not None
    assert why_not_unpacked(module) == ""
    own = kind.from_packed(module)
    torch.testing.assert_close(own(*given_flat()), module(*given_flat()), rtol=1e-10, atol=1e-10)
    memory = {p.untyped_storage().data_ptr() for p in module.parameters()}
    assert {p.untyped_storage().data_ptr() for p in own.parameters()} == memory
    again = own.pack()
    assert [name for name, _ in again.named_modules()] == [n for n, _ in module.named_modules()]
    for name, p in module.named_parameters():
        assert torch.equal(again.get_parameter(name), p)
        assert again.get_parameter(name).untyped_storage().data_ptr() not in memory
    torch.testing.assert_close(again(*given_flat()), module(*given_flat()))
    small = tensorlrf.nn.factorize(module, "svd", 3)
    assert sum(isinstance(m, FactoredLinear) for m in small.modules()) == 12
    torch.testing.assert_close(
        small(*given_flat()), small.pack()(*given_flat()), rtol=1e-10, atol=1e-10
    )
    # Of the matrices that were factored nothing is kept.
    held = {t.untyped_storage().data_ptr() for t in small.state_dict().values()}
    assert not held & memory
    assert sum(p.numel() for p in small.parameters()) == 12 * 3 * (12 + 8)


def test_flat_experts_that_compute_something_else_stay() -> None:
    class Other(type(dbrx())):  # type: ignore[misc]  # mypy takes no call for a base
        def forward(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
            return 2 * super().forward(hidden_states, top_k_index, top_k_weights)

    module = dbrx()
    module.__class__ = Other
    assert "differs" in why_not_unpacked(module)
    module = dbrx()
    module.get_submodule("mlp").register_forward_hook(lambda *_: None)
    assert "what holds its matrices has" in why_not_unpacked(module)
    with pytest.raises(UnsupportedError, match="what holds its matrices has"):
        tensorlrf.nn.factorize(module, "svd", 3)
    module = dbrx()
    module.num_experts = 5  # of which nothing fits
    assert unpacked_type(module) is None


def test_experts_that_give_back_what_they_are_given() -> None:
    module = longcat(zeros=2)
    kind = unpacked_type(module)
    assert kind is not None
    assert why_not_unpacked(module) == ""
    own = kind.from_packed(module)
    assert [len(list(own.get_submodule(n).children())) for n in ("gate_up_proj", "down_proj")] == [
        2, 2,
    ]  # fmt: skip
    torch.testing.assert_close(own(*routed()), module(*routed()), rtol=1e-10, atol=1e-10)
    again = own.pack()
    for name, p in module.named_parameters():
        assert torch.equal(again.get_parameter(name), p)
    small = tensorlrf.nn.factorize(module, "svd", 3)
    torch.testing.assert_close(small(*routed()), small.pack()(*routed()), rtol=1e-10, atol=1e-10)
