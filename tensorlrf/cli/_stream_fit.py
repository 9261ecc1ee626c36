"""The texts that `compress --stream` fits to, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorlrf.cli._huggingface import read_tokenizer
from tensorlrf.cli._texts import BATCH, TOKENS, batches_of, read_texts
from tensorlrf.compression.scale.architecture import Architecture
from tensorlrf.compression.scale.stored import StoredTensors
from tensorlrf.errors import ArgumentError, UnsupportedError


@dataclass(frozen=True)
class StreamFit:
    """What was given for the options of these names; None for what was not."""

    text: list[Path]
    target: str | None
    holdout: float | None
    memory_limit: int | None
    tokens: int | None
    batch_size: int | None
    max_batches: int | None

    def check(self, *, dry_run: bool) -> None:
        """Raise ArgumentError for options that need others, or that have no meaning."""
        given = {
            "--target": self.target, "--holdout": self.holdout,
            "--memory-limit": self.memory_limit, "--tokens": self.tokens,
            "--batch-size": self.batch_size, "--max-batches": self.max_batches,
        }  # fmt: skip
        for option, value in given.items():
            if value is not None and not self.text:
                raise ArgumentError(f"{option} needs --text, from which the inputs come")
        if dry_run and self.text:
            raise ArgumentError("--dry-run is of runs by weights; leave out --text")

    def arguments(self, source: Path, seed: int) -> dict[str, Any]:
        """For `compress_checkpoint`; none without texts. Raises TensorlrfError."""
        if not self.text:
            return {}
        texts = read_texts(self.text)
        known = Architecture.of(StoredTensors.of(source))
        if not known.exact:
            why = "; ".join(known.notes) or "it has no config.json"
            raise UnsupportedError(
                f"--text is for folders whose model transformers can build; {source} is none: {why}"
            )
        batches, _ = batches_of(
            texts,
            read_tokenizer(source),
            known.model,
            tokens=TOKENS if self.tokens is None else self.tokens,
            batch_size=BATCH if self.batch_size is None else self.batch_size,
            max_batches=self.max_batches,
            seed=seed,
        )
        made: dict[str, Any] = {"calibration": batches, "memory_limit": self.memory_limit}
        made |= {} if self.target is None else {"inputs": self.target}
        return made | ({} if self.holdout is None else {"holdout": self.holdout})
