"""Compressed models under FSDP2, data-parallel training and tensor parallelism: what two ranks run
and train is what one does."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

import tensorlrf
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.parallel import FactoredColwise, styles
from tests.nn.parallel.networks import WIDTH, WORDS, linear
from tests.nn.parallel.ranks import checks_of
from tests.nn.parallel.states import (
    data,
    everything,
    full,
    near,
    sequences,
    shard,
    trained,
    two_blocks,
)


def check_fsdp_trains(mesh: DeviceMesh) -> None:
    alone, many = everything(), everything()
    shard(many)
    whole, own = data(mesh)
    trained(alone, *whole)
    trained(many, *own)
    near(full(many), alone.state_dict())
    for module in many.modules():
        if isinstance(module, FactoredLayer):
            for p in module.parameters():
                assert isinstance(p, DTensor)
                assert isinstance(p.grad, DTensor)


def check_data_parallel_trains(mesh: DeviceMesh) -> None:
    alone, many = everything(), everything()
    whole, own = data(mesh)
    trained(alone, *whole)
    trained(DistributedDataParallel(many), *own)
    near(many.state_dict(), alone.state_dict())


def check_shared_factors_train(mesh: DeviceMesh) -> None:
    """One right factor of three layers."""
    torch.manual_seed(1)
    alone = nn.Sequential(nn.ModuleList(linear(WIDTH, WIDTH) for _ in range(3)))

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.layers = nn.ModuleList(linear(WIDTH, WIDTH) for _ in range(3))
            for layer in self.layers:
                layer.right = self.layers[0].right

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x) for layer in self.layers)
            y: Tensor = q * k + v
            return y

    alone, many, split = Three(), Three(), Three()
    x, wanted = sequences()
    trained(alone, x, wanted)
    k = mesh.get_local_rank()
    trained(shard(many), x[k : k + 1], wanted[k : k + 1])
    near(full(many), alone.state_dict())
    plan = styles(split, {"layers.*": "colwise"}, mesh)
    for style in plan.values():
        assert isinstance(style, FactoredColwise)
        style.output_layouts = style.input_layouts  # gathered
    parallelize_module(split, mesh, plan)
    assert split.layers[0].right is split.layers[2].right
    trained(split, x, wanted)
    near(full(split), alone.state_dict())


def check_tensor_parallel_trains(mesh: DeviceMesh) -> None:
    """Attention with its heads shared out and a gated MLP, alone and under FSDP2."""
    x, wanted = sequences()
    alone = two_blocks()
    trained(alone, x, wanted)
    for inner in ("whole", "sharded"):
        many = two_blocks()
        parallelize_module(many, mesh, styles(many, WORDS, mesh, inner=inner))
        trained(many, x, wanted)
        near(full(many), alone.state_dict())
    for sizes in ((1, 2), (2, 1)):
        square = init_device_mesh("cpu", sizes, mesh_dim_names=("dp", "tp"))
        many = two_blocks()
        parallelize_module(many, square["tp"], styles(many, WORDS, square["tp"]))
        shard(many, square["dp"])
        k = square["dp"].get_local_rank()
        per = 2 // sizes[0]
        trained(many, x[k * per : (k + 1) * per], wanted[k * per : (k + 1) * per])
        near(full(many), alone.state_dict())


def check_compiled(mesh: DeviceMesh) -> None:
    """As one graph, gradients too."""
    alone, many, (x, wanted) = two_blocks(), two_blocks(), sequences()
    parallelize_module(many, mesh, styles(many, WORDS, mesh))
    with warnings.catch_warnings():  # the compiler's own
        warnings.simplefilter("ignore")
        compiled = torch.compile(many, backend="aot_eager", fullgraph=True)
        trained(compiled, x, wanted)
        with torch.no_grad():
            y = compiled(x)
    trained(alone, x, wanted)
    near({"y": y}, {"y": alone(x)})
    near(full(many), alone.state_dict())


def check_frozen_layers_are_thawed(mesh: DeviceMesh) -> None:
    alone = everything().eval()
    for module in alone.modules():
        if isinstance(module, FactoredLayer):
            module.freeze()
    many = shard(copy.deepcopy(alone))
    for p in many.parameters():
        with torch.no_grad():
            p.mul_(0.5)
    for p in alone.parameters():
        p.data.mul_(0.5)
    for module in alone.modules():
        if isinstance(module, FactoredLayer):
            module.thaw()
    own = data(mesh)[1]
    with torch.no_grad():
        near({"y": many(own[0])}, {"y": alone(own[0])})


def check_tuned_layers_are_laid_by_rows(mesh: DeviceMesh) -> None:
    """FSDP2 takes no matrices by columns, as tune leaves some; train() lays them by rows."""
    layer = linear(WIDTH, 64 * WIDTH)
    assert layer.tall_matrices()
    layer.lie(layer.tall_matrices())
    with pytest.raises(NotImplementedError, match="non-contiguous"):
        fully_shard(copy.deepcopy(layer), mesh=mesh)
    x = torch.randn(3, WIDTH).double()
    expected = layer(x)
    many = copy.deepcopy(layer).train()
    with warnings.catch_warnings():  # torch warns of what gives views
        warnings.simplefilter("ignore")
        near({"y": fully_shard(many, mesh=mesh)(x)}, {"y": expected})


def check_a_model_of_transformers(mesh: DeviceMesh) -> None:
    """By the plan that it brings, compressed."""
    with warnings.catch_warnings():  # transformers' own imports warn
        warnings.simplefilter("ignore")
        from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(1)
    llama = LlamaForCausalLM(config).double().eval()
    small, _ = tensorlrf.compress(llama, keep_params=0.6, progress=False)
    many = copy.deepcopy(small)
    plan = styles(many, llama._tp_plan, mesh)
    kinds = {type(style).__name__ for style in plan.values()}
    assert {"FactoredColwise", "FactoredRowwise", "RowwiseParallel"} <= kinds
    parallelize_module(many, mesh, plan)
    ids = torch.randint(32, (2, 6))
    alone, there = small(ids, labels=ids), many(ids, labels=ids)
    near({"y": there.logits}, {"y": alone.logits})
    alone.loss.backward()
    there.loss.backward()
    grads = {name: p.grad for name, p in small.named_parameters()}
    near(
        {
            n: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
            for n, p in many.named_parameters()
        },
        grads,
    )


@pytest.mark.parametrize("name", [*checks_of(__name__), "all"])
def test_on_two_ranks(found: dict[str, str], name: str) -> None:
    wrong = found.get(name, f"not reached: {found['all']}")
    assert not wrong, wrong
