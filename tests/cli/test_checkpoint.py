"""A .safetensors checkpoint by its weights alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tensorlrf
from tensorlrf.cli._checkpoint import read_checkpoint
from tensorlrf.nn import FactoredLayer
from tests.cli.calls import Program, cnn, listing, picture, save_state
from tests.compression.checkpoint.saved import same

HALF = ("--keep-params", 0.5)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_state(cnn(), tmp_path / "net.safetensors")


@pytest.mark.parametrize("method", ["svd", "tucker", "cp", "auto"])
def test_the_file_loads_into_the_model(
    method: str, source: Path, tmp_path: Path, program: Program
) -> None:
    target = tmp_path / "small.safetensors"
    done = program("compress", source, "-o", target, *HALF, "--method", method, "--json")
    assert (done.code, done.err) == (0, "")
    report = tensorlrf.compression.Report.from_json(done.out)
    assert 0.2 < report.eligible.share <= 0.5
    small = tensorlrf.load(target, cnn(seed=1))
    factored = {name for name, m in small.named_modules() if isinstance(m, FactoredLayer)}
    assert factored == {row.name for row in report.layers if row.factored}
    assert "3" in factored
    # All that has no factors is as it was, and what has them is the same as from Python.
    dense = cnn()
    ours, _ = tensorlrf.compress(dense, keep_params=0.5, method=method, skip=[])
    for name, module in small.named_modules():
        if name in factored:
            other = ours.get_submodule(name)
            assert isinstance(module, FactoredLayer)
            assert isinstance(other, FactoredLayer)
            assert torch.equal(module.weight, other.weight)
            assert module.recipe == other.recipe
    assert torch.equal(small(picture()), ours(picture()))


def test_budgets_and_allocations(source: Path, tmp_path: Path, program: Program) -> None:
    """The same words as in Python, of what weights alone can tell."""
    dense, target = cnn(), tmp_path / "small.safetensors"
    found = tensorlrf.sensitivity(read_checkpoint(source).layers.model, skip=[])
    (tmp_path / "found.json").write_text(found.to_json())
    for more, options in (
        (("--allocation", "energy"), {"allocation": "energy"}),
        (
            ("--allocation", "energy", "--least-share", 0.3),
            {"allocation": tensorlrf.Allocation(rule="energy", least_share=0.3)},
        ),
        (("--sensitivity", tmp_path / "found.json"), {"allocation": "energy"}),
    ):
        done = program(
            "compress", source, "-o", target, "--keep-bytes", 0.5, *more, "--json", "--force"
        )
        assert (done.code, done.err) == (0, "")
        report = tensorlrf.compression.Report.from_json(done.out)
        made = tensorlrf.plan(dense, keep_bytes=0.5, skip=[], **options)  # type: ignore[arg-type]
        assert report.eligible.bytes_after <= 0.5 * report.eligible.bytes_before
        assert report.allotment.rule == "energy"
        ranks = {row.name: row.rank for row in report.layers if row.factored}
        assert ranks == {row.name: row.rank for row in made.factored}
    (tmp_path / "found.json").write_text(found.to_json().replace(found.architecture, "0" * 64))
    wrong = program(
        "compress", source, "--plan-only", *HALF, "--sensitivity", tmp_path / "found.json"
    )
    assert "sensitivity is of a model of architecture 000000000000" in wrong.error
    (tmp_path / "found.json").write_text("{")
    wrong = program(
        "compress", source, "--plan-only", *HALF, "--sensitivity", tmp_path / "found.json"
    )
    assert "found.json: text is no sensitivity" in wrong.error


def test_dtypes_and_other_tensors_stay(source: Path, tmp_path: Path, program: Program) -> None:
    tensors = {
        k: t.bfloat16() if t.is_floating_point() else t for k, t in load_file(source).items()
    }
    save_file(tensors, tmp_path / "half.safetensors")
    target = tmp_path / "small.safetensors"
    assert program("compress", tmp_path / "half.safetensors", "-o", target, *HALF).code == 0
    small = tensorlrf.load(target, cnn().bfloat16())
    state = small.state_dict()
    kept = set(state) & set(tensors)
    assert {"1.running_mean", "1.num_batches_tracked", "2.weight", "5.bias"} <= kept
    assert all(torch.equal(state[name], tensors[name]) for name in kept)
    assert {t.dtype for t in state.values()} == {torch.bfloat16, torch.int64}


def test_a_lone_layer(tmp_path: Path, program: Program) -> None:
    layer = nn.Linear(32, 24)
    source = save_state(layer, tmp_path / "one.safetensors")
    target = tmp_path / "small.safetensors"
    assert program("compress", source, "-o", target, *HALF).code == 0
    small = tensorlrf.load(target, nn.Linear(32, 24))
    assert isinstance(small, FactoredLayer)
    assert small.bias is not None
    assert torch.equal(small.bias, layer.bias)


def test_what_is_no_layer_has_its_reason(tmp_path: Path) -> None:
    tensors = {
        "embed_tokens.weight": torch.ones(50, 16),
        "encoder.embeddings.word_embeddings.weight": torch.ones(50, 16),
        "encoder.embeddings.patch.weight": torch.ones(16, 3, 4, 4),
        "transformer.wte.weight": torch.ones(50, 16),
        "position_table.weight": torch.ones(50, 16),
        "layers.10.weight": torch.ones(16, 16),
        "layers.2.weight": torch.ones(16, 16),
        "layers.2.bias": torch.ones(16),
        "odd.weight": torch.ones(16, 16),
        "odd.scale": torch.ones(16),
        "bias.weight": torch.ones(16, 16),
        "bias.bias": torch.ones(3),
        "outer.weight": torch.ones(16, 16),
        "outer.inner.weight": torch.ones(16, 16),
        "codes.weight": torch.ones(16, 16, dtype=torch.int8),
        "eighths.weight": torch.ones(16, 16).to(torch.float8_e4m3fn),
        "empty.weight": torch.ones(0, 16),
        "depthwise.weight": torch.ones(16, 1, 3, 3),
        "train.weight": torch.ones(16, 16),
        "norm.weight": torch.ones(16),
        "scalar": torch.ones(()),
    }
    save_file(tensors, tmp_path / "c.safetensors")
    read = read_checkpoint(tmp_path / "c.safetensors")
    layers = [
        n for n, m in read.layers.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    ]
    assert layers == ["encoder.embeddings.patch", "layers.2", "layers.10", "outer.inner"]
    words = {
        "embed_tokens": "embedding",
        "encoder.embeddings.word_embeddings": "embedding",
        "transformer.wte": "embedding",
        "position_table": "embedding",
        "odd": "scale",
        "bias": "bias",
        "outer": "other modules",
        "codes": "int8",
        "eighths": "float8",
        "empty": "empty",
        "depthwise": "depthwise",
        "train": "no such name",
        "norm": "dimensions",
    }
    assert all(word in read.layers.reasons[name] for name, word in words.items())
    # Nothing is lost on the way into the tree.
    assert sum(p.numel() for p in read.layers.model.parameters()) == sum(
        t.numel() for t in tensors.values()
    )


def test_what_parents_read_stays(tmp_path: Path, program: Program) -> None:
    def model() -> nn.Module:
        encoder = nn.TransformerEncoderLayer(32, 2, 64)
        return nn.Sequential(encoder, nn.TransformerDecoderLayer(32, 2, 64))

    source, target = save_state(model(), tmp_path / "t.safetensors"), tmp_path / "s.safetensors"
    report = program("compress", source, "-o", target, *HALF, "--json").out
    rows = json.loads(report)["layers"]
    assert {row["name"] for row in rows if row["format"]} == {"1.linear1", "1.linear2"}
    left = " ".join(row["reason"] for row in rows)
    assert "MultiheadAttention" in left
    assert "fast path" in left
    small = tensorlrf.load(target, model())
    factored = {name for name, m in small.named_modules() if isinstance(m, FactoredLayer)}
    assert factored == {"1.linear1", "1.linear2"}


def test_heads_and_globs_stay(tmp_path: Path, program: Program) -> None:
    tensors = {f"{name}.weight": torch.randn(32, 32) for name in ("body", "neck", "lm_head")}
    save_file(tensors, tmp_path / "c.safetensors")
    plan = ("compress", tmp_path / "c.safetensors", *HALF, "--plan-only", "--json")

    def left(*more: str) -> set[str]:
        rows = json.loads(program(*plan, *more).out)["layers"]
        return {row["name"] for row in rows if row["method"] is None}

    assert left() == {"lm_head"}
    assert left("--skip", "") == set()
    assert left("--skip", "ne*", "--skip", "body") == {"neck", "body"}


def test_a_plan_can_be_edited_and_followed(source: Path, tmp_path: Path, program: Program) -> None:
    done = program("compress", source, *HALF, "--plan-only", "--json")
    assert listing(tmp_path) == {"net.safetensors"}
    plan = tensorlrf.Plan.from_json(done.out)
    assert "depthwise" in plan.layer("2").reason
    edited = plan.edit("5", rank=3).edit("0", leave=True)
    (tmp_path / "plan.json").write_text(edited.to_json())
    target = tmp_path / "small.safetensors"
    follow = ("compress", source, "-o", target, "--plan", tmp_path / "plan.json")
    assert program(*follow).code == 0
    small = tensorlrf.load(target, cnn())
    layer = small.get_submodule("5")
    assert isinstance(layer, FactoredLayer)
    assert layer.factors.rank == 3
    assert isinstance(small.get_submodule("0"), nn.Conv2d)
    table = program("compress", source, *HALF, "--plan-only").out
    assert "eligible weights" in table
    assert "--keep-params" in program(*follow, "--force", *HALF).error
    assert "another model" in program("compress", other(tmp_path), *follow[2:], "--force").error


def other(folder: Path) -> Path:
    return save_state(nn.Sequential(nn.Linear(32, 32)), folder / "other.safetensors")


def test_the_same_seed_gives_the_same_file(source: Path, tmp_path: Path, program: Program) -> None:
    state = torch.random.get_rng_state()
    files, cp = [], ("--method", "cp", "--skip", "3", "--seed", 3)
    for name in ("a", "b"):
        target = tmp_path / f"{name}.safetensors"
        program("compress", source, "-o", target, *HALF, *cp)
        files.append(tensorlrf.load(target, cnn()))
    assert same(*files)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_table_names_the_layers(source: Path, tmp_path: Path, program: Program) -> None:
    done = program("compress", source, "-o", tmp_path / "s.safetensors", "--error", 0.4)
    assert (done.code, done.err) == (0, "")
    assert "asked for" not in done.out
    assert all(word in done.out for word in ("Conv2d", "Linear", "lowrank", "whole model"))
    assert done.out.splitlines()[-1] == f"written to {tmp_path / 's.safetensors'}"
