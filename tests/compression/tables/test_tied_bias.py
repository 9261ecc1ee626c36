"""A head on the table of an embedding, with a bias that another module has too, as of BERT."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression._survey import survey
from tensorlrf.nn import FactoredEmbedding, FactoredLinear
from tests.compression.networks import Snapshot, set_weights

BOTH: dict[str, Any] = {"include": ["embeddings", "heads"], "skip": [], "progress": False}
WORDS, WIDTH = 90, 16


class Predictions(nn.Module):
    """Holds the bias of its layer by a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Linear(WIDTH, WIDTH)
        self.decoder = nn.Linear(WIDTH, WORDS)
        self.bias = nn.Parameter(torch.zeros(WORDS))
        self.decoder.bias = self.bias

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decoder(torch.tanh(self.transform(x)))
        return logits


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.cls = Predictions()
        self.cls.decoder.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.cls(self.words(tokens))
        return logits


def masked() -> Masked:
    model = Masked()
    set_weights(model)
    with torch.no_grad():
        model.cls.bias += torch.arange(WORDS) / WORDS
    return model.eval()


def texts(n: int = 6, seed: int = 0) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randint(0, WORDS, (4, 24), generator=draws) for _ in range(n)]


def check_one(model: Any, bias: Any = None) -> None:
    """There is one bias, that of both."""
    assert model.cls.bias is (model.cls.decoder.bias if bias is None else bias)
    names = [name for name, _ in model.named_parameters()]
    assert "cls.bias" in names
    assert "cls.decoder.bias" not in names


def n_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("method", ["svd", "tt"])
@pytest.mark.parametrize("affine", [False, True])
def test_laws_of_a_head_with_a_tied_bias(tmp_path: Path, method: str, affine: bool) -> None:
    model = masked()
    before = Snapshot(model)
    small, report = tensorlrf.compress(
        model, keep_total=0.6, method=method, calibration=texts(), affine=affine, **BOTH
    )
    before.check()
    assert type(small.words) is FactoredEmbedding
    assert type(small.cls.decoder) is FactoredLinear
    check_one(small)
    assert small.cls.bias is not model.cls.bias
    assert torch.equal(small.cls.bias, model.cls.bias)
    assert n_params(small) == report.model.params_after <= 0.6 * n_params(model)
    x, path = texts(1, seed=5)[0], tmp_path / "small.safetensors"
    want = small(x)
    tensorlrf.save(small, path)
    with torch.device("meta"):
        blank = Masked().eval()
    for architecture in (masked(), blank, copy.deepcopy(small)):
        back = tensorlrf.load(path, architecture)
        assert torch.equal(back(x), want)
        check_one(back)
    for other in (tensorlrf.densify(small), tensorlrf.export(small), copy.deepcopy(small)):
        torch.testing.assert_close(other(x), want)
        assert other.cls.bias is not small.cls.bias
        check_one(other)


def test_in_place_the_bias_is_the_same_parameter() -> None:
    model = masked()
    bias = model.cls.bias
    tensorlrf.compress_(model, keep_total=0.6, calibration=texts(), **BOTH)
    check_one(model)
    assert model.cls.bias is bias


def test_training_changes_one_bias() -> None:
    small, _ = tensorlrf.compress(masked(), keep_total=0.6, **BOTH)
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    before = small.cls.bias.detach().clone()
    small.train()(texts(1)[0]).square().sum().backward()
    optimizer.step()
    check_one(small)
    assert not torch.equal(small.cls.decoder.bias, before)
    check_one(small.to(torch.float64))


def test_a_bias_that_shares_memory_and_is_another_parameter_stays() -> None:
    model = masked()
    model.cls.bias = nn.Parameter(model.cls.decoder.bias.detach())  # on the same memory
    rows = {one.name: one for one in survey(model)}
    assert "shares its storage" in rows["words"].reason
