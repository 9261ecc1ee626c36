"""First and second moments of a layer's inputs, streamed: G = X X^T / N, never X itself.

A column of X is one input row of a linear layer, or one unfolded patch of a conv in the order
(I, *kernel) of `torch.nn.functional.unfold`; N counts columns.

Products are made in float32 (float64 for float64 inputs) over at most `COLUMNS` columns and added
up in float64. By Cauchy-Schwarz an entry is then off by no more than COLUMNS * 6e-8 of
sqrt(G_ii G_jj), in practice by sqrt(COLUMNS) of that unit or less since BLAS sums in blocks, and
this does not grow with N. Directions that hold less than about 1e-6 of the energy are below it;
an output error of 1e-3 is where they would begin to matter. Sums over an axis are in the dtype of
the inputs too, which torch sums in cascades: for sums in float64 it copies all of them.

Beside G, 8 n^2 bytes, and a product, 4 n^2, a conv needs at a time padded images of 16 MB, or one
that is larger, once more in float64, and patches of 16 MB, or of one output row if that is more.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration.moments._form import COUNTS, FULL, IMAGE, Form
from tensorlrf.compression.calibration.moments._lengths import Lengths
from tensorlrf.compression.calibration.moments._shifts import ShiftedCorrelations, sums_of
from tensorlrf.compression.calibration.moments._sums import PRODUCTS, mirrored, raised
from tensorlrf.compression.calibration.taps._taps import Phase, Tap, in_batch
from tensorlrf.compression.calibration.taps._transposed import Reading
from tensorlrf.decomposition.linalg.compact import Gram, LowRankPlusDiagonal

PATCH_NUMBERS = 1 << 22
"""Numbers in one block of unfolded patches (16 MB in float32); at the least one output row."""

FEW_CHANNELS = 8
"""Up to here unfolding is cheaper than one correlation for each difference of taps."""


class Moments(ABC):
    """G = X X^T / N and the mean of one layer's inputs, or of one group of them, batch by batch.

    count    N so far
    lengths  sums over |x|^2 so far, from which it is known how far G is off
    """

    count: int = 0

    def __init__(self, n: int, device: torch.device) -> None:
        self.lengths = Lengths(n, device)

    @abstractmethod
    def add(self, x: Tensor) -> None:
        """Take the input of one call of the layer; it is neither changed nor kept."""

    def merge(self, other: Self) -> None:
        """Take what another one of the same layer has seen."""
        self.lengths.merge(other.lengths)
        self.count += other.count

    def tensors(self) -> dict[str, Tensor]:
        """All that has been summed so far, the very memory: as `LinearMoments` of the columns has
        it, or `CountMoments`."""
        return {"cubes": self.lengths.cubes, "fourth": self.lengths.fourth}

    def restore(self, count: int, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave of another one, whose memory is its own now."""
        self.count = count
        self.lengths.cubes, self.lengths.fourth = tensors["cubes"], tensors["fourth"]

    @property
    def unseen(self) -> float:
        """Of all inputs the share that is like none of those so far, where that is known."""
        return 0.0

    @abstractmethod
    def gram(self, *, last: bool = False) -> Gram:
        """G so far: (n, n), symmetric, float64; nothing is added any more. The `last` time it is
        asked for it may take the memory of the sums."""

    @abstractmethod
    def mean(self) -> Tensor:
        """The mean column so far: (n,), float64."""


class SummedMoments(Moments):
    """With the sum of the columns beside."""

    def __init__(self, n: int, device: torch.device) -> None:
        super().__init__(n, device)
        self._sum = torch.zeros(n, dtype=torch.float64, device=device)

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._sum += other._sum

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "sum": self._sum}

    def restore(self, count: int, tensors: Mapping[str, Tensor]) -> None:
        super().restore(count, tensors)
        self._sum = tensors["sum"]

    def mean(self) -> Tensor:
        return self._sum / max(1, self.count)

    def _add_sums(self, phase: Phase, images: Tensor) -> Tensor:
        """Take all of the patches of a phase but their products; returns the images as its taps see
        them."""
        padded, columns = phase.taps.padded(images), phase.columns
        own = slice(None) if columns is None else columns.to(self._sum.device)
        self._sum[own] += phase.taps.sums(padded)
        self.lengths.add_patches(padded, phase.taps, columns)
        return padded


class ColumnMoments(SummedMoments):
    """Of columns that are there as they stand: sums of their products, and of themselves."""

    def __init__(
        self, n: int, device: torch.device, form: Form = FULL, weight: Tensor | None = None
    ) -> None:
        super().__init__(n, device)
        self._products = form.sums(n, device, weight)

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._products.merge(other._products)

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), **self._products.tensors()}

    def restore(self, count: int, tensors: Mapping[str, Tensor]) -> None:
        super().restore(count, tensors)
        self._products.restore(tensors)

    def gram(self, *, last: bool = False) -> Gram:
        return self._products.mean(max(1, self.count), last=last)


class LinearMoments(ColumnMoments):
    """Over all leading dimensions of the input (..., n)."""

    def add(self, x: Tensor) -> None:
        rows = raised(x.detach()).reshape(-1, x.shape[-1])  # (N, n)
        self._products.take(rows)
        self.lengths.add(rows)
        self._sum += rows.sum(0).to(torch.float64)
        self.count += rows.shape[0]


class CountMoments(Moments):
    """Of an embedding, whose inputs are indicators e_v of the rows v that are looked up: G =
    diag(p) with the shares p of the tokens, which are the mean as well. All have length one.

    Drawn towards its mean eigenvalue by what so many samples warrant, p is the shrinkage estimate
    of Hausser & Strimmer 2009 ("Entropy inference and the James-Stein estimator"), in which rows
    that were never seen have a floor.
    """

    @property
    def unseen(self) -> float:
        """As many as were seen once (Good 1953)."""
        return float((self.lengths.cubes == 1).sum()) / max(1, self.count)

    def add(self, x: Tensor) -> None:
        """Indices of any shape; those out of range are left to the layer to refuse."""
        counts = self.lengths.cubes
        indices = x.detach().flatten().to(torch.int64)
        indices = indices[(indices >= 0) & (indices < len(counts))]
        counts.index_add_(0, indices, torch.ones_like(indices, dtype=torch.float64))
        self.lengths.fourth += len(indices)
        self.count += len(indices)

    def gram(self, *, last: bool = False) -> LowRankPlusDiagonal:
        shares = self.mean()
        return LowRankPlusDiagonal(shares.new_zeros(0, len(shares)), shares)

    def mean(self) -> Tensor:
        return self.lengths.cubes / max(1, self.count)


class PatchMoments(ColumnMoments):
    """Of a conv with any stride and any number of axes, by unfolding a bounded block of output
    rows at a time. The input is that of one group."""

    def __init__(self, taps: Reading, device: torch.device, form: Form = FULL) -> None:
        super().__init__(taps.patch, device, form)
        self._taps = taps

    def add(self, x: Tensor) -> None:
        for images in _in_parts(x.detach(), self._taps.axes):
            images = raised(images)
            for phase in self._taps.phases(images.shape[2:]):
                self._unfold(phase, self._add_sums(phase, images))
            self.count += _outputs(self._taps, images)

    def _unfold(self, phase: Phase, padded: Tensor) -> None:
        """Take the products of the patches of a phase, of a padded batch (batch, I, *size)."""
        taps, n = phase.taps, self._taps.patch
        height, *others = taps.positions(padded)
        step = max(1, PATCH_NUMBERS // (n * max(1, math.prod(others))))
        for image in taps.patches(padded):  # (*positions, I, *kernel), a view
            for top in range(0, height, step):
                block = image[top : top + step].reshape(-1, taps.patch)  # (N, n)
                if phase.columns is None:
                    self._products.take(block)
                else:
                    self._products.take_at(block, phase.columns, n)


class ShiftMoments(SummedMoments):
    """Of a conv in one or two axes with stride 1, or of a transposed one, by correlations of the
    shifted input.

    Apart from the borders, the block of G for taps p and q depends on q - p only: a 3 x 3 kernel
    needs 13 products of the size of the input instead of 45 (or 81, by unfolding); a transposed one
    of 4 x 4 at stride 2 needs 5.
    """

    def __init__(self, taps: Reading, device: torch.device) -> None:
        super().__init__(taps.patch, device)
        self._taps, self._device = taps, device
        self._parts = self._no_parts()
        self._whole: Tensor | None = None  # of what is in no parts any more

    def add(self, x: Tensor) -> None:
        taps = self._taps
        for images in _in_parts(x.detach(), taps.axes):
            images = raised(images)
            for phase in taps.phases(images.shape[2:]):
                self._add_sums(phase, images)
            grid, zeros = taps.grid(images)
            outputs = taps.outputs_along(images.shape[2:])
            if taps.axes == 1:  # a conv in one axis is one of height 1
                grid, zeros, outputs = grid[:, :, None], ((0, 0), *zeros), [(1,), *outputs]
            self._parts.add(grid, outputs, zeros)
            self.count += _outputs(taps, images)

    def merge(self, other: Self) -> None:
        super().merge(other)
        self._parts.merge(other._parts)
        if other._whole is not None:
            self._whole = other._whole + (0 if self._whole is None else self._whole)

    def tensors(self) -> dict[str, Tensor]:
        self._whole, self._parts = self._total(), self._no_parts()
        return {**super().tensors(), PRODUCTS: self._whole}

    def restore(self, count: int, tensors: Mapping[str, Tensor]) -> None:
        super().restore(count, tensors)
        self._whole, self._parts = mirrored(tensors[PRODUCTS]), self._no_parts()

    def gram(self, *, last: bool = False) -> Tensor:
        return self._total().div_(max(1, self.count))

    def _total(self) -> Tensor:
        """X X^T so far, the caller's own."""
        total = self._parts.total()
        return total if self._whole is None else total.add_(self._whole)

    def _no_parts(self) -> ShiftedCorrelations:
        return ShiftedCorrelations(self._taps.channels, *_two_axes(self._taps), self._device)


def _outputs(taps: Reading, images: Tensor) -> int:
    """How many patches there are in a batch (batch, I, *size)."""
    along = taps.outputs_along(images.shape[2:])
    return int(images.shape[0]) * math.prod(map(sum, along))


def _two_axes(taps: Reading) -> tuple[Sequence[Tap], Sequence[Tap]]:
    """The taps along rows and columns; a conv in one axis has one row of them."""
    *rows, columns = taps.along()
    return (rows[0] if rows else [Tap(0)]), columns


def moments_of(layer: DenseLayer, form: Form = FULL) -> Moments:
    """An empty accumulator for the inputs of one group of a layer, the cheapest that serves it."""
    taps, n, device = layer.taps, layer.columns, layer.device
    if layer.is_table:
        return CountMoments(n, device)
    if taps is None:
        return LinearMoments(n, device, form, layer.weight if form.kind == IMAGE else None)
    if taps.is_pointwise:
        return _Pointwise(n, device, taps, form)
    taps = taps.one_group()
    if form == FULL and _shifts(taps):
        return ShiftMoments(taps, device)
    return PatchMoments(taps, device, form)


def bytes_of(layer: DenseLayer, form: Form = FULL) -> int:
    """What the accumulators of all groups of a layer hold, more or less."""
    products = (COUNTS if layer.is_table else form).numbers(layer.columns)
    if form == FULL and layer.taps is not None and _shifts(layer.taps.one_group()):
        products = 2 * products // math.prod(layer.taps.kernel)
    return 8 * layer.groups * products


def moment_bytes(layer: DenseLayer, form: Form = FULL) -> int:
    """What `moments_of` one group takes at the most: the sums, and the matrix that is made of
    them."""
    if layer.is_table:
        return COUNTS.held(layer.columns)
    matrix, taps = 8 * layer.columns**2, layer.taps
    if form != FULL or taps is None or taps.is_pointwise or not _shifts(taps):
        return form.held(layer.columns)
    return 8 * taps.channels**2 * sums_of(*_two_axes(taps)) + 2 * matrix


def _shifts(taps: Reading) -> bool:
    return taps.axes < 3 and taps.slides and taps.channels > FEW_CHANNELS


class _Pointwise(LinearMoments):
    """Of a conv with a kernel of one element that reads every pixel: a linear layer on channels."""

    def __init__(self, n: int, device: torch.device, taps: Reading, form: Form = FULL) -> None:
        super().__init__(n, device, form)
        self._axes = taps.axes

    def add(self, x: Tensor) -> None:
        for images in _in_parts(x, self._axes):
            super().add(images.movedim(1, -1))


def _in_parts(x: Tensor, axes: int) -> Iterator[Tensor]:
    """A batch (batch, I, *size), or one input without a batch dimension, a few images at a time:
    copies of them have `PATCH_NUMBERS` numbers, one image at the least."""
    x = in_batch(x, axes)
    images = max(1, PATCH_NUMBERS // max(1, x[0].numel())) if x.shape[0] else 1
    for start in range(0, x.shape[0], images):
        yield x[start : start + images]
