"""SmolLM2 served by vLLM, or by transformers, dense and on factors in turn: tokens a second.

    python bench/serving.py make build/served --keep .8
    .venv-serve/bin/python bench/serving.py time build/served/dense build/served/small \\
        --results bench/results/cpu
    python bench/serving.py time build/served/dense build/served/small --by transformers

`make` compresses the model of the examples with its calibration (in the environment of `make
demo`, with the packages of the examples) and writes two folders. `time` takes any two folders; for
vLLM in an environment with it (`make serve-test` makes one), where each is served by a process of
its own. Requests of 1 and of 16 prompts go to one and to the other in turn, A B, B A, so that a
drift of the machine meets both alike. Prompts have 512 tokens, drawn anew for each round, so that
nothing is cached. Over one, the second folder is faster.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

PROMPT, NEW = 512, 64
BATCHES = (1, 16)
WARMUP, ROUNDS = 1, 7
VLLM, TRANSFORMERS = "vllm", "transformers"


def note(rounds: int) -> str:
    return (
        f"Prompts of {PROMPT} random tokens, {NEW} new ones, greedy; {rounds} rounds in turn after "
        f"{WARMUP} that does not count. 'prompt' is the time to one new token; 'new tokens' what "
        f"{NEW - 1} more take, tokens a second of the whole batch. Ratios are medians over the "
        "rounds of dense over factored seconds, least and largest in brackets."
    )


def make(out: Path, keep: float, variant: str = "auto", batches: int = 32) -> None:
    """The two folders, with a tokenizer each."""
    import smollm2
    from common import compress

    import tensorlrf

    dense, tokenizer = smollm2.load_smollm2(), smollm2.load_tokenizer()
    dense.save_pretrained(out / "dense")
    given = smollm2.mixed_batches(tokenizer, batches)
    small, report = compress(dense, keep, variant, given, smollm2.SKIP)
    print(report)
    tensorlrf.save(tensorlrf.export(small, for_="vllm"), out / "small")
    for name in ("dense", "small"):
        tokenizer.save_pretrained(out / name)


class Served:
    """A folder, served by a process of its own."""

    def __init__(self, folder: Path, dtype: str, eager: bool) -> None:
        from vllm import LLM

        self.model = LLM(
            str(folder),
            dtype=dtype,
            enforce_eager=eager,
            max_model_len=PROMPT + NEW,
            max_num_seqs=max(BATCHES),
            max_num_batched_tokens=PROMPT * max(BATCHES),
            kv_cache_memory_bytes=1 << 30,
            skip_tokenizer_init=True,
        )
        config: Any = self.model.llm_engine.model_config
        self.vocabulary = config.get_vocab_size()

    def seconds(self, prompts: list[list[int]], new: int) -> float:
        """Of that many new tokens after each prompt."""
        from vllm import SamplingParams

        asked = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)
        given = [{"prompt_token_ids": one} for one in prompts]
        start = time.perf_counter()
        found = self.model.generate(given, asked, use_tqdm=False)
        taken = time.perf_counter() - start
        assert all(len(one.outputs[0].token_ids) == new for one in found)
        return taken


class Generated:
    """A folder, loaded by transformers into this process."""

    def __init__(self, folder: Path, dtype: str) -> None:
        from transformers import AutoModelForCausalLM

        import tensorlrf.hf  # noqa: F401  which has transformers know layers on factors

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.vocabulary = self.model.config.vocab_size

    def seconds(self, prompts: list[list[int]], new: int) -> float:
        """Of that many new tokens after each prompt."""
        import torch

        ids = torch.tensor(prompts)
        start = time.perf_counter()
        found = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
            min_new_tokens=new, use_cache=True, pad_token_id=0,
        )  # fmt: skip
        taken = time.perf_counter() - start
        assert found.shape == (len(prompts), PROMPT + new)
        return taken


Pair = Sequence[Served | Generated]


def prompts(batch: int, vocabulary: int, draws: random.Random) -> list[list[int]]:
    return [[draws.randrange(vocabulary) for _ in range(PROMPT)] for _ in range(batch)]


def timed(pair: Pair, batch: int, rounds: int) -> tuple[list[list[float]], list[list[float]]]:
    """(seconds of the prompt, of the new tokens) of each of the two, round by round."""
    draws = random.Random(0)
    first: list[list[float]] = [[], []]
    later: list[list[float]] = [[], []]
    for k in range(WARMUP + rounds):
        for own in (0, 1) if k % 2 == 0 else (1, 0):
            fresh = [prompts(batch, pair[own].vocabulary, draws) for _ in range(2)]
            one = pair[own].seconds(fresh[0], 1)
            all_of_them = pair[own].seconds(fresh[1], NEW)
            if k >= WARMUP:
                first[own].append(one)
                later[own].append(all_of_them - one)
    return first, later


def ratio(seconds: list[list[float]]) -> tuple[float, float, float]:
    """Median, least and largest of the first one's over the second one's."""
    found = [a / b for a, b in zip(*seconds, strict=True)]
    return statistics.median(found), min(found), max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words = parser.add_subparsers(dest="word", required=True)
    making = words.add_parser("make")
    making.add_argument("out", type=Path)
    making.add_argument("--keep", type=float, default=0.8)
    making.add_argument("--variant", default="auto", help="as of the examples (default auto)")
    making.add_argument("--batches", type=int, default=32, help="of 512 tokens (default 32)")
    timing = words.add_parser("time")
    timing.add_argument("dense", type=Path)
    timing.add_argument("small", type=Path)
    timing.add_argument("--dtype", default="float32", help="as vLLM takes it (default float32)")
    timing.add_argument("--eager", action="store_true", help="without torch.compile")
    timing.add_argument("--by", choices=(VLLM, TRANSFORMERS), default=VLLM)
    timing.add_argument("--rounds", type=int, default=ROUNDS)
    timing.add_argument("--results", type=Path)
    given = parser.parse_args()
    if given.word == "make":
        make(given.out, given.keep, given.variant, given.batches)
        return
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from bench.report import Row, machine, write_results

    pair: Pair = [
        Served(folder, given.dtype, given.eager)
        if given.by == VLLM
        else Generated(folder, given.dtype)
        for folder in (given.dense, given.small)
    ]
    about = machine("cpu") | {"dtype": given.dtype}
    about |= {"compiled": not given.eager} if given.by == VLLM else {}
    rows = []
    for batch in BATCHES:
        first, later = timed(pair, batch, given.rounds)
        for what, seconds, tokens in (
            ("prompt", first, PROMPT * batch),
            ("new tokens", later, (NEW - 1) * batch),
        ):
            over, least, most = ratio(seconds)
            for name, own in zip(("dense", "factored"), seconds, strict=True):
                middle = statistics.median(own)
                info = {"tokens_per_s": round(tokens / middle, 1)}
                if name == "factored":
                    info["over_dense"] = f"{over:.3f} [{least:.3f}, {most:.3f}]"
                row = Row(f"batch {batch}, {what}", name, middle, min(own), given.rounds, info)
                rows.append(row)
                print(row, flush=True)
        if given.results is not None:
            told = note(given.rounds)
            write_results(given.results, f"served_{given.by}", rows, about, told)


if __name__ == "__main__":
    main()
