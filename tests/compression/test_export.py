"""Models leave with torch's own layers, compute the same, and run where tensorlrf is not."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn import FactoredHFConv1D, FactoredLayer, FactoredLinear, factored_type, factorize
from tensorlrf.nn.obstacles import plain_layer
from tensorlrf.nn.plain import TABLES
from tensorlrf.ops import PathTable
from tests.ops.samples import random_factors

ROOT = Path(__file__).resolve().parents[2]

# What torch's and transformers' own exporters do.
exporters_warn = pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"
)
TWO_SIDED_SAME = "ignore:Using padding='same' with even kernel lengths:UserWarning"


def cp(like: nn.Module, rank: int) -> FactoredLayer:
    """The layer on random CP factors: nothing here asks for good ones."""
    f = random_factors("cp", tuple(like.weight.shape), rank, dtype=torch.float32)  # type: ignore[arg-type]
    kind = factored_type(like)
    assert kind is not None
    return kind.from_factors(f, like)


def on(path: str, layer: FactoredLayer) -> FactoredLayer:
    layer.path_table = PathTable.single(path)
    return layer


class Net(nn.Module):
    """A CNN of every kind of layer, each on a path of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = on("fold", cp(nn.Conv2d(3, 8, 3, stride=2, padding=1), 6))
        self.same = on("chain", factorize(nn.Conv2d(8, 8, (3, 4), padding="same"), "tucker", 4))
        grouped = nn.Conv2d(8, 16, 3, groups=2, padding=1, padding_mode="reflect")
        self.grouped = on("chain", factorize(grouped, "svd", 4))
        self.norm = nn.BatchNorm2d(16)
        self.line = on("chain", cp(nn.Conv1d(16, 16, 5, padding=2), 8))
        self.head = on("dense", factorize(nn.Linear(16, 5), "svd", 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.grouped(self.same(self.stem(x)))))
        y: Tensor = self.head(self.line(x.flatten(2)).mean(-1))
        return y


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def agree(got: Tensor, want: Tensor) -> None:
    """To 1e-5 of the largest output: a few float32 sums of some hundred terms, in another order."""
    assert got.shape == want.shape
    assert bool((got - want).abs().max() <= 1e-5 * want.abs().max())


def no_factored(model: nn.Module) -> bool:
    return not any(type(m).__module__.startswith("tensorlrf") for m in model.modules())


class TestBoth:
    @pytest.mark.filterwarnings(TWO_SIDED_SAME)
    @pytest.mark.parametrize("leave", [tensorlrf.export, tensorlrf.densify])
    def test_the_model_stays_and_the_copy_computes_the_same(self, leave: Any) -> None:
        model = net()
        before = copy.deepcopy(model.state_dict())
        state = torch.get_rng_state()
        out = leave(model)
        assert torch.equal(torch.get_rng_state(), state)
        assert no_factored(out)
        assert not out.training
        agree(out(images()), model(images()))
        with torch.no_grad():
            for t in (*out.parameters(), *out.buffers()):
                t.zero_()
        assert isinstance(model.head, FactoredLinear)
        for name, t in model.state_dict().items():
            assert torch.equal(t, before[name])

    @pytest.mark.parametrize("leave", [tensorlrf.export, tensorlrf.densify])
    def test_one_layer_in_several_places_stays_one(self, leave: Any) -> None:
        shared = factorize(nn.Linear(6, 6), "svd", 2)
        block = nn.Sequential(shared)
        model = nn.Sequential(shared, block, block)
        model.order = [shared]  # beside the tree of modules
        out = leave(model)
        assert out[0] is out[1][0]
        assert out[1] is out[2]
        assert out.order[0] is out[0]
        x = torch.randn(3, 6)
        agree(out(x), model(x))

    @pytest.mark.parametrize("leave", [tensorlrf.export, tensorlrf.densify])
    def test_the_model_itself_may_be_a_layer(self, leave: Any) -> None:
        layer = on("chain", factorize(nn.Linear(6, 7), "svd", 2))
        out = leave(layer)
        assert no_factored(out)
        x = torch.randn(3, 6)
        agree(out(x), layer(x))
        plain = leave(nn.Linear(6, 7))
        assert type(plain) is nn.Linear

    @pytest.mark.parametrize("leave", [tensorlrf.export, tensorlrf.densify])
    def test_refusals(self, leave: Any) -> None:
        with pytest.raises(ArgumentError, match=r"model is a Tensor; pass a torch\.nn\.Module"):
            leave(torch.zeros(3))
        hooked = nn.Sequential(factorize(nn.Linear(6, 7), "svd", 2))
        hooked[0].register_forward_hook(lambda *_: None)
        with pytest.raises(UnsupportedError, match=r"model: 0 has hooks \(forward_hooks\)"):
            leave(hooked)
        odd = nn.Sequential(factorize(nn.Linear(6, 7), "svd", 2))
        odd.kept = torch.ones(2, requires_grad=True) * 2
        with pytest.raises(ArgumentError, match=r"model cannot be copied .*remove what deepcopy"):
            leave(odd)

    @pytest.mark.parametrize("leave", [tensorlrf.export, tensorlrf.densify])
    def test_flags_and_dtypes_are_kept(self, leave: Any) -> None:
        model = nn.Sequential(factorize(nn.Linear(6, 7), "svd", 2), nn.Linear(7, 3)).bfloat16()
        model[0].requires_grad_(False)
        model[1].eval()
        out = leave(model)
        assert {p.dtype for p in out.parameters()} == {torch.bfloat16}
        assert {p.requires_grad for p in out[0].parameters()} == {False}
        assert {p.requires_grad for p in out[1].parameters()} == {True}
        assert [out.training, out[0].training, out[1].training] == [True, True, False]


def test_densify_gives_the_layers_back() -> None:
    dense = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.Flatten(), nn.LazyLinear(3))
    dense(torch.zeros(1, 4, 5, 5))
    small = copy.deepcopy(dense)
    small[0] = factorize(dense[0], "svd", 6)
    small[2] = factorize(dense[2], "svd", 3)
    back = tensorlrf.densify(small)
    assert repr(back) == repr(dense)
    assert back.state_dict().keys() == dense.state_dict().keys()
    for name, t in back.state_dict().items():
        torch.testing.assert_close(t, dense.state_dict()[name], rtol=0, atol=1e-6)


class TestFrozenPath:
    def test_the_path_for_so_many_rows(self) -> None:
        layer = factorize(nn.Linear(6, 7), "svd", 2)
        layer.path_table = PathTable(((4, "dense"), (None, "chain")))
        assert type(tensorlrf.export(layer)) is nn.Sequential
        assert type(tensorlrf.export(layer, rows=4)) is nn.Linear
        assert type(tensorlrf.export(layer, rows=5)) is nn.Sequential
        assert layer.path_table.paths == ("dense", "chain")

    @pytest.mark.parametrize("rows", [0, -1, 2.0, True, "4"])
    def test_rows_is_a_count(self, rows: Any) -> None:
        with pytest.raises(ArgumentError, match=f"rows={rows!r} must be None or an int"):
            tensorlrf.export(nn.Linear(6, 7), rows=rows)


@pytest.mark.filterwarnings(TWO_SIDED_SAME)
def test_it_runs_where_tensorlrf_is_not(tmp_path: Path) -> None:
    model = nn.Sequential(
        on("chain", cp(nn.Conv2d(3, 8, (3, 4), padding="same"), 6)),
        nn.Flatten(2),
        on("chain", factorize(nn.Conv1d(8, 8, 5, groups=2), "svd", 2)),
        on("chain", factorize(nn.Linear(252, 5), "svd", 3)),
    )
    x = images()
    want = model(x)
    torch.save(tensorlrf.export(model), tmp_path / "model.pt")
    torch.save((x, want.detach()), tmp_path / "example.pt")
    (tmp_path / "run.py").write_text(
        "import importlib.util, torch, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "assert importlib.util.find_spec('tensorlrf') is None\n"
        "assert importlib.util.find_spec('tensorlrf_kernels') is None\n"
        "model = torch.load('model.pt', weights_only=False)\n"
        "x, want = torch.load('example.pt')\n"
        "assert torch.equal(model(x), want) or float((model(x) - want).abs().max()) < 1e-5\n"
        "print('ran')\n"
    )
    # Isolated, so that neither the environment nor the folder brings our packages; those that pip
    # installed in place are taken off the path.
    code = (
        "import runpy, sys\n"
        f"sys.path[:] = [p for p in sys.path if not p.startswith({str(ROOT)!r}) or '.venv' in p]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "runpy.run_path('run.py')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ran"


def test_a_model_that_asks_a_layer_for_its_dtype() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = on("chain", factorize(nn.Conv2d(3, 8, 4, stride=4), "svd", 4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.patches(x.to(self.patches.weight.dtype))
            return y

    model = Asks()
    out = tensorlrf.export(model)
    agree(out(images().double()), model(images()))
    assert out.bfloat16()(images()).dtype == torch.bfloat16


# ---- torch.export and ONNX ------------------------------------------------------------------


def through_onnx(program: Any, batches: list[tuple[Tensor, ...]], want: list[Tensor]) -> None:
    """onnxruntime agrees to 1e-4 of the largest output, at every batch size."""
    import onnxruntime

    onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    session = onnxruntime.InferenceSession(
        onnx.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_inputs()]
    for batch, y in zip(batches, want, strict=True):
        feed = {name: t.numpy() for name, t in zip(names, batch, strict=True)}
        got = torch.from_numpy(session.run(None, feed)[0])
        assert got.shape == y.shape
        assert bool((got - y).abs().max() <= 1e-4 * y.abs().max())


def check_exports(
    model: nn.Module, batches: list[tuple[Tensor, ...]], axes: tuple[int, ...] = (0,)
) -> None:
    """`axes` of the inputs are of any size."""
    out = tensorlrf.export(model)
    assert no_factored(out)
    with torch.no_grad():
        want = [model(*batch) for batch in batches]
    dynamic = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _ in batches[0])
    program = torch.export.export(out, batches[0], dynamic_shapes=dynamic)
    for batch, y in zip(batches, want, strict=True):
        with torch.no_grad():
            agree(program.module()(*batch), y)
    through_onnx(program, batches, want)


@exporters_warn
@pytest.mark.filterwarnings(TWO_SIDED_SAME)
def test_a_cnn_goes_to_onnx() -> None:
    check_exports(net(), [(images(b),) for b in (2, 1, 5)])


class LastHidden(nn.Module):
    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.model(input_ids=ids, attention_mask=mask, **self.options).last_hidden_state
        return y


def factored_transformer(model: nn.Module, **options: Any) -> nn.Module:
    for name, module in list(model.named_modules()):
        plain = plain_layer(module)
        if plain is None or plain.kind in TABLES:  # of which one has two rows
            continue
        layer: FactoredLayer
        if plain.kind == "Conv1D":
            f = tensorlrf.svd(module.weight.detach().T, 8)
            layer = FactoredHFConv1D.from_factors(f, module)
        else:
            layer = factorize(module, "svd", 8)
        model.set_submodule(name, on("chain", layer))
    return LastHidden(model, **options).eval()


def tokens(batch: int, n: int = 9) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(batch)
    ids, mask = torch.randint(0, 40, (batch, n), generator=draws), torch.ones(batch, n).long()
    mask[0, n - 3 :] = 0
    return ids, mask


@exporters_warn
def test_gpt2_with_its_conv1d_goes_to_onnx() -> None:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=40,
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = factored_transformer(GPT2Model(config), use_cache=False)
    assert sum(isinstance(m, FactoredHFConv1D) for m in model.modules()) == 4
    check_exports(model, [tokens(2), tokens(1, 5), tokens(3, 14)], axes=(0, 1))
    back = tensorlrf.densify(model)
    assert sum(type(m).__name__ == "Conv1D" for m in back.modules()) == 4
    agree(back(*tokens(2)), model(*tokens(2)))


@exporters_warn
@pytest.mark.slow
def test_bert_goes_to_onnx() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    model = factored_transformer(BertModel(config))
    assert sum(isinstance(m, FactoredLinear) for m in model.modules()) == 13
    check_exports(model, [tokens(2), tokens(1, 5), tokens(3, 14)], axes=(0, 1))
