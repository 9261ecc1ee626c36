"""The criterion by which a block low-rank approximation is truncated."""

from __future__ import annotations

from dataclasses import dataclass

from tensorlrf.decomposition.blocks._blr_fit import check_block_rank
from tensorlrf.decomposition.blocks._blr_matrix import check_pair
from tensorlrf.decomposition.rank import Rank, _one_int, _share
from tensorlrf.errors import ArgumentError


@dataclass(frozen=True)
class Criterion:
    """One of a rank for every block, ranks by estimate, a share of the parameters and an error;
    and the size of a block, where it is not to be searched for.

    rank   of every block, where `share` and `error` are None; None for estimates
    """

    rank: int | None
    share: float | None
    error: float | None
    block: tuple[int, int] | None

    @classmethod
    def of(
        cls,
        rank: Rank | None,
        error: float | None,
        block: int | tuple[int, int] | None,
        shape: tuple[int, int],
    ) -> Criterion:
        """From the arguments, of which one of `rank` and `error` is given, for an (m, n) matrix.

        Raises RankError, ShapeError and ArgumentError as `blr` does.
        """
        what = "a block is no larger than the matrix"
        size = None if block is None else check_pair(block, "block", 1, shape, what)
        if rank is None:
            return cls(None, None, error, size)
        auto = isinstance(rank, str) and rank == "auto"
        share = None if auto else _share(rank)
        if share is not None:
            return cls(None, share, None, size)
        one = None if auto else _one_int(rank)
        if size is None:
            raise ArgumentError(
                f"rank={rank!r} for every block needs block=, such as block=64; a share of the "
                "parameters or error= finds a block by itself"
            )
        return cls(None if one is None else check_block_rank(one, *size), None, None, size)
