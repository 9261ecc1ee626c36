"""Decompositions: functions from a tensor to factors.

`cp(...)` gives the factors; `fit_cp(...)` takes the same arguments and gives a `Fit`, which also
holds the errors on the way and the reason for stopping. Likewise `svd`, `tucker`, `tt`,
`tt_matrix`, `tr`, `kron`, `blr`, `hierarchical`, `hodlr`, `monarch` and `blast`. Trains are
rounded, added and multiplied (`tt_round`, `tt_add`, `tt_inner`), and found of functions
(`tt_cross`). `evbmf` estimates a rank, `scree` shows what each rank would leave out, `sampled_fit`
estimates a fit from a sample of entries, `bias_correction(...)` gives what a bias can make good of
factors.
"""

from tensorlrf.decomposition._bias import bias_correction
from tensorlrf.decomposition._blast import blast, fit_blast
from tensorlrf.decomposition._blr import blr, fit_blr
from tensorlrf.decomposition._cp import cp, fit_cp
from tensorlrf.decomposition._cp_sampled_fit import SampledFit, sampled_fit
from tensorlrf.decomposition._evbmf import EVBMF, evbmf, evbmf_rank
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._hierarchical import fit_hierarchical, fit_hodlr, hierarchical, hodlr
from tensorlrf.decomposition._kron import fit_kron, kron
from tensorlrf.decomposition._mode_sizes import mode_sizes
from tensorlrf.decomposition._monarch import fit_monarch, monarch
from tensorlrf.decomposition._scree import Scree, ScreeSpectrum, scree
from tensorlrf.decomposition._svd import fit_svd, svd
from tensorlrf.decomposition._tr import fit_tr, tr
from tensorlrf.decomposition._tt import fit_tt, tt
from tensorlrf.decomposition._tt_algebra import tt_add, tt_inner
from tensorlrf.decomposition._tt_cross import fit_tt_cross, tt_cross
from tensorlrf.decomposition._tt_matrix import fit_tt_matrix, tt_matrix
from tensorlrf.decomposition._tt_round import fit_tt_round, tt_round
from tensorlrf.decomposition._tucker import fit_tucker, tucker

__all__ = [
    "EVBMF",
    "Fit",
    "SampledFit",
    "Scree",
    "ScreeSpectrum",
    "bias_correction",
    "blast",
    "blr",
    "cp",
    "evbmf",
    "evbmf_rank",
    "fit_blast",
    "fit_blr",
    "fit_cp",
    "fit_hierarchical",
    "fit_hodlr",
    "fit_kron",
    "fit_monarch",
    "fit_svd",
    "fit_tr",
    "fit_tt",
    "fit_tt_cross",
    "fit_tt_matrix",
    "fit_tt_round",
    "fit_tucker",
    "hierarchical",
    "hodlr",
    "kron",
    "mode_sizes",
    "monarch",
    "sampled_fit",
    "scree",
    "svd",
    "tr",
    "tt",
    "tt_add",
    "tt_cross",
    "tt_inner",
    "tt_matrix",
    "tt_round",
    "tucker",
]
