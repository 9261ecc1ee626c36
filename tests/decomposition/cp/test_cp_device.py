"""No look at values inside a sweep, and no intermediate beyond the stated size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tensorlrf.decomposition.cp import _als as _cp_als
from tensorlrf.decomposition.cp._als import als_sweep
from tensorlrf.decomposition.cp._cprand import default_samples
from tensorlrf.decomposition.cp._cprand_mixed import sampled_sweep
from tensorlrf.decomposition.cp._residual import square_residuals
from tensorlrf.decomposition.cp._sketch import sketch_tensor
from tensorlrf.decomposition.cp._start import random_start
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor, cut_modes, mode_gram

SYNCHRONISING = ("_local_scalar_dense", "nonzero", "_unique", "unique_", "is_nonzero", "equal.")


class Watch(TorchDispatchMode):
    """Records the largest tensor that an op makes; refuses ops that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        if name.startswith(SYNCHRONISING):
            raise AssertionError(f"{name} waits for the device")
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        fresh = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for t in made:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in fresh:
                self.largest = max(self.largest, t.numel())
        return result


def test_the_watch_sees_a_synchronisation() -> None:
    with pytest.raises(AssertionError, match="waits"), Watch():
        torch.ones(2).sum().item()


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((20, 21, 22), 4), ((32, 24, 3, 3), 8), ((5, 60, 4), 6), ((4, 4, 4, 4, 4), 3), ((9, 8), 3)],
)
def test_sweeps_do_not_wait_and_stay_small(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], rank: int
) -> None:
    monkeypatch.setattr(_cp_als, "is_small", lambda *_: False)
    rng = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=rng)
    data = CutTensor.of(tensor)
    state = random_start(tensor, rank, 1, rng)
    systems = rank * max(*shape, rank)
    with Watch() as watch:
        state = als_sweep(data, state, 1e-6)
    p, m, q = data.cut.blocks
    assert watch.largest <= max(max(m, p * q) * rank, systems)
    assert max(m, p * q) <= tensor.numel() / min(shape)
    with Watch() as watch:
        square_residuals(data, state)
    assert watch.largest <= max(max(m, p * q) * rank, min(tensor.numel(), 1 << 19))


def test_sampled_sweeps_do_not_wait() -> None:
    rng = torch.Generator().manual_seed(0)
    tensor = torch.randn(40, 41, 42, generator=rng)
    state = random_start(tensor, 3, 2, rng)
    sketch = sketch_tensor(tensor, (16, 16, 16), rng)
    samples = default_samples(3)
    with Watch() as watch:
        sampled_sweep(sketch, state, samples, 1e-6, frozenset(), rng)
    assert watch.largest <= samples * 42


@pytest.mark.parametrize(
    ("shape", "width"),
    [
        ((256, 256, 3, 3), 256 + 2304),
        ((512, 3, 3, 512), 2 * 1536),
        ((12, 2000, 2000), 24000 + 2000),
        ((3, 512, 512, 3), 2 * 1536),
        ((4, 1000000, 4), 1000000 + 16),
        ((200, 200, 200), 200 + 40000),
    ],
)
def test_modes_are_cut_where_intermediates_are_smallest(shape: tuple[int, ...], width: int) -> None:
    assert cut_modes(shape).width == width


@pytest.mark.parametrize("shape", [(4, 5, 6), (6, 50, 4), (3, 4, 5, 6)])
def test_mttkrp_is_its_definition(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=rng, dtype=torch.float64)
    factors = [torch.randn(n, 3, generator=rng, dtype=torch.float64) for n in shape]
    letters = "abcdef"[: len(shape)]
    data = CutTensor.of(tensor)
    for modes, found in (
        (data.cut.inner, data.contract_outer(factors)),
        (data.cut.outer, data.contract_inner(factors)),
    ):
        others = [k for k in range(len(shape)) if k not in modes]
        spec = ",".join([letters, *(letters[k] + "r" for k in others)])
        kept = "".join(letters[k] for k in modes)
        expected = torch.einsum(f"{spec}->{kept}r", tensor, *(factors[k] for k in others))
        torch.testing.assert_close(found, expected.reshape(-1, 3))
    for mode in range(len(shape)):
        unfolding = tensor.movedim(mode, 0).flatten(1)
        torch.testing.assert_close(mode_gram(tensor, mode), unfolding @ unfolding.T)
