"""From a model to a smaller one: ranks under a budget, calibration, replacement, report."""

from tensorlrf.compression._apply import apply
from tensorlrf.compression._compress import compress, compress_
from tensorlrf.compression._export import densify, export
from tensorlrf.compression.benchmark._bench import bench
from tensorlrf.compression.benchmark._benchmark import Benchmark, BenchmarkRow
from tensorlrf.compression.benchmark._ratio import Ratio
from tensorlrf.compression.checkpoint._file import load, save, write_checkpoint
from tensorlrf.compression.checkpoint._inspect import FileLayer, FileReport, inspect
from tensorlrf.compression.comparison._compare import compare
from tensorlrf.compression.comparison._comparison import (
    ComparedLayer,
    Comparison,
    LayerSide,
    OutputsApart,
)
from tensorlrf.compression.folding._fold import fold_batch_norms
from tensorlrf.compression.frontier._frontier import frontier
from tensorlrf.compression.frontier._point import FrontierPoint
from tensorlrf.compression.frontier._points import Frontier
from tensorlrf.compression.group._group import on_one_rank
from tensorlrf.compression.latent._latent_cache import latent_cache
from tensorlrf.compression.latent._report import LatentReport, LatentRow
from tensorlrf.compression.losses._sensitivity import sensitivity
from tensorlrf.compression.methods import Auto
from tensorlrf.compression.moments._calibrate import calibrate
from tensorlrf.compression.moments._layer import CalibratedLayer
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.page.environment import Environment
from tensorlrf.compression.plan._plan import LayerPlan, Plan
from tensorlrf.compression.plan._planning import plan
from tensorlrf.compression.plan.allocation import Allocation, Allotment, Candidate
from tensorlrf.compression.plan.sensitivity import LayerSensitivity, Sensitivity
from tensorlrf.compression.ranks._gates import gate_ranks
from tensorlrf.compression.ranks._measured import rank_table
from tensorlrf.compression.ranks._order import order_by_energy
from tensorlrf.compression.ranks._rank_scale import RankScale, rank_scale
from tensorlrf.compression.ranks._table import RankRow, RankTable
from tensorlrf.compression.recipe._recipe import Recipe
from tensorlrf.compression.refinement._refine import refine
from tensorlrf.compression.refinement._refinement import Checkpoint, Refinement
from tensorlrf.compression.report._memory import LayerMemory, MemoryForecast
from tensorlrf.compression.report._quality import Judged, Quality
from tensorlrf.compression.report._report import Report
from tensorlrf.compression.report._rows import (
    BatchNorms,
    ExpertPool,
    FoldedNorms,
    GateChoice,
    Latency,
    LayerReport,
    SharedBasis,
    Totals,
)
from tensorlrf.compression.scale._checkpoint import compress_checkpoint
from tensorlrf.compression.scale._forecast import CheckpointForecast, forecast_checkpoint
from tensorlrf.compression.scale._report import CheckpointLayer, CheckpointReport
from tensorlrf.compression.spectral._laser import laser
from tensorlrf.compression.spectral._measured import LayerSpectrum, Spectra
from tensorlrf.compression.spectral._reduction import Laser, Reduction
from tensorlrf.compression.spectral._spectra import spectra
from tensorlrf.compression.training._progressive import ProgressiveDecomposition
from tensorlrf.compression.training._pruning import RankPruning
from tensorlrf.compression.tuning._tune import tune
from tensorlrf.compression.tuning._tuning import BucketTiming, LayerTuning, Tuning, WholeTiming
from tensorlrf.decomposition.configs import (
    BLR,
    CP,
    CUR,
    LPLR,
    SVD,
    TR,
    TT,
    Blast,
    BlockTerms,
    DictionaryLearning,
    GroupReduce,
    Hierarchical,
    Interpolative,
    Kron,
    LowRankPlusSparse,
    Method,
    Monarch,
    Structured,
    Tucker,
)
from tensorlrf.files.events import log_to

__all__ = [
    "BLR",
    "CP",
    "CUR",
    "LPLR",
    "SVD",
    "TR",
    "TT",
    "Allocation",
    "Allotment",
    "Auto",
    "BatchNorms",
    "Benchmark",
    "BenchmarkRow",
    "Blast",
    "BlockTerms",
    "BucketTiming",
    "CalibratedLayer",
    "Candidate",
    "Checkpoint",
    "CheckpointForecast",
    "CheckpointLayer",
    "CheckpointReport",
    "ComparedLayer",
    "Comparison",
    "DictionaryLearning",
    "Environment",
    "ExpertPool",
    "FileLayer",
    "FileReport",
    "FoldedNorms",
    "Frontier",
    "FrontierPoint",
    "GateChoice",
    "GroupReduce",
    "Hierarchical",
    "Interpolative",
    "Judged",
    "Kron",
    "Laser",
    "Latency",
    "LatentReport",
    "LatentRow",
    "LayerMemory",
    "LayerPlan",
    "LayerReport",
    "LayerSensitivity",
    "LayerSide",
    "LayerSpectrum",
    "LayerTuning",
    "LowRankPlusSparse",
    "MemoryForecast",
    "Method",
    "Moments",
    "Monarch",
    "OutputsApart",
    "Plan",
    "ProgressiveDecomposition",
    "Quality",
    "RankPruning",
    "RankRow",
    "RankScale",
    "RankTable",
    "Ratio",
    "Recipe",
    "Reduction",
    "Refinement",
    "Report",
    "Sensitivity",
    "SharedBasis",
    "Spectra",
    "Structured",
    "Totals",
    "Tucker",
    "Tuning",
    "WholeTiming",
    "apply",
    "bench",
    "calibrate",
    "compare",
    "compress",
    "compress_",
    "compress_checkpoint",
    "densify",
    "export",
    "fold_batch_norms",
    "forecast_checkpoint",
    "frontier",
    "gate_ranks",
    "inspect",
    "laser",
    "latent_cache",
    "load",
    "log_to",
    "on_one_rank",
    "order_by_energy",
    "plan",
    "rank_scale",
    "rank_table",
    "refine",
    "save",
    "sensitivity",
    "spectra",
    "tune",
    "write_checkpoint",
]
