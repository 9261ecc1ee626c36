"""A cache in the latent space of keys and values, on SmolLM2: bytes, perplexity, time.

    python bench/latent_cache.py --results bench/results/cpu
    python bench/latent_cache.py --batches 8 --shares .5     fewer windows to fit to, one share

SmolLM2-135M (grouped queries: 9 heads, 3 of keys) with `latent_cache(keep_cache=)`, and with
`method="modular"` on its attentions alone, whose heads keep that share of their numbers; calibrated
on windows of 512 tokens of news and docstrings, tested on the first four of lee.cor. "bytes" are
those that a DynamicCache holds of a token after a pass, "same" the tokens, of 24 generated greedily
after 64 of the test text, up to the first that is another with a cache than without one. Times are
of one more token behind so many in the cache, batch 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import smollm2  # noqa: E402
from transformers import DynamicCache  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402

SHARES = (0.75, 0.5, 0.35)
CACHED = (128, 512)
PROMPT, GENERATED = 64, 24
ROUNDS = 7


def filled(model: Any, tokens: Tensor) -> DynamicCache:
    """A cache of tokens (1, n)."""
    held = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=tokens, past_key_values=held, use_cache=True)
    return held


def bytes_of_a_token(held: DynamicCache) -> int:
    """That it holds, in all layers."""
    parts = [one for layer in held.layers for one in (layer.keys, layer.values)]
    return sum(one.numel() * one.element_size() // one.shape[-2] for one in parts)


def seconds(model: Any, tokens: Tensor, cached: int) -> list[float]:
    """Of one more token, the cache cut again after each."""
    held, times = filled(model, tokens[:, :cached]), []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        with torch.no_grad():
            model(input_ids=tokens[:, :1], past_key_values=held, use_cache=True)
        times.append(time.perf_counter() - begun)
        held.crop(-1)
    return times[1:]


def same(model: Any, tokens: Tensor) -> int:
    """Tokens generated with a cache that are those without one, before the first other."""
    options = {"max_new_tokens": GENERATED, "min_new_tokens": GENERATED, "do_sample": False}
    one, other = (
        model.generate(tokens[:, :PROMPT], use_cache=use, pad_token_id=0, **options)[0, PROMPT:]
        for use in (True, False)
    )
    apart = (one != other).nonzero()
    return int(apart[0]) if len(apart) else GENERATED


def measured(variant: str, model: Any, windows: Tensor, info: dict[str, Any]) -> list[Row]:
    """A row for each length of the cache."""
    value, (low, high) = smollm2.perplexity(smollm2.losses(model, windows))
    tokens = torch.cat([windows[:1], windows[1:2]], 1)
    about = {
        "bytes": bytes_of_a_token(filled(model, tokens[:, :8])),
        "perplexity [95%]": f"{value:.2f} [{low:.2f}, {high:.2f}]",
        "same": f"{same(model, tokens)} of {GENERATED}",
        **info,
    }
    rows = []
    for cached in CACHED:
        times = seconds(model, tokens, cached)
        case = f"{cached} tokens cached"
        rows.append(Row(case, variant, median(times), min(times), ROUNDS, about))
    print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, help="where the files are written")
    parser.add_argument("--batches", type=int, default=smollm2.N_CALIBRATION)
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--no-modular", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    dense, tokenizer = smollm2.load_smollm2(), smollm2.load_tokenizer()
    windows = smollm2.unseen_windows(tokenizer)
    batches = smollm2.mixed_batches(tokenizer, given.batches)
    note = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].replace("\n", " ").strip()

    def write() -> None:
        if given.results is not None:
            ordered = sorted(rows, key=lambda row: CACHED.index(int(row.case.split()[0])))
            write_results(given.results, "latent_cache", ordered, machine("cpu"), note)

    rows = measured("dense", dense, windows, {})
    for share in given.shares:
        begun = time.process_time()
        small, report = tensorlrf.latent_cache(dense, batches, keep_cache=share, progress=False)
        info = {"metric": report.metric, "fit s": round(time.process_time() - begun)}
        rows += measured(f"latent {share:g}", small, windows, info)
        write()
        if given.no_modular or share != min(given.shares, key=lambda one: abs(one - 0.5)):
            continue
        begun = time.process_time()
        small, told = tensorlrf.compress(
            dense, method="modular", keep_params=share, calibration=batches, progress=False,
            skip=[*smollm2.SKIP, "*mlp*"],
        )  # fmt: skip
        info = {"metric": told.metric, "fit s": round(time.process_time() - begun)}
        rows += measured(f"modular {share:g}", small, windows, info)
        write()


if __name__ == "__main__":
    main()
