# Written by `make generate`, from the signatures of the decompositions.

from dataclasses import dataclass

from tensorlrf.decomposition.config import Method, Structured

@dataclass(frozen=True, kw_only=True)
class SVD(Method):
    solver: str = "auto"
    n_power_iter: int = 8
    n_oversample: int = 10
    metric: str = "full"

@dataclass(frozen=True, kw_only=True)
class Tucker(Method):
    solver: str = "hooi"
    n_iter_max: int | None = None
    tol: float | None = None
    n_power_iter: int = 2
    n_oversample: int = 10
    rank_shares: tuple[float, float] = (0.7, 1.0)

@dataclass(frozen=True, kw_only=True)
class CP(Method):
    n_iter_max: int | None = None
    init: str = "random"
    tol: float | None = None
    solver: str = "als"
    n_samples: int | None = None
    n_restarts: int = 1

@dataclass(frozen=True, kw_only=True)
class TT(Structured):
    row_sizes: tuple[int, ...] | None = None
    column_sizes: tuple[int, ...] | None = None
    order: int | None = None
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class TR(Structured):
    sizes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    init: str = "svd"
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class Kron(Structured):
    shapes: tuple[tuple[int, int], tuple[int, int]] | None = None
    solver: str = "auto"
    n_iter_max: int | None = None
    tol: float | None = None
    n_power_iter: int = 8
    n_oversample: int = 10

@dataclass(frozen=True, kw_only=True)
class BLR(Structured):
    block: int | tuple[int, int] | None = None
    dense_blocks: bool = True
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class Hierarchical(Structured):
    leaf: int = 64
    admissible: str = "weak"
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class Monarch(Structured):
    blocks: int | tuple[int, int] | None = None
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class Blast(Structured):
    blocks: int | tuple[int, int] | None = None
    n_iter_max: int | None = None
    tol: float | None = None

__all__ = [
    "BLR",
    "CP",
    "SVD",
    "TR",
    "TT",
    "Blast",
    "Hierarchical",
    "Kron",
    "Method",
    "Monarch",
    "Structured",
    "Tucker",
]
