"""The GPU run from end to end on small cases, with a host clock in the place of the GPU's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench import (
    conv_cases,
    gpu,
    gpu_cases,
    kernel_cases,
    kernel_summary,
    mttkrp_cases,
    network_cases,
    shapes,
    structured_cases,
    tune,
)
from bench import lowrank_embedding_cases as tables
from bench.clock import Times, Variant
from bench.kernel_cases import Case
from bench.kernel_summary import regret, summary
from bench.report import Row
from bench.shapes import CONV_LAYERS, KERNEL_LAYERS, KERNEL_RANKS, Conv, held_out, kernel_ranks
from tensorlrf.ops._profile import H200
from tensorlrf_kernels import launches
from tensorlrf_kernels.launches import LaunchConfig

CONSTANTS = {"rate_half": 8e14, "bandwidth": 4e12, "launch": 2e-6}
TINY = (("tiny", 96, 96),)
TINY_CONV = Conv("t", 64, 64, (3, 3), 5)


KRON = structured_cases.kron(2, 16, 16, 24, 16)
BLOCKS = structured_cases.even(128, 256, 2, 16)


def tiny_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1))


def host_clock(variants: Mapping[str, Variant], *, seconds: float) -> dict[str, Times]:
    def run(call: Callable[[], object]) -> Times:
        start = time.perf_counter()
        call()
        spent = time.perf_counter() - start
        return Times(spent, spent, spent)

    return {name: run(variant.make()) for name, variant in variants.items()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gpu_cases, shapes):
        monkeypatch.setattr(module, "KERNEL_LAYERS", TINY)
    for module, name in ((shapes, "CONV_LAYERS"), (shapes, "FLAGSHIPS"), (conv_cases, "FLAGSHIPS")):
        monkeypatch.setattr(
            module, name, [(TINY_CONV, (16,))] if name == "FLAGSHIPS" else [TINY_CONV]
        )
    sizes = {"ROWS": 40, "COLUMNS": 32, "CUT": (8, 5, 4, 8)}
    for name, size in sizes.items():
        monkeypatch.setattr(tables, name, size)
    monkeypatch.setattr(kernel_summary, "FLAGSHIPS", [(TINY_CONV, (16,))])
    monkeypatch.setattr(shapes, "CONV_RANK_SHARES", (0.25,))
    monkeypatch.setattr(kernel_cases, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(kernel_cases, "profiled", lambda: H200)
    monkeypatch.setattr(kernel_cases, "_peak", lambda way: 1.0)
    monkeypatch.setattr(kernel_cases, "compiled", lambda run: run)
    monkeypatch.setattr(kernel_cases, "clock", host_clock)
    monkeypatch.setattr(gpu, "measure", lambda: CONSTANTS)
    monkeypatch.setattr(gpu, "machine", lambda device: {"device": "Tiny GPU", "commit": "abc"})
    monkeypatch.setattr(gpu, "verdict", lambda *_: "")
    monkeypatch.setattr(gpu, "ProcessPoolExecutor", lambda mp_context: ThreadPoolExecutor(1))
    cases: list[tuple[str, Callable[[], Case]]] = [
        ("linear", partial(kernel_cases.linear_case, "tiny", 96, 96, 8)),
        ("mlp", partial(kernel_cases.mlp_case, 4, 16, 48, 32)),
        ("training", partial(kernel_cases.training_case, 6, 16, 32, "gelu")),
        ("swiglu", partial(kernel_cases.swiglu_training_case, 6, 16, 48, 32)),
        ("conv", partial(conv_cases.conv_case, TINY_CONV)),
        ("CP training", partial(conv_cases.conv_training_case, TINY_CONV, 16)),
        ("kron", partial(structured_cases.structured_case, "kron", KRON, 6)),
        ("blocks", partial(structured_cases.structured_case, "blocks", BLOCKS, 6)),
        ("kron training", partial(structured_cases.structured_training_case, "kron", KRON, 6)),
        ("rows", partial(tables.rows_case, 5, 16)),
        ("train", partial(tables.train_rows_case, 5, 4)),
        ("rows training", partial(tables.embedding_training_case, 5, 16)),
        ("mttkrp", partial(mttkrp_cases.mttkrp_case, (9, 8, 7), 5, (0,))),
        ("half a sweep", partial(mttkrp_cases.mttkrp_case, (9, 8, 7, 3), 5, (1, 2))),
        ("net", partial(network_cases.network_case, "tiny net", tiny_net, (1, 3, 8, 8), "cp")),
    ]
    monkeypatch.setattr(gpu_cases, "all_cases", lambda: cases)


@pytest.mark.usefixtures("small")
def test_the_run_writes_rows_table_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--results", str(tmp_path)]) == 0
    folder = tmp_path / "tiny-gpu"
    result = json.loads((folder / "kernels.json").read_text())
    assert result["machine"]["constants"] == CONSTANTS
    assert result["machine"]["not_reached"] == []
    rows = [Row(**row) for row in result["rows"]]
    variants = {row.case: [r.variant for r in rows if r.case == row.case] for row in rows}
    assert variants["tiny 96x96, M=8"] == ["dense", "compiled dense", "chain r=32", "fused r=32"]
    assert len(variants) == 15
    assert variants["kron"] == ["dense", "compiled dense", "chain", "fused"]
    assert variants["blocks"] == ["dense", "compiled dense", "chain", "fold", "fused"]
    assert variants["mttkrp 9x8x7 r=5, mode 0"] == ["chain", "two steps", "einsum", "fused"]
    assert variants["tiny net 1x3x8x8, cp at 0.25"][2:] == [
        "chain", "compressed", "compressed, tuned"
    ]  # fmt: skip
    assert variants["t 64-64 3x3 at 5, batch 1"] == [
        "dense", "compiled dense",
        *(f"{path} cp r=16" for path in ("chain", "fold", "fold_depthwise", "fused")),
        *(f"{path} lowrank r=16" for path in ("chain", "fused")),
        *(f"{path} tucker r=16" for path in ("chain", "fused")),
    ]  # fmt: skip
    for row in rows:
        error = row.info.get("error")
        assert error is None or error < 2e-2  # bfloat16, four products in a row
    assert any(row.info.get("error") for row in rows)
    assert (folder / "kernels.png").stat().st_size > 1000
    assert "| tiny 96x96, M=8 | fused r=32 |" in (folder / "kernels.md").read_text()
    printed = capsys.readouterr().out
    assert "lowrank_linear, M <= 128" in printed
    assert "training step" in printed
    assert "cp_conv2d, t 64-64 3x3 at 5, batch 1, cp r=16" in printed
    assert "fused tucker convolutions, the best of dense and fold" in printed


@pytest.mark.usefixtures("small")
def test_what_the_time_does_not_reach_is_listed(tmp_path: Path) -> None:
    assert gpu.main(["--results", str(tmp_path), "--seconds", "0"]) == 0
    result = json.loads((tmp_path / "tiny-gpu" / "kernels.json").read_text())
    assert result["machine"]["not_reached"] == [
        *("linear", "mlp", "training", "swiglu", "conv", "CP training", "kron", "blocks"),
        *("kron training", "rows", "train", "rows training", "mttkrp", "half a sweep", "net"),
    ]
    assert "Not reached in the time: 15 cases" in result["note"]


@pytest.mark.usefixtures("small")
def test_a_run_that_is_cut_off_has_saved_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off() -> Case:
        raise KeyboardInterrupt

    cases = gpu_cases.all_cases()
    cases[2] = (cases[2][0], cut_off)
    monkeypatch.setattr(gpu_cases, "all_cases", lambda: cases)
    monkeypatch.setattr(gpu, "SAVED_EACH", 2)
    monkeypatch.setattr(gpu, "_compile_ahead", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--results", str(tmp_path)])
    result = json.loads((tmp_path / "tiny-gpu" / "kernels.json").read_text())
    assert len({row["case"] for row in result["rows"]}) == 2
    assert result["machine"]["not_reached"] == [name for name, _ in cases[2:]]


@pytest.mark.usefixtures("small")
def test_a_case_that_cannot_be_made_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Case:
        raise ValueError("no such layer")

    cases = gpu_cases.all_cases()[:2]
    monkeypatch.setattr(gpu_cases, "all_cases", lambda: [("broken", broken), *cases])
    assert gpu.main(["--results", str(tmp_path)]) == 0
    assert "broken: ValueError: no such layer" in capsys.readouterr().out
    result = json.loads((tmp_path / "tiny-gpu" / "kernels.json").read_text())
    assert result["machine"]["failed"] == ["broken"]
    assert len({row["case"] for row in result["rows"]}) == 2


@pytest.mark.usefixtures("small")
def test_a_case_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = Case.measure

    def failing(self: Case, seconds: float) -> list[Row]:
        if self.name == "tiny 96x96, M=8":
            raise RuntimeError("no such kernel")
        return measure(self, seconds)

    monkeypatch.setattr(Case, "measure", failing)
    assert gpu.main(["--results", str(tmp_path)]) == 0
    assert "linear: RuntimeError: no such kernel" in capsys.readouterr().out
    result = json.loads((tmp_path / "tiny-gpu" / "kernels.json").read_text())
    assert result["machine"]["failed"] == ["linear"]
    assert len({row["case"] for row in result["rows"]}) == 14


@pytest.mark.usefixtures("small")
def test_what_the_library_did_in_a_kernels_place_is_not_told_as_fused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = Case.measure
    config = LaunchConfig("prefill", {"BM": 64})
    monkeypatch.setattr(launches, "_failed", set())

    def falling_back(self: Case, seconds: float) -> list[Row]:
        if self.name == "tiny 96x96, M=8":
            launches._failed.add(launches.Launched("lowrank_linear", "tiny", torch.float16, config))
        return measure(self, seconds)

    monkeypatch.setattr(Case, "measure", falling_back)
    assert gpu.main(["--results", str(tmp_path)]) == 0
    assert "not told as fused: lowrank_linear prefill BM=64" in capsys.readouterr().out
    rows = json.loads((tmp_path / "tiny-gpu" / "kernels.json").read_text())["rows"]
    fused = {row["case"] for row in rows if row["variant"].startswith("fused")}
    assert "tiny 96x96, M=8" not in fused
    assert "tiny 96x96, M=8" in {row["case"] for row in rows}
    assert fused


def test_a_third_is_left_out_of_tuning_at_every_rank() -> None:
    each = [(o, i, r) for _, o, i in KERNEL_LAYERS for r in kernel_ranks(o, i)]
    out = [case for case in each if held_out(*case)]
    assert 0.25 < len(out) / len(each) < 0.42
    assert {r for *_, r in out} == set(KERNEL_RANKS)


def test_convolutions_held_out_of_tuning_are_a_third_and_none_that_a_goal_is_about() -> None:
    each = list(tune._convolutions())
    assert 0.25 < sum(out for _, out in each) / len(each) < 0.42
    held = {tune._key(*one) for one, out in each if out}
    tuned = {tune._key(*one) for one in tune.problems()}
    assert not held & tuned
    for conv, ranks in shapes.FLAGSHIPS:
        for format, rank in conv_cases.conv_formats(conv):
            if rank in ranks:
                op, problem, out = conv_cases.conv_problem(conv, format, rank)
                assert not out
                assert tune._key(op, "forward", problem) in tuned


def test_structured_layers_held_out_of_tuning_are_none_that_a_goal_is_about() -> None:
    each = structured_cases.all_layers()
    assert 0.2 < sum(out for *_, out in each) / len(each) < 0.42
    held = {tune._key(*one) for one, out in tune._structured() if out}
    tuned = {tune._key(*one) for one in tune.problems()}
    assert not held & tuned
    goals = [one for one, _ in list(tune._structured())[: structured_cases.N_GOALS]]
    assert {tune._key(*one) for one in goals} <= tuned
    assert {op for op, *_ in goals} == {"kron_linear", "blr_linear"}


def test_the_convolutions_are_those_of_the_networks() -> None:
    """Every distinct k x k one with stride and size, counted by running the networks."""
    found: dict[tuple[Any, ...], None] = {}

    def note(module: nn.Conv2d, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        if max(module.kernel_size) > 1 and max(module.dilation) == 1:
            weight = tuple(module.weight.shape)
            found[weight, inputs[0].shape[-1], module.stride[0]] = None

    def expected(network: str) -> set[tuple[Any, ...]]:
        return {(c.shape, c.side, c.stride) for c in CONV_LAYERS if c.network == network}

    for build, side in ((network_cases.ResNet50, 224), (network_cases.craft, 512)):
        with torch.device("meta"):
            net = build().eval()
            for module in net.modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_hook(note)
            net(torch.empty(1, 3, side, side))
        if build is network_cases.ResNet50:
            assert set(found) == expected("resnet50")
            found.clear()
    trunk = {(shape, side * 224 // 512, stride) for shape, side, stride in found}
    assert expected("craft") <= set(found)
    # The last of VGG-16's three at 14 pixels are the trunk's at 32.
    assert expected("vgg16") <= trunk


@pytest.mark.usefixtures("small")
def test_further_cases_are_put_onto_a_former_run(tmp_path: Path) -> None:
    former = tmp_path / "tiny-gpu" / "kernels.json"
    assert gpu.main(["--results", str(tmp_path), "--only", "conv"]) == 0
    first = json.loads(former.read_text())
    assert {row["case"] for row in first["rows"]} == {str(TINY_CONV)}
    given = ["--results", str(tmp_path), "--only", "mlp", "--onto", str(former)]
    assert gpu.main(given) == 0
    both = json.loads(former.read_text())
    assert both["rows"][: len(first["rows"])] == first["rows"]
    assert len({row["case"] for row in both["rows"]}) == 2
    assert both["machine"]["earlier"] == ["abc"]


def row(case: str, variant: str, seconds: float, **info: Any) -> Row:
    return Row(case, variant, seconds, seconds, 1, info)


def test_regret_is_the_chosen_path_over_the_fastest() -> None:
    rows = [
        row("a", "dense", 4.0, M=8),
        row("a", "chain r=32", 2.0, rank=32, path="chain", chosen="fused", M=8, held_out=True),
        row("a", "fused r=32", 3.0, rank=32, path="fused", chosen="fused", M=8, held_out=True),
        row("a", "chain r=64", 5.0, rank=64, path="chain", chosen="chain", M=8, held_out=False),
    ]
    assert regret(rows, lambda info: True) == {"a r=32": 1.5, "a r=64": 1.25}
    assert regret(rows, lambda info: bool(info["held_out"])) == {"a r=32": 1.5}
    text = "\n".join(summary(rows))
    assert "mean 37.5%, worst 50.0% at a r=32" in text


def test_what_a_goal_is_about_is_told_with_every_library_form() -> None:
    case = "blr b=256 r=16, M=16"
    rows = [
        row(case, "dense", 8.0, M=16),
        row(case, "chain", 6.0, path="chain", rank=16, format="blr"),
        row(case, "fold", 3.0, path="fold", rank=16, format="blr"),
        row(case, "fused", 2.0, path="fused", rank=16, format="blr", over_floor=1.25),
    ]
    (line,) = [line for line in summary(rows) if line.startswith(case)]
    assert "3.00x chain, 1.50x fold, 4.00x dense, 1.25 over the floor (>= 1.5x)" in line


def test_every_goal_has_its_case() -> None:
    names = [name for name, _ in structured_cases.structured_cases()]
    for goal in kernel_summary.GOALS:
        op = goal.split()[0]
        if op in ("kron", "tt", "blr"):
            assert goal in names
    sizes = {"x".join(map(str, size)) for size, *_ in mttkrp_cases.CASES}
    assert {"400x400x400", "512x512x3x3"} <= sizes
    assert (tables.ROWS, tables.COLUMNS) == (131072, 4096)


def test_networks_have_the_shapes_of_their_papers() -> None:
    with torch.device("meta"):
        net = network_cases.ResNet50().eval()
        assert net(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    # He et al. 2016: 25.6 M with batch norms, whose 53,120 numbers are folded into 26,560 biases.
    parameters = sum(p.numel() for p in net.parameters())
    assert parameters == 25_557_032 - 53_120 + 26_560


def test_only_kxk_convolutions_are_factored() -> None:
    small = network_cases.factored(network_cases.Bottleneck(16, 16, 1), "lowrank", "chain")
    kinds = {name: type(module).__name__ for name, module in small.named_children()}
    assert kinds["conv"] == "FactoredConv2d"
    assert kinds["reduce"] == kinds["expand"] == "Conv2d"
    assert small.conv.path_table.paths == ("chain",)
