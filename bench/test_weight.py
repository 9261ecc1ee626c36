"""What the dense weight of a factored layer costs: to look at, to rebuild, and to keep.

Parents in transformers ask a layer for `.weight.dtype` in each forward: the feed-forward of T5, the
patch embedding of CLIP. "looked at" is the layer as it is, "made" one whose weight is made whenever
it is named. And a layer on the path "dense" rebuilds its weight in each call, "rebuilt", unless it
is "frozen"; "chain" is what the factors do instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.turns import Turns
from tensorlrf.nn import FactoredConv2d, FactoredLayer, FactoredLinear, factorize
from tensorlrf.ops import PathTable

ROUNDS = 15
DENSE = "dense"
PARENTS = (DENSE, "looked at", "made")
PATHS = (DENSE, "frozen", "rebuilt", "chain")


class _Made(FactoredLayer):
    @property
    def weight(self) -> Tensor:
        return self.factors.to_dense()


class MadeLinear(_Made, FactoredLinear):
    """Its weight is made whenever it is named."""


class MadeConv2d(_Made, FactoredConv2d):
    """Its weight is made whenever it is named."""


def drawn(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def t5() -> tuple[nn.Module, str, Tensor]:
    """The feed-forward of T5 1.1 base, on four sentences of 64 tokens."""
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

    config = T5Config(d_model=768, d_ff=2048, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    return T5DenseGatedActDense(config), "wo", drawn(4, 64, 768)


def clip() -> tuple[nn.Module, str, Tensor]:
    """The embeddings of CLIP ViT-B/32, on four pictures."""
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

    return CLIPVisionEmbeddings(CLIPVisionConfig()), "patch_embedding", drawn(4, 3, 224, 224)


def parents(parent: nn.Module, child: str, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The parent with its dense child, and with a factored one of rank 192, on its chain."""
    made = {nn.Linear: MadeLinear, nn.Conv2d: MadeConv2d}
    dense = getattr(parent, child)
    small = factorize(dense, "svd", 192)
    old = made[type(dense)].from_factors(small.factors, dense)
    for layer in (small, old):
        layer.path_table = PathTable.single("chain")

    def run(layer: nn.Module) -> Tensor:
        setattr(parent, child, layer)
        return parent(x)

    children = {DENSE: dense, "looked at": small, "made": old}
    return {name: lambda layer=layer: run(layer) for name, layer in children.items()}


def paths(dense: nn.Module, rank: int, x: Tensor, calls: int) -> dict[str, Callable[[], Tensor]]:
    """One layer in so many calls: torch's own, and the factored one by each of its ways."""
    small = factorize(dense, "svd", rank)

    def run(layer: nn.Module) -> Tensor:
        return [layer(x) for _ in range(calls)][-1]

    ways: dict[str, nn.Module] = {DENSE: dense}
    for name in PATHS[1:]:
        ways[name] = small._on_path("chain" if name == "chain" else "dense")
    ways["frozen"].freeze()
    return {name: lambda layer=layer: run(layer) for name, layer in ways.items()}


PARENT_CASES = {"T5 1.1 base, feed-forward, 256 tokens": t5, "CLIP ViT-B/32, embeddings": clip}
LAYER_CASES: dict[str, Callable[[], dict[str, Callable[[], Tensor]]]] = {
    **{
        f"1024x1024, svd 256, {calls} calls of {rows} rows": lambda rows=rows, calls=calls: paths(
            nn.Linear(1024, 1024), 256, drawn(rows, 1024), calls
        )
        for rows, calls in ((1, 20), (64, 5), (1024, 1))
    },
    "conv 128x128x3x3, svd 128, 1 call of 4 x 28 x 28": lambda: paths(
        nn.Conv2d(128, 128, 3, padding=1), 128, drawn(4, 128, 28, 28), 1
    ),
}


@cache
def parent_turns(case: str) -> Turns:
    return _turns(parents(*PARENT_CASES[case]()))


@cache
def layer_turns(case: str) -> Turns:
    return _turns(LAYER_CASES[case]())


def _turns(calls: dict[str, Callable[[], Tensor]]) -> Turns:
    with torch.no_grad():
        return Turns.take(calls, ROUNDS, warmup=3)


@pytest.mark.parametrize("name", PARENTS)
@pytest.mark.parametrize("case", PARENT_CASES)
def test_parents_that_look(benchmark: Any, case: str, name: str) -> None:
    turns = parent_turns(case)
    with torch.no_grad():
        turns.row(benchmark, case, name, DENSE)
    torch.testing.assert_close(turns.results["looked at"], turns.results["made"])


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("case", LAYER_CASES)
def test_dense_path(benchmark: Any, case: str, name: str) -> None:
    turns = layer_turns(case)
    with torch.no_grad():
        turns.row(benchmark, case, name, DENSE)
    torch.testing.assert_close(
        turns.results["rebuilt"], turns.results["frozen"], rtol=1e-4, atol=1e-4
    )
