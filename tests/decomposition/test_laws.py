"""Every registered method obeys the laws of methods, by each of its algorithms."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition.methods import names, registered
from tensorlrf.errors import ShapeError, UnsupportedError
from tests.laws.checks import DEGENERATE, finite, quiet
from tests.laws.coded import shares_of_bytes
from tests.laws.methods import laws_of


def symmetrised(tensor: Tensor) -> Tensor:
    """The mean over all orders of its modes."""
    orders = [*permutations(range(tensor.ndim))]
    wide = tensor.double() / len(orders)
    return torch.stack([wide.permute(order) for order in orders]).sum(0).to(tensor.dtype)


TestSVD = laws_of("svd")
TestSVD = laws_of("svd", sparse=True)
TestSVDExact = laws_of("svd", solver="exact", without=["gram", "mask"])
TestSVDKrylov = laws_of(
    "svd", solver="krylov", sparse=True, without=["gram", "mask", "error", "batch_dims"]
)
TestSVDSketched = laws_of(
    "svd", solver="randomized", without=["gram", "mask", "error", "batch_dims"]
)
TestTucker = laws_of("tucker", (8, 6, 5), sparse=0.02, without=["gram", "batch_dims"])
TestTucker2 = laws_of("tucker", (8, 6, 5), modes=(0, 1), without=["batch_dims"])
TestTuckerOfAMatrix = laws_of("tucker", sparse=True, without=["batch_dims"])
TestHOSVD = laws_of(
    "tucker", (8, 6, 5), solver="hosvd", sparse=True, without=["gram", "mask", "batch_dims error"]
)
TestSTHOSVD = laws_of(
    "tucker", (8, 6, 5), solver="st_hosvd", without=["gram", "mask", "batch_dims error"]
)
TestTuckerSketched = laws_of(
    "tucker", (8, 6, 5), solver="randomized", without=["gram", "mask", "error", "batch_dims"]
)
TestCP = laws_of("cp", (8, 6, 5), n_iter_max=8, sparse=True)
TestCPRand = laws_of("cp", (8, 6, 5), n_iter_max=8, solver="cprand", without=["gram", "mask"])
TestLeverage = laws_of("cp", (8, 6, 5), n_iter_max=8, solver="leverage", without=["gram", "mask"])
TestTT = laws_of("tt", (8, 6, 5))
TestTTMatrix = laws_of("tt_matrix")
TestTR = laws_of("tr", (8, 6, 5), 2, n_iter_max=8, without=["gram"])
TestTRRandom = laws_of("tr", (8, 6, 5), 2, init="random", n_iter_max=8, without=["gram", "error"])
TestTROfAMatrix = laws_of("tr", sizes=((4, 4), (4, 3)), n_iter_max=6)
TestKron = laws_of("kron", shapes=((4, 3), (4, 4)))
TestBlockTerm = laws_of("block_term", (6, 5, 4), 2, n_iter_max=6, without=["gram"])
TestBlockTermsOfChannels = laws_of("block_term", (8, 6, 5), 2, modes=(0, 1), n_iter_max=4)
TestLL1 = laws_of("block_term", (6, 5, 4), 2, form="ll1", n_terms=3, n_iter_max=6, without=["gram"])
TestHT = laws_of("hierarchical_tucker", (8, 6, 5))
TestHTOfAMatrix = laws_of("hierarchical_tucker")
TestTTTucker = laws_of("hierarchical_tucker", (4, 3, 5, 3), 2, tree="train")
TestBLR = laws_of("blr", rank=2, block=(8, 6))
TestHierarchical = laws_of("hierarchical", rank=2, leaf=4)
TestHODLR = laws_of("hodlr", rank=2, leaf=4, without=["gram"])
TestMonarch = laws_of("monarch", rank=2)
TestBlast = laws_of("blast", n_iter_max=4)
TestGroupReduce = laws_of("group_reduce", (60, 8))
TestInterpolative = laws_of("interpolative")
TestInterpolativeRows = pytest.mark.slow(laws_of("interpolative", axis="rows"))
TestInterpolativeSketched = pytest.mark.slow(
    laws_of("interpolative", solver="randomized", without=["gram", "error"])
)
TestCUR = laws_of("cur")
TestCURByLeverage = pytest.mark.slow(laws_of("cur", sampling="leverage"))
TestCross = pytest.mark.slow(laws_of("cur", sampling="cross", without=["gram", "error"]))


class TestNystrom(laws_of("nystrom", (12, 12), sampling="greedy")):  # type: ignore[misc]  # a class that is made
    """On symmetric matrices alone, which the laws of hard input are told of here."""

    def weight(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
        x = super().weight(torch.float64, seed)
        return (x @ x.T / 12).to(dtype)

    @pytest.mark.parametrize("kind", DEGENERATE)
    def test_degenerate_input_gives_finite_factors(self, kind: str) -> None:
        for dtype in (torch.float32, torch.float64):
            x = DEGENERATE[kind](self.weight(torch.float64))
            weight = (x @ x.T).to(dtype)
            with quiet():
                fit = self.fit(weight)
            assert finite(fit.factors).rel_error(weight) <= 1 + 1e-5

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_subnormal_and_mixed_numbers_stay_finite(self, dtype: torch.dtype) -> None:
        info = torch.finfo(dtype)
        unit = self.weight() / self.weight().abs().max()
        sides = unit.new_full((12,), (info.tiny * 4) ** 0.5)
        sides[:6] = (info.max / 64) ** 0.5
        for weight in (unit * (info.tiny / 8), unit * sides * sides[:, None]):
            with quiet():
                finite(self.fit(weight.to(dtype)).factors)


TestGroupReduceOfFewRows = laws_of("group_reduce", bands=3)
TestNMF = laws_of("nmf", kind=torch.abs, n_iter_max=8)
TestNonnegativeCP = laws_of("nonnegative_cp", (6, 5, 4), kind=torch.abs, n_iter_max=8)
TestLPLR = shares_of_bytes(laws_of("lplr", n_iter_max=4))
TestLPLRInGroups = shares_of_bytes(laws_of("lplr", codes="int4", group=4, n_iter_max=4))
TestNonnegativeTucker = laws_of("nonnegative_tucker", (6, 5, 4), kind=torch.abs, n_iter_max=8)
TestSymmetricCP = laws_of("symmetric_cp", (4, 4, 4), kind=symmetrised, n_iter_max=4, n_restarts=1)
TestConstrainedCP = laws_of("constrained_cp", (6, 5, 4), kind=torch.abs, n_iter_max=6)
TestGeneralizedCP = laws_of(
    "generalized_cp", (8, 6, 5), without=["mask"], sparse=True, n_iter_max=8
)
TestGeneralizedCPOfCounts = laws_of(
    "generalized_cp",
    (8, 6, 5),
    without=["mask"],
    kind=torch.abs,
    sparse=True,
    loss="poisson",
    n_iter_max=8,
)
TestCPAPR = laws_of("cp_apr", (8, 6, 5), kind=torch.abs, sparse=True, n_iter_max=8)
TestLowRankPlusSparse = laws_of("low_rank_plus_sparse", sparsity=0.97, n_iter_max=3)
TestLowRankPlusDrawn = laws_of(
    "low_rank_plus_sparse", sparsity=0.97, pattern="random", n_iter_max=3
)
TestLowRankPlusQuantized = shares_of_bytes(laws_of("low_rank_plus_quantized", n_iter_max=3))
TestDictionary = laws_of("dictionary", n_iter_max=3)
TestStaged = laws_of("staged")


def test_every_method_has_a_sample() -> None:
    laws = [value for name, value in globals().items() if name.startswith("Test")]
    assert {law.name for law in laws} == set(names())


@pytest.mark.parametrize(
    "name", ["tt_matrix", "blr", "hierarchical", "hodlr", "monarch", "blast", "group_reduce"]
)
def test_what_takes_matrices_says_so_by_its_own_name(name: str) -> None:
    with pytest.raises((UnsupportedError, ShapeError), match=r"\(4, 4, 4\)") as refusal:
        registered(name).function(torch.ones(4, 4, 4), 0.5)
    assert name in str(refusal.value).lower().replace("-", "_")
