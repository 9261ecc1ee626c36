"""Decompositions of a tensor that is divided along one mode, in slabs of a file or over ranks:
public as `tensorlrf.large`."""

from tensorlrf.decomposition.large._cp import cp, fit_cp
from tensorlrf.decomposition.large._divided import Divided, Sharded, Slabs
from tensorlrf.decomposition.large._fit import LargeFit
from tensorlrf.decomposition.large._svd import fit_svd, svd
from tensorlrf.decomposition.large._tt import fit_tt, tt
from tensorlrf.decomposition.large._tucker import fit_tucker, tucker

__all__ = [
    "Divided",
    "LargeFit",
    "Sharded",
    "Slabs",
    "cp",
    "fit_cp",
    "fit_svd",
    "fit_tt",
    "fit_tucker",
    "svd",
    "tt",
    "tucker",
]
