"""Plain text to calibration batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorlrf.cli._texts import batches_of, read_texts
from tensorlrf.compression import Report
from tests.cli.calls import Program
from tests.cli.folders import t5_folder, text_file, tokenizer

PAD, CLS, SEP, FIRST = 0, 2, 3, 4


class Model:
    """What is asked of a model."""

    config = SimpleNamespace(max_position_embeddings=64)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = True) -> None:
        raise NotImplementedError


def batches(texts: list[str], pad: bool = True, **options: Any) -> list[dict[str, Any]]:
    sizes = {"tokens": 16, "batch_size": 4, "max_batches": None, "seed": 0, **options}
    return batches_of(texts, tokenizer(pad), Model(), **sizes)[0]


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    tokens=st.integers(8, 40),
    batch_size=st.integers(1, 5),
    pad=st.booleans(),
)
def test_all_tokens_are_in_the_batches_once(
    lengths: list[int], tokens: int, batch_size: int, pad: bool
) -> None:
    texts = [" ".join(f"w{(k + j) % 36}" for j in range(n)) for k, n in enumerate(lengths)]
    made = batches(texts, pad, tokens=tokens, batch_size=batch_size)
    seen: list[int] = []
    for batch in made:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert set(batch) == {"input_ids", "attention_mask", "use_cache"}
        assert batch["use_cache"] is False
        assert ids.shape == mask.shape
        assert ids.shape[0] <= batch_size
        assert ids.shape[1] <= tokens
        # Padding is on the right, and no column is padding alone.
        assert torch.equal(mask, mask.cummin(1).values)
        assert mask.sum(0).min() >= 1
        assert (ids[mask == 0] == PAD).all()
        assert (ids[:, 0] == CLS).all()
        seen += [int(k) for k in ids[mask == 1] if k >= FIRST]
    wanted = [FIRST + (k + j) % 36 for k, n in enumerate(lengths) for j in range(n)]
    assert sorted(seen) == sorted(wanted)


def test_a_choice_of_windows_is_drawn_by_the_seed() -> None:
    texts = [" ".join(["w0"] * n) for n in range(1, 33)]
    few = [batches(texts, max_batches=2, seed=seed) for seed in (0, 0, 1)]
    assert [len(made) for made in few] == [2, 2, 2]
    first, again, other = ([b["attention_mask"].sum(1).tolist() for b in made] for made in few)
    assert first == again
    assert first != other
    # Not the shortest texts alone.
    assert max(max(row) for row in first) > 8


def test_documents_are_lines_or_paragraphs(tmp_path: Path) -> None:
    def read(text: str) -> list[str]:
        (tmp_path / "t.txt").write_bytes(text.encode())
        return read_texts([tmp_path / "t.txt"])

    assert read("one\r\ntwo three\n") == ["one", "two three"]
    assert read("\ufeffone\ntwo\n\n \n\nthree\nfour\n") == ["one two", "three four"]
    assert read("  one  ") == ["one"]
    assert read_texts([tmp_path / "t.txt"] * 2) == ["one", "one"]


def test_a_decoder_is_given_what_the_encoder_reads(program: Program, tmp_path: Path) -> None:
    """One token later, behind one to start with; so all layers are fitted to a text."""

    class Both(Model):
        config = SimpleNamespace(
            is_encoder_decoder=True, decoder_start_token_id=None, bos_token_id=7, pad_token_id=PAD
        )

        def forward(  # type: ignore[override]  # another model takes other arguments
            self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
        ) -> None:
            raise NotImplementedError

    sizes = {"tokens": 16, "batch_size": 4, "max_batches": None, "seed": 0}
    for batch in batches_of(["w1 w2 w3", "w4"], tokenizer(), Both(), **sizes)[0]:
        ids, again = batch["input_ids"], batch["decoder_input_ids"]
        assert torch.equal(again[:, 1:], ids[:, :-1])
        assert (again[:, 0] == 7).all()
        assert torch.equal(batch["decoder_attention_mask"], batch["attention_mask"])
    folder, text = t5_folder(tmp_path / "t5"), text_file(tmp_path / "news.txt")
    given = ("--keep-params", 0.6, "--text", text, "--tokens", 16, "--json")
    done = program("compress", folder, "-o", tmp_path / "small", *given)
    assert done.code == 0, done.err
    rows = [row for row in Report.from_json(done.out).layers if row.factored]
    assert {row.name.partition(".")[0] for row in rows} == {"encoder", "decoder"}
    assert all(row.data_aware for row in rows)
