"""`compress(model, method="modular")`: transformers with fewer channels and smaller heads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import compress, compress_, plan
from tensorlrf.compression.calibration._outputs import tensors_of
from tensorlrf.errors import ArgumentError
from tests.compression.modular.models import CAUSAL, FAMILIES, TURNED, batches, drawn

QUIET = {"progress": False}


def modular(model: nn.Module, name: str, keep: float = 0.6, **options: Any) -> Any:
    return compress(
        model, method="modular", keep_params=keep, calibration=batches(name), **QUIET, **options
    )


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return list(tensors_of(model(**batch, use_cache=False) if "pixel_values" not in batch
                               else model(**batch)))  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_but_the_head_becomes_smaller_within_the_budget(name: str) -> None:
    model = drawn(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small, report = modular(model, name, allocation="uniform")
    rows = [row for row in report.layers if row.kind in ("Linear", "Conv1D")]
    rows = [row for row in rows if row.name not in ("lm_head", "classifier")]
    assert rows
    assert all(row.factored and row.params_after < row.params_before for row in rows)
    assert 0.5 < report.eligible.share <= 0.6
    assert sum(p.numel() for p in small.parameters()) == report.model.params_after
    for row in rows:
        assert small.get_submodule(row.name).weight.numel() == row.params_after
    assert [type(m).__name__ for m in small.modules()] == [
        type(m).__name__ for m in model.modules()
    ]
    for a, b in zip(
        outputs(small, batches(name)[0]), outputs(model, batches(name)[0]), strict=True
    ):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_it_is_nearer_than_what_is_cut_by_size(name: str) -> None:
    """With the weights that the parts left have, in place of those that make the rest good."""
    model = drawn(name)
    small, report = modular(model, name, 0.7, allocation="uniform")
    cut = copy.deepcopy(small)
    for row in report.layers:
        if row.factored:
            own, whole = cut.get_submodule(row.name).weight, model.get_submodule(row.name).weight
            own.data.copy_(whole[tuple(slice(n) for n in own.shape)])
    batch = batches(name, 9)[-1]
    wanted = outputs(model, batch)[0]
    far, near = ((outputs(m, batch)[0] - wanted).norm() for m in (cut, small))
    assert near < 0.7 * far


@pytest.mark.parametrize("name", CAUSAL)
def test_it_generates_the_same_with_a_cache_as_without(name: str) -> None:
    model = drawn(name)
    small, report = modular(model, name, allocation="uniform")
    assert report.eligible.share <= 0.6
    words = batches(name)[0]["input_ids"][:2]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    one, other = (small.generate(words, use_cache=use, **options) for use in (True, False))
    assert torch.equal(one, other)
    with torch.no_grad():
        caches = [m(words, use_cache=True).past_key_values for m in (small, model)]
    numbers = [sum(l.keys.numel() + l.values.numel() for l in cache.layers) for cache in caches]
    assert numbers[0] < 0.7 * numbers[1]


@pytest.mark.parametrize("name", TURNED)
def test_a_rotary_pair_stays_or_goes_as_one(name: str) -> None:
    small, _ = modular(drawn(name), name, 0.6, allocation="uniform")
    for module in small.modules():
        if hasattr(module, "rotary_entries"):
            kept, half = set(module.rotary_entries.tolist()), module.rotary_whole // 2
            mate = (lambda n: n ^ 1) if name == "cohere" else (lambda n, h=half: (n + h) % (2 * h))
            assert {mate(n) for n in kept} == kept
            assert len(kept) == module.head_dim < module.rotary_whole


def test_padding_is_no_input() -> None:
    """What stands where the mask is zero changes nothing."""
    model, masked = drawn("bert"), []
    for junk in (1, 2):
        found = batches("bert")
        for batch in found:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            batch["attention_mask"][:, 8:] = 0
            batch["input_ids"][:, 8:] = junk
        masked.append(
            compress(
                model, method="modular", keep_params=0.6, calibration=found, holdout=0, **QUIET
            )
        )
    (one, _), (other, _) = masked
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_in_place_it_is_the_same() -> None:
    model = drawn("llama")
    small, _ = modular(model, "llama")
    report = compress_(
        model, method="modular", keep_params=0.6, calibration=batches("llama"), **QUIET
    )
    assert report.eligible.share <= 0.6
    batch = batches("llama")[0]
    assert torch.equal(outputs(model, batch)[0], outputs(small, batch)[0])


def test_skipped_layers_stay_and_so_does_what_they_are_part_of() -> None:
    small, report = modular(drawn("llama"), "llama", skip=["*.0.*", "lm_head"])
    assert small.model.layers[0].self_attn.head_dim == 8
    assert not report.layer("model.layers.0.mlp.up_proj").eligible
    assert report.layer("model.layers.1.mlp.up_proj").factored
    _, report = modular(drawn("llama"), "llama", skip=["*.gate_proj", "lm_head"])
    assert "no perceptron" in report.layer("model.layers.0.mlp.up_proj").reason


class Mixed(nn.Module):
    """A perceptron whose channels are mixed between its layers, and one whose are not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 16)
        self.c, self.d = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(self.norm(self.a(x)))
        return self.d(torch.tanh(self.c(x)))


def test_what_is_not_known_is_left_and_told() -> None:
    torch.manual_seed(0)
    model = Mixed()
    small, report = compress(
        model, method="modular", keep_params=0.5, calibration=[torch.randn(200, 16)], skip=[],
        **QUIET,
    )  # fmt: skip
    assert "structure is known" in report.layer("a").reason
    assert small.a.weight.shape == model.a.weight.shape
    assert small.c.out_features == small.d.in_features == 12
    with pytest.raises(ArgumentError, match="no perceptron, attention or bottleneck"):
        compress(
            nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)), method="modular",
            keep_params=0.5, calibration=[torch.randn(50, 8)], skip=[], **QUIET,
        )  # fmt: skip


def test_heads_behind_a_norm_of_their_own_stay() -> None:
    import transformers as hf

    from tests.compression.modular.models import SMALL

    torch.manual_seed(0)
    config = hf.Qwen3Config(**SMALL, num_key_value_heads=2, intermediate_size=48, head_dim=8)
    model = hf.Qwen3Model(config).eval()
    _, report = modular(model, "qwen3", 0.6)
    assert not report.layer("layers.0.self_attn.q_proj").eligible
    assert report.layer("layers.0.mlp.up_proj").factored


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"keep_params": None, "error": 0.1}, "needs keep_params"),
        ({"keep_params": 0.5, "calibration": None}, "give calibration="),
        ({"keep_params": 0.001}, "is the least they can do with"),
        ({"keep_params": 0.5, "affine": True}, "affine=True"),
        ({"keep_params": 0.5, "target": "prefix"}, "target=.prefix. is of methods"),
        ({"keep_params": 0.5, "include": "embeddings"}, "include="),
        ({"keep_params": None, "keep_total": 0.5}, "needs keep_params"),
        ({"keep_params": 0.5, "allocation": "energy"}, "block_influence"),
        ({"keep_params": 0.5, "objective": "latency"}, "objective='latency'"),
        ({"keep_params": None, "max_drop": 0.1, "evaluate": float}, "give keep_params="),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_changed(
    options: dict[str, Any], told: str
) -> None:
    options = {"calibration": [torch.randn(64, 16)], "skip": [], **QUIET, **options}
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    with pytest.raises(ArgumentError, match=told):
        compress(model, method="modular", **options)
    assert model[0].out_features == 64


def test_no_plan_of_layers_tells_it() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    with pytest.raises(ArgumentError, match="no plan of layers"):
        plan(model, method="modular", keep_params=0.5)


def test_few_samples_are_told() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    with pytest.warns(UserWarning, match="thin"):
        small, _ = compress(
            model, method="modular", keep_params=0.5, calibration=[torch.randn(40, 16)], skip=[],
            **QUIET,
        )  # fmt: skip
    assert torch.isfinite(small(torch.randn(3, 16))).all()


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_what_errors_cost_tells_where_the_budget_goes(name: str) -> None:
    """Where a half of the model has no say in the outputs, that half gives up all it can."""
    model = drawn(name)
    blocks = (model.model.layers if name == "llama" else model.encoder.layer)[0]
    for layer, module in blocks.named_modules():
        if layer in ("mlp.down_proj", "output.dense"):
            module.weight.data.mul_(1e-3)
    _, report = modular(model, name, allocation="fisher")
    assert report.allotment.rule == "fisher"
    assert report.metric == "loss"
    assert report.allotment.predicted_loss > 0
    rows = [row for row in report.layers if row.format == "channels"]
    assert min(row.rank for row in rows) <= 6
    assert report.eligible.share <= 0.6
    _, plain = modular(model, name, allocation="uniform", metric="outputs")
    assert report.model_error < plain.model_error


def test_by_default_the_rule_that_loses_less_is_taken() -> None:
    _, report = modular(drawn("llama"), "llama")
    losses = {one.rule: one.loss for one in report.allotment.candidates}
    assert losses.keys() == {"fisher", "uniform"}
    assert losses[report.allotment.rule] == min(losses.values())


def test_a_model_without_gradients_is_cut_all_the_same() -> None:
    class Rounded(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    torch.manual_seed(0)
    model = Rounded(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    data = [torch.randn(300, 16) for _ in range(3)]
    options = {"method": "modular", "keep_params": 0.5, "calibration": data, "skip": [], **QUIET}
    _, report = compress(model, **options)
    assert report.metric == "outputs"
    with pytest.warns(UserWarning, match="errors of all outputs count alike"):
        compress(model, metric="loss", **options)


def test_it_is_refined_and_judged_like_any_other() -> None:
    model = drawn("bert")
    _, plain = modular(model, "bert", 0.5)
    small, report = modular(model, "bert", 0.5, refine=1.0, evaluate=_kept_sign)
    assert report.refinement is not None
    assert report.model_error <= plain.model_error
    assert report.quality is not None
    assert small.encoder.layer[0].intermediate.dense.out_features < 48


def _kept_sign(model: nn.Module) -> float:
    with torch.no_grad():
        return float((outputs(model, batches("bert")[0])[0] > 0).float().mean())


class Attention(nn.Module):
    """One head, of which its width says that it is another number of heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head_dim = width
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x) for layer in (self.q, self.k, self.v))
        return x + self.o(nn.functional.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("width", [5, 4, 12])
def test_heads_that_do_not_divide_are_no_heads(width: int) -> None:
    """One head may be taken as several side by side, whose scale the forward has from them all."""
    torch.manual_seed(0)
    model = nn.Sequential(Attention(width), nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
    data = [torch.randn(8, 20, 12) for _ in range(4)]
    small, report = compress(
        model, method="modular", keep_params=0.5, calibration=data, skip=[], **QUIET
    )
    assert report.layer("1").factored
    for name in "qkvo":
        row = report.layer(f"0.{name}")
        assert row.eligible == (width != 5)
        assert row.factored or "structure is known" in row.reason
    assert torch.isfinite(small(data[0])).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay_what_they_are(dtype: torch.dtype) -> None:
    model = drawn("llama").to(dtype)
    small, report = modular(model, "llama", allocation="uniform")
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert report.eligible.share <= 0.6


def test_all_of_the_weights_are_all_of_the_model() -> None:
    model = drawn("bert")
    small, report = modular(model, "bert", 1.0)
    assert report.eligible.share == 1
    assert torch.equal(outputs(small, batches("bert")[0])[0], outputs(model, batches("bert")[0])[0])


def test_packed_modules_stay_as_they_are() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    data = [torch.randn(8, 10, 16) for _ in range(4)]
    small, report = compress(
        model, method="modular", keep_params=0.5, calibration=data, skip=[], **QUIET
    )
    assert type(small[0].self_attn) is nn.MultiheadAttention
    assert small[1].out_features == 16
    assert not report.layer("0.linear1").eligible
    assert torch.isfinite(small(data[0])).all()
