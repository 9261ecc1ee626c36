# Written by `make generate`, from the signatures of the decompositions.

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch

from tensorlrf.decomposition._bias import bias_correction
from tensorlrf.decomposition._evbmf import EVBMF, evbmf, evbmf_rank
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.analysis._corcondia import corcondia
from tensorlrf.decomposition.analysis._matching import FactorMatch, factor_match_score
from tensorlrf.decomposition.analysis._restarts import (
    RestartCongruence,
    SplitHalf,
    restart_congruence,
    split_half,
)
from tensorlrf.decomposition.analysis._scree import Scree, ScreeSpectrum, scree
from tensorlrf.decomposition.analysis.measures import SpectralMeasures, spectral_measures
from tensorlrf.decomposition.bayesian._bayesian_cp import bayesian_cp
from tensorlrf.decomposition.bayesian._bayesian_tucker import bayesian_tucker
from tensorlrf.decomposition.bayesian._posterior import Posterior
from tensorlrf.decomposition.blocks._blast import blast, fit_blast
from tensorlrf.decomposition.blocks._group_reduce import fit_group_reduce, group_reduce
from tensorlrf.decomposition.blocks._hierarchical import (
    fit_hierarchical,
    fit_hodlr,
    hierarchical,
    hodlr,
)
from tensorlrf.decomposition.blocks._monarch import fit_monarch, monarch
from tensorlrf.decomposition.codes._dictionary import dictionary, fit_dictionary
from tensorlrf.decomposition.codes._lplr import fit_lplr, lplr
from tensorlrf.decomposition.completion._cross_validation import CrossValidation, cross_validate
from tensorlrf.decomposition.completion._robust import fit_robust_completion, robust_completion
from tensorlrf.decomposition.coupled._coupled import (
    CoupledFit,
    coupled_factorization,
    fit_coupled_factorization,
)
from tensorlrf.decomposition.coupled._parafac2 import fit_parafac2, parafac2
from tensorlrf.decomposition.cp._cp import cp, fit_cp
from tensorlrf.decomposition.cp._sampled_fit import SampledFit, sampled_fit
from tensorlrf.decomposition.cp.stable._stabilize import fit_stabilize_cp, stabilize_cp
from tensorlrf.decomposition.generalized._cp_apr import cp_apr, fit_cp_apr
from tensorlrf.decomposition.generalized._generalized_cp import fit_generalized_cp, generalized_cp
from tensorlrf.decomposition.generalized._loss import Loss
from tensorlrf.decomposition.generalized._loss_fit import LossFit
from tensorlrf.decomposition.generalized._losses import huber_loss, negative_binomial_loss
from tensorlrf.decomposition.heads._heads import cp_of_heads, tucker_of_heads
from tensorlrf.decomposition.linalg.observed._complete import Watch
from tensorlrf.decomposition.nonnegative._constrained_cp import constrained_cp, fit_constrained_cp
from tensorlrf.decomposition.nonnegative._nmf import fit_nmf, nmf
from tensorlrf.decomposition.nonnegative._nonnegative_cp import fit_nonnegative_cp, nonnegative_cp
from tensorlrf.decomposition.nonnegative._nonnegative_tucker import (
    fit_nonnegative_tucker,
    nonnegative_tucker,
)
from tensorlrf.decomposition.nonnegative._symmetric_cp import fit_symmetric_cp, symmetric_cp
from tensorlrf.decomposition.rank import Rank
from tensorlrf.decomposition.sizes import mode_sizes
from tensorlrf.decomposition.skeleton._aca import aca, fit_aca
from tensorlrf.decomposition.skeleton._cur import cur, fit_cur
from tensorlrf.decomposition.skeleton._interpolative import fit_interpolative, interpolative
from tensorlrf.decomposition.skeleton._nystrom import fit_nystrom, nystrom
from tensorlrf.decomposition.streaming._cp import OnlineCP
from tensorlrf.decomposition.streaming._svd import IncrementalSVD
from tensorlrf.decomposition.streaming._tucker import OnlineTucker
from tensorlrf.decomposition.sums._low_rank_plus_quantized import (
    fit_low_rank_plus_quantized,
    low_rank_plus_quantized,
)
from tensorlrf.decomposition.sums._low_rank_plus_sparse import (
    fit_low_rank_plus_sparse,
    low_rank_plus_sparse,
)
from tensorlrf.decomposition.sums._robust_pca import fit_robust_pca, robust_pca
from tensorlrf.decomposition.sums._staged import fit_staged, staged
from tensorlrf.decomposition.svd._shared import shared_svd
from tensorlrf.decomposition.trains._tr import fit_tr, tr
from tensorlrf.decomposition.trains._tt_algebra import tt_add, tt_inner
from tensorlrf.decomposition.trains._tt_cross import fit_tt_cross, tt_cross
from tensorlrf.decomposition.trains._tt_elementwise import fit_tt_elementwise, tt_elementwise
from tensorlrf.decomposition.trains._tt_matrix import fit_tt_matrix, tt_matrix
from tensorlrf.decomposition.trains._tt_norm import tt_distance, tt_norm, tt_orthogonalize
from tensorlrf.decomposition.trains._tt_round import fit_tt_round, tt_round
from tensorlrf.decomposition.trees._ht import fit_hierarchical_tucker, hierarchical_tucker
from tensorlrf.decomposition.tucker._block_term import block_term, fit_block_term
from tensorlrf.decomposition.tucker._solve import Callback
from tensorlrf.factors import Batch, BlockLowRank, KroneckerSum, LowRank, TTFactors, TuckerFactors

@overload
def fit_svd(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    solver: str = "auto",
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Watch | None = None,
    n_power_iter: int = 8,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    differentiable: bool = False,
    batch_dims: Literal[0] = 0,
) -> Fit[LowRank]: ...
@overload
def fit_svd(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    solver: str = "auto",
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Watch | None = None,
    n_power_iter: int = 8,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    differentiable: bool = False,
    batch_dims: int,
) -> Fit[LowRank] | Fit[Batch]: ...
@overload
def svd(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    solver: str = "auto",
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Watch | None = None,
    n_power_iter: int = 8,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    differentiable: bool = False,
    batch_dims: Literal[0] = 0,
) -> LowRank: ...
@overload
def svd(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    solver: str = "auto",
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Watch | None = None,
    n_power_iter: int = 8,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    differentiable: bool = False,
    batch_dims: int,
) -> LowRank | Batch: ...
@overload
def fit_tucker(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    modes: Sequence[int] | None = None,
    solver: str = "hooi",
    n_iter_max: int | None = None,
    tol: float | None = None,
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    callback: Callback | None = None,
    n_power_iter: int = 2,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    differentiable: bool = False,
    batch_dims: Literal[0] = 0,
) -> Fit[TuckerFactors]: ...
@overload
def fit_tucker(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    modes: Sequence[int] | None = None,
    solver: str = "hooi",
    n_iter_max: int | None = None,
    tol: float | None = None,
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    callback: Callback | None = None,
    n_power_iter: int = 2,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    differentiable: bool = False,
    batch_dims: int,
) -> Fit[TuckerFactors] | Fit[Batch]: ...
@overload
def tucker(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    modes: Sequence[int] | None = None,
    solver: str = "hooi",
    n_iter_max: int | None = None,
    tol: float | None = None,
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    callback: Callback | None = None,
    n_power_iter: int = 2,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    differentiable: bool = False,
    batch_dims: Literal[0] = 0,
) -> TuckerFactors: ...
@overload
def tucker(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    modes: Sequence[int] | None = None,
    solver: str = "hooi",
    n_iter_max: int | None = None,
    tol: float | None = None,
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    callback: Callback | None = None,
    n_power_iter: int = 2,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    differentiable: bool = False,
    batch_dims: int,
) -> TuckerFactors | Batch: ...
@overload
def fit_tt(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    modes: Sequence[int] | None = None,
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Watch | None = None,
    batch_dims: Literal[0] = 0,
) -> Fit[TTFactors]: ...
@overload
def fit_tt(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    modes: Sequence[int] | None = None,
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Watch | None = None,
    batch_dims: int,
) -> Fit[TTFactors] | Fit[Batch]: ...
@overload
def tt(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    modes: Sequence[int] | None = None,
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Watch | None = None,
    batch_dims: Literal[0] = 0,
) -> TTFactors: ...
@overload
def tt(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    modes: Sequence[int] | None = None,
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Watch | None = None,
    batch_dims: int,
) -> TTFactors | Batch: ...
@overload
def fit_kron(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    shapes: Any = None,
    solver: str = "auto",
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    n_power_iter: int = 8,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    batch_dims: Literal[0] = 0,
) -> Fit[KroneckerSum]: ...
@overload
def fit_kron(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    shapes: Any = None,
    solver: str = "auto",
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    n_power_iter: int = 8,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    batch_dims: int,
) -> Fit[KroneckerSum] | Fit[Batch]: ...
@overload
def kron(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    shapes: Any = None,
    solver: str = "auto",
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    n_power_iter: int = 8,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    batch_dims: Literal[0] = 0,
) -> KroneckerSum: ...
@overload
def kron(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    shapes: Any = None,
    solver: str = "auto",
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    n_power_iter: int = 8,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    batch_dims: int,
) -> KroneckerSum | Batch: ...
@overload
def fit_blr(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    block: int | tuple[int, int] | None = None,
    dense_blocks: bool = True,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    batch_dims: Literal[0] = 0,
) -> Fit[BlockLowRank]: ...
@overload
def fit_blr(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    block: int | tuple[int, int] | None = None,
    dense_blocks: bool = True,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    batch_dims: int,
) -> Fit[BlockLowRank] | Fit[Batch]: ...
@overload
def blr(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    block: int | tuple[int, int] | None = None,
    dense_blocks: bool = True,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    batch_dims: Literal[0] = 0,
) -> BlockLowRank: ...
@overload
def blr(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    block: int | tuple[int, int] | None = None,
    dense_blocks: bool = True,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    batch_dims: int,
) -> BlockLowRank | Batch: ...

__all__ = [
    "EVBMF",
    "CoupledFit",
    "CrossValidation",
    "FactorMatch",
    "Fit",
    "IncrementalSVD",
    "Loss",
    "LossFit",
    "OnlineCP",
    "OnlineTucker",
    "Posterior",
    "RestartCongruence",
    "SampledFit",
    "Scree",
    "ScreeSpectrum",
    "SpectralMeasures",
    "SplitHalf",
    "aca",
    "bayesian_cp",
    "bayesian_tucker",
    "bias_correction",
    "blast",
    "block_term",
    "blr",
    "constrained_cp",
    "corcondia",
    "coupled_factorization",
    "cp",
    "cp_apr",
    "cp_of_heads",
    "cross_validate",
    "cur",
    "dictionary",
    "evbmf",
    "evbmf_rank",
    "factor_match_score",
    "fit_aca",
    "fit_blast",
    "fit_block_term",
    "fit_blr",
    "fit_constrained_cp",
    "fit_coupled_factorization",
    "fit_cp",
    "fit_cp_apr",
    "fit_cur",
    "fit_dictionary",
    "fit_generalized_cp",
    "fit_group_reduce",
    "fit_hierarchical",
    "fit_hierarchical_tucker",
    "fit_hodlr",
    "fit_interpolative",
    "fit_kron",
    "fit_low_rank_plus_quantized",
    "fit_low_rank_plus_sparse",
    "fit_lplr",
    "fit_monarch",
    "fit_nmf",
    "fit_nonnegative_cp",
    "fit_nonnegative_tucker",
    "fit_nystrom",
    "fit_parafac2",
    "fit_robust_completion",
    "fit_robust_pca",
    "fit_stabilize_cp",
    "fit_staged",
    "fit_svd",
    "fit_symmetric_cp",
    "fit_tr",
    "fit_tt",
    "fit_tt_cross",
    "fit_tt_elementwise",
    "fit_tt_matrix",
    "fit_tt_round",
    "fit_tucker",
    "generalized_cp",
    "group_reduce",
    "hierarchical",
    "hierarchical_tucker",
    "hodlr",
    "huber_loss",
    "interpolative",
    "kron",
    "low_rank_plus_quantized",
    "low_rank_plus_sparse",
    "lplr",
    "mode_sizes",
    "monarch",
    "negative_binomial_loss",
    "nmf",
    "nonnegative_cp",
    "nonnegative_tucker",
    "nystrom",
    "parafac2",
    "restart_congruence",
    "robust_completion",
    "robust_pca",
    "sampled_fit",
    "scree",
    "shared_svd",
    "spectral_measures",
    "split_half",
    "stabilize_cp",
    "staged",
    "svd",
    "symmetric_cp",
    "tr",
    "tt",
    "tt_add",
    "tt_cross",
    "tt_distance",
    "tt_elementwise",
    "tt_inner",
    "tt_matrix",
    "tt_norm",
    "tt_orthogonalize",
    "tt_round",
    "tucker",
    "tucker_of_heads",
]
