"""`tensorlrf compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tensorlrf.cli._evaluate import metric_for, read_evaluate
from tensorlrf.cli._job import Options, checkpoint_job, folder_job
from tensorlrf.cli._options import (
    Allocation,
    BatchSize,
    Debug,
    Evaluate,
    Groups,
    HtmlBeside,
    Include,
    Journal,
    Json,
    Log,
    MaxBatches,
    Method,
    NoHtml,
    Seed,
    Skip,
    Threads,
    Tokens,
)
from tensorlrf.cli._outcome import guard, show, tell_written, titled, today
from tensorlrf.cli._ranks import process_group
from tensorlrf.cli._stream import StreamFit, stream
from tensorlrf.cli._targets import check_page, page_beside
from tensorlrf.cli._wanted import Wanted, read_value
from tensorlrf.cli.recipe._given import (
    Given,
    as_recipe,
    beyond_options,
    taken_by,
    tell_replaced,
)
from tensorlrf.compression import Plan, apply
from tensorlrf.compression import compress as compress_model
from tensorlrf.compression import plan as make_plan
from tensorlrf.compression.methods import MODULAR
from tensorlrf.errors import ArgumentError


def compress(
    context: typer.Context,
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
    keep_total: Annotated[
        float | None,
        typer.Option("--keep-total", help="Or of all parameters of the model. Folders only."),
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
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            help="Or how far what --evaluate says may fall; the smallest model is looked for.",
        ),
    ] = None,
    evaluate: Evaluate = None,
    allocation: Allocation = None,
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
    method: Method = "svd",
    skip: Skip = None,
    include: Include = None,
    fold_batch_norms: Annotated[
        bool,
        typer.Option(
            "--fold-batch-norms",
            help="Fold batch normalisations into the layers before them first.",
        ),
    ] = False,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Plain text to fit to, again for more: documents between blank lines or, without "
            "these, one a line. Folders only.",
        ),
    ] = None,
    moments: Annotated[
        Path | None,
        typer.Option(
            "--moments",
            metavar="FILE",
            help="What `tensorlrf calibrate` has summed of the inputs of this very model, in place "
            "of --text.",
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
    fit_metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="WORD",
            help="In what outputs of layers are to be near: outputs (their squares), loss (what "
            "errors of them cost the model), or auto, whichever loses less on text held out.",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            "--loss",
            metavar="WORD",
            help="What errors of the outputs cost: auto (default), kl, cosine or relative.",
        ),
    ] = None,
    shared: Annotated[
        list[str] | None,
        typer.Option(
            "--shared",
            metavar="WORD",
            help="Layers that may have one right factor, again for more: inputs (those fed the "
            "same, with --text), experts, layers (neighbours in depth), or a glob.",
        ),
    ] = None,
    affine: Annotated[
        bool, typer.Option("--affine", help="Let biases make good what they can.")
    ] = False,
    holdout: Annotated[
        float | None,
        typer.Option("--holdout", help="Share of the batches to judge by, not fitted to [.1]."),
    ] = None,
    rerun: Annotated[
        bool,
        typer.Option("--rerun", help="Hold one batch's activations at a time, for more passes."),
    ] = False,
    memory_limit: Annotated[
        int | None,
        typer.Option(
            "--memory-limit",
            metavar="BYTES",
            help="That the fit of a layer may take beside the model [half of what is free].",
        ),
    ] = None,
    refine: Annotated[
        float | None,
        typer.Option("--refine", metavar="SECONDS", help="Of distillation at the end, on --text."),
    ] = None,
    groups: Groups = None,
    tokens: Tokens = None,
    batch_size: BatchSize = None,
    max_batches: MaxBatches = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="WORD", help="Of a folder: float32 (default), or keep its own."
        ),
    ] = None,
    journal: Journal = None,
    seed: Seed = 0,
    threads: Threads = None,
    recipe: Given = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print the plan and write nothing.")
    ] = False,
    as_yaml: Annotated[
        bool,
        typer.Option("--yaml", help="With --plan-only: as a recipe, and nothing else."),
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="A plan, from --plan-only --json, to follow."),
    ] = None,
    by_stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="A layer at a time without the model in memory, or with --text a block at a time: "
            "for shards larger than memory. Goes on where a run into TARGET has ended early.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="With --stream: print the plan, bytes, time, memory and disk that it takes, and "
            "write nothing.",
        ),
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="With --stream: begin anew instead.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="WORD",
            help="With --stream: where blocks run and weights are factored, such as cuda [cpu].",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file, or the whole folder, that is there.")
    ] = False,
    html: HtmlBeside = None,
    no_html: NoHtml = False,
    log: Log = None,
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
      tensorlrf compress minilm/ -o small/ --max-drop .01 --evaluate metrics:f1 --text news.txt
      tensorlrf compress smollm/ -o small/ --keep-total .8 --include embeddings --include heads
      tensorlrf compress smollm/ -o small/ --keep-params .8 --shared inputs --text news.txt
      tensorlrf compress llama-70b/ -o small/ --keep-params .5 --stream --dry-run
      tensorlrf compress llama-70b/ -o small/ --keep-params .5 --stream --text news.txt
      tensorlrf compress minilm/ -o small/ --keep-params .6 --text news.txt --html report.html
      tensorlrf compress minilm/ --keep-params .6 --plan-only --json > plan.json
      tensorlrf compress minilm/ -o minilm-small/ --plan plan.json --text news.txt
      tensorlrf compress minilm/ -o minilm-small/ --recipe recipes/minilm.yaml --text news.txt
      tensorlrf compress minilm/ --keep-params .6 --plan-only --yaml > recipe.yaml
    """
    with guard(debug, target, log, "compress", threads), process_group() as started:
        only = "--plan-only" if plan_only else "--dry-run" if dry_run else ""
        check_page(html, only=only, none=no_html)
        if as_yaml and (as_json or not plan_only):
            raise ArgumentError("--yaml is for --plan-only, in the place of --json")
        tell_replaced(recipe, context)
        if by_stream:
            stream(
                source, target,
                {"keep_params": keep_params, "error": error, "method": method, "skip": skip},
                others={
                    "--keep-total": keep_total, "--keep-bytes": keep_bytes,
                    "--keep-flops": keep_flops, "--keep-latency": keep_latency,
                    "--max-drop": max_drop, "--evaluate": evaluate, "--include": include,
                    "--allocation": allocation, "--least-share": least_share,
                    "--sensitivity": sensitivity, "--fold-batch-norms": fold_batch_norms,
                    "--metric": fit_metric, "--loss": loss, "--shared": shared,
                    "--affine": affine, "--rerun": rerun, "--refine": refine, "--groups": groups,
                    "--dtype": dtype, "--journal": journal, "--yaml": as_yaml,
                    **{f"{key}:": True for key in beyond_options(recipe, context, None)},
                },
                fit=StreamFit(
                    text or [], fit_target, holdout, memory_limit, tokens, batch_size, max_batches
                ),
                plan=plan, moments=moments, plan_only=plan_only, seed=seed, device=device,
                threads=threads, html=html, no_html=no_html,
                force=force, restart=restart, dry_run=dry_run, as_json=as_json, started=started,
            )  # fmt: skip
            return
        started.check_shared(calibrated=bool(text))
        if dry_run:
            raise ArgumentError("--dry-run is for --stream; --plan-only shows a plan without it")
        if restart:
            raise ArgumentError("--restart is for --stream, whose runs go on where they ended")
        if device is not None:
            raise ArgumentError("--device is for --stream, which has a layer or a block there")
        options = Options(
            source, target, plan_only, force, text or [], fit_target, affine, tokens, batch_size,
            max_batches, dtype, seed, fit_metric, refine, groups, loss, holdout, rerun,
            memory_limit, moments, evaluate is not None,
        )  # fmt: skip
        options.check()
        budgets = {
            "keep_params": keep_params, "keep_total": keep_total, "keep_bytes": keep_bytes,
            "keep_flops": keep_flops, "keep_latency": keep_latency, "error": error,
            "max_drop": max_drop,
        }  # fmt: skip
        wanted = Wanted(
            budgets, method, skip or [], include or [], allocation, least_share, sensitivity,
            evaluate, fold_batch_norms, journal,
        )  # fmt: skip
        wanted.check(source, with_text=bool(text), plan_only=plan_only)
        given = None
        if plan is not None:
            wanted.check_alone()
            if refine is not None:
                raise ArgumentError(
                    "--refine is not for --plan: refine what comes out with `tensorlrf refine`"
                )
            given = read_value(Plan, "--plan", plan)
        arguments = wanted.arguments()
        evaluation = read_evaluate(evaluate)
        job = folder_job(options) if source.is_dir() else checkpoint_job(options)
        batches, labels = started.own(job.batches), started.own(job.groups)
        metric = metric_for(evaluation, job.model, source, batches, text or [], tokens, batch_size)
        beyond = beyond_options(recipe, context, batches)
        arguments |= taken_by(make_plan, beyond)
        fit: dict[str, Any] = {
            "calibration": batches, "moments": moments, "target": fit_target or "original",
            "affine": affine, "random_state": seed, "groups": labels, "shared": shared,
            "rerun": rerun, "memory_limit": memory_limit,
        }  # fmt: skip
        fit |= {} if fit_metric is None else {"metric": fit_metric}
        looks: dict[str, Any] = {} if loss is None else {"loss": loss}
        looks |= {} if holdout is None else {"holdout": holdout}
        fit |= looks | taken_by(apply, beyond)
        at_once = metric is not None or refine is not None or method == MODULAR
        if given is None and (plan_only or not at_once):
            looks |= {} if max_drop is None else {"evaluate": metric}
            given = job.explain(
                make_plan(
                    job.model,
                    calibration=batches,
                    moments=moments,
                    groups=labels,
                    random_state=seed,
                    **arguments,
                    **looks,
                )
            )
        if plan_only and given is not None:
            if started.prints and as_yaml:
                found = as_recipe(given, recipe, context, whole=source.is_dir())
                typer.echo(found.to_yaml(), nl=False)
            elif started.prints:
                show(given, as_json)
            return
        if given is None:
            small, report = compress_model(
                job.model, evaluate=metric, refine=refine, **{**arguments, **fit}
            )
        else:
            small, report = apply(job.model, given, **fit)
        if not started.prints:
            return
        job.write(small)
        assert target is not None
        page = page_beside(html, target, no_html)
        if page is not None:
            report.to_html(
                page,
                saved=target,
                sensitivity=arguments["sensitivity"],
                title=titled(source, "compressed"),
                date=today(),
            )
        show(report, as_json)
        if not as_json:
            tell_written(target, page)
