"""A checkpoint of transformers fitted to inputs block by block: memory, and what comes out.

    python bench/blocks.py --gigabytes 1.5

Makes shards of bfloat16 with the shapes of a Llama of width 1024 in a folder that goes afterwards,
and compresses them with `calibration=` and inputs="original" in a process of its own, with one
thread. Its anonymous memory is looked at a hundred times a second, above what there is once
tensorlrf and transformers are imported. A smaller one is compressed both ways, block by block and
in memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402

import tensorlrf  # noqa: E402
from bench.anonymous import Peak  # noqa: E402
from bench.own_process import measured  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from bench.stream import make  # noqa: E402
from tensorlrf.decomposition.large.freed import map_large  # noqa: E402

KEEP, BATCHES, ROWS, TOKENS = 0.5, 8, 2, 128
LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "vocab_size": 32000}
SMALL = {"hidden_size": 256, "intermediate_size": 704, "vocab_size": 1000}
HEADS = 64
"""Numbers in one."""

NOTE = (
    f"Shards of bfloat16 with the shapes of a Llama (values random, of a decaying spectrum), "
    f"keep_params={KEEP:g}, SVD, inputs='original', {BATCHES} batches of {ROWS} x {TOKENS} tokens, "
    "none held out. Memory is anonymous, above interpreter, torch, tensorlrf and transformers, "
    "with large pieces mapped by malloc as in the command; its bound is four blocks, what "
    "calibration and fit of the layer that takes the most are forecast to take (the sums of its "
    "moments alone beside it), and what blocks put out for all batches, once for each of the two "
    "models, with the activations of one batch within a block. 'apart': logits of what comes out "
    "block by block against compress in memory, relative."
)


def config(sizes: dict[str, int], blocks: int, dtype: str) -> dict[str, Any]:
    """Of a Llama."""
    heads = sizes["hidden_size"] // HEADS
    return {
        **sizes, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": dtype,
        "num_hidden_layers": blocks, "num_attention_heads": heads, "num_key_value_heads": heads,
        "tie_word_embeddings": False, "max_position_embeddings": 2048,
    }  # fmt: skip


def block_of(sizes: dict[str, int], at: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of one block."""
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    for name in "qkvo":
        yield f"{at}.self_attn.{name}_proj.weight", (width, width)
    for name in ("gate", "up"):
        yield f"{at}.mlp.{name}_proj.weight", (inner, width)
    yield f"{at}.mlp.down_proj.weight", (width, inner)
    for name in ("input", "post_attention"):
        yield f"{at}.{name}_layernorm.weight", (width,)


def numbers(sizes: dict[str, int]) -> int:
    """Of one block."""
    return sum(torch.Size(shape).numel() for _, shape in block_of(sizes, ""))


def tensors(sizes: dict[str, int], blocks: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the whole."""
    yield "model.embed_tokens.weight", (sizes["vocab_size"], sizes["hidden_size"])
    for k in range(blocks):
        yield from block_of(sizes, f"model.layers.{k}")
    yield "model.norm.weight", (sizes["hidden_size"],)
    yield "lm_head.weight", (sizes["vocab_size"], sizes["hidden_size"])


def made(folder: Path, sizes: dict[str, int], blocks: int, dtype: str = "bfloat16") -> Path:
    """A folder as transformers writes it."""
    folder.mkdir()
    make(folder, tensors(sizes, blocks), getattr(torch, dtype))
    (folder / "config.json").write_text(json.dumps(config(sizes, blocks, dtype)))
    return folder


def batches(vocabulary: int) -> list[dict[str, torch.Tensor]]:
    draws = torch.Generator().manual_seed(1)
    shape = ROWS, TOKENS
    return [
        {"input_ids": torch.randint(vocabulary, shape, generator=draws)} for _ in range(BATCHES)
    ]


def bound(sizes: dict[str, int]) -> dict[str, int]:
    """Bytes of its parts."""
    from tensorlrf.compression.calibration._dense_layer import DenseLayer
    from tensorlrf.compression.calibration._memory import Gathered

    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    layers = [torch.nn.Linear(*shape, device="meta") for shape in ((width, inner), (inner, width))]
    gathered = Gathered(lags=True, held=False)
    needs = [gathered.need(DenseLayer.of(layer)) for layer in layers]
    most = max(needs, key=lambda need: need.whole)
    states = 2 * BATCHES * ROWS * TOKENS * width * 2
    within = 2 * ROWS * TOKENS * (6 * width + 3 * inner) * 2
    return {
        "block": 2 * numbers(sizes), "fit": most.whole, "sums": most.moments + most.lags,
        "window": states + within,
    }  # fmt: skip


def run(source: Path, target: Path) -> dict[str, Any]:
    """Compress, and the peak."""
    import transformers.models.llama.modeling_llama  # noqa: F401  # what the model is built of

    torch.set_num_threads(1)
    map_large()  # as the command does
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    begun = time.perf_counter()
    with Peak() as peak:
        report = tensorlrf.compress_checkpoint(
            source, target, keep_params=KEEP, calibration=batches(vocabulary), holdout=0.0,
            progress=False,
        )  # fmt: skip
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "peak": peak.n_bytes, "layers": len(report.layers)}


def apart(source: Path, target: Path) -> dict[str, Any]:
    """Both ways, and how far the logits are from each other."""
    import transformers

    torch.set_num_threads(1)
    data = batches(SMALL["vocab_size"])
    run(source, target)
    model = transformers.LlamaForCausalLM.from_pretrained(source, dtype="auto").eval()
    wanted, _ = tensorlrf.compress(
        model, keep_params=KEEP, calibration=data, holdout=0.0, allocation="uniform",
        metric="outputs", progress=False,
    )  # fmt: skip
    small = tensorlrf.load(target).eval()
    with torch.no_grad():
        a, b, c = (one(**data[0]).logits.double() for one in (model, wanted, small))
    return {"apart": float((b - c).norm() / b.norm()), "lost": float((a - b).norm() / a.norm())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--folder", type=Path, help="with room for one and a half times as much")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        warnings.simplefilter("ignore")  # few samples
        what, *paths = given.measure
        print(json.dumps({"run": run, "apart": apart}[what](*map(Path, paths))))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for dtype in ("float32", "bfloat16"):
            source = made(Path(folder) / dtype, SMALL, 6, dtype)
            found = measured(__file__, "apart", source, Path(folder) / f"{dtype}-out")
            info = {"apart": f"{found['apart']:.2g}", "lost": f"{found['lost']:.3g}"}
            rows.append(Row(f"width 256, {dtype}", "block by block", 0.0, 0.0, 1, info))
            print(rows[-1], flush=True)
        around = 2 * 2 * LARGE["vocab_size"] * LARGE["hidden_size"]
        blocks = max(2, round((given.gigabytes * 1e9 - around) / (2 * numbers(LARGE))))
        source = made(Path(folder) / "in", LARGE, blocks)
        ran, parts = measured(__file__, "run", source, Path(folder) / "out"), bound(LARGE)
    whole = 4 * parts["block"] + parts["fit"] + parts["window"]
    of_sums = 4 * parts["block"] + parts["sums"] + parts["window"]
    told = {f"{name} MB": round(size / 1e6) for name, size in parts.items()}
    more = {
        "blocks": blocks, "layers": ran["layers"], "peak MB": round(ran["peak"] / 1e6),
        "bound MB": round(whole / 1e6), "bound of sums alone MB": round(of_sums / 1e6), **told,
    }  # fmt: skip
    name = f"{given.gigabytes:g} GB, width 1024"
    rows.append(Row(name, "block by block", ran["seconds"], ran["seconds"], 1, more))
    print(rows[-1], flush=True)
    write_results(given.results, "blocks", rows, machine("cpu"), NOTE)


if __name__ == "__main__":
    main()
