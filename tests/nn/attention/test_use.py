"""Models that attend by landmarks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tensorlrf
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn import use_nystrom_attention

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def bert() -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, max_position_embeddings=40, **SIZES)
    made = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "query" in name or "key" in name:
                p.mul_(30)  # scores that tell keys apart
    return made


def words(*lengths: int) -> dict[str, Tensor]:
    """Batches of so many words each, padded."""
    draws = torch.Generator("cpu").manual_seed(1)
    ids = torch.randint(30, (len(lengths), max(lengths)), generator=draws)
    at = torch.arange(max(lengths))
    return {"input_ids": ids, "attention_mask": (at < torch.tensor(lengths)[:, None]).long()}


@torch.no_grad()
def test_in_a_model_of_transformers() -> None:
    model = bert()
    exact = model(**words(30, 19)).last_hidden_state
    use_nystrom_attention(model, 30)
    torch.testing.assert_close(model(**words(30, 19)).last_hidden_state, exact)
    use_nystrom_attention(model, 4)
    both = model(**words(30, 19)).last_hidden_state
    assert not torch.allclose(both, exact, rtol=0, atol=1e-4)
    alone = words(30, 19)["input_ids"][1:, :19]
    torch.testing.assert_close(both[1, :19], model(alone).last_hidden_state[0])
    use_nystrom_attention(model, None)
    torch.testing.assert_close(model(**words(30, 19)).last_hidden_state, exact)


@torch.no_grad()
def test_in_a_module_around_one_and_without_masks() -> None:
    from transformers import ViTConfig, ViTModel

    vit = ViTModel(ViTConfig(image_size=16, patch_size=4, **SIZES), add_pooling_layer=False).eval()
    around = nn.ModuleDict({"vision": vit})
    image = torch.rand(1, 3, 16, 16)
    exact = vit(image).last_hidden_state
    use_nystrom_attention(around, 17)
    torch.testing.assert_close(vit(image).last_hidden_state, exact)
    use_nystrom_attention(around, 5)
    assert vit(image).last_hidden_state.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("batch_first", [True, False])
def test_in_an_encoder_of_torch(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 16, 0.0, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 20, 16)
    padding = torch.arange(20) >= torch.tensor([[20], [13]])

    def run(x: Tensor, padding: Tensor | None) -> Tensor:
        y = model(x if batch_first else x.transpose(0, 1), src_key_padding_mask=padding)
        return y if batch_first else y.transpose(0, 1)

    exact = run(x, padding)
    for block in model.layers:
        block.self_attn = tensorlrf.nn.factorize(block.self_attn, "svd", 16)
    use_nystrom_attention(model, 20)
    torch.testing.assert_close(run(x, padding)[~padding], exact[~padding], rtol=1e-4, atol=1e-4)
    use_nystrom_attention(model, 4)
    both = run(x, padding)
    torch.testing.assert_close(both[1, :13], run(x[1:, :13], None)[0], rtol=1e-4, atol=1e-4)
    assert "landmarks" not in " ".join(model.state_dict())


def test_an_attention_of_ours_takes_padding_alone() -> None:
    attention: Any = tensorlrf.nn.factorize(nn.MultiheadAttention(8, 2, batch_first=True), "svd", 4)
    use_nystrom_attention(attention, 3)
    x = torch.randn(2, 9, 8)
    with pytest.raises(UnsupportedError, match="need_weights=False"):
        attention(x, x, x)
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    with pytest.raises(UnsupportedError, match="attn_mask"):
        attention(x, x, x, need_weights=False, attn_mask=mask, is_causal=True)
    assert attention(x, x, x, need_weights=False)[0].shape == x.shape
    assert attention(x[0], x[0], x[0], need_weights=False)[0].shape == x[0].shape
    with torch.no_grad():
        short = attention(x[:, :2], x, x, need_weights=False)[0]
        attention.landmarks = None
        torch.testing.assert_close(short, attention(x[:, :2], x, x, need_weights=False)[0])


def test_of_values_beside_more_keys() -> None:
    """Keys that nobody gave are seen by all."""
    plain = nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)
    attention: Any = tensorlrf.nn.factorize(plain, "svd", 8)
    x = torch.randn(2, 6, 8)
    padding = torch.arange(6) >= torch.tensor([[6], [4]])
    want = attention(x, x, x, padding, need_weights=False)[0]
    attention.landmarks = 8
    torch.testing.assert_close(attention(x, x, x, padding, need_weights=False)[0], want)
    attention.landmarks = 3
    assert attention(x, x, x, padding, need_weights=False)[0].isfinite().all()


def test_refused() -> None:
    from transformers import LlamaConfig, LlamaModel

    llama = LlamaModel(LlamaConfig(vocab_size=8, num_key_value_heads=1, **SIZES))
    before = llama.config._attn_implementation
    with pytest.raises(UnsupportedError, match=r"self_attn \(LlamaAttention\) is causal"):
        use_nystrom_attention(llama)
    assert llama.config._attn_implementation == before
    with pytest.raises(UnsupportedError, match="no attention that can be chosen"):
        use_nystrom_attention(nn.TransformerEncoderLayer(8, 2))
    with pytest.raises(ArgumentError, match="landmarks=0"):
        use_nystrom_attention(bert(), 0)
    wrong: Any = F.relu
    with pytest.raises(ArgumentError, match="model is a function"):
        use_nystrom_attention(wrong)
    model = bert()
    use_nystrom_attention(model, 4)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    with pytest.raises(UnsupportedError, match="one of padding"):
        model(torch.zeros(1, 6, dtype=torch.long), attention_mask=mask)
