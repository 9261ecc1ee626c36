"""From block to block comes what the model in memory gives: families of transformers, which give
their blocks arguments in ways of their own, and plain networks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression.scale.blocks import _tables
from tests.compression.scale.blocks.networks import (
    WORDS,
    Block,
    Net,
    contents,
    ids,
    net,
    on_meta,
    saved,
)

hf: Any = importlib.import_module("transformers")


@pytest.fixture(autouse=True)
def small_tables_are_put_away_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "LARGE", 0)


SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
GROUPED = {**SMALL, "num_key_value_heads": 1}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def texts() -> list[dict[str, Tensor]]:
    """With padding."""
    lengths = torch.arange(8, device="cpu") + 12
    mask = (torch.arange(24, device="cpu") < lengths[:, None]).to(torch.int64)
    return [{"input_ids": one, "attention_mask": mask} for one in ids()]


def images() -> list[dict[str, Tensor]]:
    draws = torch.Generator("cpu").manual_seed(0)
    shape = (8, 3, 12, 12)
    return [
        {"pixel_values": torch.randn(shape, generator=draws, device="cpu", dtype=torch.float32)}
        for _ in range(4)
    ]


def pairs() -> list[dict[str, Tensor]]:
    both = zip(ids(), ids(seed=1, size=20), strict=True)
    return [{"input_ids": one, "decoder_input_ids": other} for one, other in both]


FAMILIES: dict[str, tuple[str, dict[str, Any], Callable[[], list[dict[str, Tensor]]]]] = {
    "llama": ("LlamaForCausalLM", {**GROUPED, **ENDS, "tie_word_embeddings": True}, texts),
    "gemma3": (  # masks and rotary tables differ from block to block
        "Gemma3ForCausalLM",
        {
            **GROUPED,
            "head_dim": 8,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        texts,
    ),
    "gpt2": (  # weights the other way round
        "GPT2LMHeadModel",
        {**ENDS, "vocab_size": WORDS, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32},
        texts,
    ),
    "bert": ("BertForMaskedLM", {**SMALL, **ENDS}, texts),  # and layers behind the blocks
    "vit": (  # and before them
        "ViTForImageClassification",
        {**SMALL, "image_size": 12, "patch_size": 4},
        images,
    ),
    "t5": (  # two chains: the second one looks at the end of the first
        "T5ForConditionalGeneration",
        {**ENDS, "vocab_size": WORDS, "d_model": 16, "d_ff": 24, "num_layers": 2, "num_heads": 2,
         "d_kv": 8, "decoder_start_token_id": 0},
        pairs,
    ),
    "mixtral": (  # experts that a file has one by one, and the model in one tensor
        "MixtralForCausalLM",
        {**GROUPED, **ENDS, "num_hidden_layers": 2, "num_local_experts": 3},
        texts,
    ),
    "deepseek_v3": (  # in other blocks than the first
        "DeepseekV3ForCausalLM",
        {**SMALL, **ENDS, "num_key_value_heads": 2, "moe_intermediate_size": 12,
         "num_hidden_layers": 2, "n_routed_experts": 4, "n_shared_experts": 1,
         "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
         "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
         "v_head_dim": 8},
        texts,
    ),
    "gpt_oss": (  # in one tensor there as well, the other way round
        "GptOssForCausalLM",
        {**GROUPED, **ENDS, "num_hidden_layers": 2, "num_local_experts": 3,
         "num_experts_per_tok": 2, "head_dim": 8},
        texts,
    ),
}  # fmt: skip
REST = ("bert", "vit", "deepseek_v3")
KINDS = [name for name in FAMILIES if name not in REST]
"""The rest is slow: other nets here have layers before and behind the blocks, and experts."""


def both(
    dense: nn.Module,
    source: Path,
    batches: list[Any],
    inputs: str,
    out: Path,
    skip: list[str] | None = None,
    **more: Any,
) -> tuple[nn.Module, nn.Module, Any]:
    """(from block to block, in memory, the report of the first)."""
    report = tensorlrf.compress_checkpoint(
        source, out, keep_params=0.5, calibration=batches, inputs=inputs, skip=skip, threads=1,
        **more,
    )  # fmt: skip
    wanted, told = tensorlrf.compress(
        dense, keep_params=0.5, calibration=batches, target=inputs, allocation="uniform",
        metric="outputs", skip=skip, progress=False,
    )  # fmt: skip
    rows = {row.name: row for row in told.layers if row.factored}
    assert {row.name for row in report.layers} == set(rows)
    for row in report.layers:
        assert row.rank == rows[row.name].rank
        error = rows[row.name].output_error
        assert (row.output_error is None) == (error is None)
        assert error is None or row.output_error == pytest.approx(error, rel=1e-4)
    small = tensorlrf.load(out, None if "model" not in more else dense)
    return small.eval(), wanted, report


def assert_alike(small: nn.Module, wanted: nn.Module, batch: Any) -> None:
    """Outputs equal to rounding: sums are added in another order at the most."""
    given = (lambda m: m(**batch)[0]) if isinstance(batch, dict) else (lambda m: m(batch))
    with torch.no_grad():
        torch.testing.assert_close(given(small), given(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")  # few samples
@pytest.mark.parametrize("name", [*KINDS, *(pytest.param(k, marks=pytest.mark.slow) for k in REST)])
def test_families_of_transformers(tmp_path: Path, name: str) -> None:
    kind, config, make = FAMILIES[name]
    cls, batches = getattr(hf, kind), make()
    torch.manual_seed(0)
    model = cls(cls.config_class(**config)).eval()
    model.save_pretrained(tmp_path / "in")
    small, wanted, report = both(model, tmp_path / "in", batches, "original", tmp_path / "out")
    assert_alike(small, wanted, batches[0])
    assert report.layers


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")  # few samples
@pytest.mark.parametrize("inputs", ["original", "prefix", "independent"])
def test_what_layers_are_fitted_to(tmp_path: Path, inputs: str) -> None:
    model, batches = net(), ids()
    source = saved(model, tmp_path / "a.safetensors")
    small, wanted, report = both(
        model, source, batches, inputs, tmp_path / "out", model=on_meta(net()), skip=[]
    )
    assert_alike(small, wanted, batches[0])
    assert {"entry", "last", "blocks.1.down"} <= {row.name for row in report.layers}


class Attending(nn.Module):
    """Query, key and value in one matrix."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(n, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.attention(x, x, x, need_weights=False)[0]
        return y


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "blocks": lambda: nn.Sequential(*[Block(16) for _ in range(3)], nn.Linear(16, 16)),
    "layers": lambda: nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 16)
    ),
    "groups": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(16, 32), nn.ReLU()), nn.Sequential(nn.Linear(32, 16), nn.Tanh())
    ),
    "attention": lambda: nn.Sequential(Attending(16), Attending(16)),
    "encoder": lambda: nn.Sequential(  # which asks its first layer how it attends
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 3, enable_nested_tensor=False
        )
    ),
}


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")  # few samples
@pytest.mark.parametrize("name", CHAINS)
def test_plain_chains(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = CHAINS[name]().eval()
    draws = torch.Generator("cpu").manual_seed(0)
    batches = [
        torch.randn(64, 16, generator=draws, device="cpu", dtype=torch.float32) for _ in range(5)
    ]
    source, blank = saved(model, tmp_path / "a.safetensors"), on_meta(CHAINS[name]())
    out = tmp_path / "small.safetensors"
    small, wanted, _ = both(model, source, batches, "original", out, skip=[], model=blank)
    assert_alike(small, wanted, batches[0])
    assert all(p.is_meta for p in blank.parameters())
    assert type(blank[0].forward).__name__ == "method"


class Reminded(Net):
    """Every block sees the words, too."""

    def forward(self, ids: Tensor) -> Tensor:
        words = self.embed(ids)
        x = self.entry(words)
        for block in self.blocks:
            x = block(x + words)
        y: Tensor = self.last(x)
        return y


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")  # few samples
def test_words_that_are_looked_up_for_every_block(tmp_path: Path) -> None:
    model, batches = net(Reminded), ids()
    source, blank = saved(model, tmp_path / "a.safetensors"), on_meta(net(Reminded))
    small, wanted, _ = both(model, source, batches, "prefix", tmp_path / "out", model=blank)
    assert_alike(small, wanted, batches[0])


class TwoTowers(Net):
    """A chain that batches of words do not reach, in front of one that they do."""

    def __init__(self, blocks: Any, n: int = 16) -> None:
        super().__init__(blocks, n)
        self.blocks, own = None, self.blocks  # type: ignore[assignment]
        self.pictures = nn.ModuleList([Block(n) for _ in range(2)])
        self.words = own

    def course(self, x: Tensor) -> Tensor:
        for block in self.words:
            x = block(x)
        return x


def test_a_chain_that_is_not_reached(tmp_path: Path) -> None:
    model, batches = net(TwoTowers), ids()
    source = saved(model, tmp_path / "a.safetensors")
    with pytest.warns(tensorlrf.errors.CalibrationWarning, match="not reach pictures.0.up"):
        small, wanted, report = both(
            model, source, batches, "prefix", tmp_path / "out", model=on_meta(net(TwoTowers))
        )
    assert_alike(small, wanted, batches[0])
    assert {row.name: row.output_error for row in report.layers}["pictures.0.up"] is None


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")  # few samples
def test_memory_for_states_changes_nothing_but_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no room beside the moments all states lie in files; more batches take no more."""
    from tensorlrf.compression.scale.blocks import _walk

    held: list[int] = []
    spilled: list[int] = []

    class Seen(_walk.States):
        def put(self, key: Any, output: Any) -> None:
            super().put(key, output)
            held.append(self._size)
            spilled.append(self.spilled)

    monkeypatch.setattr(_walk, "States", Seen)
    source = saved(net(), tmp_path / "a.safetensors")
    call: dict[str, Any] = {"keep_params": 0.5, "threads": 1, "model": on_meta(net())}
    tensorlrf.compress_checkpoint(source, tmp_path / "roomy", calibration=ids(), **call)
    assert spilled[-1] == 0
    one = held[0]
    assert max(held) > 4 * one  # of both models, all batches
    with pytest.raises(tensorlrf.errors.ArgumentError, match="memory_limit=1000 is below") as told:
        tensorlrf.compress_checkpoint(
            source, tmp_path / "out", calibration=ids(), memory_limit=1000, **call
        )
    assert not (tmp_path / "out").exists()
    least = int(str(told.value).rpartition("memory_limit=")[2].split(",")[0])
    for count in (4, 8):
        held.clear()
        out = tmp_path / f"out{count}"
        tensorlrf.compress_checkpoint(
            source, out, calibration=ids(count), memory_limit=4 * least, **call
        )
        assert max(held) <= 4 * least
        assert not (out / ".tensorlrf.job").exists()
    full = Seen(tmp_path / "states", 0)
    full.put(("given", 0, 0), (torch.ones(3, device="cpu", dtype=torch.float32), None, 2))
    value, none, two = full.get(("given", 0, 0))
    assert value.sum() == 3
    assert (none, two) == (None, 2)
    assert (full._size, full.spilled) == (0, 12)
    full.close()
    assert not (tmp_path / "states").exists()


@pytest.mark.filterwarnings("ignore::tensorlrf.errors.CalibrationWarning")  # few samples
def test_states_in_files_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorlrf.compression.scale.blocks import _blockwise

    source = saved(net(), tmp_path / "a.safetensors")
    call: dict[str, Any] = {
        "keep_params": 0.5, "threads": 1, "model": on_meta(net()), "calibration": ids(),
        "memory_limit": 1 << 28,
    }  # fmt: skip
    tensorlrf.compress_checkpoint(source, tmp_path / "held", **call)
    monkeypatch.setattr(_blockwise.Blockwise, "largest", lambda self, limit: limit)  # no room left
    tensorlrf.compress_checkpoint(source, tmp_path / "filed", **call)
    assert contents(tmp_path / "held") == contents(tmp_path / "filed")
