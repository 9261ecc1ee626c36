"""Folders made by strangers: no code, no files from elsewhere, nothing larger than they are."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorlrf
from tensorlrf.errors import FileError, FileFormatError, TensorlrfError
from tensorlrf.files import folder
from tests.cli.calls import Program, listing
from tests.cli.folders import bert_folder, text_file
from tests.files.mutants import changed

HALF = ("--keep-params", 0.5)

Tries = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    bert_folder(folder / "bert")
    text_file(folder / "news.txt", 12)
    return folder


@pytest.fixture
def bert(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "bert", tmp_path / "bert"))


@pytest.fixture
def refused(bert: Path, made: Path, tmp_path: Path, program: Program) -> Tries:
    """The error of compress, which wrote nothing."""

    def tries(*more: object) -> str:
        error = program("compress", bert, "-o", tmp_path / "small", *HALF, *more).error
        assert not (tmp_path / "small").exists()
        return error

    return tries


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def compressed(folder: Path) -> Path:
    """What compress makes of a folder, without the command."""
    import transformers

    config = transformers.BertConfig.from_pretrained(folder)
    small, _ = tensorlrf.compress(transformers.BertModel(config).eval(), keep_params=0.5)
    tensorlrf.save(small, folder.parent / "small")
    return folder.parent / "small"


# ---- code --------------------------------------------------------------------------------------


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


CODE = "import os; os.mkdir({mark!r})\nclass Config: pass\nclass Tokenizer: pass\n"


def test_code_that_comes_with_a_model_is_not_run(
    bert: Path, made: Path, tmp_path: Path, program: Program
) -> None:
    mark = tmp_path / "ran"
    (bert / "code.py").write_text(CODE.format(mark=str(mark)))
    edit(bert / "config.json", auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Config"})
    edit(bert / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", None]})
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    more = (*HALF, "--text", made / "news.txt", "--tokens", 16)
    done = program("compress", bert, "-o", tmp_path / "small", *more)
    assert done.code == 0, done.err
    assert "not copied: code.py" in done.err
    assert "code.py" not in listing(tmp_path / "small")
    shutil.copy(bert / "code.py", tmp_path / "small")
    edit(tmp_path / "small" / "config.json", auto_map={"AutoConfig": "code.Config"})
    tensorlrf.load(tmp_path / "small")
    assert not mark.exists()


def test_pickled_weights_are_not_opened(bert: Path, tmp_path: Path, refused: Tries) -> None:
    (bert / "model.safetensors").unlink()
    (bert / "model.safetensors.index.json").unlink()
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    error = refused()
    assert "pytorch_model.bin may hold code" in error
    assert "save_pretrained" in error
    index = {"metadata": {}, "weight_map": {"a": "pytorch_model.bin"}}
    (bert / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "'pytorch_model.bin', which is no file of safetensors" in refused()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"attn_implementation": "someone/kernel"},
        {"experts_implementation": {"": "someone/kernel"}},
        {"inner": [{"_attn_implementation": "someone/kernel@main"}]},
        {"transformers_weights": "adapter_model.bin"},
        {"configuration_files": ["../config.4.0.0.json"]},
    ],
)
def test_what_a_configuration_would_fetch(values: Any, bert: Path, refused: Tries) -> None:
    small = compressed(bert)
    edit(small / "config.json", **values)
    with pytest.raises(TensorlrfError, match="take the entry out"):
        tensorlrf.load(small)
    shutil.rmtree(small)
    edit(bert / "config.json", **values)
    assert "take the entry out" in refused()


def test_an_adapter_names_another_model(bert: Path, refused: Tries) -> None:
    (bert / "adapter_config.json").write_text('{"base_model_name_or_path": "/"}')
    assert "merge the two" in refused()


# ---- files from elsewhere ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vocab.txt", "config.json", "model.safetensors", "1_Pooling"])
@pytest.mark.parametrize("to", ["file", "folder", "nothing"])
def test_links_that_lead_out_are_named(
    name: str, to: str, bert: Path, tmp_path: Path, refused: Tries
) -> None:
    (tmp_path / "file").write_text("secret")
    (tmp_path / "folder").mkdir()
    path = bert / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(f"../{to}")
    error = refused()
    assert str(path) in error
    assert "leads out" in error


def test_links_within_a_folder_are_fine(bert: Path, tmp_path: Path, program: Program) -> None:
    (bert / "model.safetensors").rename(bert / "weights")
    (bert / "model.safetensors").symlink_to("weights")
    assert program("compress", bert, "-o", tmp_path / "small", *HALF).code == 0


def cached(folder: Path, cache: Path) -> Path:
    """The folder as the snapshot of a cache of models: links into blobs."""
    snapshot, blobs = cache / "snapshots" / "0123", cache / "blobs"
    blobs.mkdir(parents=True)
    for k, file in enumerate(sorted(one for one in folder.rglob("*") if one.is_file())):
        inside = file.relative_to(folder)
        file.rename(blobs / f"{k:040x}")
        (snapshot / inside).parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (len(inside.parts) + 1)
        (snapshot / inside).symlink_to(f"{up}blobs/{k:040x}")
    return snapshot


def test_a_snapshot_of_a_cache_is_what_it_links_to(
    bert: Path, tmp_path: Path, program: Program
) -> None:
    snapshot = cached(bert, tmp_path / "models--a--b")
    target = tmp_path / "small"
    done = program("compress", snapshot, "-o", target, *HALF)
    assert (done.code, done.err) == (0, "")
    assert not [name for name in listing(target) if (target / name).is_symlink()]
    assert (target / "README.md").read_text() == "A model."
    tensorlrf.load(cached(target, tmp_path / "models--a--c"))
    (tmp_path / "secret").write_text("secret")
    (snapshot / "NOTICE").symlink_to("../../../secret")
    again = program("compress", snapshot, "-o", tmp_path / "again", *HALF)
    assert "NOTICE is a link that leads out" in again.error


def test_load_looks_at_links_too(bert: Path, tmp_path: Path) -> None:
    small = compressed(bert)
    for name in ("config.json", "tensorlrf.safetensors"):
        (small / name).rename(tmp_path / name)
        (small / name).symlink_to(tmp_path / name)
        with pytest.raises(FileError, match=f"{name} is a link that leads out"):
            tensorlrf.load(small)
        (tmp_path / name).replace(small / name)
    tensorlrf.load(small)


def test_a_pipe_is_not_waited_for(bert: Path, refused: Tries) -> None:
    os.mkfifo(bert / "vocab.txt")
    assert "vocab.txt is neither a file nor a folder" in refused()


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.safetensors", "/secret.safetensors", "1_Pooling/../a.safetensors", "..", ""),
        *("a\0.safetensors", "missing.safetensors", "sub.safetensors", 3, None, ["a.safetensors"]),
    ],
)
def test_shards_from_elsewhere(name: Any, bert: Path, tmp_path: Path, refused: Tries) -> None:
    shutil.copy(bert / "model.safetensors", tmp_path / "secret.safetensors")
    (bert / "sub.safetensors").mkdir()
    (bert / "model.safetensors").unlink()
    index = bert / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    assert "index" in refused()


def test_shards_of_the_folder_are_what_it_holds(
    bert: Path, tmp_path: Path, program: Program
) -> None:
    import transformers

    (bert / "model.safetensors.index.json").unlink()
    whole: Any = transformers.BertModel.from_pretrained(bert)
    (bert / "model.safetensors").unlink()
    whole.save_pretrained(bert, max_shard_size="10KB")
    assert len(list(bert.glob("model-*.safetensors"))) > 1
    done = program("compress", bert, "-o", tmp_path / "small", "--error", 0.9)
    assert (done.code, done.err) == (0, "")
    again: Any = tensorlrf.load(tmp_path / "small")
    assert torch.equal(again.embeddings.LayerNorm.weight, whole.embeddings.LayerNorm.weight)
    names = [name for name in listing(tmp_path / "small") if name.startswith("model")]
    assert names == ["model.safetensors"]


@pytest.mark.parametrize("text", ["", "[]", "3", '{"weight_map": 3}', "[" * 10**5, '{"a": 1}'])
def test_what_is_no_index(text: str, bert: Path, refused: Tries) -> None:
    (bert / "model.safetensors").unlink()
    (bert / "model.safetensors.index.json").write_text(text)
    assert "is no index of shards" in refused()


def test_parts_of_a_sentence_encoder_lie_in_it(
    bert: Path, tmp_path: Path, program: Program
) -> None:
    (tmp_path / "config.json").write_text("secret")
    paths = [".", "..", "../..", "/", "2_Dense", 3, None]
    (bert / "modules.json").write_text(json.dumps([{"path": path} for path in paths]))
    assert program("compress", bert, "-o", tmp_path / "small", *HALF).code == 0
    names = listing(tmp_path / "small")
    assert "2_Dense/model.safetensors" in names
    assert not [name for name in names if "onnx" in name]


# ---- sizes -------------------------------------------------------------------------------------

SIZES = {"num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 1 << 40},
        {"vocab_size": 1 << 62},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 900},
        {"type_vocab_size": 1 << 24},
        {"hidden_size": -4},
        {"hidden_size": 3.5},
        {"hidden_size": None},
        {"num_attention_heads": 0},
        {"hidden_act": "\x1b[31m"},
    ],
)
def test_sizes_that_the_files_are_not_of(values: Any, bert: Path, refused: Tries) -> None:
    small = compressed(bert)
    edit(small / "config.json", **values)
    with pytest.raises(FileFormatError) as caught:
        tensorlrf.load(small)
    assert "\x1b" not in str(caught.value)
    shutil.rmtree(small)
    edit(bert / "config.json", **values)
    assert "\x1b" not in refused()


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a": ' * 10**4, "\udcff", "{}", '{"a": NaN}'])
def test_what_is_no_configuration(text: str, bert: Path) -> None:
    small = compressed(bert)
    for name in ("generation_config.json", "config.json"):
        (small / name).write_text(text, errors="surrogateescape")
        if text not in ("{}", '{"a": NaN}') or name == "config.json":
            with pytest.raises(FileFormatError, match=name):
                tensorlrf.load(small)
        (small / "generation_config.json").unlink(missing_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_changed_configurations(seed: int, bert: Path) -> None:
    small, draw, refused = compressed(bert), random.Random(seed), 0
    config = small / "config.json"
    values = json.loads(config.read_text())
    for _ in range(25):
        config.write_text(json.dumps(changed(values, draw)))
        try:
            tensorlrf.load(small)
        except TensorlrfError:  # and nothing else
            refused += 1
    assert refused > 5


def test_what_a_configuration_says_is_not_printed_raw(bert: Path, program: Program) -> None:
    small, told = compressed(bert), []
    edit(small / "config.json", model_type="\x1b[31m")

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger, handler = logging.getLogger("transformers"), Kept()
    logger.addHandler(handler)
    try:
        done = program("inspect", small, "--verify")
        assert (done.code, told) == (0, [])
    finally:
        logger.removeHandler(handler)
    assert "\x1b" not in done.out + done.err


# ---- what an interruption leaves ---------------------------------------------------------------


def test_what_cannot_be_put_right_is_not_called_nothing(
    bert: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "small"
    given = ("compress", bert, "-o", target, *HALF, "--force")
    assert program(*given).code == 0
    calls: list[object] = []

    def stopped(*arguments: Any) -> None:
        calls.append(arguments)
        raise KeyboardInterrupt if len(calls) == 1 else PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_move", stopped)
        done = program(*given)
    assert done.code == 130
    assert "nothing was written" not in done.err
    assert "that were being put into it" in done.err
    assert program("inspect", target).code == 0
