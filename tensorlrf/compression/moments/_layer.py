"""A layer of which moments are kept: what identifies it, and how much is known of its inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration.moments._form import COUNTS, FULL, IMAGE, Form
from tensorlrf.compression.calibration.moments._moments import (
    CountMoments,
    LinearMoments,
    Moments,
)
from tensorlrf.compression.calibration.moments._sums import PRODUCTS
from tensorlrf.files.safetensors import DTYPES, TORCH_DTYPES

SAMPLES = 32
"""Numbers of a weight by which it is told from others: models that were trained differ in all."""


@dataclass(frozen=True)
class Weight:
    """By what the weight of a layer is known again.

    shape    (O, I / groups, *kernel), or (out, in)
    dtype    as safetensors calls it
    samples  some of its numbers, evenly spread; none where it had no values
    """

    shape: tuple[int, ...]
    dtype: str
    samples: tuple[float, ...]

    @classmethod
    def of(cls, weight: Tensor) -> Weight:
        """Of a weight in the layout of its layer."""
        shape, dtype = tuple(weight.shape), DTYPES[weight.dtype]
        if weight.is_meta or not weight.numel():
            return cls(shape, dtype, ())
        at = [torch.tensor(k, device=weight.device) for k in zip(*places(shape), strict=True)]
        return cls(shape, dtype, tuple(weight[tuple(at)].to(torch.float64).tolist()))

    def why_not(self, other: Weight, here: str = "the one", there: str = "the other") -> str:
        """What tells another weight from it, as the rest of a sentence; empty where nothing does.
        `here` and `there` are where they were met.

        Numbers may have been rounded to the dtype of either.
        """
        if self.shape != other.shape:
            return f"is {times(self.shape)} in {here} and {times(other.shape)} in {there}"
        if not self.samples or not other.samples:
            return ""
        pairs = zip(self.samples, other.samples, strict=True)
        coarse = max(self.dtype, other.dtype, key=lambda word: torch.finfo(TORCH_DTYPES[word]).eps)
        about = torch.finfo(TORCH_DTYPES[coarse])
        rel, least = (
            (about.eps, about.tiny * about.eps) if self.dtype != other.dtype else (0.0, 0.0)
        )
        for a, b in pairs:
            same = a == b or (math.isnan(a) and math.isnan(b))
            if not same and not abs(a - b) <= max(least, rel * max(abs(a), abs(b))):
                return f"has other values: {a:.9g} in {here} is {b:.9g} in {there}"
        return ""


def places(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The indices of the numbers of a tensor that are looked at."""
    last = math.prod(shape) - 1
    flat = sorted({last * k // (SAMPLES - 1) for k in range(SAMPLES)})
    found = []
    for number in flat:
        index = []
        for size in reversed(shape):
            number, k = divmod(number, size)
            index.append(k)
        found.append(tuple(reversed(index)))
    return found


@dataclass(frozen=True)
class CalibratedLayer:
    """What `Moments` has of one layer.

    Parameters
    ----------
    name : str
        Its qualified name.
    count : int
        Inputs that were seen: rows of a linear layer, patches of a convolution, tokens of an
        embedding. 0 of a layer that no batch has reached.
    groups : int
        Of a convolution; each has moments of its own.
    like : str
        The layer that is fed the very same and whose moments serve for both; empty for most.
    kept : Form
        How its second moments are kept; `form` says it in words.
    weight : Weight
        By what its weight is known again.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
    >>> row = tensorlrf.calibrate(model, [torch.rand(64, 8)], skip=[]).layer("0")
    >>> row.count, row.columns, row.form
    (64, 8, 'full')
    """

    name: str
    count: int
    groups: int
    like: str
    kept: Form
    weight: Weight = field(repr=False)

    @property
    def form(self) -> str:
        """In which its second moments are kept: full, a sketch, an image, or counts."""
        return str(self.kept)

    @property
    def columns(self) -> int:
        """n: numbers in one input of one group."""
        return math.prod(self.weight.shape[1:])

    @property
    def source(self) -> str:
        """The layer under whose name its moments are."""
        return self.like or self.name

    @property
    def n_bytes(self) -> int:
        """Of these sums of all groups."""
        return 8 * self.groups * sum(math.prod(shape) for shape in shapes_of(self).values())


def unseen(name: str, layer: DenseLayer, form: Form) -> CalibratedLayer:
    """Of a layer of a model, of whose inputs nothing has been seen."""
    kept = COUNTS if layer.is_table else form
    return CalibratedLayer(name, 0, layer.groups, "", kept, Weight.of(layer.weight))


def shapes_of(row: CalibratedLayer) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the sums of one group, all in float64, as a file has them: of products the
    upper triangle, row by row."""
    n, size = row.columns, row.kept.size
    shapes: dict[str, tuple[int, ...]] = {"cubes": (n,), "fourth": ()}
    if row.kept == COUNTS:
        return shapes
    shapes["sum"] = (n,)
    if row.kept == FULL:
        return {**shapes, PRODUCTS: (n * (n + 1) // 2,)}
    if row.kept.kind == IMAGE:
        return {**shapes, "image": (size, n), "inner": (size, size), "squares": (n,)}
    return {**shapes, "rows": (2 * size, n), "filled": (), "squares": (n,), "lost": ()}


def empty(row: CalibratedLayer) -> Moments:
    """What the sums of one group are taken up in, on the CPU."""
    n, device = row.columns, torch.device("cpu")
    return CountMoments(n, device) if row.kept == COUNTS else LinearMoments(n, device, row.kept)


def times(shape: tuple[int, ...]) -> str:
    """16 x 32 of a shape."""
    return " x ".join(map(str, shape))
