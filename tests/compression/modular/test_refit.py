"""What is left after the cut, fitted in order to the outputs of the given model."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import compress
from tensorlrf.compression import Report
from tensorlrf.compression.calibration._correction import RIDGE
from tensorlrf.compression.calibration.batches import list_batches
from tensorlrf.compression.modular._residuals import residuals
from tests.compression.modular.models import KINDS, batches, drawn
from tests.draws import seeded32

OPTIONS: dict[str, Any] = {
    "method": "modular", "allocation": "uniform", "metric": "outputs", "progress": False,
}  # fmt: skip


def both(model: nn.Module, data: Any, **options: Any) -> list[tuple[nn.Module, Report]]:
    """Cut alone, and fitted behind it."""
    options = {**OPTIONS, "keep_params": 0.6, **options}
    targets = ("independent", "original")
    return [compress(model, calibration=data, target=target, **options) for target in targets]


@pytest.mark.parametrize("name", KINDS)
def test_sizes_stay_and_no_more_is_lost_on_inputs_held_out(name: str) -> None:
    (cut, plain), (small, report) = both(drawn(name), batches(name, 8), holdout=0.25)
    assert plain.target == "independent"
    assert report.target == "original"
    shapes = [[p.shape for p in model.parameters()] for model in (cut, small)]
    assert shapes[0] == shapes[1]
    assert report.model_error is not None
    assert plain.model_error is not None
    assert report.model_error < plain.model_error
    corrected = [row for row in report.layers if row.held_out]
    assert corrected
    assert all(row.factored and row.output_error is not None for row in corrected)


class Blocks(nn.Module):
    """Perceptrons one behind the other, beside what they add to."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Linear(12, 32, bias=bias) for _ in range(3))
        self.downs = nn.ModuleList(nn.Linear(32, 12, bias=bias) for _ in range(3))
        for k, parameter in enumerate(self.parameters()):
            with torch.no_grad():
                parameter.copy_(seeded32(*parameter.shape, seed=k) / parameter.shape[-1] ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + down(torch.relu(up(x)))
        return x


def seen(model: nn.Module, name: str, data: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(inputs, outputs) of a layer, in float64."""
    found: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _, args, y: found.append((args[0].detach().double(), y.detach().double()))
    )
    for batch in data:
        model(batch)
    handle.remove()
    x, y = zip(*found, strict=True)
    return torch.cat(x), torch.cat(y)


@pytest.mark.parametrize("bias", [False, True])
def test_each_layer_is_the_ridge_regression_on_what_it_gets(bias: bool) -> None:
    """W' minimises E|y0 - W' x'|^2 + ridge |W' - W|^2, so that no other weight is lower in it."""
    model, data = Blocks(bias=bias), [seeded32(300, 12, seed=40 + k) for k in range(3)]
    (cut, _), (small, _) = both(model, data, holdout=0, keep_params=0.5, skip=[])
    for name in [f"{part}.{k}" for k, part in itertools.product(range(3), ("ups", "downs"))]:
        x, got = seen(small, name, data)
        y0 = seen(model, name, data)[1]
        start = cut.get_submodule(name).weight.detach().double()
        own = small.get_submodule(name).weight.detach().double()
        if name.startswith("ups"):  # those that are left are known by their weights
            whole = model.get_submodule(name).weight.detach().double()
            y0 = y0[:, torch.cdist(start, whole).argmin(1)]
        elif name != "downs.2":  # nothing has the last sum for its input
            up = name.replace("downs", "ups")
            y0 = y0 + seen(model, up, data)[0] - seen(small, up, data)[0]
        if bias:
            x, y0, got = (t - t.mean(0) for t in (x, y0, got))
        gram = x.T @ x / len(x)
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).double()
        best = torch.linalg.solve(gram + ridge, x.T @ y0 / len(x) + ridge @ start.T).T

        def cost(weight: Tensor, x: Tensor = x, y0: Tensor = y0, start: Tensor = start,
                 ridge: Tensor = ridge) -> float:  # fmt: skip
            lost = (y0 - x @ weight.T).square().sum() / len(x)
            return float(lost + ((weight - start) @ ridge * (weight - start)).sum())

        # Weights are rounded to float32, and so are outputs: in squares about 1e-14 of these.
        assert cost(own) <= cost(best) + 1e-11 * cost(torch.zeros_like(own))
        assert torch.allclose(got, x @ own.T, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_means_are_those_of_the_given_model(bias: bool) -> None:
    model, data = Blocks(bias=bias), [seeded32(300, 12, seed=40 + k) + 1 for k in range(3)]
    small = both(model, data, holdout=0, keep_params=0.5, skip=[])[1][0]
    far = [seen(m, "downs.2", data)[1].mean(0) for m in (model, small)]
    # A bias takes what the means differ by, to rounding of sums in float32.
    assert torch.allclose(*far, atol=1e-4) == bias


SUMS = {
    "llama": ("input_layernorm", "post_attention_layernorm"),
    "gpt2": ("ln_1", "ln_2"),
    "bert": ("self.value", "intermediate.dense"),
    "vit": ("layernorm_before", "layernorm_after"),
    "t5": ("layer_norm",),
    "cohere": (),
}
"""The ends of the names of modules whose inputs are what blocks add to. Those of Cohere add two
outputs at once."""


@pytest.mark.parametrize("name", SUMS)
def test_what_a_block_adds_is_known(name: str) -> None:
    model, ends = drawn(name), SUMS[name]
    kinds = ("o_proj", "down_proj", "c_proj", "output.dense", "fc2", ".o", ".wo")
    last = [n for n, _ in model.named_modules() if n.endswith(kinds)]
    found = residuals(model, last, list_batches(batches(name), model)[0])
    assert list(found) == (last if ends else [])
    assert all(source.endswith(ends) for source in found.values())
    assert len(set(found.values())) == len(found)


def test_passes_that_wait_and_passes_anew_agree() -> None:
    data, options = batches("bert"), {**OPTIONS, "keep_params": 0.6}
    found = [
        compress(drawn("bert"), calibration=data, rerun=rerun, **options)
        for rerun in (False, True)
    ]  # fmt: skip
    assert found[0][1].layers == found[1][1].layers
    for one, other in zip(*(model.parameters() for model, _ in found), strict=True):
        assert torch.equal(one, other)


def test_few_inputs_do_no_harm() -> None:
    """Where a fit is to the samples alone, inputs held out tell."""
    model = Blocks(bias=True)
    with pytest.warns(UserWarning, match="thin"):
        (_, plain), (_, report) = both(
            model, [seeded32(8, 12, seed=k) for k in range(4)], holdout=0.5, skip=[]
        )
    assert report.model_error is not None
    assert plain.model_error is not None
    assert report.model_error <= plain.model_error
