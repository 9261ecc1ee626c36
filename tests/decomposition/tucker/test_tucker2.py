"""Tucker-2 of conv kernels in the metric of their inputs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.decomposition.rank import ranks_at, tucker_fractions
from tensorlrf.decomposition.svd._svd import fit_svd
from tensorlrf.decomposition.tucker._tucker import fit_tucker, tucker
from tensorlrf.decomposition.tucker._tucker2_als import Tucker2ALS, alternate
from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import TuckerFactors
from tests.metrics import in_moments, output_error, second_moments


def pictures(n: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """Smooth images whose channels are correlated and unequal, after a ReLU, as in a network."""
    draws = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=torch.Generator().manual_seed(5))
    mixing = mixing * torch.logspace(0, -1.5, channels)
    noise = torch.randn(n, channels, side, side, generator=draws)
    smooth = F.avg_pool2d(noise, 3, 1, 1)
    return F.relu(torch.einsum("ij,bjhw->bihw", mixing, smooth)).double()


def patch_moments(images: Tensor, k: int = 3) -> Tensor:
    patches = F.unfold(images, k, padding=k // 2).transpose(0, 1).flatten(1)
    return second_moments(patches)


def kernel(n_out: int, n_in: int, k: int = 3, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    basis = torch.randn(n_out, n_out // 2, generator=draws)
    planted = torch.einsum(
        "or,rikl->oikl", basis, torch.randn(n_out // 2, n_in, k, k, generator=draws)
    )
    return planted / planted.std() + 0.3 * torch.randn(n_out, n_in, k, k, generator=draws)


def error_on_images(weight: Tensor, approximation: Tensor, images: Tensor) -> float:
    pad = weight.shape[-1] // 2
    outputs = F.conv2d(images, weight.double(), padding=pad)
    off = F.conv2d(images, weight.double() - approximation.double(), padding=pad)
    return float(off.norm() / outputs.norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_error_is_that_of_the_convolution(dtype: torch.dtype) -> None:
    images, weight = pictures(4, 12, 10), kernel(20, 12).to(dtype)
    fit = fit_tucker(weight, (7, 5), modes=(0, 1), gram=patch_moments(images))
    factors = fit.factors.to(torch.float64)
    assert fit.factors.dtype == dtype
    assert fit.factors.core.shape == (7, 5, 3, 3)
    assert fit.error == pytest.approx(error_on_images(weight, factors.to_dense(), images), rel=1e-6)


@pytest.mark.parametrize("rank", [(8, 8), (4, 12), (12, 4)])
def test_serves_held_out_inputs_better_than_plain_tucker(rank: tuple[int, int]) -> None:
    known, held_out = pictures(16, 16, 12), pictures(16, 16, 12, seed=1)
    weight = kernel(24, 16)
    served = tucker(weight, rank, modes=(0, 1), gram=patch_moments(known))
    plain = tucker(weight, rank, modes=(0, 1))
    assert served.n_params == plain.n_params
    better = error_on_images(weight, served.to_dense(), held_out)
    assert better < 0.9 * error_on_images(weight, plain.to_dense(), held_out)


@pytest.mark.parametrize("seed", range(12))
def test_never_worse_than_plain_tucker_nor_the_recipe(seed: int) -> None:
    """Also for random second moments, where the recipe alone can lose to plain Tucker."""
    draws = torch.Generator().manual_seed(seed)
    n_out, n_in, taps = 10, 8, 4
    spread = torch.randn(n_in * taps, n_in * taps, generator=draws, dtype=torch.float64)
    gram = spread @ spread.T
    weight = torch.randn(n_out, n_in, 2, 2, generator=draws, dtype=torch.float64)
    fit = fit_tucker(weight, (4, 5), modes=(0, 1), gram=gram)

    plain = tucker(weight, (4, 5), modes=(0, 1))
    assert fit.error <= output_error(weight, plain, gram) * (1 + 1e-9)

    # The recipe as it stands in words: oblique projection, core = the kernel between the two.
    matrix = weight.reshape(n_out, -1)
    basis = torch.linalg.eigh(matrix @ gram @ matrix.T)[1][:, -4:]
    channels = gram.view(n_in, taps, n_in, taps).diagonal(dim1=1, dim2=3).sum(-1)
    values, vectors = torch.linalg.eigh(channels)
    root = vectors * values.sqrt()
    second = torch.einsum("oit,ojt->ij", weight.flatten(2), weight.flatten(2))
    spectrum, top = torch.linalg.eigh(root.T @ second @ root)
    expand = root @ top[:, -5:]
    reduce = (top[:, -5:].T @ root.T @ second) / spectrum[-5:, None]
    core = torch.einsum("oa,oit,ib->abt", basis, weight.flatten(2), expand)
    recipe = TuckerFactors(core.reshape(4, 5, 2, 2), (basis, reduce.T), (0, 1))
    assert fit.error <= output_error(weight, recipe, gram) * (1 + 1e-9)


def test_the_regression_is_optimal_for_its_input_factor() -> None:
    """No change of U or core lowers the error; checked by the gradient, and by brute force."""
    weight, gram = kernel(10, 6).double().flatten(2), patch_moments(pictures(3, 6, 9))
    metric = Tucker2ALS(in_moments(weight, gram), 6)
    at = metric.regress(metric.recipe_inputs(3), 4)
    outputs = at.outputs.clone().requires_grad_()
    core = at.core.clone().requires_grad_()
    right = (core @ at.inputs.T).reshape(4, -1)
    off = metric.kernel - outputs @ right
    loss = (off @ metric.gram * off).sum()
    assert float(loss.detach()) == pytest.approx(metric.norm - at.explained, rel=1e-9)
    for gradient in torch.autograd.grad(loss, (outputs, core)):
        assert float(gradient.norm()) <= 1e-8 * metric.norm
    # Any other U with its best core explains no more.
    for seed in range(5):
        draws = torch.Generator().manual_seed(seed)
        other = torch.linalg.qr(torch.randn(10, 4, generator=draws, dtype=torch.float64))[0]
        fixed = torch.einsum("oa,oit->ait", other, weight)
        other_best = Tucker2ALS(in_moments(fixed, gram), 6).regress(at.inputs, 4)
        assert other_best.explained <= at.explained * (1 + 1e-9)


def test_rounds_never_raise_the_error() -> None:
    target = in_moments(kernel(16, 12).double(), patch_moments(pictures(4, 12, 10)))
    metric = Tucker2ALS(target, 12)
    run = alternate(metric, [metric.recipe_inputs(4)], 5, rounds=8, tol=0.0)
    assert run.sweeps > 2
    assert all(after < before for before, after in pairwise(run.errors))


def test_full_ranks_are_exact_and_singular_moments_harmless() -> None:
    weight = kernel(8, 6)
    few = pictures(1, 6, 3)
    few[:, 2] = 0  # a dead channel, and 9 patches for 54 columns
    for rank in ((8, 6), (8, 5), (3, 2)):
        fit = fit_tucker(weight, rank, modes=(0, 1), gram=patch_moments(few))
        assert all(torch.isfinite(t).all() for t in fit.factors.tensors().values())
    full = fit_tucker(weight, (8, 6), modes=(0, 1), gram=patch_moments(pictures(8, 6, 12)))
    assert full.error <= 1e-6


def test_of_a_linear_weight_it_is_the_svd_in_the_metric() -> None:
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(14, 10, generator=draws)
    inputs = torch.randn(10, 50, generator=draws) * torch.logspace(0, -1, 10)[:, None]
    gram = inputs @ inputs.T / 50
    fit = fit_tucker(weight, 4, gram=gram)
    assert fit.error == pytest.approx(fit_svd(weight, 4, gram=gram).error, rel=1e-5)
    assert fit.factors.core.shape == (4, 4)


def test_a_temporal_and_a_one_by_one_conv() -> None:
    draws = torch.Generator().manual_seed(0)
    for taps in ((5,), (1, 1), (2, 2, 2)):
        weight = torch.randn(8, 6, *taps, generator=draws)
        n = weight[0].numel()
        inputs = torch.randn(n, 200, generator=draws)
        factors = tucker(weight, (4, 3), modes=(0, 1), gram=inputs @ inputs.T / 200)
        assert factors.shape == weight.shape


@pytest.mark.parametrize("loud", [1.0, 300.0])
def test_inner_values_are_no_larger_than_inputs_and_outputs(loud: float) -> None:
    images = loud * (pictures(4, 12, 10) + 1)
    weight = (kernel(40, 12) + 1).half()
    factors = tucker(weight, (6, 4), modes=(0, 1), gram=patch_moments(images))
    assert all(torch.isfinite(t).all() for t in factors.tensors().values())
    left, right = (f.double() for f in factors.factors)

    def size(values: Tensor) -> Tensor:
        return values.square().mean((0, 2, 3)).sqrt()

    reduced = F.conv2d(images, right.T[:, :, None, None])
    between = F.conv2d(reduced, factors.core.double(), padding=1)
    outputs = F.conv2d(images, weight.double(), padding=1)
    usual_input = images.square().mean().sqrt()
    # Moments counted per tap leave out part of the border: with padding 1 at side 10 a tap sees
    # at least 81 of 100 positions.
    assert float(size(reduced).max()) <= float(usual_input) / 0.9
    assert float(size(between).max()) <= float(outputs.square().mean().sqrt()) * (1 + 2e-3)
    assert left.shape == (40, 6)


def test_refusals_name_argument_value_and_remedy() -> None:
    weight, gram = kernel(6, 4), torch.eye(36)
    with pytest.raises(UnsupportedError, match=r"modes \(0, 1\).*got modes=\(0, 1, 2, 3\)"):
        tucker(weight, 2, gram=gram)
    with pytest.raises(UnsupportedError, match="solver='hosvd' does not take gram="):
        tucker(weight, 2, modes=(0, 1), solver="hosvd", gram=gram)
    with pytest.raises(UnsupportedError, match="differentiable=True is not served"):
        tucker(weight, 2, modes=(0, 1), gram=gram, differentiable=True)


def test_an_error_is_kept_by_the_smallest_ranks_on_the_way_to_the_sizes() -> None:
    """Ranks are one fraction of both sizes; one step less leaves more."""
    weight = kernel(6, 4).double()
    gram = patch_moments(pictures(3, 4, 8))
    for error in (0.2, 0.05):
        fit = fit_tucker(weight, error=error, modes=(0, 1), gram=gram)
        assert output_error(weight, fit.factors, gram) <= error * (1 + 1e-9)
        fractions = tucker_fractions(weight.shape, (0, 1))
        path = [ranks_at(f, weight.shape, (0, 1)) for f in fractions]
        below = path[path.index(fit.factors.rank[:2]) - 1]
        assert fit_tucker(weight, below, modes=(0, 1), gram=gram).error > error
