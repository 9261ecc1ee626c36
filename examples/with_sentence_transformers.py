"""A sentence encoder on its factors, by the calls of sentence-transformers: all-MiniLM-L6-v2.

    python examples/with_sentence_transformers.py

Needs sentence-transformers and tensorlrf[hf], and the packages of requirements-examples.txt.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import minilm
import numpy as np
from common import OUTPUT, parameters
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from texts import background, documents

import tensorlrf
import tensorlrf.hf

QUESTION = "How is the economy doing?"


def load_encoder() -> SentenceTransformer:
    """The encoder of the packaged weights: tokens, their mean, of length 1."""
    parts = [Transformer(str(minilm._folder())), Pooling(384, "mean"), Normalize()]
    return SentenceTransformer(modules=parts, device="cpu")


def calibration(encoder: SentenceTransformer, n: int) -> list[dict]:
    """The first texts, as the encoder gives them to its model."""
    return minilm.batches(
        encoder.tokenizer, background()[:n], minilm.CALIBRATION_BATCH, minilm.CALIBRATION_TOKENS
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, default=0.6, help="share of parameters (default .6)")
    parser.add_argument("--texts", type=int, default=300, help="to fit to (default 300)")
    parser.add_argument("--output", type=Path, default=OUTPUT / "encoder-small")
    given = parser.parse_args(arguments)

    encoder, unseen = load_encoder(), documents()
    before = encoder.encode(unseen)
    model = encoder[0].model  # `auto_model` reads it, and cannot be set
    encoder[0].model, _ = tensorlrf.compress(
        model, keep_params=given.keep, calibration=calibration(encoder, given.texts),
        skip=minilm.SKIP, loss="cosine", readout=minilm.readout,
    )  # fmt: skip
    print(f"parameters: {parameters(model):,} to {parameters(encoder[0].model):,}")
    encoder.save(str(given.output))

    again = SentenceTransformer(str(given.output), device="cpu")  # after `import tensorlrf.hf`
    after = again.encode(unseen)
    print(f"cosine to the dense embeddings: {(before * after).sum(1).mean():.3f}")
    apart = float(np.abs(after - encoder.encode(unseen)).max())
    print(f"embeddings of the encoder that was saved and loaded differ by at most {apart}")
    nearest = int(again.similarity(again.encode(QUESTION), after).argmax())
    print(f"{QUESTION!r} is nearest to: {unseen[nearest][:80]}")


if __name__ == "__main__":
    main()
