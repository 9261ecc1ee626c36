"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tensorlrf.compression.methods import MODULAR, words
from tensorlrf.compression.metrics.windows import BATCH, TOKENS
from tensorlrf.decomposition.methods import installed, names


def words_of_methods() -> str:
    """For the help: those that are there, and those of installed packages, which are not loaded."""
    of_matrices = [w for w in words() if w in set(names("linear")) - set(names("conv"))]
    others = (*(w for w in words() if w not in of_matrices), *installed())
    whole = f"or {MODULAR}, with --text: whole modules of a transformer become smaller"
    return f"{', '.join(others)}; for linear layers {', '.join(of_matrices)}; {whole}."


def as_it_is(value: Any) -> Any:
    """Of options of which a recipe says more than a word."""
    return value


Target = Annotated[Path, typer.Option("--output", "-o", metavar="TARGET", help="Where to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Evaluate = Annotated[
    str | None,
    typer.Option(
        "--evaluate",
        metavar="METRIC",
        help="perplexity:FILE, agreement:FILE or cosine:FILE, on text of its own (without :FILE "
        "on --text, which says too much good); or MODULE:FUNCTION, one of yours, the higher the "
        "better: of the model to a number, or to a score of each example; its code is run.",
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        "--groups",
        metavar="WORD",
        help="What is fitted to or held out as a whole: documents, or a file with a label for each "
        "document of --text, one a line.",
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip",
        metavar="GLOB",
        help="Layers that stay, again for more. By default heads stay; '' skips none.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="KIND",
        help="embeddings or heads, again for both: layers that stay otherwise. Folders only.",
    ),
]
Tokens = Annotated[
    int | None, typer.Option("--tokens", help=f"Tokens of a window of text [{TOKENS}].")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", help=f"Windows in a batch [{BATCH}].")
]
MaxBatches = Annotated[
    int | None, typer.Option("--max-batches", help="Batches to fit to, at most [all].")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="A page to show, one file, such as report.html."),
]
HtmlBeside = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", help="A page to show, one file [of a folder: TARGET.html]."
    ),
]
NoHtml = Annotated[bool, typer.Option("--no-html", help="No page beside a folder.")]
Journal = Annotated[
    Path | None,
    typer.Option("--journal", metavar="DIR", help="A folder to go on from, by the same command."),
]
Log = Annotated[
    Path | None,
    typer.Option("--log", metavar="FILE", help="Append what is done to a file, as lines of JSON."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        help="Of torch, for one operation [as many as there are cores; of torchrun's ranks one].",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of whatever is drawn.")]
Method = Annotated[
    Any,
    typer.Option(
        "--method",
        metavar="WORD",
        parser=as_it_is,
        help=words_of_methods(),
    ),
]
Allocation = Annotated[
    Any,
    typer.Option(
        "--allocation",
        metavar="WORD",
        parser=as_it_is,
        help="How the share is shared out over layers: auto (default), with --text by what the "
        "model would lose, as by fisher or measured, without it uniform; or energy.",
    ),
]
