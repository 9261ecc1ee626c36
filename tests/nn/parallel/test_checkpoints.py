"""Compressed models of several ranks in distributed checkpoints, in files, on meta and made whole
again: what is saved and loaded by two ranks is what one has."""

from __future__ import annotations

import copy
import os
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

import tensorlrf
from tensorlrf.compression._uncompiled import own_model
from tensorlrf.errors import UnsupportedError
from tensorlrf.nn import FactoredLayer, FactoredLinear
from tensorlrf.nn.parallel import styles
from tensorlrf.nn.parallel._layer import SharedLinear
from tests.nn.parallel.networks import WIDTH, WORDS, linear
from tests.nn.parallel.ranks import checks_of
from tests.nn.parallel.states import (
    FULL,
    data,
    everything,
    full,
    near,
    sequences,
    shard,
    trained,
    two_blocks,
)

OPTIONS: dict[str, dict[str, Any]] = {"kron": {"shapes": ((4, 4), (4, 4))}, "blr": {"block": 4}}


def folder(name: str) -> str:
    """The same on all ranks, beside what they meet at."""
    place = os.path.join(os.environ["TENSORLRF_RANKS"], name)
    os.makedirs(place, exist_ok=True)
    return place


def load_by_one(model: nn.Module, name: str) -> None:
    """As without torch.distributed, on each rank alone."""
    state = {"model": model.state_dict()}
    with warnings.catch_warnings():  # torch says that it takes no_dist for what it is
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder(name), no_dist=True)
    model.load_state_dict(state["model"])


def check_checkpoints_of_fsdp(mesh: DeviceMesh) -> None:
    """Saved by two ranks, loaded by two, and by one as it was before."""
    whole, own = data(mesh)
    many = shard(everything())
    optimiser = trained(many, *own)
    state, steps = get_state_dict(many, optimiser)
    dcp.save({"model": state, "steps": steps}, checkpoint_id=folder("fsdp"))
    saved = full(many)

    again = shard(everything())
    other = trained(again, *own, steps=1)
    state, steps = get_state_dict(again, other)
    loaded = {"model": state, "steps": steps}
    dcp.load(loaded, checkpoint_id=folder("fsdp"))
    set_state_dict(again, other, model_state_dict=loaded["model"], optim_state_dict=loaded["steps"])
    near(full(again), saved)

    alone = everything()
    load_by_one(alone, "fsdp")
    near(alone.state_dict(), saved)
    near({"y": alone(whole[0])}, {"y": torch.cat(gathered(many(own[0])))})


def gathered(y: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(y) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, y.detach().contiguous())
    return parts


def check_checkpoints_of_shared_out_layers(mesh: DeviceMesh) -> None:
    """Of tensor parallel ones to one rank, and back; blocks too, which are packed."""
    torch.manual_seed(2)
    made = nn.ModuleDict({m: nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for m in ("kron", "blr")})
    alone = nn.ModuleDict({
        **{m: tensorlrf.nn.factorize(layer, m, 0.5, **OPTIONS[m]) for m, layer in made.items()},
        "svd": linear(WIDTH, WIDTH, bias=True),
    })  # fmt: skip
    for word in ("colwise", "rowwise"):
        many = copy.deepcopy(alone)
        parallelize_module(many, mesh, styles(many, {"*": word}, mesh))
        with torch.no_grad():
            for p in many.parameters():
                p.mul_(2)
        state = get_model_state_dict(many)
        dcp.save({"model": state}, checkpoint_id=folder(word))
        one = copy.deepcopy(alone)
        load_by_one(one, word)
        for name, p in one.named_parameters():
            assert torch.equal(p, 2 * alone.get_parameter(name)), name
        near(full(many), one.state_dict())
        back = copy.deepcopy(alone)
        parallelize_module(back, mesh, styles(back, {"*": word}, mesh))
        loaded = {"model": get_model_state_dict(back)}
        dcp.load(loaded, checkpoint_id=folder(word))
        set_model_state_dict(back, loaded["model"])
        near(full(back), one.state_dict())
        for name, layer in many.items():
            assert isinstance(layer, SharedLinear)
            plain = layer.unshared()
            assert type(plain) is FactoredLinear
            near(plain.state_dict(), one[name].state_dict())
            assert plain.stands_for == one[name].stands_for
        # Under FSDP2 as well, and of one rank's plain state.
        for sizes in ((1, 2), (2, 1)):
            square = init_device_mesh("cpu", sizes, mesh_dim_names=("dp", "tp"))
            both = copy.deepcopy(alone)
            parallelize_module(both, square["tp"], styles(both, {"*": word}, square["tp"]))
            for layer in both.values():
                fully_shard(layer, mesh=square["dp"])
            set_model_state_dict(both, one.state_dict(), options=FULL)
            near(full(both), one.state_dict())
            near(both["blr"].unshared().state_dict(), one["blr"].state_dict())
        last = copy.deepcopy(alone)
        parallelize_module(last, mesh, styles(last, {"*": word}, mesh))
        set_model_state_dict(last, one.state_dict(), options=FULL)
        near(full(last), one.state_dict())
        x = torch.randn(3, WIDTH).double()
        for name, layer in last.items():
            style: Any = styles(alone, {name: word}, mesh)[name]
            k = mesh.get_local_rank()
            own = x if word == "colwise" else x.chunk(2, -1)[k]
            y, expected = layer(own), one[name](x)
            assert style.use_local_output
            near({"y": y}, {"y": expected.chunk(2, -1)[k] if word == "colwise" else expected})


def check_files_are_of_whole_models(mesh: DeviceMesh) -> None:
    many = shard(everything())
    path = os.path.join(folder("files"), f"{dist.get_rank()}.safetensors")
    with pytest.raises(UnsupportedError, match="full_state_dict=True"):
        tensorlrf.save(many, path)
    plain = everything()
    plain.load_state_dict(full(many))
    tensorlrf.save(plain, path)
    own = data(mesh)[1]
    near({"y": tensorlrf.load(path, everything())(own[0])}, {"y": many(own[0])})


def check_models_on_meta_are_filled(mesh: DeviceMesh) -> None:
    alone = everything()
    many = shard(copy.deepcopy(alone).to("meta"))
    many.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(many, alone.state_dict() if dist.get_rank() == 0 else {}, options=options)
    near(full(many), alone.state_dict())
    own = data(mesh)[1]
    near({"y": many(own[0])}, {"y": alone(own[0])})
    for a, b in zip(alone.modules(), many.modules(), strict=True):
        if isinstance(a, FactoredLayer):
            assert isinstance(b, FactoredLayer)
            assert a.path_table == b.path_table


def check_tensor_parallel_on_meta(mesh: DeviceMesh) -> None:
    """Shared out before there are numbers."""
    alone, (x, _) = two_blocks(), sequences()
    for inner in ("whole", "sharded"):
        many = copy.deepcopy(alone).to("meta")
        parallelize_module(many, mesh, styles(many, WORDS, mesh, inner=inner))
        many.to_empty(device="cpu")
        set_model_state_dict(many, alone.state_dict(), options=FULL)
        near({"y": copy.deepcopy(many)(x)}, {"y": alone(x)})
        near(full(many), alone.state_dict())


def check_whole_again(mesh: DeviceMesh) -> None:
    """What calibrates looks at a plain model, of whatever styles; factors in common stay so."""
    alone, (x, wanted) = two_blocks(), sequences()
    for block in alone:
        block.mlp.up_proj.right = block.mlp.gate_proj.right
    alone[1].mlp.down_proj = tensorlrf.densify(alone[1].mlp.down_proj)
    for sizes in ((2,), (1, 2), (2, 1)):
        square = init_device_mesh("cpu", sizes, mesh_dim_names=("dp", "tp")[-len(sizes) :])
        many = copy.deepcopy(alone)
        parallelize_module(many, square["tp"], styles(many, WORDS, square["tp"]))
        if len(sizes) > 1:
            shard(many, square["dp"])
        plain = own_model(many)
        assert not any(isinstance(p, DTensor) for p in plain.parameters())
        assert plain[0].mlp.up_proj.right is plain[0].mlp.gate_proj.right
        near(plain.state_dict(), alone.state_dict())
        one = copy.deepcopy(alone)
        for model in (plain, one):
            (model(x) - wanted).square().mean().backward()
        near(*({n: p.grad for n, p in model.named_parameters()} for model in (plain, one)))
        small, _ = tensorlrf.compress(plain, keep_params=0.9, progress=False)
        again, _ = tensorlrf.compress(one, keep_params=0.9, progress=False)
        near({"y": small(x)}, {"y": again(x)})


@pytest.mark.parametrize("name", [*checks_of(__name__), "all"])
def test_on_two_ranks(found: dict[str, str], name: str) -> None:
    wrong = found.get(name, f"not reached: {found['all']}")
    assert not wrong, wrong
