"""Networks of small whole numbers, plans of them, and all that a file of a model can hold."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf import Plan, plan
from tensorlrf.compression import Method
from tensorlrf.compression.methods import config_of, words
from tensorlrf.decomposition.methods import names
from tensorlrf.factors import Factors
from tensorlrf.nn import factorize
from tensorlrf.ops import PathTable
from tests.golden.samples import dense_layer, layers, samples, whole


class Net(nn.Module):
    """A layer of each kind that can be factored."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.linear = nn.Linear(12, 16)
        self.conv1d = nn.Conv1d(6, 8, 3, padding=1)
        self.conv2d = nn.Conv2d(6, 8, 3, stride=2, bias=False)
        self.conv3d = nn.Conv3d(4, 6, (2, 3, 3), padding=(0, 1, 1))
        self.grouped = nn.Conv2d(8, 12, 3, groups=2, padding_mode="reflect", padding=1)
        self.embedding = nn.Embedding(32, 12, padding_idx=0)
        self.transposed = Conv1D(12, 16)
        self.norm = nn.BatchNorm2d(8)
        for turn, tensor in enumerate(self.parameters()):
            tensor.data = whole(tensor, turn)


INPUTS = {
    "linear": (3, 12),
    "conv1d": (2, 6, 7),
    "conv2d": (2, 6, 7, 7),
    "conv3d": (2, 4, 3, 5, 5),
    "grouped": (2, 8, 5, 5),
    "transposed": (3, 16),
}
"""A layer of the net -> the size of an input; an embedding takes indices."""


def net_input(name: str) -> Tensor:
    """For that layer of the net, in float64."""
    if name == "embedding":
        return torch.tensor([[0, 3, 31], [7, 7, 1]])
    return whole(torch.empty(INPUTS[name], dtype=torch.float64))


OPTIONS: dict[str, dict[str, object]] = {
    "svd": {"solver": "randomized", "n_power_iter": 3, "n_oversample": 4, "metric": "diagonal"},
    "tucker": {
        "solver": "hosvd", "n_iter_max": 7, "tol": 1e-3, "n_power_iter": 3, "n_oversample": 4,
        "rank_shares": (0.5, 0.75),
    },
    "cp": {
        "n_iter_max": 9, "init": "svd", "tol": 1e-3, "solver": "leverage", "n_samples": 40,
        "n_restarts": 1,
    },
    "kron": {
        "shapes": ((4, 3), (4, 4)), "solver": "randomized", "n_iter_max": 5, "tol": 1e-3,
        "n_power_iter": 3, "n_oversample": 4,
    },
    "tt": {"row_sizes": (4, 4), "column_sizes": (4, 3), "n_iter_max": 5, "tol": 1e-3},
    "tr": {"sizes": ((4, 4), (4, 3)), "init": "random", "n_iter_max": 5, "tol": 1e-3},
    "blr": {"block": (4, 6), "dense_blocks": False, "n_iter_max": 5, "tol": 1e-3},
    "hierarchical": {"leaf": 4, "admissible": "strong", "n_iter_max": 5, "tol": 1e-3},
    "monarch": {"blocks": (4, 4), "n_iter_max": 5, "tol": 1e-3},
    "blast": {"blocks": (4, 3), "n_iter_max": 5, "tol": 1e-3},
    "group_reduce": {"bands": 2},
    "interpolative": {"axis": "columns", "solver": "randomized"},
    "cur": {"sampling": "leverage"},
    "lplr": {"codes": "int4", "group": 2, "n_iter_max": 5, "tol": 1e-3},
    "low_rank_plus_sparse": {"sparsity": 0.9, "pattern": "random", "n_iter_max": 5, "tol": 1e-3},
    "dictionary": {"nonzeros": 2, "n_iter_max": 5, "tol": 1e-3},
    "block_term": {"n_terms": 3, "n_iter_max": 5, "tol": 1e-3, "n_restarts": 2},
}  # fmt: skip
"""A method -> its options at other values than the defaults, but for those that exclude others."""


OF_SMALL = config_of("hierarchical")(leaf=4)
"""By default leaves are larger than the layers here."""


def methods() -> dict[str, Method]:
    """Every method with every option, and the choice among some."""
    made = {word: config_of(word)(**options) for word, options in OPTIONS.items()}
    candidates = tuple(made[word] for word in ("svd", "cp", "monarch"))
    return {**made, "auto": config_of("auto")(candidates=candidates)}


def plan_of(method: Method) -> Plan:
    """For the net: four fifths of its weights."""
    return plan(Net(), method=method, keep_params=0.8, skip=[], include=included(method.word))


def included(word: str) -> list[str]:
    """What has to be asked for, where a method serves nothing else."""
    return ["embeddings"] if word not in ("auto", *names("linear", "conv")) else []


def plain_plans() -> dict[str, Plan]:
    """Of every method at its defaults within an error, of ranks, and of several methods."""
    net = Net()
    plain = {**{word: config_of(word)() for word in words()}, "hierarchical": OF_SMALL}
    plans = {
        f"{word}_plain": plan(net, method=m, error=0.3, skip=[], include=included(word))
        for word, m in plain.items()
    }
    ranked = {
        "linear": config_of("monarch")(rank=1),
        "conv1d": config_of("cp")(rank=3),
        "conv2d": config_of("tucker")(rank=(3, 2)),
        "conv3d": config_of("tt")(rank=(2, 3, 2, 2)),
        "trans*": config_of("blast")(error=0.25),
        "*": None,
    }
    return {
        **plans,
        "ranked": plan(net, method=ranked),
        "skipped": plan(net, method="svd", keep_params=0.5, skip=["conv*", "grouped"]),
    }


def layers_of(format: str, dense: bool = False) -> nn.ModuleDict:
    """A layer of every kind that runs on the format, with a table that was measured somewhere and
    a recipe; or the layers that they stand in for."""
    made = nn.ModuleDict()
    for other, kind, layer in layers():
        if other == format and dense:
            made[kind] = dense_layer(kind, layer.factors)
        elif other == format:
            layer.set_measured("a device", PathTable.from_choices({1: "dense", 64: "chain"}))
            layer.recipe = {"method": "svd", "rank": [2, 3], "error": 0.25}
            made[kind] = layer
    return made


def compressed(word: str) -> nn.Module:
    """The net by that method, on whole numbers."""
    model = Net()
    if word in names("embedding"):
        model.embedding = factorize(model.embedding, word, 3)  # type: ignore[assignment]
    if included(word):
        counts = 9000 // torch.arange(1, 33).square()
        banded = factorize(Net().embedding, word, 0.9, counts=counts)
        model.embedding = banded  # type: ignore[assignment]
        return in_turns(model)
    method = OF_SMALL if word == "hierarchical" else word
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a budget that linear layers alone do not meet
        small, _ = tensorlrf.compress(
            model, keep_params=0.7, method=method, skip=[], progress=False
        )
    return in_turns(small)


def in_turns(model: nn.Module) -> nn.Module:
    """With whole numbers for all parameters."""
    for turn, tensor in enumerate(model.parameters()):
        tensor.data = whole(tensor, turn)
    return model


class Odd(nn.Module):
    """Tensors that are shared, overlap, are no parameters or do not train, and words."""

    halves: Tensor
    hidden: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first: nn.Module = nn.Linear(4, 5)
        self.second = self.first
        self.tied = nn.Linear(4, 6, bias=False)
        self.table = nn.Embedding(6, 4)
        self.table.weight = self.tied.weight
        self.stuck = nn.Linear(4, 5, dtype=torch.bfloat16).requires_grad_(False)
        memory = whole(torch.empty(12))
        self.register_buffer("halves", memory[:8].reshape(2, 4))
        self.register_buffer("others", memory[4:].reshape(4, 2).T)
        self.register_buffer("hidden", whole(torch.empty(3, dtype=torch.int64)), persistent=False)
        self.plain = whole(torch.empty(2, 2, dtype=torch.float64))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.said: Any = {}
        for turn, tensor in enumerate(self.parameters()):
            tensor.data = whole(tensor, turn)

    def get_extra_state(self) -> Any:
        return self.said

    def set_extra_state(self, state: Any) -> None:
        self.said = state


def odd(dense: bool = False) -> nn.Module:
    """With one factored layer in two places, another that does not train; or without them."""
    model = Odd()
    if not dense:
        made = dict(_by_kind("lowrank"))
        model.first = model.second = made["linear"]
        model.stuck = copy.deepcopy(made["linear"]).to(torch.bfloat16).requires_grad_(False)
        model.said = {"words": ["a", None], "number": 1.5}
    return model


def _by_kind(format: str) -> Mapping[str, Any]:
    return {kind: layer for other, kind, layer in layers() if other == format}


def checkpoint() -> tuple[dict[str, Tensor], dict[str, Factors], dict[str, Any]]:
    """(tensors, factors by the name of the weight, plan), of a model that is not at hand."""
    found = {(format, kind): factors for format, kind, factors in samples()}
    factors = {"conv.weight": found["cp", "conv"], "head.weight": found["monarch", "linear"]}
    others = nn.ModuleDict({"conv": nn.Conv2d(4, 5, 3), "norm": nn.BatchNorm2d(5),
                            "head": nn.Linear(4, 5)}).state_dict()  # fmt: skip
    kept = {name: whole(tensor) for name, tensor in others.items() if name not in factors}
    return kept, factors, {"conv": {"method": "cp", "rank": 2}, "head": {"method": "monarch"}}


def gpt2() -> nn.Module:
    """A model of transformers: transposed layers, tied weights, buffers, a generation config."""
    import transformers

    config: Any = transformers.GPT2Config(
        n_embd=8, n_layer=1, n_head=2, n_positions=16, vocab_size=20, bos_token_id=1, eos_token_id=2
    )
    model: Any = transformers.GPT2LMHeadModel(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small, _ = tensorlrf.compress(model, keep_params=0.7, progress=False)
    return in_turns(small)
