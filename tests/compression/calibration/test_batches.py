"""What may be given as calibration: functions, batches of every form, masks, odd outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import compress
from tensorlrf.compression import Report
from tensorlrf.compression.calibration._outputs import model_error, tensors_of
from tensorlrf.compression.calibration.batches import Batch, list_batches
from tensorlrf.errors import ArgumentError
from tests.compression.networks import Snapshot, set_weights
from tests.draws import seeded32


class Two(nn.Module):
    """Takes two tensors and an option, by position or name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 1.0) -> Tensor:
        x = torch.relu(self.a(x) * scale)
        return self.b(x if y is None else x + y)


XS = [seeded32(80, 16, seed=k) for k in range(3)]
YS = [seeded32(80, 16, seed=10 + k) for k in range(3)]


def fit(calibration: Any, model: nn.Module | None = None) -> tuple[Tensor, Report]:
    model = set_weights(Two()) if model is None else model
    small, report = compress(model, keep_params=0.5, calibration=calibration)
    with torch.no_grad():
        return small(XS[0], YS[0]), report


FORMS: dict[str, Callable[[], Any]] = {
    "lists": lambda: [[x, y, 0.5] for x, y in zip(XS, YS, strict=True)],
    "dicts": lambda: [{"x": x, "y": y, "scale": 0.5} for x, y in zip(XS, YS, strict=True)],
    "generator": lambda: ((x, y, 0.5) for x, y in zip(XS, YS, strict=True)),
    "function": lambda: run_all,
    "method": lambda: Runner().run,
}


def run_all(model: nn.Module) -> None:
    assert not model.training
    assert not torch.is_grad_enabled()
    model(XS[0], YS[0], 0.5)
    model(XS[1], y=YS[1], scale=0.5)
    model(x=XS[2], scale=0.5, y=YS[2])


class Runner:
    def run(self, model: nn.Module) -> None:
        for x, y in zip(XS, YS, strict=True):
            model(x, scale=0.5, y=y)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_list_of_its_batches(form: str) -> None:
    wanted, told = fit([(x, y, 0.5) for x, y in zip(XS, YS, strict=True)])
    got, report = fit(FORMS[form]())
    assert torch.equal(got, wanted)
    assert report == told


def test_positional_only_arguments_stay_in_their_place() -> None:
    class Placed(Two):
        # Another signature than that of Two is what this is about.
        def forward(self, x: Tensor, /, y: Tensor | None = None, *rest: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, y)

    model = set_weights(Placed())
    wanted, told = fit([(x, y) for x, y in zip(XS, YS, strict=True)], model)

    def run(model: nn.Module) -> None:
        for x, y in zip(XS, YS, strict=True):
            model(x, y)

    got, report = fit(run, model)
    assert torch.equal(got, wanted)
    assert report == told


def test_a_function_that_fails_or_runs_nothing() -> None:
    def fails(model: nn.Module) -> None:
        model(seeded32(4, 9))

    def parts(model: nn.Module) -> None:
        model.a(XS[0])

    def other(model: nn.Module) -> None:
        raise ZeroDivisionError("one over nothing")

    model = set_weights(Two()).train()
    before = Snapshot(model)
    for function, message in (
        (fails, "the function fails on the model, at a: RuntimeError: .*shapes"),
        (parts, r"returned without a call of model\(...\)"),
        (other, "ZeroDivisionError: one over nothing"),
    ):
        with pytest.raises(ArgumentError, match=message):
            compress(model, keep_params=0.5, calibration=function)
        before.check()

    def interrupted(model: nn.Module) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, keep_params=0.5, calibration=interrupted)
    before.check()


@pytest.mark.parametrize("rerun", [False, True])
@pytest.mark.parametrize("target", ["prefix", "original", "independent"])
def test_a_forward_that_fails_names_the_layer_and_the_error(target: str, rerun: bool) -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 7:
                raise LookupError("seven is not served")
            return x

    inner = nn.Sequential(nn.Linear(16, 16), Picky(), nn.Linear(16, 16))
    model = nn.Sequential(set_weights(inner)).eval()
    before = Snapshot(model)
    batches = [seeded32(80, 16), seeded32(7, 16), seeded32(80, 16, seed=1)]
    message = r"batch 1 \(float32 \(7, 16\) on cpu\), at 0.1: LookupError: seven is not served"
    with pytest.raises(ArgumentError, match=message):
        compress(model, keep_params=0.5, calibration=batches, target=target, rerun=rerun)
    before.check()


@dataclass
class Result:
    hidden: Tensor
    note: str
    more: Any = None


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "none": lambda y: None,
    "text": lambda y: "done",
    "dict": lambda y: {"a": y, "b": [y * 2, None, "text"]},
    "dataclass": lambda y: Result(y, "text", {"inner": (y, 3)}),
    "ints": lambda y: (y > 0).long(),
    "nested": lambda y: [(y,), {"x": Result(y, "")}],
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_every_kind(kind: str) -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Any:
            return OUTPUTS[kind](self.layer(x))

    model = set_weights(Returns())
    batches = [seeded32(80, 16, seed=k) for k in range(4)]
    small, report = compress(model, keep_params=0.5, calibration=batches, holdout=0.25)
    row = report.layer("layer")
    assert row.held_out
    assert (report.batches, report.held_out) == (3, 1)
    wanted = [t.detach() for t in tensors_of(model(batches[-1]))]
    if not wanted:
        assert report.model_error is None
        return
    assert report.model_error is not None
    got = [t.detach() for t in tensors_of(small(batches[-1]))]
    lost = sum(float((w - g).double().square().sum()) for w, g in zip(wanted, got, strict=True))
    whole = sum(float(w.double().square().sum()) for w in wanted)
    # Float32 outputs of 16 terms, squared and rooted.
    assert report.model_error == pytest.approx((lost / whole) ** 0.5, rel=1e-5)


def test_models_that_cannot_be_compared() -> None:
    class Cut(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.rows = rows

        def forward(self, x: Tensor) -> Tensor:
            return x[: self.rows]

    one, two = Cut(3), Cut(4)
    batches = [Batch.of(seeded32(5, 2))]
    assert model_error(one, two, batches) is None
    assert model_error(one, one, batches) == 0.0
    assert model_error(one, one, [Batch.of(torch.zeros(5, 2))]) is None


def masked_net() -> nn.Module:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.last(torch.relu(self.first(x)))

    return set_weights(Masked())


MASK = torch.ones(20, 6, dtype=torch.long)
MASK[:, 4:] = 0
MASK[::2, 3] = 0


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.int32])
@pytest.mark.parametrize("form", ["dict", "tuple", "function"])
@pytest.mark.parametrize("target", ["prefix", "original", "independent"])
def test_padding_is_no_input(form: str, dtype: torch.dtype, target: str) -> None:
    """However the mask is given, the fit is that of the tokens alone."""
    x = seeded32(20, 6, 16)
    x[MASK == 0] = 1e4
    mask = MASK.to(dtype)
    given: dict[str, Any] = {
        "dict": [{"x": x, "attention_mask": mask}],
        "tuple": [(x, mask)],
        "function": lambda model: model(x, mask),
    }
    small, report = compress(masked_net(), keep_params=0.5, calibration=given[form], target=target)
    tokens = x[MASK != 0]
    alone, told = compress(masked_net(), keep_params=0.5, calibration=[tokens], target=target)
    for name in ("first", "last"):
        assert report.layer(name).samples == told.layer(name).samples == len(tokens)
        # The products of the layer before may be summed in another order.
        error = told.layer(name).output_error
        assert report.layer(name).output_error == pytest.approx(error, rel=1e-5)
    probe = seeded32(9, 16, seed=3)
    torch.testing.assert_close(small(probe), alone(probe), rtol=1e-3, atol=1e-4)


def test_the_error_of_the_model_leaves_padding_out() -> None:
    x = seeded32(20, 6, 16)
    x[MASK == 0] = 1e4
    batches = [{"x": x, "attention_mask": MASK}, {"x": -x, "attention_mask": MASK}]
    small, report = compress(masked_net(), keep_params=0.5, calibration=batches, holdout=0.5)
    model, tokens = masked_net(), -x[MASK != 0]
    with torch.no_grad():
        wanted = model(tokens)
        lost = float((small(tokens) - wanted).norm() / wanted.norm())
    assert report.model_error == pytest.approx(lost, rel=1e-4)
    assert report.layer("last").samples == len(tokens)


def test_rows_that_are_not_tokens_are_not_masked() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    batch = Batch.of({"x": None, "attention_mask": mask})
    by_token, flat = seeded32(2, 3, 5), seeded32(6, 5)
    assert torch.equal(batch.tokens_of(by_token), by_token[mask != 0])
    assert torch.equal(batch.tokens_of(flat), flat[mask.flatten() != 0])
    whole = Batch((), {"attention_mask": torch.ones_like(mask)}, 0)
    assert whole.tokens_of(by_token) is by_token
    for shape in ((2, 5), (2, 4, 5), (3, 2, 5), (7, 5), (5,)):
        other = seeded32(*shape)
        assert batch.tokens_of(other) is other
    # Additive masks and masks of pairs of tokens are no list of tokens.
    for odd in (mask.float(), mask[:, None, None], "mask", None):
        assert Batch.of({"attention_mask": odd}).mask is None


def test_batches_are_drawn_once_and_held() -> None:
    drawn = []

    def draw() -> Any:
        for k, x in enumerate(XS):
            drawn.append(k)
            yield x

    fit(draw())
    assert drawn == [0, 1, 2]
    model = Two()
    assert [b.index for b in list_batches(XS, model)] == [0, 1, 2]
