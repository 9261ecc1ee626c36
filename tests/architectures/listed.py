"""Thirty-one architectures of transformers, small and random: two layers, 32 to 64 channels, a
vocabulary of 64, so that embeddings hold no more of them than of the large ones."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.architectures.inputs import (
    VOCABULARY,
    Architecture,
    pictures,
    pictures_and_text,
    plain_text,
    sounds,
    spectra_to_text,
    text,
    text_to_text,
)

HEADS = 4
DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "max_position_embeddings": 34,
}  # fmt: skip
PICTURES: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "image_size": 32, "patch_size": 8,
}  # fmt: skip


def _decoder(model: Any, config: Any, **more: Any) -> Architecture:
    return Architecture(lambda: model(config(**(DECODER | more))), text)


def _encoder(model: Any, config: Any, **more: Any) -> Architecture:
    return Architecture(lambda: model(config(**(ENCODER | more))), text)


def _gpt2() -> Any:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=HEADS, n_positions=32,
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def _falcon() -> Any:
    return hf.FalconForCausalLM(
        hf.FalconConfig(
            vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=2, num_attention_heads=HEADS,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip


def _opt() -> Any:
    return hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=VOCABULARY, hidden_size=48, ffn_dim=96, num_hidden_layers=2,
            num_attention_heads=HEADS, max_position_embeddings=32, word_embed_proj_dim=32,
        )
    )  # fmt: skip


def _deepseek() -> Any:
    return hf.DeepseekV3ForCausalLM(
        hf.DeepseekV3Config(
            **DECODER | {"num_key_value_heads": HEADS}, moe_intermediate_size=32,
            n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1,
            first_k_dense_replace=1, q_lora_rank=24, kv_lora_rank=16, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=12,
        )
    )  # fmt: skip


def _dbrx() -> Any:
    return hf.DbrxForCausalLM(
        hf.DbrxConfig(
            d_model=48, n_heads=HEADS, n_layers=2, max_seq_len=32, vocab_size=VOCABULARY,
            attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            ffn_config={
                "hidden_size": 48, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2,
            },
        )
    )  # fmt: skip


def _mamba() -> Any:
    return hf.MambaForCausalLM(
        hf.MambaConfig(
            vocab_size=VOCABULARY, hidden_size=48, state_size=8, num_hidden_layers=2,
            time_step_rank=8, use_mambapy=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip


def _distilbert() -> Any:
    return hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(
            vocab_size=VOCABULARY, dim=48, hidden_dim=96, n_layers=2, n_heads=HEADS,
            max_position_embeddings=32,
        )
    )  # fmt: skip


def _t5() -> Any:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=VOCABULARY, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=HEADS,
            decoder_start_token_id=0,
        )
    )  # fmt: skip


def _switch() -> Any:
    return hf.SwitchTransformersForConditionalGeneration(
        hf.SwitchTransformersConfig(
            vocab_size=VOCABULARY, d_model=48, d_kv=12, d_ff=96, num_layers=2,
            num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_decoder_layers=2,
            num_heads=HEADS, num_experts=4, expert_capacity=64, decoder_start_token_id=0,
        )
    )  # fmt: skip


def _bart() -> Any:
    return hf.BartForConditionalGeneration(
        hf.BartConfig(
            vocab_size=VOCABULARY, d_model=48, encoder_layers=2, decoder_layers=2,
            encoder_ffn_dim=96, decoder_ffn_dim=96, encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS, max_position_embeddings=32, scale_embedding=True,
        )
    )  # fmt: skip


def _whisper() -> Any:
    return hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            vocab_size=VOCABULARY, num_mel_bins=20, d_model=48, encoder_layers=2, decoder_layers=2,
            encoder_ffn_dim=96, decoder_ffn_dim=96, encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS, max_source_positions=16, max_target_positions=16,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            suppress_tokens=None, begin_suppress_tokens=None,
        )
    )  # fmt: skip


def _swin() -> Any:
    return hf.SwinForImageClassification(
        hf.SwinConfig(
            image_size=32, patch_size=4, embed_dim=32, depths=[2, 2], num_heads=[2, 4],
            window_size=4, num_labels=9,
        )
    )  # fmt: skip


def _convnext() -> Any:
    return hf.ConvNextForImageClassification(
        hf.ConvNextConfig(hidden_sizes=[32, 64], depths=[2, 2], num_stages=2, num_labels=9)
    )


def _resnet() -> Any:
    return hf.ResNetForImageClassification(
        hf.ResNetConfig(
            embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2], layer_type="basic",
            num_labels=9,
        )
    )  # fmt: skip


def _mobilenet() -> Any:
    return hf.MobileNetV2ForImageClassification(
        hf.MobileNetV2Config(depth_multiplier=0.25, image_size=32, num_labels=9)
    )


def _efficientnet() -> Any:
    return hf.EfficientNetForImageClassification(
        hf.EfficientNetConfig(
            width_coefficient=0.5, depth_coefficient=1.0, image_size=32, hidden_dim=640,
            in_channels=[32, 48, 80], out_channels=[48, 80, 128], kernel_sizes=[3, 5, 3],
            depthwise_padding=[], strides=[1, 2, 2], num_block_repeats=[1, 2, 2],
            expand_ratios=[1, 6, 6], num_labels=9,
        )
    )  # fmt: skip


def _segformer() -> Any:
    return hf.SegformerForSemanticSegmentation(
        hf.SegformerConfig(
            num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[32, 64],
            patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
            decoder_hidden_size=48, num_labels=9,
        )
    )  # fmt: skip


def _clip() -> Any:
    return hf.CLIPModel(
        hf.CLIPConfig(
            text_config={**ENCODER, "eos_token_id": 2}, vision_config=PICTURES, projection_dim=32
        )
    )


def _wav2vec2() -> Any:
    return hf.Wav2Vec2ForCTC(
        hf.Wav2Vec2Config(
            vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=HEADS, conv_dim=(32, 32, 32), conv_kernel=(10, 3, 3),
            conv_stride=(5, 2, 2), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        )
    )  # fmt: skip


ARCHITECTURES: dict[str, Architecture] = {
    # decoders
    "Llama": _decoder(hf.LlamaForCausalLM, hf.LlamaConfig),
    "Mistral": _decoder(hf.MistralForCausalLM, hf.MistralConfig, sliding_window=8),
    "Qwen3": _decoder(hf.Qwen3ForCausalLM, hf.Qwen3Config, head_dim=16),
    "Gemma 3": _decoder(hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, head_dim=16),
    "Phi": _decoder(hf.PhiForCausalLM, hf.PhiConfig),
    "GPT-2": Architecture(_gpt2, text),
    "OPT": Architecture(_opt, text),
    "Falcon": Architecture(_falcon, text),
    "DeepSeek-V3": Architecture(_deepseek, text),
    "Mixtral": _decoder(hf.MixtralForCausalLM, hf.MixtralConfig, num_local_experts=4),
    "GPT-OSS": _decoder(
        hf.GptOssForCausalLM,
        hf.GptOssConfig,
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=16,
    ),
    "DBRX": Architecture(_dbrx, text),
    "Mamba": Architecture(_mamba, plain_text),
    # encoders
    "BERT": _encoder(hf.BertForMaskedLM, hf.BertConfig),
    "RoBERTa": _encoder(hf.RobertaForSequenceClassification, hf.RobertaConfig),
    "DistilBERT": Architecture(_distilbert, text),
    "DeBERTa-v2": _encoder(
        hf.DebertaV2ForSequenceClassification,
        hf.DebertaV2Config,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=8,
    ),
    "ALBERT": _encoder(hf.AlbertForMaskedLM, hf.AlbertConfig, embedding_size=32),
    # encoders with decoders
    "T5": Architecture(_t5, text_to_text),
    "Switch": Architecture(_switch, text_to_text),
    "BART": Architecture(_bart, text_to_text),
    "Whisper": Architecture(_whisper, spectra_to_text),
    # pictures
    "ViT": Architecture(
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**PICTURES, num_labels=9)), pictures(32)
    ),
    "Swin": Architecture(_swin, pictures(32)),
    "ConvNeXt": Architecture(_convnext, pictures(32)),
    "ResNet": Architecture(_resnet, pictures(32)),
    "MobileNetV2": Architecture(_mobilenet, pictures(32)),
    "EfficientNet": Architecture(_efficientnet, pictures(32)),
    "SegFormer": Architecture(_segformer, pictures(32)),
    # both, and sounds
    "CLIP": Architecture(_clip, pictures_and_text(32)),
    "Wav2Vec2": Architecture(_wav2vec2, sounds),
}
