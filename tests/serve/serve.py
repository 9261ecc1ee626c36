"""Run by the Python of .venv-serve: what vLLM makes of folders, printed as a line of JSON.

    python tests/serve/serve.py generate FOLDER [option=value ...]
    python tests/serve/serve.py refuse FOLDER ...
    python tests/serve/serve.py again FOLDER OUT

generate  tokens and their log-probabilities after each of PROMPTS, by vLLM
refuse    what vLLM says of each folder, "" where it takes it
again     the folder, loaded and saved by the transformers of this environment
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

PROMPTS = [[3, 4, 5, 6], [7, 8, 9, 10, 11], [60, 61], [30, 20, 10, 50, 40, 31]]
TOKENS = 32
MARK = "found: "


def served(folder: str, **options: Any) -> Any:
    from vllm import LLM

    small = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64, "max_num_seqs": 4}
    return LLM(
        folder, skip_tokenizer_init=True, kv_cache_memory_bytes=1 << 26, **{**small, **options}
    )


def generate(folder: str, *options: str) -> Any:
    from vllm import SamplingParams

    given = {key: json.loads(value) for key, _, value in (one.partition("=") for one in options)}
    asked = SamplingParams(
        max_tokens=TOKENS, temperature=0, logprobs=0, detokenize=False, ignore_eos=True
    )
    found = served(folder, **given).generate([{"prompt_token_ids": p} for p in PROMPTS], asked)
    outputs = [one.outputs[0] for one in found]
    return [
        {
            "tokens": list(one.token_ids),
            "log_probabilities": [
                at[token].logprob for token, at in zip(one.token_ids, one.logprobs, strict=True)
            ],
        }
        for one in outputs
    ]


def refuse(*folders: str) -> Any:
    said = []
    for folder in folders:
        name, _, option = folder.partition("?")
        given = dict([option.split("=")]) if option else {}
        try:
            served(name, **{key: json.loads(value) for key, value in given.items()})
        except Exception as error:  # of many kinds: what is said is what is asked here
            said.append(f"{type(error).__name__}: {error}")
        else:
            said.append("")
    return said


def again(folder: str, out: str) -> Any:
    import transformers

    import tensorlrf.hf  # noqa: F401  # has transformers know the folder

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(out)
    return transformers.__version__


if __name__ == "__main__":
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    word, *rest = sys.argv[1:]
    print(MARK + json.dumps({"generate": generate, "refuse": refuse, "again": again}[word](*rest)))
