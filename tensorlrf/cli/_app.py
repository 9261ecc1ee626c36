"""The program: its commands, and what becomes of a command line that is wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tensorlrf.cli._calibrate import calibrate
from tensorlrf.cli._compress import compress
from tensorlrf.cli._decompose import decompose
from tensorlrf.cli._frontier import frontier
from tensorlrf.cli._inspect import inspect
from tensorlrf.cli._outcome import INTERRUPTED, REFUSED, ending_cleanly, guard, refuse
from tensorlrf.cli._ranks import check_started
from tensorlrf.cli._refine import refine
from tensorlrf.cli._sensitivity import sensitivity
from tensorlrf.cli.measure._bench import bench
from tensorlrf.cli.measure._compare import compare
from tensorlrf.cli.measure._spectra import spectra

app = typer.Typer(
    name="tensorlrf",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(value: bool) -> None:
    if value:
        package = sys.modules[__name__.partition(".")[0]]
        typer.echo(f"tensorlrf {package.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def tensorlrf(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which it is.")
    ] = False,
) -> None:
    """Tensor decompositions that make networks smaller and faster.

    \b
    Examples:
      tensorlrf compress minilm/ -o minilm-small/ --keep-params .6 --text news.txt
      tensorlrf compress net.safetensors -o small.safetensors --keep-params .5
      tensorlrf calibrate minilm/ --text news.txt -o moments.safetensors
      tensorlrf refine minilm-small/ minilm/ -o better/ --seconds 600 --text news.txt
      tensorlrf frontier minilm/ --text news.txt --plot frontier.png
      tensorlrf sensitivity minilm/ --text news.txt -o layers.json
      tensorlrf spectra minilm/ --plot layers.png
      tensorlrf bench minilm-small/ --against minilm/
      tensorlrf compare minilm/ minilm-small/ --text held_out.txt
      tensorlrf inspect minilm-small/ --verify
      tensorlrf decompose kernel.npy --method cp --rank 32 -o factors.safetensors

    `tensorlrf COMMAND --help` tells more. All commands take --json (the result as JSON on stdout
    and nothing else) and --debug (the traceback of an error).
    """
    if context.invoked_subcommand is None and not version:
        typer.echo(context.get_help())
        raise typer.Exit(REFUSED)
    with guard(debug=False):
        check_started(context.invoked_subcommand)


app.command()(compress)
app.command()(calibrate)
app.command()(refine)
app.command()(frontier)
app.command()(sensitivity)
app.command()(spectra)
app.command()(bench)
app.command()(compare)
app.command()(inspect)
app.command()(decompose)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, that of the process by default. Returns the exit code."""
    command = typer.main.get_command(app)
    given = None if arguments is None else list(arguments)
    try:
        with ending_cleanly():
            code = command.main(args=given, prog_name="tensorlrf", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        # The parser's own errors; what commands raise has become an exit code before.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        context = getattr(error, "ctx", None)
        path = "tensorlrf" if context is None else context.command_path
        refuse(f"{message().rstrip('.')}; `{path} --help` shows what there is")
        return REFUSED
    return code if isinstance(code, int) else 0
