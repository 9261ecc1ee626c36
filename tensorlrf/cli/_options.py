"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[Path, typer.Option("--output", "-o", metavar="TARGET", help="Where to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Groups = Annotated[
    str | None,
    typer.Option(
        "--groups",
        metavar="WORD",
        help="What is fitted to or held out as a whole: documents, or a file with a label for each "
        "document of --text, one a line.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Seed = Annotated[int, typer.Option("--seed", help="Of whatever is drawn.")]
