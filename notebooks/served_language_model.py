# %% [markdown]
# # A language model served by vLLM
#
# SmolLM2-135M on eight tenths of the parameters of its linear layers, behind a server that answers
# as OpenAI's does, beside the same server with the dense model. Two environments take part, as
# they do where people serve: this one compresses and writes folders; vLLM has its own
# (`make serve-test` makes it in `.venv-serve`; `SERVE` names another one), with its own
# transformers. In it tensorlrf is installed, and that is all it takes: vLLM finds the plugin.

# %%
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import tensorlrf

sys.path.insert(0, "../examples")
from smollm2 import (
    SKIP,
    load_smollm2,
    load_tokenizer,
    losses,
    mixed_batches,
    perplexity,
    unseen_windows,
)

plt.rcParams.update({"figure.dpi": 72, "axes.spines.top": False, "axes.spines.right": False})

dense, tokenizer = load_smollm2(), load_tokenizer()
print(f"{sum(p.numel() for p in dense.parameters()) / 1e6:.0f} million parameters")

# %% [markdown]
# ## Smaller
#
# Calibrated on 16 windows of 512 tokens, news and docstrings. The defaults measure what each layer
# may lose, fit in order, and leave layers dense where that is better; embeddings, which are the
# head as well, stay as they are.

# %%
small, report = tensorlrf.compress(
    dense, keep_params=0.8, calibration=mixed_batches(tokenizer, 16), skip=SKIP, progress=False
)
print("\n".join(str(report).splitlines()[-12:]))

# %% [markdown]
# On news that no calibration has seen, with the interval of 95% over blocks of tokens:

# %%
for name, model in {"dense": dense, "small": small}.items():
    value, (low, high) = perplexity(losses(model, unseen_windows(tokenizer)))
    print(f"{name}: perplexity {value:.1f} [{low:.1f}, {high:.1f}]")

# %% [markdown]
# ## Folders
#
# `export(for_="vllm")` sees to it that vLLM has a method for every layer; here all are of low rank
# or dense already. What is written is a folder of transformers.

# %%
made = tempfile.TemporaryDirectory()
folders = {name: Path(made.name) / name for name in ("dense", "small")}
dense.save_pretrained(folders["dense"])
tensorlrf.save(tensorlrf.export(small, for_="vllm"), folders["small"])
for name, folder in folders.items():
    tokenizer.save_pretrained(folder)
    megabytes = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    print(f"{name}: {megabytes:.0f} MB of float32")

# %% [markdown]
# ## Served
#
# From a shell this is `vllm serve small`. The options hold the memory of a notebook down.

# %%
ROOT = Path("..").resolve()
PYTHON = Path(os.environ.get("SERVE", ROOT / ".venv-serve")) / "bin" / "python"
OPTIONS = "--host 127.0.0.1 --dtype float32 --enforce-eager --max-model-len 640"
OPTIONS += " --max-num-seqs 4 --kv-cache-memory-bytes 536870912"


def serve(folder, port):
    """vLLM's server of a folder, once it answers."""
    words = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", *OPTIONS.split()]
    words += ["--model", folder, "--served-model-name", folder.name, "--port", str(port)]
    own = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **own})
    while process.poll() is None:
        try:
            ask(port, "/health")
            return process
        except OSError:
            time.sleep(1)
    raise RuntimeError((folder / "log").read_text()[-2000:])


def ask(port, path, **body):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.loads(answer.read() or b"{}")


PORTS = {"dense": 8011, "small": 8012}
servers = [serve(folders[name], port) for name, port in PORTS.items()]
for port in PORTS.values():
    print([one["id"] for one in ask(port, "/v1/models")["data"]])

# %%
question = [{"role": "user", "content": "Why is the sky blue? One sentence."}]
for name, port in PORTS.items():
    answer = ask(
        port, "/v1/chat/completions", model=name, messages=question, max_tokens=48, temperature=0
    )
    print(f"{name}: {answer['choices'][0]['message']['content']}\n")

# %% [markdown]
# ## The same model?
#
# Greedy tokens of the server against those that the small model gives here, in transformers.

# %%
prompts = [
    "The capital of France is",
    "Water boils at a hundred degrees, and",
    "Once upon a time there was a king who",
    "A matrix of low rank is the product of",
]
same = total = 0
for prompt in prompts:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    [choice] = ask(
        PORTS["small"], "/v1/completions", model="small", prompt=ids[0].tolist(), max_tokens=32,
        temperature=0, ignore_eos=True, return_token_ids=True,
    )["choices"]  # fmt: skip
    given = torch.cat([ids, torch.tensor([choice["token_ids"]])], dim=1)
    with torch.no_grad():
        expected = small(given).logits[0, ids.shape[1] - 1 : -1].argmax(-1)
    same += int((expected == given[0, ids.shape[1] :]).sum())
    total += len(expected)
print(f"{same} of {total} tokens are alike")

# %% [markdown]
# ## Faster?
#
# A prompt of 512 tokens and one new token, then 64 new ones, in turn with the dense model, so that
# both meet whatever else the machine does. Each prompt is drawn anew: nothing is cached.

# %%
draws = torch.Generator().manual_seed(0)


def seconds(name, new):
    prompt = torch.randint(len(tokenizer), (512,), generator=draws).tolist()
    begun = time.perf_counter()
    ask(
        PORTS[name], "/v1/completions", model=name, prompt=prompt, max_tokens=new, temperature=0,
        ignore_eos=True,
    )  # fmt: skip
    return time.perf_counter() - begun


ROUNDS = 7
found = {name: {1: [], 64: []} for name in PORTS}
for turn in range(ROUNDS + 1):
    for name in list(PORTS)[:: 1 if turn % 2 else -1]:
        for new in (1, 64):
            taken = seconds(name, new)
            if turn:  # the first one warms up
                found[name][new].append(taken)

figure, both = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for axes, (new, title) in zip(
    both, {1: "prompt of 512", 64: "and 64 new tokens"}.items(), strict=True
):
    pairs = list(zip(found["dense"][new], found["small"][new], strict=True))
    for pair in pairs:
        axes.plot(["dense", "small"], pair, color="0.8", marker="o", markerfacecolor="C0")
    ratio = sorted(a / b for a, b in pairs)
    axes.set(title=title, ylabel="seconds", ylim=(0, None))
    print(f"{title}: {ratio[len(ratio) // 2]:.2f}x [{ratio[0]:.2f}, {ratio[-1]:.2f}]")
plt.show()

# %%
for server in servers:
    server.terminate()
    server.wait(60)
made.cleanup()

# %% [markdown]
# More prompts at once, compiled, and in transformers: bench/serving.py, whose results are among the
# tables of the site. What vLLM serves and what is refused is on the page about vLLM.
# `report.to_html("report.html")` writes all that was found about this model as one page to send
# along.
