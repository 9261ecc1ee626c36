"""Second moments by what the weight makes of inputs: from below, with the variances, and all that a
fit of low rank asks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf import svd
from tensorlrf.compression import Moments
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._memory import Gathered
from tensorlrf.compression.calibration._statistics import Stream
from tensorlrf.compression.calibration.moments._form import FULL, Form
from tensorlrf.compression.calibration.moments._images import Images, seen_by
from tensorlrf.decomposition.second_moments import SecondMoments
from tensorlrf.errors import CalibrationWarning
from tests.compression.calibration.streams import KINDS, stream
from tests.compression.moments.nets import assert_same, limit_for, narrow, rows, sums
from tests.draws import seeded

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 40),
    n=st.integers(2, 24),
    outputs=st.integers(1, 12),
    part=st.sampled_from([0.5, 0.75, 1.0]),
    seed=st.integers(0, 99),
)
def test_it_is_below_and_has_the_variances(
    kind: str, count: int, n: int, outputs: int, part: float, seed: int
) -> None:
    x, weight = stream(kind, count, n, seed), seeded(outputs, n, seed=seed + 7)
    size = max(1, int(part * outputs))
    image = Images(n, size, CPU, weight)
    image.take(x)
    gram, whole = image.mean(count), x.T @ x / count
    slack = 1e-9 * max(float(whole.trace()), 1e-300)
    left = torch.linalg.eigvalsh(whole - gram.rows.T @ gram.rows)
    assert float(left[0]) >= -slack
    assert bool((gram.rest >= 0).all())
    torch.testing.assert_close(gram.diagonal(), whole.diagonal(), rtol=1e-9, atol=slack)
    off = float(torch.linalg.matrix_norm(gram.dense() - whole, 2))
    assert off <= gram.off + slack
    # What the weight makes of it, but for the root's jitter.
    test = seen_by(weight, size)
    wanted = test @ whole
    got = (test @ gram.rows.T) @ gram.rows
    scale = float(torch.linalg.matrix_norm(test, 2)) * float(whole.trace()) + 1e-300
    assert float((got - wanted).abs().max()) <= 1e-3 * scale  # sqrt of the jitter and of rounding


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 40), cut=st.integers(1, 39), seed=st.integers(0, 99))
def test_parts_add_up(count: int, cut: int, seed: int) -> None:
    x, weight = stream("falling", count, 12, seed), seeded(4, 12, seed=seed)
    parts = [Images(12, 4, CPU, weight) for _ in range(3)]
    for image, part in zip(parts, (x, x[:cut], x[cut:]), strict=True):
        image.take(part)
    parts[1].merge(parts[2])
    for name, tensor in parts[0].tensors().items():
        # In float64, sums of at most 40 rows in another order.
        torch.testing.assert_close(parts[1].tensors()[name], tensor, rtol=1e-12, atol=1e-12)


def test_the_draw_is_the_same_for_all() -> None:
    weight = torch.eye(3, dtype=torch.float64, device="cpu")
    drawn = seen_by(weight, 2)
    # Sums add up over machines and versions because all of them draw these numbers.
    wanted = torch.tensor(
        [[1.30396739, 0.29087487, -1.85958547], [1.28911081, 0.18297692, 0.61478201]],
        dtype=torch.float64, device="cpu",
    )  # fmt: skip
    torch.testing.assert_close(drawn, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("part", "most"), [(1.0, 1.01), (0.5, 1.04)])
def test_a_fit_to_it_is_hardly_worse(part: float, most: float) -> None:
    """In the inputs of the fit, with a quarter of the parameters."""
    m, n = 48, 192
    module = nn.Linear(n, m)
    with torch.no_grad():
        fall = torch.arange(1, m + 1) ** -0.5
        module.weight.copy_((seeded(m, m, seed=1) * fall) @ seeded(m, n, seed=2) / n**0.5)
    layer, weight = DenseLayer.of(module), module.weight.detach()
    x = seeded(2000, n, seed=3) * torch.arange(1, n + 1) ** -0.5 @ seeded(n, n, seed=4) / n**0.5
    errors = {}
    for form in (FULL, Form("image", int(part * m))):
        seen = Stream(layer, lags=False, form=form)
        seen.add(x.float())
        (known,) = seen.statistics()
        gram = SecondMoments.known(known.shrunk(known.warranted).gram)
        left = weight - svd(weight, m * n // (4 * (m + n)), gram=gram).to_dense()
        errors[form] = float((x.float() @ left.T).norm())
    assert errors[Form("image", int(part * m))] <= most * errors[FULL]


def test_it_is_kept_where_the_moments_have_no_room(tmp_path: Path) -> None:
    model, batches = narrow(), rows(256, 60)
    limit = limit_for(model, Form("image", 8))
    with pytest.warns(CalibrationWarning, match=r"as an image on 8 outputs\) would take more"):
        moments = tensorlrf.calibrate(model, batches, skip=[], memory_limit=limit)
    assert moments.layer("0").form == "image on 8 outputs"
    moments.save(tmp_path / "m.safetensors")
    found = Moments.load(tmp_path / "m.safetensors")
    assert_same(found, moments)
    assert set(sums(found)) == {
        f"0/0/{name}" for name in ("cubes", "fourth", "sum", "image", "inner", "squares")
    }
    whole = tensorlrf.calibrate(model, batches, skip=[])
    rank: Any = tensorlrf.SVD(rank=4)
    _, by_image = tensorlrf.compress(model, method=rank, skip=[], moments=found)
    _, by_all = tensorlrf.compress(model, method=rank, skip=[], moments=whole)
    one, two = (report.layer("0").output_error for report in (by_image, by_all))
    assert one is not None
    assert two is not None
    assert one <= 1.05 * two
    assert by_image.layer("0").data_aware
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        twice = found + tensorlrf.calibrate(model, batches, skip=[], memory_limit=limit)
    assert twice.layer("0").count == 2 * found.layer("0").count


def test_layers_that_are_fed_the_same_have_images_of_their_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(256, 8), nn.Linear(256, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.one(x) + self.two(x)
            return y

    model = Two()
    need = Gathered(lags=False, held=False, plain=True).need(
        DenseLayer.of(model.one), Form("image", 8)
    )
    with pytest.warns(CalibrationWarning):
        moments = tensorlrf.calibrate(model, rows(256, 3), skip=[], memory_limit=need.whole)
    assert [row.like for row in moments.layers] == ["", ""]
    assert not torch.equal(sums(moments)["one/0/inner"], sums(moments)["two/0/inner"])
