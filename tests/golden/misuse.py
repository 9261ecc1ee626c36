"""Formats, operations and the other decompositions on arguments that cannot be: what is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tensorlrf import decomposition, factors, ops
from tensorlrf.factors import (
    Batch,
    BlastFactors,
    BlockLowRank,
    CPFactors,
    Factors,
    Grouped,
    KroneckerSum,
    LowRank,
    MonarchFactors,
    TRFactors,
    TTFactors,
    TTMatrix,
    TuckerFactors,
)
from tensorlrf.ops import PathTable
from tests.golden.refusals import told, weight
from tests.golden.samples import samples

Cases = Mapping[str, Callable[[], Any]]
"""What is done wrong -> a call that does it."""


def lines(cases: Cases) -> Iterator[str]:
    """What comes of each."""
    for name, call in cases.items():
        yield f"{name}: {told(call)}"


def ones(*size: int, **options: Any) -> Tensor:
    """So many."""
    return torch.ones(size, **options)


def sample(format: str, kind: str = "linear") -> Factors:
    """The one of `samples`."""
    return next(f for one, other, f in samples() if (one, other) == (format, kind))


# ---- formats -----------------------------------------------------------------------------------

PAIR = (ones(4, 2), ones(3, 2))
FORMATS: Cases = {
    "lowrank of two ranks": lambda: LowRank(ones(4, 2), ones(3, 5)),
    "lowrank of three modes": lambda: LowRank(ones(4, 2, 1), ones(2, 5)),
    "lowrank of another shape": lambda: LowRank(ones(4, 2), ones(2, 6), (4, 5)),
    "lowrank of two dtypes": lambda: LowRank(ones(4, 2), ones(2, 5).double()),
    "lowrank of integers": lambda: LowRank(ones(4, 2).int(), ones(2, 5).int()),
    "lowrank of lists": lambda: LowRank([[1.0]], [[1.0]]),  # type: ignore[arg-type]
    "cp of no mode": lambda: CPFactors(ones(2), ()),
    "cp of other weights": lambda: CPFactors(ones(3), PAIR),
    "cp of a vector": lambda: CPFactors(ones(2), (ones(4, 2), ones(3))),
    "tucker of other ranks": lambda: TuckerFactors(ones(2, 3), PAIR, (0, 1)),
    "tucker of a mode twice": lambda: TuckerFactors(ones(2, 2), PAIR, (0, 0)),
    "tucker of a mode that is none": lambda: TuckerFactors(ones(2, 2), PAIR, (0, 2)),
    "tucker of one mode more": lambda: TuckerFactors(ones(2, 2), PAIR, (0,)),
    "tt of ranks apart": lambda: TTFactors((ones(1, 4, 2), ones(3, 5, 1))),
    "tt with open ends": lambda: TTFactors((ones(2, 4, 2), ones(2, 5, 2))),
    "tt of no core": lambda: TTFactors(()),
    "tt of other modes": lambda: TTFactors((ones(1, 4, 2), ones(2, 5, 1)), (0, 0)),
    "tt_matrix of another shape": lambda: TTMatrix((ones(1, 2, 2, 2), ones(2, 2, 2, 1)), (9, 4)),
    "tt_matrix of three modes": lambda: TTMatrix((ones(1, 2, 2),), (2, 2)),
    "tr of ranks apart": lambda: TRFactors((ones(2, 4, 2), ones(2, 5, 3)), (4, 5)),
    "tr of another shape": lambda: TRFactors((ones(2, 4, 2), ones(2, 5, 2)), (4, 6)),
    "kron of two lengths": lambda: KroneckerSum(ones(2, 2, 2), ones(3, 2, 2)),
    "kron of another shape": lambda: KroneckerSum(ones(2, 2, 2), ones(2, 2, 2), (9, 9)),
    "blr of no block": lambda: BlockLowRank.pack([], (4, 4)),
    "blr with a gap": lambda: BlockLowRank.pack([(0, 0, ones(2, 4))], (4, 4)),
    "blr with blocks over each other": lambda: BlockLowRank.pack(
        [(0, 0, ones(3, 4)), (2, 0, ones(2, 4))], (4, 4)
    ),
    "monarch of two ranks": lambda: MonarchFactors(ones(2, 2, 2, 1), ones(2, 2, 2, 2), (4, 4)),
    "monarch of another shape": lambda: MonarchFactors(ones(2, 2, 2, 1), ones(2, 2, 1, 2), (9, 4)),
    "blast of two ranks": lambda: BlastFactors(ones(2, 2, 1), ones(2, 2, 2), ones(2, 2, 1), (4, 4)),
    "blast of another shape": lambda: BlastFactors(
        ones(2, 2, 1), ones(2, 1, 2), ones(2, 2, 1), (9, 4)
    ),
    "batch of nothing": lambda: Batch.stack([]),
    "batch of two formats": lambda: Batch.stack([sample("lowrank"), sample("cp")]),
    "batch of another size": lambda: Batch.stack([sample("lowrank")] * 2, (3,)),
    "groups of nothing": lambda: Grouped.stack([]),
    "groups of two formats": lambda: Grouped.stack(
        [sample("lowrank", "conv"), sample("cp", "conv")]
    ),
    "group that is none": lambda: sample("lowrank", "grouped").group(2),  # type: ignore[attr-defined]
    "error of another shape": lambda: sample("lowrank").rel_error(ones(5, 5)),
    "error of a list": lambda: sample("lowrank").rel_error([1.0]),
    "to integers": lambda: sample("lowrank").to(torch.int64),
    "from_tensorly of a number": lambda: factors.from_tensorly(3),
    "to_tensorly of a format that it lacks": lambda: factors.to_tensorly(sample("blast")),
    "from tensors that lack one": lambda: LowRank.from_tensors({"left": ones(2, 1)}, {}),
}


# ---- other decompositions ----------------------------------------------------------------------


def train(*ranks: int) -> TTFactors:
    """Of sizes 3, 4 and 5."""
    ends = (1, *ranks, 1)
    return TTFactors(tuple(ones(ends[k], 3 + k, ends[k + 1]) for k in range(3)))


def value(indices: Tensor) -> Tensor:
    """Of a function of three indices."""
    return 1.0 / (1 + indices.sum(-1))


d = decomposition
OTHERS: Cases = {
    "tt_round of no train": lambda: d.tt_round(sample("lowrank"), 2),  # type: ignore[type-var]
    "tt_round to nothing": lambda: d.tt_round(train(2, 2)),
    "tt_round to both": lambda: d.tt_round(train(2, 2), 1, error=0.1),
    "tt_round to rank 0": lambda: d.tt_round(train(2, 2), 0),
    "tt_round to two many": lambda: d.tt_round(train(2, 2), (1, 1, 1)),
    "tt_round to an error of 2": lambda: d.tt_round(train(2, 2), error=2.0),
    "tt_round": lambda: d.tt_round(train(3, 3), 2),
    "tt_add of other shapes": lambda: d.tt_add(
        train(2, 2), TTFactors((ones(1, 3, 2), ones(2, 4, 1)))
    ),
    "tt_add of a matrix": lambda: d.tt_add(train(2, 2), sample("tt")),  # type: ignore[type-var]
    "tt_add of other dtypes": lambda: d.tt_add(train(2, 2), train(2, 2).to(torch.float64)),
    "tt_add": lambda: d.tt_add(train(2, 2), train(3, 1)),
    "tt_inner of no train": lambda: d.tt_inner(train(2, 2), sample("cp")),  # type: ignore[type-var]
    "tt_inner": lambda: d.tt_inner(train(2, 2), train(3, 1)),
    "tt_cross of no function": lambda: d.tt_cross(3, (3, 4, 5), 2, random_state=0),  # type: ignore[arg-type]
    "tt_cross of no size": lambda: d.tt_cross(value, (), 2),
    "tt_cross of an empty mode": lambda: d.tt_cross(value, (3, 0, 5), 2),
    "tt_cross to nothing": lambda: d.tt_cross(value, (3, 4, 5)),
    "tt_cross in no sweeps": lambda: d.tt_cross(value, (3, 4, 5), 2, n_iter_max=0),
    "tt_cross of no samples": lambda: d.tt_cross(value, (3, 4, 5), 2, n_samples=0),
    "tt_cross of too few values": lambda: d.tt_cross(
        lambda i: ones(1), (3, 4, 5), 2, random_state=0
    ),
    "tt_cross of integers": lambda: d.tt_cross(lambda i: i.sum(-1), (3, 4, 5), 2, random_state=0),
    "tt_cross of NaN": lambda: d.tt_cross(
        lambda i: value(i) * float("nan"), (3, 4, 5), 2, random_state=0
    ),
    "tt_cross": lambda: d.tt_cross(value, (3, 4, 5), 2, random_state=0),
    "evbmf of a vector": lambda: d.evbmf(ones(4)),
    "evbmf of NaN": lambda: d.evbmf(ones(4, 3) * float("nan")),
    "evbmf of values and another shape": lambda: d.evbmf(ones(4), shape=(3, 2)),
    "evbmf of a matrix and its shape": lambda: d.evbmf(ones(4, 3), shape=(4, 3)),
    "evbmf of negative values": lambda: d.evbmf(-ones(3), shape=(4, 3)),
    "evbmf": lambda: d.evbmf(weight()),
    "evbmf_rank": lambda: d.evbmf_rank(weight()),
    "scree of cp": lambda: d.scree(weight(), "cp"),
    "scree of an unknown word": lambda: d.scree(weight(), "unknown"),
    "scree of svd with modes": lambda: d.scree(weight(), "svd", modes=(0,)),
    "scree of kron without shapes": lambda: d.scree(weight(), "kron"),
    "scree of kron of other shapes": lambda: d.scree(weight(), "kron", shapes=((3, 3), (3, 3))),
    "scree of blr without a block": lambda: d.scree(weight(), "blr"),
    "scree of blr of a kernel": lambda: d.scree(weight(4, 4, 12), "blr", block=2),
    **{
        f"scree of {word}": lambda word=word, more=more: d.scree(weight(), word, **more)
        for word, more in (
            ("svd", {}),
            ("tucker", {}),
            ("tt", {}),
            ("kron", {"shapes": ((4, 3), (4, 4))}),
            ("blr", {"block": 4}),
        )
    },
    "sampled_fit of a matrix": lambda: d.sampled_fit(weight(), sample("lowrank")),  # type: ignore[arg-type]
    "sampled_fit of another shape": lambda: d.sampled_fit(weight(), sample("cp")),  # type: ignore[arg-type]
    "sampled_fit of no samples": lambda: d.sampled_fit(
        ones(5, 4),
        sample("cp"),  # type: ignore[arg-type]
        n_samples=0,
    ),
    "sampled_fit at a confidence of 2": lambda: d.sampled_fit(
        ones(5, 4),
        sample("cp"),  # type: ignore[arg-type]
        confidence=2.0,
    ),
    "bias_correction of another shape": lambda: d.bias_correction(
        weight(), sample("lowrank"), ones(12)
    ),
    "bias_correction of another mean": lambda: d.bias_correction(
        ones(5, 4), sample("lowrank"), ones(12)
    ),
    "bias_correction": lambda: d.bias_correction(ones(5, 4), sample("lowrank"), ones(4)),
    "mode_sizes of 0": lambda: d.mode_sizes(0, 2),
    "mode_sizes of order 0": lambda: d.mode_sizes(12, 0),
    "mode_sizes of 1.5": lambda: d.mode_sizes(1.5, 2),  # type: ignore[arg-type]
}


# ---- operations --------------------------------------------------------------------------------

ALL = ("lowrank", "cp", "tucker", "kron", "tt", "tr", "blr", "tree", "monarch", "blast")


def _operations() -> Iterator[str]:
    for format in ALL:
        linear = sample(format)
        yield from lines(
            {
                f"linear, {format}, of another width": lambda f=linear: ops.linear(ones(2, 3), f),
                f"linear, {format}, of a number": lambda f=linear: ops.linear(ones(), f),
                f"linear, {format}, of float64": lambda f=linear: ops.linear(
                    ones(2, 4).double(), f
                ),
                f"linear, {format}, of a list": lambda f=linear: ops.linear([1.0], f),
                f"linear, {format}, of another bias": lambda f=linear: ops.linear(
                    ones(2, 4), f, ones(4)
                ),
                f"linear, {format}, fused": lambda f=linear: ops.linear(
                    ones(2, 4), f, path="fused"
                ),
                f"linear, {format}, by an unknown path": lambda f=linear: ops.linear(
                    ones(2, 4), f, path="unknown"
                ),
                f"linear, {format}, of no rows": lambda f=linear: ops.linear(ones(0, 4), f),
                f"conv2d, {format}, of a matrix": lambda f=linear: ops.conv2d(ones(1, 4, 5, 5), f),
                f"embedding, {format}": lambda f=linear: ops.embedding(torch.tensor([0, 4]), f),
                f"embedding, {format}, beyond": lambda f=linear: ops.embedding(
                    torch.tensor([5]), f
                ),
                f"embedding, {format}, of floats": lambda f=linear: ops.embedding(ones(2), f),
            }
        )
    for format in ("lowrank", "cp", "tucker", "kron", "tt"):
        kernel = sample(format, "conv")
        yield from lines(
            {
                f"conv2d, {format}, {name}": lambda f=kernel, x=x, more=more: ops.conv2d(
                    x, f, **more
                )
                for name, x, more in _of_convolutions()
            }
        )
        yield from lines(
            {
                f"conv1d, {format}, of two axes": lambda f=kernel: ops.conv1d(ones(1, 4, 5), f),
                f"linear, {format}, of a kernel": lambda f=kernel: ops.linear(ones(2, 4), f),
            }
        )
    yield from lines(
        {
            "path table of nothing": lambda: PathTable(()),
            "path table with a last number": lambda: PathTable(((4, "dense"),)),
            "path table that falls": lambda: PathTable(
                ((4, "dense"), (2, "chain"), (None, "dense"))
            ),
            "path table of no choice": lambda: PathTable.from_choices({}),
            "path table from a number": lambda: PathTable.from_json(3),
            "contract": lambda: ops.contract("ij,jk->ik", ones(2, 3), sample("cp")),
            "contract of other sizes": lambda: ops.contract("ij,jk->ik", ones(2, 3), ones(2, 3)),
            "contract of one letter more": lambda: ops.contract("ijk->i", ones(2, 3)),
            "inner of other shapes": lambda: ops.inner(sample("cp"), sample("cp", "conv")),
            "inner": lambda: ops.inner(sample("cp"), sample("lowrank")),
            "linear_cost of an unknown path": lambda: ops.linear_cost(sample("cp"), "unknown", 1),
            "profile_of an unknown device": lambda: ops.profile_of("unknown"),
        }
    )


def _of_convolutions() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    x = ones(1, 4, 5, 5)
    yield "of other channels", ones(1, 3, 5, 5), {}
    yield "of three dimensions", ones(4, 5, 5), {}
    yield "of two dimensions", ones(5, 5), {}
    yield "smaller than the kernel", ones(1, 4, 2, 2), {}
    for option in ("stride", "dilation"):
        for value in (0, -1, 1.5, (1, 2, 3), "two"):
            yield f"{option}={value!r}", x, {option: value}
    for value in (-1, 1.5, (1, 2, 3), "full", "same", "valid"):
        yield f"padding={value!r}", x, {"padding": value}
    yield "padding='same' in steps", x, {"padding": "same", "stride": 2}
    yield "path='unknown'", x, {"path": "unknown"}
    yield "path='fused'", x, {"path": "fused"}


MISUSED: dict[str, Callable[[], Iterator[str]]] = {
    "formats": lambda: lines(FORMATS),
    "others": lambda: lines(OTHERS),
    "operations": _operations,
}
"""An area -> the lines of it."""
