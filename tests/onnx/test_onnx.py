"""Factored layers go to ONNX as they are; onnxruntime runs and quantises what `export` makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.nn import factorize
from tensorlrf.ops import PathTable
from tests.compression.test_export import (
    TWO_SIDED_SAME,
    LastHidden,
    exporters_warn,
    factored_transformer,
    images,
    net,
    on,
    through_onnx,
    tokens,
)

pytestmark = pytest.mark.slow

METHODS = ["svd", "cp", "tucker", "tt", "tr", "kron", "blr", "hierarchical", "monarch", "blast"]


TEXTS = [tokens(2), tokens(1, 5), tokens(3, 14)]


def program_of(model: nn.Module, batch: tuple[Tensor, ...], axes: tuple[int, ...]) -> Any:
    dynamic = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _ in batch)
    return torch.export.export(model, batch, dynamic_shapes=dynamic)


def check(model: nn.Module, batches: list[tuple[Tensor, ...]], axes: tuple[int, ...]) -> None:
    """The model itself, not what `export` makes of it."""
    with torch.no_grad():
        want = [model(*batch) for batch in batches]
    through_onnx(program_of(model, batches[0], axes), batches, want)


def rows(n: int, m: int = 64) -> tuple[Tensor]:
    draws = torch.Generator(device="cpu").manual_seed(n)
    return (torch.randn(n, m, generator=draws, device="cpu", dtype=torch.float32),)


def llama(**sizes: int) -> Any:
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    given = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1} | sizes
    config = LlamaConfig(vocab_size=40, num_attention_heads=2, max_position_embeddings=32, **given)
    return LlamaModel(config)


@exporters_warn
@pytest.mark.parametrize("word", METHODS)
def test_a_layer_of_each_format(word: str) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(64, 64, device="cpu", dtype=torch.float32)
    more: dict[str, Any] = {"leaf": 8} if word == "hierarchical" else {}
    layer = factorize(dense, word, 0.5, **more).eval()
    for path in layer.paths:
        layer.path_table = PathTable.single(path)
        check(layer, [rows(2), rows(1), rows(7)], axes=(0,))


@exporters_warn
@pytest.mark.filterwarnings(TWO_SIDED_SAME)
def test_a_cnn() -> None:
    check(net(), [(images(b),) for b in (2, 1, 5)], axes=(0,))


@exporters_warn
def test_a_transformer_with_batches_and_lengths_of_any_size() -> None:
    model: Any = factored_transformer(llama(), use_cache=False)
    model.model.embed_tokens = factorize(model.model.embed_tokens, "svd", 8)
    check(model, TEXTS, axes=(0, 1))
    check(tensorlrf.export(model), TEXTS, axes=(0, 1))


@exporters_warn
def test_the_path_for_any_number_of_rows_decides_what_is_written() -> None:
    """A table over M has no place in a file: the last path is taken, a dense one as a matrix."""
    torch.manual_seed(0)
    layer = factorize(nn.Linear(64, 64, device="cpu"), "svd", 8)
    layer.path_table = PathTable(((4, "chain"), (None, "dense")))
    kinds = {
        path: sizes(torch.onnx.export(program_of(model, rows(2), (0,)), dynamo=True, verbose=False))
        for path, model in {
            "dense": layer,
            "chain": tensorlrf.export(layer, rows=4),
        }.items()
    }
    assert kinds == {"dense": [64 * 64], "chain": [8 * 64] * 2}


def sizes(onnx: Any) -> list[int]:
    """Of the matrices in the file."""
    from onnx import numpy_helper

    found = [numpy_helper.to_array(one) for one in onnx.model_proto.graph.initializer]
    return [one.size for one in found if one.ndim == 2]


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
        on("chain", factorize(nn.Conv2d(32, 64, 3, stride=2, padding=1), "tucker", 16)), nn.ReLU(),
        nn.Flatten(), on("chain", factorize(nn.Linear(4096, 32), "svd", 8)),
    ).eval()  # fmt: skip


def transformer() -> nn.Module:
    model: Any = llama(hidden_size=128, intermediate_size=512, num_hidden_layers=1)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, on("chain", factorize(module, "svd", 0.5)))
    return LastHidden(model, use_cache=False).eval()


@exporters_warn
@pytest.mark.parametrize(
    ("made", "batches", "axes"),
    [(cnn, [(images(b),) for b in (2, 1, 5)], (0,)), (transformer, TEXTS, (0, 1))],
    ids=["cnn", "transformer"],
)
def test_int8_of_onnxruntime(
    made: Callable[[], nn.Module], batches: Any, axes: tuple[int, ...], tmp_path: Path
) -> None:
    """A smaller file, within the rounding of weights and inputs to eight bits."""
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    model = made()
    program = program_of(tensorlrf.export(model), batches[0], axes)
    written: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    whole = written.model_proto
    bytes_before = len(whole.SerializeToString())
    del whole.graph.value_info[:]  # shapes of weights among it, which the quantiser turns
    small = tmp_path / "small.onnx"
    quantize_dynamic(whole, small, per_channel=True)
    assert small.stat().st_size < 0.6 * bytes_before
    session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    for batch in batches:
        with torch.no_grad():
            want = model(*batch)
        feed = {name: t.numpy() for name, t in zip(names, batch, strict=True)}
        got = torch.from_numpy(session.run(None, feed)[0])
        # Each layer rounds what comes in and its weights by some .5%; there are fourteen at most.
        assert 0 < float((got - want).norm() / want.norm()) < 0.1
