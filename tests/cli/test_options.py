"""What `compress` is asked for beside a budget says the same on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.cli import _compress
from tensorlrf.cli._huggingface import read_model, read_tokenizer
from tensorlrf.cli._texts import batches_of, read_texts
from tests.cli.calls import Program, cnn, save_state
from tests.cli.folders import WORDS, llama_folder, text_file, tokenizer
from tests.compression.checkpoint.saved import equal, same

IDS = torch.arange(4, 28).reshape(2, 12)
SMALL = ("--tokens", 32, "--batch-size", 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that tests only read."""
    folder = tmp_path_factory.mktemp("models")
    llama_folder(folder / "llama")
    normed_folder(folder / "normed")
    text_file(folder / "news.txt")
    return folder


def normed_folder(folder: Path) -> Path:
    """A language model with convolutions over time and batch normalisations, which transformers
    loads as one of its own."""
    import transformers

    class NormedConfig(transformers.PretrainedConfig):  # type: ignore[misc]  # untyped
        model_type = "normed_for_tests"
        hidden_size = 40
        vocab_size = len(WORDS)

    class NormedForTests(transformers.PreTrainedModel):  # type: ignore[misc]  # untyped
        config_class = NormedConfig
        main_input_name = "input_ids"

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            width = config.hidden_size
            self.table = nn.Embedding(config.vocab_size, width)
            self.conv = nn.Conv1d(width, width, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm1d(width)
            self.out = nn.Linear(width, width)
            self.post_init()

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
            x = self.table(input_ids)
            x = x if attention_mask is None else x * attention_mask[..., None]
            return (self.out(self.norm(self.conv(x.mT)).relu().mT),)

    transformers.AutoConfig.register("normed_for_tests", NormedConfig, exist_ok=True)
    transformers.AutoModel.register(NormedConfig, NormedForTests, exist_ok=True)
    transformers.NormedForTests = NormedForTests
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = NormedForTests(NormedConfig())
        nn.init.uniform_(model.norm.running_mean)
        nn.init.uniform_(model.norm.running_var, 0.5, 2)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def batches(folder: Path, text: Path, model: nn.Module) -> Any:
    tokens = read_tokenizer(folder)
    found, _ = batches_of(
        read_texts([text]), tokens, model, tokens=32, batch_size=4, max_batches=None, seed=0
    )
    return found


@pytest.mark.parametrize(
    ("more", "options"),
    [
        (("--shared", "inputs", "--shared", "layers"), {"shared": ["inputs", "layers"]}),
        (("--holdout", 0.3, "--loss", "cosine"), {"holdout": 0.3, "loss": "cosine"}),
        (("--rerun", "--memory-limit", 1 << 30), {"rerun": True, "memory_limit": 1 << 30}),
        (("--method", "modular"), {"method": "modular"}),
    ],
)
def test_it_is_what_compress_gives(
    more: tuple[object, ...],
    options: dict[str, Any],
    made: Path,
    tmp_path: Path,
    program: Program,
) -> None:
    source, text, target = made / "llama", made / "news.txt", tmp_path / "small"
    given = ("--keep-params", 0.5, "--text", text, *SMALL, *more, "--json")
    done = program("compress", source, "-o", target, *given)
    assert (done.code, done.err) == (0, "")
    report = tensorlrf.compression.Report.from_json(done.out)
    model = read_model(source, "float32")
    calibration = batches(source, text, model)
    ours, told = tensorlrf.compress(model, keep_params=0.5, calibration=calibration, **options)
    again: Any = tensorlrf.load(target)
    assert report == told
    with torch.no_grad():
        assert equal(again(IDS).logits, ours(IDS).logits)


def test_bases_without_text_and_of_a_file(made: Path, tmp_path: Path, program: Program) -> None:
    half = ("--keep-params", 0.5, "--shared", "layers")
    assert program("compress", made / "llama", "-o", tmp_path / "a", *half).code == 0
    ours, told = tensorlrf.compress(
        read_model(made / "llama", "float32"), keep_params=0.5, shared="layers"
    )
    assert told.bases
    assert same(tensorlrf.load(tmp_path / "a"), ours)
    layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3))).eval()
    file = save_state(layers, tmp_path / "net.safetensors")
    words = ("--keep-params", 0.5, "--skip", "", "--shared", "*")
    assert program("compress", file, "-o", tmp_path / "b.safetensors", *words).code == 0
    ours, _ = tensorlrf.compress(layers, keep_params=0.5, skip=[], shared="*")
    again = tensorlrf.load(tmp_path / "b.safetensors", layers)
    x = torch.linspace(-1, 1, 128).reshape(2, 64)
    with torch.no_grad():
        assert equal(again(x), ours(x))


def test_normalisations_are_folded(made: Path, tmp_path: Path, program: Program) -> None:
    source, text = made / "normed", made / "news.txt"
    given = ("--keep-params", 0.5, "--fold-batch-norms", "--text", text, *SMALL)
    done = program("compress", source, "-o", tmp_path / "a", *given, "--json")
    assert (done.code, done.err) == (0, "")
    report = tensorlrf.compression.Report.from_json(done.out)
    assert report.folded is not None
    assert (report.folded.norms, report.folded.layers) == (("norm",), ("conv",))
    again: Any = tensorlrf.load(tmp_path / "a")
    assert isinstance(again.norm, nn.Identity)
    model = read_model(source, "float32")
    ours, told = tensorlrf.compress(
        model, keep_params=0.5, calibration=batches(source, text, model), fold_batch_norms=True
    )
    assert told == report
    with torch.no_grad():
        assert equal(again(IDS)[0], ours(IDS)[0])
    plan = program("compress", source, *given, "--plan-only", "--json")
    (tmp_path / "plan.json").write_text(plan.out)
    follow = ("--plan", tmp_path / "plan.json", "--text", text, *SMALL)
    assert program("compress", source, "-o", tmp_path / "b", *follow).code == 0
    assert same(tensorlrf.load(tmp_path / "b"), again)
    both = program("compress", source, "-o", tmp_path / "c", *follow, "--fold-batch-norms")
    assert "--plan says what becomes of every layer: leave out --fold-batch-norms" in both.error


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--shared", "inputs"), "shared=['inputs'] asks which layers are fed one tensor"),
        (("--fold-batch-norms",), "--fold-batch-norms needs --text"),
        (("--method", "modular"), "--method modular needs --text"),
        (("--method", "modular", "--plan-only"), "leave out --plan-only"),
        (("--rerun",), "--rerun needs --text"),
        (("--holdout", 0.2), "--holdout needs --text"),
        (("--memory-limit", 5), "--memory-limit needs --text"),
        (("--loss", "kl"), "--loss needs --text"),
    ],
)
def test_what_needs_text(
    more: tuple[object, ...], words: str, made: Path, tmp_path: Path, program: Program
) -> None:
    given = ("-o", tmp_path / "x", "--keep-params", 0.5, *more)
    assert re.search(re.escape(words), program("compress", made / "llama", *given).error)


def test_a_file_has_no_inputs(tmp_path: Path, program: Program) -> None:
    source = save_state(cnn(), tmp_path / "net.safetensors")
    target = ("-o", tmp_path / "x.safetensors", "--keep-params", 0.5)
    for more in (("--fold-batch-norms",), ("--method", "modular")):
        wrong = program("compress", source, *target, *more)
        assert f"{' '.join(more)} looks at inputs, and so is for folders" in wrong.error


def test_threads_are_those_of_the_run(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = save_state(cnn(), tmp_path / "net.safetensors"), tmp_path / "small.safetensors"
    own, before, seen = _compress.make_plan, torch.get_num_threads(), list[int]()

    def planned(*args: Any, **given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return own(*args, **given)

    monkeypatch.setattr(_compress, "make_plan", planned)
    call = ("compress", path, "--keep-params", ".5")
    for more in ((), ("--threads", before + 1)):
        assert program(*call, "--plan-only", *more).code == 0
    assert seen == [before, before + 1]
    assert torch.get_num_threads() == before

    by_layers = (*call, "-o", out, "--stream", "--threads")
    assert program(*by_layers, before + 1).code == 0
    assert "is left as it is" in program(*by_layers, before + 1).out
    assert "exists" in program(*by_layers, before).error  # sums have another order


@pytest.mark.parametrize("command", ["compress", "calibrate", "refine", "frontier", "sensitivity"])
def test_threads_that_cannot_be_are_told(tmp_path: Path, program: Program, command: str) -> None:
    call = [command, tmp_path, "--text", tmp_path, "--threads"]
    call[2:2] = [] if command == "frontier" else ["-o", tmp_path / "out"]
    call[2:2] = [tmp_path] if command == "refine" else []
    for many in (0, -1, 100_000):
        assert f"--threads={many} must be at least 1 and at most" in program(*call, many).error
    assert "Invalid value for '--threads'" in program(*call, "many").error
