"""New statistics of batch normalisation: kept where they help on held-out batches, or else not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import SVD, compress, compress_
from tensorlrf.compression.calibration._batchnorm import norms_of, reestimated, set_statistics
from tensorlrf.compression.calibration.batches import Batch
from tests.compression.networks import Snapshot, relative
from tests.draws import seeded32

PLAIN = SVD(metric="identity")


def net(momentum: float | None = 0.1) -> nn.Sequential:
    """Convs with norms whose statistics are those of `data`, as after training."""
    parts: list[nn.Module] = []
    for k in range(4):
        conv = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        with torch.no_grad():
            left, right = seeded32(12, 12, seed=k), seeded32(12, 108, seed=9 + k)
            conv.weight.copy_(
                (left * torch.linspace(1, 0.1, 12) ** 3 @ right).reshape(12, 12, 3, 3)
            )
        parts += [conv, nn.BatchNorm2d(12, momentum=momentum), nn.ReLU()]
    model = nn.Sequential(*parts).eval()
    set_statistics(norms_of(model), reestimated(model, [Batch.of(x) for x in data(4)]))
    for norm in norms_of(model):
        norm.num_batches_tracked.fill_(77)
    return model


def data(n: int, offset: float = 4.0, size: int = 24) -> list[Tensor]:
    return [seeded32(size, 12, 8, 8, seed=100 + k) + offset for k in range(n)]


def statistics(model: nn.Module) -> list[Tensor]:
    return [t for m in norms_of(model) for t in (m.running_mean, m.running_var)]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_kept_where_it_helps(momentum: float | None) -> None:
    """Inputs with a large mean: plain low rank shifts the mean of every output."""
    model = net(momentum)
    model[4].train()
    before = Snapshot(model)
    small, report = compress(
        model, keep_params=0.6, method=PLAIN, calibration=data(4), holdout=0.25
    )
    before.check()
    norms = report.batch_norms
    assert norms is not None
    assert (norms.count, norms.kept) == (4, True)
    assert norms.error_after < 0.9 * norms.error_before
    assert report.model_error == norms.error_after
    # The figures are true ones, and without the step the model is as bad as it says.
    old, second = compress(
        model, keep_params=0.6, method=PLAIN, calibration=data(4), holdout=0.25, batch_norm=False
    )
    assert second.batch_norms is None
    held = data(4)[-1]
    with torch.no_grad():
        for one, error in ((small, norms.error_after), (old, norms.error_before)):
            wanted = model.eval()(held)
            assert relative(one.eval()(held), wanted) == pytest.approx(error, rel=1e-4)
    for norm in norms_of(small):
        assert norm.momentum == momentum
        assert int(norm.num_batches_tracked) == 77
    # They are the means of the fitted batches' own statistics, behind the compressed convolution.
    with torch.no_grad():
        first = [small[0](x) for x in data(4)[:3]]
    mean = torch.stack([y.mean((0, 2, 3)) for y in first]).mean(0)
    var = torch.stack([y.var((0, 2, 3)) for y in first]).mean(0)
    torch.testing.assert_close(small[1].running_mean, mean)
    torch.testing.assert_close(small[1].running_var, var)
    assert "new statistics of 4 kept" in str(report)


def test_training_flags_stay() -> None:
    model = net()
    model[4].train()
    small, _ = compress(model, keep_params=0.6, method=PLAIN, calibration=data(4), holdout=0.25)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]


def test_dropped_where_it_hurts() -> None:
    """The batches fitted to are unlike those held out: their statistics serve these worse."""
    model = net()
    calibration = [*data(3, offset=-4.0), *data(1)]
    small, report = compress(model, keep_params=0.8, calibration=calibration, holdout=0.25)
    norms = report.batch_norms
    assert norms is not None
    assert not norms.kept
    assert norms.error_after >= norms.error_before
    assert report.model_error == norms.error_before
    for new, old in zip(statistics(small), statistics(model), strict=True):
        assert torch.equal(new, old)
    assert "tried and dropped" in str(report)


def test_not_tried_without_held_out_batches_or_norms() -> None:
    _, report = compress(net(), keep_params=0.5, calibration=data(2), holdout=0)
    assert report.batch_norms is None
    lone = nn.Sequential(nn.Conv2d(12, 12, 3), nn.BatchNorm2d(12, track_running_stats=False)).eval()
    _, report = compress(lone, keep_params=0.5, calibration=data(2), holdout=0.5)
    assert report.batch_norms is None


def test_a_batch_without_variance_drops_it() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16)).eval()
    batches = [seeded32(1, 16, seed=k) for k in range(80)]
    small, report = compress(model, keep_params=0.5, calibration=batches)
    assert report.batch_norms is None
    assert report.model_error is not None
    for new, old in zip(statistics(small), statistics(model), strict=True):
        assert torch.equal(new, old)


def test_norms_that_no_batch_reaches_keep_their_statistics() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.unused = net(), nn.BatchNorm2d(12)
            self.unused.running_mean.fill_(3.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = Branch().eval()
    small, report = compress(
        model, keep_params=0.6, method=PLAIN, calibration=data(4), holdout=0.25
    )
    assert report.batch_norms is not None
    assert report.batch_norms.kept
    assert torch.equal(small.unused.running_mean, model.unused.running_mean)
    assert torch.equal(small.unused.running_var, model.unused.running_var)


def test_in_place_takes_the_new_statistics() -> None:
    model = net()
    small, report = compress(
        model, keep_params=0.6, method=PLAIN, calibration=data(4), holdout=0.25
    )
    norms = norms_of(model)
    told = compress_(model, keep_params=0.6, method=PLAIN, calibration=data(4), holdout=0.25)
    assert told == report
    assert norms_of(model) == norms
    for new, old in zip(statistics(model), statistics(small), strict=True):
        assert torch.equal(new, old)
    assert [int(n.num_batches_tracked) for n in norms] == [77] * 4


def test_estimating_changes_nothing() -> None:
    model = net()
    before = Snapshot(model)
    found = reestimated(model, [Batch.of(x) for x in data(2, offset=-1.0)])
    before.check()
    assert not torch.equal(model[1].running_mean, found[0][0])
