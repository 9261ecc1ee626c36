"""Factors and layers of small whole numbers: every sum is exact, in whatever order.

So a result here is the same to the bit on every machine, by every path, and for every BLAS.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf import decomposition
from tensorlrf.factors import (
    Batch,
    Composite,
    Dictionary,
    Factors,
    Grouped,
    LowRank,
    Quantized,
    Skeleton,
    SparseTensor,
)
from tensorlrf.factors.leaves.codes import CODES
from tensorlrf.nn import FactoredLayer, factored_type
from tests.nn.samples import KINDS, dense_conv, dense_linear
from tests.ops.samples import FORMATS, MATRIX_FORMATS, random_factors, random_grouped

ALL_FORMATS = (*FORMATS, *MATRIX_FORMATS)
EMBEDDED = ("lowrank", "cp", "tucker", "tucker_partial", "tt")
"""Formats in which rows are looked up."""
LARGE = {
    "linear large": ((768, 512), 64, 1),
    "conv large": ((128, 64, 3, 3), 32, 1),
    "conv1d large": ((128, 64, 5), 32, 1),
    "conv3d large": ((64, 32, 3, 3, 3), 16, 1),
    "grouped large": ((64, 32, 3, 3), 16, 2),
}
"""A name -> the shape of a weight, the rank, and groups: where kernels and folds may pay."""
SLIDING: dict[str, tuple[str, dict[str, Any]]] = {
    "conv strided": (
        "conv",
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "bias": False},
    ),
    "conv reflected": ("conv", {"padding": 1, "padding_mode": "reflect"}),
    "conv3d same": ("conv3d", {"padding": "same"}),  # of even sizes: more zeros on one side
    "grouped strided": ("grouped", {"stride": 2}),
}
"""A name -> the kind of layer that has the same weight, and other options."""
TRANSPOSED = "transposed"
"""The Conv1D of transformers, whose weight is (in, out)."""
EMBEDDING = "embedding"


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
    for kind, (shape, rank, groups) in LARGE.items():
        for format in (*FORMATS, *(MATRIX_FORMATS if len(shape) == 2 else ())):
            few = 2 if format in ("kron", "tree", "blr") else rank
            one = random_factors(format, shape, few, dtype=torch.float32)
            yield format, kind, one if groups == 1 else Grouped.stack([one] * groups)


def tables() -> Iterator[tuple[str, Factors]]:
    """(format, factors of a table of 12 rows of 6)."""
    for format in EMBEDDED:
        yield format, in_whole_numbers(random_factors(format, (12, 6), dtype=torch.float32))


def layers() -> Iterator[tuple[str, str, FactoredLayer]]:
    """(format, kind, the layer), of every format and every layer, with options and without."""
    for format, kind, factors in samples():
        yield format, kind, of_factors(kind, factors)
        for other, (base, _) in SLIDING.items():
            if base == kind:
                yield format, other, of_factors(other, factors)
        if kind == "linear":
            yield format, TRANSPOSED, of_factors(TRANSPOSED, factors)
    for format, factors in tables():
        yield format, EMBEDDING, of_factors(EMBEDDING, factors)


def large_tables() -> Iterator[tuple[str, Factors]]:
    """Likewise, of 4,096 rows of 256, whose numbers are never looked at."""
    for format in EMBEDDED:
        yield format, random_factors(format, (4096, 256), 32, dtype=torch.float32)


def of_factors(kind: str, factors: Factors) -> FactoredLayer:
    """The layer of that kind on those factors."""
    like = dense_layer(kind, factors)
    layer = factored_type(like)
    assert layer is not None
    return layer.from_factors(factors, like)


def dense_layer(kind: str, factors: Factors) -> nn.Module:
    """What the layer of that kind stands in for, in whole numbers."""
    base, options = SLIDING.get(kind, (kind, {"padding": 1}))
    if kind == EMBEDDING:
        return nn.Embedding(*factors.shape, padding_idx=1)
    if kind == TRANSPOSED:
        from transformers.pytorch_utils import Conv1D

        made = Conv1D(*factors.shape)
    else:
        made = dense_linear(factors) if base == "linear" else dense_conv(factors, **options)
    for tensor in made.parameters():
        tensor.data = whole(tensor)
    return made


def input_of(kind: str, layer: FactoredLayer) -> Tensor:
    """Two items of whole numbers, or indices."""
    if kind == EMBEDDING:
        return torch.tensor([[0, 3, 11], [7, 7, 1]])
    base, _ = SLIDING.get(kind, ("linear" if kind == TRANSPOSED else kind, {}))
    shape, groups = KINDS[base]
    size = (2, groups * shape[1], *(5,) * (len(shape) - 2))
    return whole(torch.empty(size, dtype=layer.factors.dtype))


def factors_by_format() -> dict[str, dict[str, Factors]]:
    """Format -> name -> factors: of all layers, of other dtypes, as decompositions make them, and
    batches."""
    found: dict[str, dict[str, Factors]] = {}
    for format, kind, factors in samples():
        found.setdefault(format, {})[kind] = factors
        if kind == "linear":
            for dtype in (torch.bfloat16, torch.float16, torch.float64):
                name = str(dtype).removeprefix("torch.")
                found[format][f"linear {name}"] = factors.to(dtype)
    for format, factors in tables():
        found[format]["embedding"] = factors
    for format, name, made in _decomposed():
        found.setdefault(format, {})[name] = in_whole_numbers(made)
    found["sparse"] = {"of a matrix": _sparse(16, 12), "of a tensor": _sparse(3, 4, 5)}
    found |= {"quantized": dict(_coded()), "composite": {"of a matrix": _composite()}}
    found["dictionary"] = {"of a matrix": _dictionary()}
    found["skeleton"] = {"of a matrix": _skeleton()}
    found["batch"] = {name: in_whole_numbers(made) for name, made in _batches()}
    return found


def _coded() -> Iterator[tuple[str, Factors]]:
    """(name, factors in few bits, as a matrix and as a low rank), their scales in whole numbers."""
    matrix = whole(torch.empty(4, 6))
    low = LowRank(whole(torch.empty(4, 2)), whole(torch.empty(2, 6)))
    for codes in CODES:
        yield f"matrix in {codes}", in_whole_numbers(Quantized.encode(matrix, codes, group=3))
        yield f"lowrank in {codes}", in_whole_numbers(Quantized.encode(low, codes))


def _skeleton() -> Factors:
    rows, columns = (torch.tensor(at, dtype=torch.int32) for at in ([3, 0], [1, 5]))
    sides = whole(torch.empty(4, 2)), whole(torch.empty(2, 2)), whole(torch.empty(2, 6))
    return Skeleton(*sides, columns, rows)


def _dictionary() -> Factors:
    places = torch.tensor([[0, 2], [1, 2], [0, 1], [0, 2]], dtype=torch.uint8)
    return Dictionary(whole(torch.empty(4, 2)), whole(torch.empty(3, 6)), places)


def _composite() -> Factors:
    coded = dict(_coded())
    low = LowRank(whole(torch.empty(4, 2)), whole(torch.empty(2, 6)))
    return Composite((low, coded["matrix in int4"], coded["lowrank in int8"]))


def _decomposed() -> Iterator[tuple[str, str, Factors]]:
    """(format, name, factors as a decomposition gives them), of shapes that the samples have not.
    What they hold is not looked at but for its sizes."""
    d, matrix = decomposition, whole(torch.empty(16, 12)) + 9 * torch.eye(16, 12)
    tensor, odd = matrix.reshape(4, 4, 3, 4), matrix[:15, :11]
    yield "lowrank", "svd", d.svd(odd, error=0.5)
    yield "cp", "cp", d.cp(tensor, 3, n_iter_max=2, random_state=0)
    yield "tucker", "tucker", d.tucker(tensor, (2, 3), modes=(1, 3))
    yield "kron", "kron", d.kron(matrix, 2, shapes=((8, 2), (2, 6)))
    yield "tt", "tt", d.tt(tensor, 2)
    yield "tt", "tt_matrix", d.tt_matrix(odd, 2, order=3)
    yield "tr", "tr", d.tr(matrix, 2, sizes=((4, 4), (3, 2, 2)), n_iter_max=2, random_state=0)
    yield "blr", "blr", d.blr(odd, error=0.5, block=(4, 6))
    yield "blr", "blr of low rank alone", d.blr(matrix, 0.6, block=4, dense_blocks=False)
    yield "tree", "hierarchical", d.hierarchical(matrix, 0.7, leaf=2, admissible="strong")
    yield "tree", "hodlr", d.hodlr(odd, 0.7, leaf=4)
    yield "monarch", "monarch", d.monarch(odd, 1, blocks=(4, 3))
    yield "blast", "blast", d.blast(odd, 2, blocks=(4, 3), n_iter_max=2, random_state=0)
    terms = d.block_term(matrix.reshape(8, 6, 4), 2, form="ll1", n_iter_max=2, random_state=0)
    yield "block_term", "block_term", terms
    yield "ht", "hierarchical_tucker", d.hierarchical_tucker(tensor, 2)
    yield "ht", "hierarchical_tucker in a chain", d.hierarchical_tucker(tensor, 3, tree="train")
    yield "parafac2", "parafac2", d.parafac2([tensor[0, 0], matrix[:6, :4]], 2, n_iter_max=2)
    counts = 9000 // torch.arange(1, 65).square()
    yield (
        "banded",
        "group_reduce",
        d.group_reduce(whole(torch.empty(64, 6)) + torch.eye(64, 6), 0.6, counts=counts),
    )


def _sparse(*shape: int) -> Factors:
    return SparseTensor.of(whole(torch.empty(shape)) * (whole(torch.empty(shape), 1) > 0))


def _batches() -> Iterator[tuple[str, Factors]]:
    d, matrix = decomposition, whole(torch.empty(2, 16, 12)) + 9 * torch.eye(16, 12)
    yield "svd", d.svd(matrix, 2, batch_dims=1)
    yield "tucker", d.tucker(matrix.reshape(2, 4, 4, 12), 2, solver="hosvd", batch_dims=1)
    yield "tt", d.tt(matrix.reshape(2, 4, 4, 12), 2, batch_dims=1)
    yield "kron", d.kron(matrix, 2, shapes=((4, 3), (4, 4)), batch_dims=1)
    yield "blr", d.blr(matrix, 0.6, block=4, batch_dims=1)
    for format, kind, factors in samples():
        if kind == "linear":
            yield f"{format} of two by two", Batch.stack([factors] * 4, (2, 2))


LAYERS_OF: dict[str, tuple[str, ...]] = {
    format: tuple(
        kind
        for kind in (*KINDS, *SLIDING, TRANSPOSED, EMBEDDING)
        if (kind != EMBEDDING or format in EMBEDDED)
        and (kind in ("linear", TRANSPOSED) or format in FORMATS)
    )
    for format in ALL_FORMATS
}
"""A format -> the kinds of layers that run on it."""


def digest(tensor: Tensor) -> str:
    """Of its dtype, its sizes and the bytes of its numbers."""
    values = tensor.detach().contiguous()
    data = values.reshape(-1).view(torch.uint8).numpy().tobytes()
    head = f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"
    return f"{head} {hashlib.sha256(data).hexdigest()[:16]}"


def digest_of_numbers(tensor: Tensor) -> str:
    """Likewise, -0 as 0: a sum of nothing but zeros may have either sign."""
    return digest(tensor.detach() + 0.0)
