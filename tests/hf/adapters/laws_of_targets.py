"""Which layers get an adapter, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, OFTConfig, get_peft_model
from peft.tuners.lora import Linear, LoraModel
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import UnsupportedError
from tensorlrf.nn import FactoredLinear, factorize
from tests.hf.adapters.samples import ATTENTION, adapted, factored, held, near, same
from tests.hf.models import MODELS, SIZES, llama, on_factors, with_table

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that are not ours


def test_all_linear_is_what_it_was_before_compression() -> None:
    for dense, small in (
        (llama(), on_factors(llama())),
        (llama(tie_word_embeddings=True), with_table(llama(tie_word_embeddings=True))),
        (hf.BertForMaskedLM(hf.BertConfig(**SIZES)), MODELS["bert"]()),
    ):
        names = []
        for model in (dense, small):
            put = get_peft_model(model, LoraConfig(target_modules="all-linear"))
            names.append(set(put.base_model.targeted_module_names))
        assert names[0] == names[1]
        again = get_peft_model(small, LoraConfig(target_modules="all-linear"), "two")
        assert set(again.base_model.targeted_module_names) == names[0]


def test_the_head_of_a_classifier_is_left_out() -> None:
    made = hf.BertForSequenceClassification(hf.BertConfig(**SIZES))
    made.classifier = factorize(made.classifier, "svd", 1)
    asked = LoraConfig(target_modules="all-linear", task_type="SEQ_CLS")
    model = get_peft_model(on_factors(made), asked)
    assert "classifier" not in model.base_model.targeted_module_names
    assert "bert.pooler.dense" in model.base_model.targeted_module_names


@pytest.mark.parametrize(
    "asked",
    [
        {"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"},
        {"init_lora_weights": "mica"}, {"init_lora_weights": "eva"},
        {"alora_invocation_tokens": [1]}, {"layer_replication": [(0, 2), (1, 2)]},
        {"target_parameters": ["q_proj.left"]},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_served_is_refused_before_anything_changes(asked: dict[str, Any]) -> None:
    base = on_factors(llama())
    before, kinds = held(base), [type(m) for m in base.modules()]
    with pytest.raises(UnsupportedError, match=f"{next(iter(asked))}.*q_proj'"):
        get_peft_model(base, LoraConfig(**{"target_modules": ATTENTION, **asked}))
    assert same(held(base), before)
    assert [type(m) for m in base.modules()] == kinds


def test_layers_that_are_not_linear_are_refused_by_name() -> None:
    base = with_table(on_factors(llama(tie_word_embeddings=True)))
    kinds = [type(m) for m in base.modules()]
    with pytest.raises(UnsupportedError, match=r"embed_tokens', a FactoredEmbedding.*skip="):
        get_peft_model(base, LoraConfig(target_modules=["q_proj", "embed_tokens"]))
    assert [type(m) for m in base.modules()] == kinds
    drawn_from = MODELS["vit"]()
    with pytest.raises(UnsupportedError, match=r"projection', a FactoredConv2d"):
        get_peft_model(drawn_from, LoraConfig(target_modules=["projection"]))


@pytest.mark.parametrize("config", [AdaLoraConfig, IA3Config, LoHaConfig, OFTConfig])
def test_other_tuners_of_peft_refuse_a_factored_layer(config: Any) -> None:
    more = {"total_step": 9} if config is AdaLoraConfig else {}
    more = {"feedforward_modules": []} if config is IA3Config else more
    with pytest.raises((ValueError, TypeError), match=r"FactoredLinear.*not supported"):
        get_peft_model(on_factors(llama()), config(target_modules=ATTENTION, **more))


def test_peft_alone_refuses_a_layer_and_merges_into_none() -> None:
    asked = LoraConfig(target_modules=ATTENTION)
    with pytest.raises(ValueError, match=r"FactoredLinear.*is not supported"):
        LoraModel(on_factors(llama()), asked, "default")
    asked._register_custom_module({FactoredLinear: Linear})
    base = on_factors(llama())
    before = held(base)
    LoraModel(base, asked, "default")
    for merge in (lambda m: m.merge(), lambda m: m.merge(safe_merge=True)):
        with pytest.raises(UnsupportedError, match="weight of a factored layer"):
            merge(base.model.layers[0].self_attn.q_proj)
    after = {n.replace(".base_layer", ""): t for n, t in held(base).items()}
    assert same({n: after[n] for n in before}, before)


def test_models_of_torch_alone() -> None:
    model = nn.Sequential(factorize(nn.Linear(6, 5), "svd", 2), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(4, 6)
    put = adapted(model, "all-linear")
    assert set(put.base_model.targeted_module_names) == {"0", "2"}
    beside = put(x)
    merged = put.merge_and_unload()
    assert near(merged(x), beside)
    assert merged[0].factors.rank == 2 + 3


def test_layers_whose_factors_their_parent_reads_are_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.out = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(self.attention(x, x, x)[0])
            return y

    small, _ = tensorlrf.compress(Model(), keep_params=0.7, progress=False)
    inside = [n for n, _ in factored(small) if n.startswith("attention.")]
    assert inside
    with pytest.raises(UnsupportedError, match=r"'attention\..*reads itself.*exclude_modules="):
        get_peft_model(small, LoraConfig(target_modules="all-linear"))
    asked = LoraConfig(target_modules="all-linear", exclude_modules=inside)
    put = get_peft_model(small, asked)
    assert put.base_model.targeted_module_names == ["out"]
