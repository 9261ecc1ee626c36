"""Small folders with models of transformers, as save_pretrained leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{k}" for k in range(36))]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 64,
}


def bert_folder(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """An encoder with a tokenizer and some more files."""
    import transformers

    model: Any = transformers.BertModel(_config("Bert"))
    return _write(folder, model.to(dtype))


def llama_folder(folder: Path) -> Path:
    """A language model with a tied head, a generation config, and no token for padding."""
    import transformers

    config = _config("Llama", tie_word_embeddings=True, bos_token_id=2, eos_token_id=3)
    return _write(folder, transformers.LlamaForCausalLM(config), pad=False)


def gpt2_folder(folder: Path) -> Path:
    """A language model with transposed weights."""
    import transformers

    config = transformers.GPT2Config(
        n_embd=32, n_layer=1, n_head=2, n_positions=64, vocab_size=len(WORDS),
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return _write(folder, transformers.GPT2LMHeadModel(config), pad=False)


def t5_folder(folder: Path) -> Path:
    """An encoder and a decoder."""
    import transformers

    config = transformers.T5Config(
        d_model=32, d_ff=48, num_layers=1, num_heads=2, d_kv=16, vocab_size=len(WORDS),
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    return _write(folder, transformers.T5ForConditionalGeneration(config))


def tokenizer(pad: bool = True) -> Any:
    """One token a word; [CLS] and [SEP] around it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: k for k, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if pad:
        special["pad_token"] = "[PAD]"
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=made, **special)


def text_file(path: Path, lines: int = 40) -> Path:
    """Documents of 3 to 40 words, one a line."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 41, (lines,), generator=g).tolist()
    drawn = [torch.randint(0, 36, (n,), generator=g).tolist() for n in lengths]
    path.write_text("\n".join(" ".join(f"w{k}" for k in ids) for ids in drawn))
    return path


def _config(kind: str, **more: Any) -> Any:
    import transformers

    return getattr(transformers, f"{kind}Config")(**SIZES, **more)


def _write(folder: Path, model: Any, pad: bool = True) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.init_weights()
    model.save_pretrained(folder)
    tokenizer(pad).save_pretrained(folder)
    (folder / "README.md").write_text("A model.")
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"other weights")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_text("")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"other weights")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"mean": true}')
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"of another module")
    parts = ["", "1_Pooling", "2_Dense"]
    (folder / "modules.json").write_text(json.dumps([{"path": path} for path in parts]))
    return folder
