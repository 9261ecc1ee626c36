"""Messages are short and safe to print, whatever a name in a file is."""

from __future__ import annotations

import importlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensorlrf import Plan, Report, compress, errors, inspect, io, load, plan, save
from tensorlrf.decomposition import svd
from tensorlrf.errors import LONGEST_MESSAGE, TensorlrfError, TensorlrfWarning, printable, warn
from tests.cli.calls import Program

transformers: Any = importlib.import_module("transformers")

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, TensorlrfError)
]
NASTY = "a\x1b]0;title\x07\x1b[2J\nb\r\u202ec\u2066\x9b31m\ud800\x00"


@given(
    st.sampled_from(KINDS), st.text() | st.text(min_size=900, max_size=1200).map(lambda t: t * 3)
)
def test_every_message_is_one_short_line(kind: Any, text: str) -> None:
    error = kind(text)
    assert str(error).isprintable()
    assert len(str(error)) <= LONGEST_MESSAGE
    assert str(kind(str(error))) == str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))
    if text.isprintable() and len(text) <= LONGEST_MESSAGE:
        assert str(error) == text


def test_the_ends_of_a_long_message_stay() -> None:
    told = str(TensorlrfError("begin" + "\x1b" * 10**6 + "end"))
    assert (told[:5], told[-3:], len(told)) == ("begin", "end", LONGEST_MESSAGE)


def test_warnings_are_like_errors() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn(NASTY * 1000, TensorlrfWarning)
    (told,) = caught
    assert str(told.message).isprintable()
    assert len(str(told.message)) <= LONGEST_MESSAGE


def test_printable_text_is_as_it_was() -> None:
    assert printable("w\\x1b é 模型 🤗") == "w\\x1b é 模型 🤗"
    assert printable("\x1b\n") == "\\x1b\\n"


def is_safe(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n")) and "\x1b" not in text


def test_names_are_escaped_wherever_they_are_shown(tmp_path: Path, program: Program) -> None:
    nasty = NASTY.replace("\ud800", "")
    model = torch.nn.Module()
    model.add_module(nasty.replace(".", ""), torch.nn.Linear(32, 32))
    made = plan(model, keep_params=0.5)
    small, report = compress(model, keep_params=0.5)
    save(small, tmp_path / "m.safetensors")
    shown = [str(made), made.to_markdown(), str(report), report.to_markdown()]
    shown += [
        str(inspect(tmp_path / "m.safetensors")),
        program("inspect", tmp_path / "m.safetensors").out,
    ]
    io.save_factors_dict({nasty: svd(torch.eye(4), 1)}, tmp_path / "f.safetensors")
    shown += [program("inspect", tmp_path / "f.safetensors").out]
    for text in shown:
        assert is_safe(text)
        assert "\\x1b" in text
    assert Plan.from_json(made.to_json()) == made
    assert Report.from_json(report.to_json()) == report


def test_errors_of_the_program_are_escaped(tmp_path: Path, program: Program) -> None:
    for path in (tmp_path / "\x1b[31m", "\udcff", "x" * 300, "a/" * 3000):
        for command in (
            ("inspect", path),
            ("decompose", path, "-o", tmp_path / "o.safetensors"),
            ("compress", path, "-o", tmp_path / "o.safetensors", "--keep-params", 0.5),
            ("compress", tmp_path, "-o", path, "--keep-params", 0.5),
        ):
            assert program(*command).error.isprintable()


@pytest.mark.parametrize("path", [b"f", "a\0b", "\ud800", "", 3, None, "x" * 300, "a/" * 3000])
def test_paths_that_cannot_be(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    f, model = svd(torch.eye(4), 1), torch.nn.Linear(2, 2)
    hf = transformers.BertModel(transformers.BertConfig(num_hidden_layers=0, vocab_size=4))
    for call in (
        lambda: io.save_factors(f, path),
        lambda: io.load_factors(path),
        lambda: save(model, path),
        lambda: save(hf, path),
        lambda: load(path, model),
        lambda: inspect(path),
    ):
        with pytest.raises(TensorlrfError, match="path="):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", "[" * 10**5, '{"a":' * 10**5, "{}", "NaN", '{"version": NaN}']
)
def test_other_text_is_neither_plan_nor_report(text: str) -> None:
    for kind in (Plan, Report):
        with pytest.raises(TensorlrfError, match="text is"):
            kind.from_json(text)
