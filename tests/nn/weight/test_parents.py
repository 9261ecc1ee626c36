"""Modules that look at the `.weight` of a factored layer, or compute with it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.export import export
from torch.nn import functional as F

import tensorlrf
from tensorlrf.errors import TensorlrfError
from tensorlrf.nn import FactoredLinear
from tests.nn.samples import input_of
from tests.ops.samples import random_factors


class Looks(nn.Module):
    """As T5 with its wo, and CLIP with its patch embedding."""

    def __init__(self) -> None:
        super().__init__()
        f = random_factors("lowrank", (5, 4), dtype=torch.float32)
        self.wo = FactoredLinear(f)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.wo.weight, Tensor) and x.dtype != self.wo.weight.dtype:
            x = x.to(self.wo.weight.dtype)
        y: Tensor = self.wo(x.to(self.wo.weight.device))
        return y


class Computes(Looks):
    """A parent that takes the weight itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.wo.weight.to(x.dtype)) + x @ self.wo.weight.double().t()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("kind", [Looks, Computes])
def test_parents_compile_into_one_graph(kind: type[Looks], fresh_compiler: None) -> None:
    model, x = kind(), input_of("linear")
    products = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        products.append(sum("mm" in str(node.target) for node in graph.graph.nodes))
        return graph

    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(fw_compiler=count)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True, backend=backend)(x), model(x)
        )
    # The two of the chain, or a weight and its product for each use: none to look.
    assert products == [2 if kind is Looks else 4]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(model(x).sum(), list(model.parameters()), allow_unused=True)
    got = torch.autograd.grad(compiled(x).sum(), list(model.parameters()), allow_unused=True)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


class Breaks(Looks):
    """A parent whose graph ends while it holds the weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.wo.weight
        torch._dynamo.graph_break()
        return F.linear(x.float(), weight)


# Importing Inductor, torch itself uses what it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_weight_crosses_the_break_of_a_graph(fresh_compiler: None) -> None:
    model, x = Breaks(), input_of("linear")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(x), model(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", [Looks, Computes])
def test_parents_are_exported(kind: type[Looks], strict: bool) -> None:
    model, x = kind().eval(), input_of("linear")
    program = export(model, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("kind", [Looks, Computes])
def test_parents_are_copied_and_pickled(kind: type[Looks]) -> None:
    model, x = kind().eval(), input_of("linear")
    want = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), want)


class Takes(Looks):
    """A parent that is straight code, for torch.fx."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.wo.weight.dtype), self.wo.weight) * self.wo.weight.shape[0]


def test_parents_are_traced() -> None:
    model, x = Takes().eval(), input_of("linear")
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    model.wo.left.data.mul_(2)  # the tensor of the trace is the weight, as a parameter would be
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("kind", [Looks, Computes])
def test_parents_are_sharded(kind: type[Looks], tmp_path: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard

    model, x = kind(), input_of("linear")
    want = model(x)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for original in (True, False):
            whole = FullyShardedDataParallel(
                copy.deepcopy(model),
                device_id=torch.device("cpu"),
                sharding_strategy=ShardingStrategy.NO_SHARD,
                use_orig_params=original,
            )
            y = whole(x)
            y.sum().backward()
            assert torch.equal(y, want)
        sharded = copy.deepcopy(model)
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        y = sharded(x)
        y.sum().backward()
        assert torch.equal(y, want)
        assert sharded.wo.weight.dtype == torch.float32
        assert sharded.wo.weight.shape == (5, 4)
        with pytest.raises(TensorlrfError):
            sharded.wo.weight.zero_()
    finally:
        dist.destroy_process_group()


def test_t5_and_clip_look_at_it_without_a_rebuild(rebuilds: list[object]) -> None:
    import transformers as hf

    t5 = hf.T5Config(
        vocab_size=32, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    encoder = hf.T5EncoderModel(t5).eval()
    wo = encoder.encoder.block[0].layer[1].DenseReluDense.wo
    encoder.encoder.block[0].layer[1].DenseReluDense.wo = small = tensorlrf.nn.factorize(
        wo, "svd", 4
    )
    small.path_table = tensorlrf.ops.PathTable.single("chain")
    vision = hf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    clip = hf.CLIPVisionModel(vision).eval()
    embeddings = next(m for m in clip.modules() if hasattr(m, "patch_embedding"))
    embeddings.patch_embedding = patch = tensorlrf.nn.factorize(
        embeddings.patch_embedding, "svd", 4
    )
    patch.path_table = tensorlrf.ops.PathTable.single("chain")
    del rebuilds[:]
    with torch.no_grad():
        encoder(torch.arange(8)[None])
        clip(torch.ones(1, 3, 16, 16))
    assert rebuilds == []
