"""A model to compress, what it is fitted to, and where it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tensorlrf.cli._checkpoint import read_checkpoint
from tensorlrf.cli._huggingface import read_model, read_tokenizer, write_model
from tensorlrf.cli._targets import check_file, check_folder
from tensorlrf.cli._texts import batches_of, read_labels, read_texts
from tensorlrf.compression import Plan
from tensorlrf.compression.metrics.windows import BATCH, TOKENS
from tensorlrf.errors import ArgumentError, FileError


@dataclass(frozen=True)
class Options:
    """What was asked for beside the plan; see the command."""

    source: Path
    target: Path | None
    plan_only: bool
    force: bool
    text: list[Path]
    fit_target: str | None
    affine: bool
    tokens: int | None
    batch_size: int | None
    max_batches: int | None
    dtype: str | None
    seed: int
    metric: str | None = None
    refine: float | None = None
    groups: str | None = None
    loss: str | None = None
    holdout: float | None = None
    rerun: bool = False
    memory_limit: int | None = None
    moments: Path | None = None
    evaluates: bool = False

    def check(self) -> None:
        """Raise for what can be told before anything is read."""
        if not self.source.exists():
            raise FileError(f"{self.source} is not there; give a .safetensors file or a folder")
        if self.target is None and not self.plan_only:
            raise ArgumentError("-o is missing: say where to write, or give --plan-only")
        if self.target is not None and not self.plan_only:
            look = check_folder if self.source.is_dir() else check_file
            look(self.target, self.source, self.force)
        if not self.source.is_dir():
            for option, given in (("--text", self.text), ("--dtype", self.dtype)):
                if given:
                    raise ArgumentError(
                        f"{option} is for folders with a model of transformers; {self.source} is a "
                        "file, which is compressed by its weights alone"
                    )
        if self.text and self.moments is not None:
            raise ArgumentError(
                "--moments is in the place of --text; give one of them (`tensorlrf calibrate` adds "
                "moments of the text to others with --add)"
            )
        if not self.text:
            fitting: dict[str, object] = {
                "--target": self.fit_target,
                "--affine": (self.affine and self.moments is None) or None,
                "--tokens": None if self.evaluates else self.tokens,
                "--batch-size": None if self.evaluates else self.batch_size,
                "--max-batches": self.max_batches,
                "--metric": self.metric,
                "--refine": self.refine,
                "--groups": self.groups,
                "--loss": self.loss,
                "--holdout": self.holdout,
                "--rerun": self.rerun or None,
                "--memory-limit": self.memory_limit,
            }
            for option, value in fitting.items():
                if value is not None:
                    raise ArgumentError(f"{option} needs --text, from which the inputs come")


@dataclass(frozen=True)
class Job:
    """A model to compress.

    batches  to fit to, or None
    groups   of each batch the labels of what it is of, where that is told
    explain  from a plan to the same with better reasons
    write    from the compressed model to the target
    """

    model: nn.Module
    batches: list[dict[str, Any]] | None
    groups: list[list[str]] | None
    explain: Callable[[Plan], Plan]
    write: Callable[[nn.Module], None]


def checkpoint_job(options: Options) -> Job:
    checkpoint = read_checkpoint(options.source)

    def write(small: nn.Module) -> None:
        assert options.target is not None
        checkpoint.write(small, options.target, options.force)

    return Job(checkpoint.layers.model, None, None, checkpoint.layers.explained, write)


def folder_job(options: Options) -> Job:
    texts = read_texts(options.text) if options.text else None
    labels = None if texts is None else read_labels(options.groups, texts)
    model = read_model(options.source, options.dtype or "float32")
    batches = groups = None
    if texts is not None:
        batches, groups = batches_of(
            texts,
            read_tokenizer(options.source),
            model,
            tokens=TOKENS if options.tokens is None else options.tokens,
            batch_size=BATCH if options.batch_size is None else options.batch_size,
            max_batches=options.max_batches,
            seed=options.seed,
            labels=labels,
        )

    def write(small: nn.Module) -> None:
        assert options.target is not None
        write_model(small, options.source, options.target, options.force)

    return Job(model, batches, groups, lambda plan: plan, write)
