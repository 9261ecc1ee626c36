"""Factors, layers and networks of small whole numbers: every sum is exact, in whatever order.

So a result here is the same to the bit on every machine, by every path, and for every BLAS.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tensorlrf import Plan, plan
from tensorlrf.compression import Method
from tensorlrf.compression._methods import METHODS
from tensorlrf.factors import Factors
from tensorlrf.nn import FactoredEmbedding, FactoredLayer
from tests.nn.samples import (
    FORMATS,
    KINDS,
    MATRIX_FORMATS,
    dense_conv,
    dense_linear,
    factored,
    random_factors,
    random_grouped,
)

EMBEDDED = ("lowrank", "cp", "tucker", "tucker_partial", "tt")
"""Formats in which rows are looked up."""
LARGE = {"linear large": ((768, 512), 64), "conv large": ((128, 64, 3, 3), 32)}
"""A name -> the shape of a weight, and the rank: where kernels and folds may pay."""


def whole(tensor: Tensor, turn: int = 0) -> Tensor:
    """Whole numbers from -2 to 2 in its place, others for another turn."""
    n = torch.arange(tensor.numel(), dtype=torch.int64)
    values = (n * 7 + n // 5 * 3 + n // 3 * 2 + turn * 2 + n // 11) % 5 - 2
    return values.reshape(tensor.shape).to(tensor.dtype)


def in_whole_numbers(factors: Factors) -> Factors:
    """The same format, in small whole numbers."""
    turns = itertools.count()
    return factors.map(lambda t: whole(t, next(turns)))


def samples() -> Iterator[tuple[str, str, Factors]]:
    """(format, kind of layer, factors), of every format and every layer that it serves."""
    for kind, (shape, groups) in KINDS.items():
        for format in (*FORMATS, *(MATRIX_FORMATS if kind == "linear" else ())):
            drawn = random_grouped(format, shape, groups, dtype=torch.float32)
            yield format, kind, in_whole_numbers(drawn)


def large_samples() -> Iterator[tuple[str, str, Factors]]:
    """Likewise, of `LARGE`."""
    for kind, (shape, rank) in LARGE.items():
        for format in (*FORMATS, *(MATRIX_FORMATS if len(shape) == 2 else ())):
            few = 2 if format in ("kron", "tree", "blr") else rank
            yield format, kind, random_factors(format, shape, few, dtype=torch.float32)


def tables() -> Iterator[tuple[str, Factors]]:
    """(format, factors of a table of 12 rows of 6)."""
    for format in EMBEDDED:
        yield format, in_whole_numbers(random_factors(format, (12, 6), dtype=torch.float32))


def layers() -> Iterator[tuple[str, str, FactoredLayer]]:
    """(format, kind, the layer), embeddings among them."""
    for format, kind, factors in samples():
        like = dense_linear(factors) if kind == "linear" else dense_conv(factors, padding=1)
        if like.bias is not None:
            like.bias.data = whole(like.bias)
        yield format, kind, factored(factors, like)
    for format, factors in tables():
        table = nn.Embedding(*factors.shape)
        yield format, "embedding", FactoredEmbedding.from_factors(factors, table)


def input_of(kind: str, layer: FactoredLayer) -> Tensor:
    """Two items of whole numbers, or indices."""
    if kind == "embedding":
        return torch.tensor([[0, 3, 11], [7, 7, 1]])
    shape, groups = KINDS[kind]
    size = (2, groups * shape[1], *(5,) * (len(shape) - 2))
    return whole(torch.empty(size, dtype=layer.factors.dtype))


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
    "svd": {"method": "randomized", "n_power_iter": 3, "n_oversample": 4, "metric": "diagonal"},
    "tucker": {
        "method": "hosvd", "n_iter_max": 7, "tol": 1e-3, "n_power_iter": 3, "n_oversample": 4,
        "rank_shares": (0.5, 0.75),
    },
    "cp": {
        "n_iter_max": 9, "init": "svd", "tol": 1e-3, "solver": "leverage", "n_samples": 40,
        "n_restarts": 1,
    },
    "kron": {
        "shapes": ((4, 3), (4, 4)), "method": "randomized", "n_iter_max": 5, "tol": 1e-3,
        "n_power_iter": 3, "n_oversample": 4,
    },
    "tt": {"row_sizes": (4, 4), "column_sizes": (4, 3), "n_iter_max": 5, "tol": 1e-3},
    "tr": {"sizes": ((4, 4), (4, 3)), "init": "random", "n_iter_max": 5, "tol": 1e-3},
    "blr": {"block": (4, 6), "dense_blocks": False, "n_iter_max": 5, "tol": 1e-3},
    "hierarchical": {"leaf": 4, "admissible": "strong", "n_iter_max": 5, "tol": 1e-3},
    "monarch": {"blocks": (4, 4), "n_iter_max": 5, "tol": 1e-3},
    "blast": {"blocks": (4, 3), "n_iter_max": 5, "tol": 1e-3},
}  # fmt: skip
"""A method -> its options at other values than the defaults, but for those that exclude others."""


def methods() -> dict[str, Method]:
    """Every method with every option, and the choice among some."""
    made = {word: METHODS[word](**options) for word, options in OPTIONS.items()}
    candidates = tuple(made[word] for word in ("svd", "cp", "monarch"))
    return {**made, "auto": METHODS["auto"](candidates=candidates)}


def plan_of(method: Method) -> Plan:
    """For the net: four fifths of its weights."""
    return plan(Net(), method=method, keep_params=0.8, skip=[])


def digest(tensor: Tensor) -> str:
    """Of its dtype, its sizes and the bytes of its numbers."""
    values = tensor.detach().contiguous()
    data = values.reshape(-1).view(torch.uint8).numpy().tobytes()
    head = f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"
    return f"{head} {hashlib.sha256(data).hexdigest()[:16]}"


def digest_of_numbers(tensor: Tensor) -> str:
    """Likewise, -0 as 0: a sum of nothing but zeros may have either sign."""
    return digest(tensor.detach() + 0.0)
