"""A text encoder calibrated on padded batches, against the same texts one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import compress
from tests.compression.networks import UNIFORM, set_weights


def bert() -> nn.Module:
    import transformers as hf

    config = hf.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    model = set_weights(hf.BertModel(config))
    with torch.no_grad():  # padding that would drown the tokens
        model.embeddings.word_embeddings.weight[0] = 50 * torch.arange(32).cos()
    return model


LENGTHS = [20, 7, 13, 4, 20, 9, 16, 11, 5, 18, 20, 12]


def texts() -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.randint(1, 64, (n,), generator=draws) for n in LENGTHS]


def padded(size: int) -> list[dict[str, Tensor]]:
    batches = []
    for k in range(0, len(LENGTHS), size):
        part = texts()[k : k + size]
        ids = torch.zeros(len(part), max(map(len, part)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(part):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


@pytest.mark.parametrize("target", ["prefix", "original", "independent"])
def test_padding_does_not_matter(target: str) -> None:
    options: dict[str, Any] = {
        "keep_params": 0.7,
        "target": target,
        "affine": True,
        "holdout": 0,
    } | UNIFORM
    alone = [{"input_ids": t[None], "attention_mask": torch.ones_like(t[None])} for t in texts()]
    one, told = compress(bert(), calibration=alone, **options)
    many, report = compress(bert(), calibration=padded(4), **options)
    for row in report.layers:
        if row.factored:
            other = told.layer(row.name)
            assert row.samples == other.samples == sum(LENGTHS)
            # Fourth moments about a mean that is far larger than what is about it cancel, so that
            # the amount of shrinkage is known less well than G; the fit moves by less than that.
            assert row.shrinkage == pytest.approx(other.shrinkage, rel=1e-2)
            moved = abs(row.shrinkage / other.shrinkage - 1) if other.shrinkage else 0.0
            # Sums of float32 products in another order, some layers deep.
            rel = 2e-3 + moved
            assert row.output_error == pytest.approx(other.output_error, rel=rel)
    probe = padded(12)[0]
    with torch.no_grad():
        a = one(**probe).last_hidden_state[probe["attention_mask"] != 0]
        b = many(**probe).last_hidden_state[probe["attention_mask"] != 0]
    assert float((a - b).norm() / a.norm()) < 2e-3
    # Had padding counted, the fit would be another one.
    blind = [{**batch, "attention_mask": batch["attention_mask"].float()} for batch in padded(4)]
    _, drowned = compress(bert(), calibration=blind, **options)
    name = "encoder.layer.0.attention.self.query"
    assert drowned.layer(name).output_error != pytest.approx(told.layer(name).output_error, rel=0.1)
