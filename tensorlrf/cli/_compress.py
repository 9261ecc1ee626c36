"""`tensorlrf compress`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from tensorlrf.cli._checkpoint import read_checkpoint
from tensorlrf.cli._huggingface import read_model, read_tokenizer, write_model
from tensorlrf.cli._options import Debug, Json, Seed
from tensorlrf.cli._outcome import guard, show
from tensorlrf.cli._targets import check_file, check_folder
from tensorlrf.cli._texts import BATCH, TOKENS, batches_of, read_texts
from tensorlrf.cli._wanted import Wanted, read_value
from tensorlrf.compression import Plan, apply
from tensorlrf.compression import plan as make_plan
from tensorlrf.compression.methods import words
from tensorlrf.decomposition.methods import installed, names
from tensorlrf.errors import ArgumentError, FileError, printable


def words_of_methods() -> str:
    """For the help: those that are there, and those of installed packages, which are not loaded."""
    of_matrices = [w for w in words() if w in set(names("linear")) - set(names("conv"))]
    others = (*(w for w in words() if w not in of_matrices), *installed())
    return f"{', '.join(others)}; for linear layers {', '.join(of_matrices)}."


def compress(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A .safetensors checkpoint, or a model folder."),
    ],
    target: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="TARGET", help="The file or folder to write."),
    ] = None,
    keep_params: Annotated[
        float | None,
        typer.Option("--keep-params", help="Share of the weights to keep, at most: .5 is half."),
    ] = None,
    keep_bytes: Annotated[
        float | None, typer.Option("--keep-bytes", help="Or of their bytes.")
    ] = None,
    keep_flops: Annotated[
        float | None,
        typer.Option("--keep-flops", help="Or of the FLOPs on the first batch of --text."),
    ] = None,
    keep_latency: Annotated[
        float | None,
        typer.Option(
            "--keep-latency", help="Or of the time that the layers take on it, on this machine."
        ),
    ] = None,
    error: Annotated[
        float | None,
        typer.Option("--error", help="Relative error that each layer may have; or this."),
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(
            "--allocation",
            metavar="WORD",
            help="How the share is shared out over layers: uniform (default), energy; with --text "
            "fisher, measured or auto, by what the model would lose.",
        ),
    ] = None,
    least_share: Annotated[
        float | None,
        typer.Option("--least-share", help="Of its parameters that a layer keeps at the least."),
    ] = None,
    sensitivity: Annotated[
        Path | None,
        typer.Option(
            "--sensitivity",
            metavar="FILE",
            help="What layers can lose, found before: JSON of tensorlrf.sensitivity. In place of "
            "--allocation.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="WORD",
            help=words_of_methods(),
        ),
    ] = "svd",
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            metavar="GLOB",
            help="Layers that stay, again for more. By default heads stay; '' skips none.",
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Plain text to fit to, again for more: documents between blank lines or, without "
            "these, one a line. Folders only.",
        ),
    ] = None,
    fit_target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="WORD",
            help="What outputs are fitted to: original (default), prefix or independent.",
        ),
    ] = None,
    affine: Annotated[
        bool, typer.Option("--affine", help="Let biases make good what they can.")
    ] = False,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help=f"Tokens of a window of text [{TOKENS}].")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help=f"Windows in a batch [{BATCH}].")
    ] = None,
    max_batches: Annotated[
        int | None, typer.Option("--max-batches", help="Batches to fit to, at most [all].")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="WORD", help="Of a folder: float32 (default), or keep its own."
        ),
    ] = None,
    seed: Seed = 0,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print the plan and write nothing.")
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="A plan, from --plan-only --json, to follow."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file, or the whole folder, that is there.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """A model to a smaller one that runs on factors, and a report.

    A folder (config.json, weights, tokenizer) is a model of transformers; TARGET becomes a folder
    that tensorlrf.load(TARGET) gives back in one call. Needs the extra hf. Weights are safetensors;
    no code in the folder is run, and no link out of it is followed, but for those from the snapshot
    of a Hugging Face cache into its blobs. Files that are not known are not copied, and named.

    A .safetensors file is compressed by its weights alone: tensors called NAME.weight with two
    dimensions, (out, in), are taken for linear layers, unless their name is that of an embedding,
    and with three to five for convolutions. tensorlrf.load(TARGET, model) gives the model back.
    What shapes do not tell: use --skip for convolutions with groups, transposed ones and embeddings
    of other names; and the folder for GPT-2 and others with transposed weights (Conv1D).

    \b
    Examples:
      tensorlrf compress minilm/ -o minilm-small/ --keep-params .6 --text news.txt
      tensorlrf compress net.safetensors -o small.safetensors --keep-params .5 --skip 'fc*'
      tensorlrf compress minilm/ -o minilm-small/ --keep-flops .5 --allocation auto --text news.txt
      tensorlrf compress minilm/ --keep-params .6 --plan-only --json > plan.json
      tensorlrf compress minilm/ -o minilm-small/ --plan plan.json --text news.txt
    """
    with guard(debug, target):
        options = _Options(
            source, target, plan_only, force, text or [], fit_target, affine, tokens, batch_size,
            max_batches, dtype, seed,
        )  # fmt: skip
        options.check()
        budgets = {
            "keep_params": keep_params, "keep_bytes": keep_bytes, "keep_flops": keep_flops,
            "keep_latency": keep_latency, "error": error,
        }  # fmt: skip
        wanted = Wanted(budgets, method, skip or [], allocation, least_share, sensitivity)
        wanted.check(source, with_text=bool(text))
        given = None
        if plan is not None:
            wanted.check_alone()
            given = read_value(Plan, "--plan", plan)
        arguments = wanted.arguments()
        job = _folder_job(options) if source.is_dir() else _checkpoint_job(options)
        if given is None:
            given = job.explain(
                make_plan(job.model, calibration=job.batches, random_state=seed, **arguments)
            )
        if plan_only:
            show(given, as_json)
            return
        small, report = apply(
            job.model,
            given,
            calibration=job.batches,
            target=fit_target or "original",
            affine=affine,
            random_state=seed,
        )
        job.write(small)
        show(report, as_json)
        if not as_json:
            typer.echo(f"written to {printable(str(target))}")


@dataclass(frozen=True)
class _Options:
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
        if not self.text:
            fitting: dict[str, object] = {
                "--target": self.fit_target,
                "--affine": self.affine or None,
                "--tokens": self.tokens,
                "--batch-size": self.batch_size,
                "--max-batches": self.max_batches,
            }
            for option, value in fitting.items():
                if value is not None:
                    raise ArgumentError(f"{option} needs --text, from which the inputs come")


@dataclass(frozen=True)
class _Job:
    """A model to compress.

    batches  to fit to, or None
    explain  from a plan to the same with better reasons
    write    from the compressed model to the target
    """

    model: nn.Module
    batches: list[dict[str, Any]] | None
    explain: Callable[[Plan], Plan]
    write: Callable[[nn.Module], None]


def _checkpoint_job(options: _Options) -> _Job:
    checkpoint = read_checkpoint(options.source)

    def write(small: nn.Module) -> None:
        assert options.target is not None
        checkpoint.write(small, options.target, options.force)

    return _Job(checkpoint.model, None, checkpoint.explained, write)


def _folder_job(options: _Options) -> _Job:
    texts = read_texts(options.text) if options.text else None
    model = read_model(options.source, options.dtype or "float32")
    batches = None
    if texts is not None:
        batches = batches_of(
            texts,
            read_tokenizer(options.source),
            model,
            tokens=TOKENS if options.tokens is None else options.tokens,
            batch_size=BATCH if options.batch_size is None else options.batch_size,
            max_batches=options.max_batches,
            seed=options.seed,
        )

    def write(small: nn.Module) -> None:
        assert options.target is not None
        write_model(small, options.source, options.target, options.force)

    return _Job(model, batches, lambda plan: plan, write)
