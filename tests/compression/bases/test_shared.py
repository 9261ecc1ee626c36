"""One right factor for layers that are fed the same, for experts, and for neighbours in depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf import SVD, compress, compress_, densify, export, load, save
from tensorlrf.compression import Report
from tensorlrf.errors import ArgumentError
from tests.draws import seeded32

N = 24


class Attention(nn.Module):
    """Query, key and value of one input, with rows in one space as far as `common`."""

    def __init__(self, common: float, seed: int = 0) -> None:
        super().__init__()
        base = seeded32(6, N, seed=seed)
        for k, name in enumerate(("q", "k", "v")):
            layer = nn.Linear(N, N)
            one = seeded32(N, 6, seed=seed + k + 1) @ base / 6
            rest = seeded32(N, N, seed=seed + k + 9)
            layer.weight.data = common * one + (1 - common) * rest
            layer.bias.data = torch.zeros(N)
            setattr(self, name, layer)
        self.o = nn.Linear(N, N)

    def forward(self, x: Tensor) -> Tensor:
        scores = (self.q(x) @ self.k(x).mT).softmax(-1)
        out: Tensor = self.o(scores @ self.v(x))
        return out


class Stack(nn.Module):
    """Blocks one after the other, whose first matrices read one space."""

    def __init__(self, common: float, depth: int = 4) -> None:
        super().__init__()
        base = seeded32(4, N)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(N, N), nn.Tanh(), nn.Linear(N, N)) for _ in range(depth)
        )
        for k, block in enumerate(self.blocks):
            one = seeded32(N, 4, seed=k + 1) @ base / 4
            rest = seeded32(N, N, seed=k + 9)
            block[0].weight.data = common * one + (1 - common) * rest

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class Mixture(nn.Module):
    """Each row to one of the experts, by its first number."""

    def __init__(self, common: float = 0.95) -> None:
        super().__init__()
        base = seeded32(4, N)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(N, N)) for _ in range(3))
        for k, expert in enumerate(self.experts):
            one = seeded32(N, 4, seed=k + 1) @ base / 4
            expert[0].weight.data = common * one + (1 - common) * seeded32(N, N, seed=k + 9)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, N)
        where = (flat[:, 0] > 0).int() + (flat[:, 0] > 0.8).int()
        out = torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            out[where == k] = expert(flat[where == k])
        return out.reshape(x.shape)


BATCHES = [seeded32(8, 16, N, seed=k) for k in range(6)]
SETTINGS = {"allocation": "uniform", "metric": "outputs", "progress": False, "skip": []}


def shared(model: nn.Module, word: str | list[str], keep: float = 0.5) -> tuple[nn.Module, Report]:
    # Words come from parametrize as plain text.
    return compress(model.eval(), keep_params=keep, calibration=BATCHES, shared=word, **SETTINGS)  # type: ignore[arg-type]


def test_layers_fed_the_same_have_one_right_factor_counted_once() -> None:
    model = Attention(0.95)
    small, report = shared(model, "inputs")
    assert small.q.right is small.k.right is small.v.right
    assert small.o.right is not small.q.right
    (basis,) = report.bases
    assert basis.kept
    assert basis.held_out
    assert basis.error < basis.error_apart
    assert set(basis.layers) == {"q", "k", "v"}
    assert [report.layer(n).basis for n in ("q", "k", "v", "o")] == ["", "q", "q", ""]
    # The budget holds, in what is told and in what there is.
    weights = sum(p.numel() for n, p in small.named_parameters() if "bias" not in n)
    assert report.eligible.params_after == weights <= 0.5 * 4 * N * N
    assert report.model.params_after == sum(p.numel() for p in small.parameters())
    assert "one right factor of rank" in str(report)
    assert Report.from_json(report.to_json()) == report


def test_it_loses_less_than_layers_by_themselves_at_equal_parameters() -> None:
    model = Attention(0.95)
    _, before = compress(model.eval(), keep_params=0.3, calibration=BATCHES, **SETTINGS)
    _, report = shared(model, "inputs", 0.3)
    assert report.eligible.params_after <= before.eligible.params_before * 0.3
    rows = [(report.layer(n).output_error, before.layer(n).output_error) for n in ("q", "k", "v")]
    assert sum(a**2 for a, _ in rows if a) < sum(b**2 for _, b in rows if b)
    assert not before.bases


def test_layers_that_have_nothing_in_common_stay_apart() -> None:
    model = Attention(0.0)
    small, report = shared(model, "inputs")
    assert small.q.right is not small.k.right
    assert report.bases
    assert not any(basis.kept for basis in report.bases)
    plain, _ = compress(model.eval(), keep_params=0.5, calibration=BATCHES, **SETTINGS)
    for one, other in zip(small.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("target", ["original", "prefix", "independent"])
@pytest.mark.parametrize("affine", [False, True])
def test_every_target_has_its_left_factors(target: str, affine: bool) -> None:
    small, report = compress(
        Attention(0.95).eval(), keep_params=0.5, calibration=BATCHES, shared="inputs",
        target=target, affine=affine, **SETTINGS,
    )  # fmt: skip
    assert small.q.right is small.v.right
    assert all(row.output_error < 0.5 for row in report.layers if row.factored)


def test_neighbours_in_depth_are_put_together_as_far_as_they_gain() -> None:
    small, report = shared(Stack(0.95), "layers", 0.4)
    kept = [basis for basis in report.bases if basis.kept]
    assert kept
    for basis in kept:
        numbers = [int(name.split(".")[1]) for name in basis.layers]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        rights = {id(small.get_submodule(name).right) for name in basis.layers}
        assert len(rights) == 1
    assert report.eligible.share <= 0.4
    names = [name for basis in kept for name in basis.layers]
    assert len(names) == len(set(names))


def test_experts_have_a_basis_in_common_those_never_reached_too() -> None:
    model = Mixture()
    small, report = shared(model, "experts", 0.4)
    assert len({id(expert[0].right) for expert in small.experts}) == 1
    assert report.eligible.share <= 0.4
    low = [b - 10 * (torch.arange(N) == 0) for b in BATCHES]  # the first expert alone is reached
    with pytest.warns(tensorlrf.errors.CalibrationWarning, match="thin"):
        small, report = compress(
            model.eval(), keep_params=0.4, calibration=low, shared="experts", **SETTINGS
        )
    assert torch.isfinite(small(BATCHES[0])).all()


def test_globs_name_groups_and_no_calibration_is_needed() -> None:
    model = Attention(0.95)
    small, report = compress(model, keep_params=0.5, shared=["[qk]", "[vo]"], **SETTINGS)
    assert small.q.right is small.k.right
    assert [set(basis.layers) for basis in report.bases] == [{"q", "k"}, {"v", "o"}]


def test_words_are_asked_in_turn() -> None:
    _, report = shared(Attention(0.95), ["inputs", "[qkvo]"])
    assert [basis.kept for basis in report.bases] == [True]  # of the others one alone is left


def test_files_keep_it_once_and_tied(tmp_path: Path) -> None:
    model = Attention(0.95)
    small, _ = shared(model, "inputs")
    save(small, tmp_path / "small.safetensors")
    back = load(tmp_path / "small.safetensors", model)
    assert back.q.right is back.k.right is back.v.right
    torch.testing.assert_close(back(BATCHES[0]), small(BATCHES[0]))
    numbers = sum(p.numel() for p in small.parameters())
    size = (tmp_path / "small.safetensors").stat().st_size
    assert size < 4 * numbers + 4 * small.q.right.numel() + 12_000
    again = load(tmp_path / "small.safetensors", small)
    assert again.q.right is again.v.right


def test_exported_it_is_one_parameter_and_densified_it_is_right() -> None:
    small, _ = shared(Attention(0.95), "inputs")
    for layer in (small.q, small.k, small.v):
        layer.path_table = tensorlrf.ops.PathTable.single("chain")
    stock = export(small)
    assert stock.q[0].weight is stock.k[0].weight is stock.v[0].weight
    assert stock.q[1].bias is not stock.k[1].bias  # equal, not the same
    assert stock.q[1].weight is not stock.k[1].weight
    plain = densify(small)
    for other in (stock, plain):
        # Rounding in float32, a few layers deep, added in another order.
        torch.testing.assert_close(other(BATCHES[0]), small(BATCHES[0]), atol=1e-5, rtol=1e-4)
    assert plain.q.weight is not plain.k.weight


def test_it_is_tuned_moved_trained_and_made_in_place() -> None:
    model = Attention(0.95).eval()
    report = compress_(model, keep_params=0.5, calibration=BATCHES, shared="inputs", **SETTINGS)
    assert report.bases[0].kept
    assert model.q.right is model.k.right
    wide = model.double()
    assert wide.q.right is wide.k.right
    model = model.float()
    expected = model(BATCHES[0])
    tensorlrf.tune(model, BATCHES[0], progress=False)
    # Rounding in float32, a few layers deep, added in another order.
    torch.testing.assert_close(model(BATCHES[0]), expected, atol=1e-5, rtol=1e-4)
    assert model.q.right is model.k.right
    model.train()(BATCHES[0]).square().mean().backward()
    assert model.q.right.grad is model.k.right.grad is not None


def test_bad_input_is_named() -> None:
    model = Attention(0.95)
    for wrong in (3, [3], [""], {"inputs": 1}):
        with pytest.raises(ArgumentError, match="shared="):
            # What the types refuse is what is tried.
            compress(model, keep_params=0.5, shared=wrong, **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="give calibration="):
        compress(model, keep_params=0.5, shared="inputs", **SETTINGS)
    with pytest.raises(ArgumentError, match="matches no layer"):
        compress(model, keep_params=0.5, shared="qkv", **SETTINGS)
    with pytest.raises(ArgumentError, match="leave it out where FLOPs or time"):
        compress(
            model, keep_flops=0.5, calibration=BATCHES, example=BATCHES[0], shared="inputs",
            progress=False, skip=[],
        )  # fmt: skip
    with pytest.raises(ArgumentError, match="with method='modular'"):
        compress(
            model, keep_params=0.5, calibration=BATCHES, shared="inputs", method="modular",
            progress=False,
        )  # fmt: skip


def test_layers_of_other_methods_are_passed_over() -> None:
    _, report = compress(
        Attention(0.95).eval(), keep_params=0.5, calibration=BATCHES, shared="inputs",
        method={"q": "kron", "*": SVD(metric="identity")}, **SETTINGS,
    )  # fmt: skip
    assert not report.bases
    assert all(not row.basis for row in report.layers)
