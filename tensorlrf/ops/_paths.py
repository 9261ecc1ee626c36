"""Which path runs for how many rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tensorlrf.errors import ArgumentError, shown
from tensorlrf.factors import Factors
from tensorlrf.ops._conv import conv_paths
from tensorlrf.ops._cost import Positions, conv_cost, embedding_cost, linear_cost
from tensorlrf.ops._counter import Cost, Step
from tensorlrf.ops._embedding import embedding_paths
from tensorlrf.ops._linear import linear_paths
from tensorlrf.ops._profile import DeviceProfile, nominal_profile, profile_of
from tensorlrf.ops.buckets import BUCKETS
from tensorlrf.ops.forms._form import form_of
from tensorlrf.ops.forms._structure import of_structure
from tensorlrf.ops.geometry import Axes


@dataclass(frozen=True)
class PathTable:
    """Rows M -> path.

    Parameters
    ----------
    entries : tuple of (int or None, str)
        (largest number of rows, path) in ascending order; the last has no largest number (None).
        Neighbours differ in their path, so a table of one entry needs no branch.

    Examples
    --------
    >>> table = tensorlrf.ops.PathTable.from_choices({64: "chain", 1024: "dense"})
    >>> table.entries
    ((64, 'chain'), (None, 'dense'))
    >>> table.lookup(64), table.lookup(65)
    ('chain', 'dense')
    """

    entries: tuple[tuple[int | None, str], ...]

    def __post_init__(self) -> None:
        limits = [limit for limit, _ in self.entries]
        bounded = [limit for limit in limits[:-1] if isinstance(limit, int)]
        if (
            not limits
            or limits[-1] is not None
            or len(bounded) != len(limits) - 1
            or bounded != sorted(set(bounded))
        ):
            raise ArgumentError(
                f"entries={self.entries!r} must be (rows, path) with ascending rows, the last "
                "(None, path)"
            )

    @classmethod
    def single(cls, path: str) -> PathTable:
        """One path for any number of rows."""
        return cls(((None, path),))

    @classmethod
    def from_choices(cls, choices: Mapping[int, str]) -> PathTable:
        """From the path chosen at some numbers of rows.

        Parameters
        ----------
        choices : Mapping
            Number of rows -> path; each holds up to its number, and the largest beyond.

        Returns
        -------
        PathTable
        """
        if not choices:
            raise ArgumentError("choices={} is empty; give a path for one number of rows at least")
        entries: list[tuple[int | None, str]] = []
        for rows, path in sorted(choices.items()):
            if entries and entries[-1][1] == path:
                entries.pop()
            entries.append((rows, path))
        entries[-1] = (None, entries[-1][1])
        return cls(tuple(entries))

    @classmethod
    def from_cost(
        cls,
        factors: Factors,
        *,
        stride: Axes | None = None,
        paths: tuple[str, ...] | None = None,
        rebuild: bool = True,
        profile: DeviceProfile | None = None,
        transposed: bool = False,
    ) -> PathTable:
        """By the cost model: the path that it predicts to be fastest in each bucket.

        Parameters
        ----------
        factors : Factors
        stride : tuple of int, optional
            One entry an axis.
        paths : tuple of str, optional
            Those to choose from; by default all that the format has.
        rebuild : bool
            False stands for a frozen layer, which keeps its dense weight.
        profile : DeviceProfile, optional
            By default that of the factors' device.
        transposed : bool
            Whether the convolution is a transposed one.

        Returns
        -------
        PathTable
        """
        paths = paths or paths_of(factors, transposed=transposed)
        profile = profile_of(factors.device) if profile is None else profile
        choices = {
            rows: best_path(
                factors,
                rows,
                stride=stride,
                paths=paths,
                rebuild=rebuild,
                profile=profile,
                transposed=transposed,
            )
            for rows in BUCKETS
        }
        return cls.from_choices(choices)

    def lookup(self, rows: int) -> str:
        """The path for `rows` rows; looks at nothing else."""
        for limit, path in self.entries:
            if limit is None or rows <= limit:
                return path
        raise AssertionError("the last entry has no limit")

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that occur, each once."""
        return tuple(dict.fromkeys(path for _, path in self.entries))

    def to_json(self) -> list[list[Any]]:
        """As JSON values."""
        return [[limit, path] for limit, path in self.entries]

    @classmethod
    def from_json(cls, values: Any) -> PathTable:
        """Inverse of `to_json`; a string is parsed first. Raises ArgumentError."""
        try:
            parsed = json.loads(values) if isinstance(values, str) else values
            entries = tuple((limit, path) for limit, path in parsed)
        except (TypeError, ValueError, RecursionError):
            raise ArgumentError(
                f"values={shown(values)} is not a path table; it must be a list of [rows, path]"
            ) from None
        return cls(entries)

    def __str__(self) -> str:
        if len(self.entries) == 1:
            return self.entries[0][1]
        parts = [
            f"{path} for M <= {limit}" if limit is not None else f"{path} above"
            for limit, path in self.entries
        ]
        return ", ".join(parts)


def paths_of(factors: Factors, *, transposed: bool = False) -> tuple[str, ...]:
    """The paths of the layer that has these factors: order 2 is linear, 3 to 5 a convolution.

    Parameters
    ----------
    factors : Factors
    transposed : bool
        Whether the convolution is a transposed one.

    Returns
    -------
    tuple of str

    Raises
    ------
    UnsupportedError
        For a format that has none.

    Examples
    --------
    >>> tensorlrf.ops.paths_of(tensorlrf.tucker(torch.rand(8, 6, 3), 2))
    ('dense', 'chain')
    """
    if len(factors.shape) == 2:
        return linear_paths(factors)
    return conv_paths(factors, transposed=transposed)


def path_cost(
    factors: Factors,
    path: str,
    rows: int,
    *,
    stride: Axes | None = None,
    rebuild: bool = True,
    transposed: bool = False,
) -> Cost:
    """Cost of a path for `rows` rows of output, of a linear layer or of a convolution.

    Parameters
    ----------
    factors : Factors
    path : str
    rows : int
        Of the output, M.
    stride : tuple of int, optional
        Of a convolution, one entry an axis; 1 by default.
    rebuild : bool
        False leaves out what "dense" spends on rebuilding the weight.
    transposed : bool
        Whether the convolution is a transposed one.

    Returns
    -------
    Cost

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 6), 2)
    >>> dense, chain = (tensorlrf.ops.path_cost(f, path, 10) for path in ("dense", "chain"))
    >>> chain.flops < dense.flops
    True
    """
    if len(factors.shape) == 2:
        return linear_cost(factors, path, rows, rebuild=rebuild)
    where = _positions(factors, rows, stride, transposed)
    return conv_cost(factors, path, where, rebuild=rebuild, transposed=transposed)


def _positions(factors: Factors, rows: int, stride: Axes | None, transposed: bool) -> Positions:
    strides = stride or (1,) * (len(factors.shape) - 2)
    return Positions.from_rows(rows, strides, transposed=transposed)


def floor_cost(
    factors: Factors, rows: int, *, stride: Axes | None = None, transposed: bool = False
) -> Cost:
    """The least that any path on the factors must do.

    Read input and factors, write the output, and the FLOPs of the factored path that has the
    fewest.

    Parameters
    ----------
    factors : Factors
    rows : int
        Of the output, M.
    stride : tuple of int, optional
        Of a convolution, one entry an axis; 1 by default.
    transposed : bool
        Whether the convolution is a transposed one.

    Returns
    -------
    Cost
        Of one step.

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 6), 2)
    >>> floor = tensorlrf.ops.floor_cost(f, 10)
    >>> floor.bytes <= tensorlrf.ops.path_cost(f, "chain", 10).bytes
    True
    """
    read, out_channels, in_channels = rows, *factors.shape[:2]
    if len(factors.shape) > 2:
        read = _positions(factors, rows, stride, transposed).input
    in_channels *= form_of(factors).groups(factors)
    elements = read * in_channels + rows * out_channels + factors.n_params
    paths = (path for path in paths_of(factors, transposed=transposed) if path != "dense")
    costs = (path_cost(factors, p, rows, stride=stride, transposed=transposed) for p in paths)
    flops = min(cost.flops for cost in costs)
    return Cost((Step("matmul", flops, elements * factors.dtype.itemsize),))


def best_path(
    factors: Factors,
    rows: int,
    *,
    stride: Axes | None = None,
    paths: tuple[str, ...] | None = None,
    rebuild: bool = True,
    profile: DeviceProfile | None = None,
    transposed: bool = False,
) -> str:
    """The path that the cost model predicts to be fastest for `rows` rows; ties go to the first.

    Parameters
    ----------
    factors : Factors
    rows : int
        Of the output, M.
    stride : tuple of int, optional
        Of a convolution, one entry an axis; 1 by default.
    paths : tuple of str, optional
        Those to choose from; by default all that the format has.
    rebuild : bool
        False stands for a frozen layer, which keeps its dense weight.
    profile : DeviceProfile, optional
        By default that of the factors' device.
    transposed : bool
        Whether the convolution is a transposed one.

    Returns
    -------
    str

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(1024, 1024), 8)
    >>> tensorlrf.ops.best_path(f, rows=256, paths=("dense", "chain"))
    'chain'
    """
    profile = profile_of(factors.device) if profile is None else profile

    def seconds(path: str) -> float:
        cost = path_cost(factors, path, rows, stride=stride, rebuild=rebuild, transposed=transposed)
        return profile.seconds(cost, factors.dtype)

    return min(paths or paths_of(factors, transposed=transposed), key=seconds)


def best_embedding_path(
    factors: Factors,
    rows: int,
    *,
    paths: Sequence[str] | None = None,
    rebuild: bool = True,
    profile: DeviceProfile | None = None,
) -> str:
    """The path that the cost model predicts to be fastest for `rows` indices.

    Ties go to the first. A table that is kept needs no product, so with `rebuild=False` the path
    "dense" is always fastest, and the memory that factoring has won is lost.

    Parameters
    ----------
    factors : Factors
    rows : int
        How many indices.
    paths : sequence of str, optional
        Those to choose from; by default all that the format has.
    rebuild : bool
        False stands for a frozen layer, which keeps its table.
    profile : DeviceProfile, optional
        By default that of the factors' device.

    Returns
    -------
    str

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(1000, 64), 4)
    >>> tensorlrf.ops.best_embedding_path(f, rows=10, paths=("dense", "chain"))
    'chain'
    """
    profile = profile_of(factors.device) if profile is None else profile

    def seconds(path: str) -> float:
        return profile.seconds(embedding_cost(factors, path, rows, rebuild=rebuild), factors.dtype)

    return min(paths or embedding_paths(factors), key=seconds)


@of_structure
def nominal_path(
    factors: Factors,
    paths: tuple[str, ...],
    rows: int,
    stride: Axes | None,
    device: str,
    transposed: bool = False,
) -> str:
    """`best_path` by the nominal profile of a kind of device."""
    profile = nominal_profile(torch.device(device))
    return best_path(
        factors, rows, stride=stride, paths=paths, profile=profile, transposed=transposed
    )


@of_structure
def nominal_embedding_path(factors: Factors, paths: tuple[str, ...], rows: int, device: str) -> str:
    """Likewise of a lookup."""
    profile = nominal_profile(torch.device(device))
    return best_embedding_path(factors, rows, paths=paths, profile=profile)
