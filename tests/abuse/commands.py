"""Commands on folders of transformers, which take seconds to import, and commands of two ranks."""

from __future__ import annotations

import contextlib
import io as texts
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from tensorlrf.cli import main
from tensorlrf.compression import Sensitivity
from tests.abuse.course import Lost
from tests.abuse.reader import digest
from tests.abuse.writers import Writer, command, inspected, moments_say, two_sources
from tests.cli.folders import bert_folder, llama_folder, text_file

PATIENCE = 30.0
"""Seconds that a rank has to end once another is lost, as torchrun gives them."""


def bert_and_text(folder: Path) -> None:
    bert_folder(folder / "in")
    text_file(folder / "news.txt")


def llama_and_text(folder: Path) -> None:
    llama_folder(folder / "in")
    text_file(folder / "news.txt")


def small_and_text(folder: Path) -> None:
    bert_and_text(folder)
    command("compress", "DIR/in", "-o", "DIR/small", "--keep-params", ".5")(folder)


# ---- ranks -------------------------------------------------------------------------------------


def on_two_ranks(*words: str) -> Callable[[Path], None]:
    """A command line on two ranks, as torchrun starts and ends them: where one is lost the other is
    asked to end, and killed where it does not. Raises Lost then."""

    def act(folder: Path) -> None:
        given = [word.replace("DIR", str(folder)) for word in words]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = {_rank(rank, port, given) for rank in range(2)}
        lost = False
        while ranks:
            ended, status = os.wait()
            ranks.remove(ended)
            if status and not lost:
                lost = True
                for rank in ranks:
                    os.kill(rank, signal.SIGTERM)
                    threading.Timer(PATIENCE, os.kill, (rank, signal.SIGKILL)).start()
        if lost:
            raise Lost

    return act


def _rank(rank: int, port: int, words: list[str]) -> int:
    """Its process."""
    child = os.fork()
    if child:
        return child
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="killed", TORCHELASTIC_RESTART_COUNT="0",
    )  # fmt: skip
    code = 1
    try:
        with (
            contextlib.redirect_stdout(texts.StringIO()),
            contextlib.redirect_stderr(texts.StringIO()),
        ):
            code = main(words)
    finally:
        os._exit(code)  # no wait for threads of gloo


def ranks(width: int) -> tuple[Writer, ...]:
    """A run by layers on two ranks that are both killed, and one of which one is."""
    act = on_two_ranks("compress", "DIR/in", "-o", "DIR/o", "--keep-params", ".5", "--stream")

    def sources(folder: Path) -> None:
        two_sources(folder, width)

    return tuple(
        Writer(f"tensorlrf compress --stream, {told}", sources, act, "o", inspected,
               in_process=False, loses_one=one)
        for told, one in (("2 ranks", False), ("one of 2 ranks", True))
    )  # fmt: skip


# ---- folders of transformers -------------------------------------------------------------------

SOME = ("--text", "DIR/news.txt", "--tokens", "16", "--batch-size", "8")
FEW = (*SOME, "--max-batches", "4")


def picture(path: Path) -> str:
    """One that is whole."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data.endswith(b"IEND\xaeB\x60\x82")
    return digest(iter([data]))


def sensitivity(path: Path) -> str:
    return Sensitivity.from_json(path.read_text()).to_json()


OF_TRANSFORMERS = (
    Writer("tensorlrf calibrate", bert_and_text,
           command("calibrate", "DIR/in", *SOME, "-o", "DIR/m.safetensors", "--force"),
           "m.safetensors", moments_say),
    Writer("tensorlrf compress --stream --text", llama_and_text,
           command("compress", "DIR/in", "-o", "DIR/o", "--keep-params", ".5", "--stream", *FEW,
                   "--target", "prefix", "--memory-limit", str(1 << 28)), "o", inspected),
    Writer("tensorlrf compress --text", bert_and_text,
           command("compress", "DIR/in", "-o", "DIR/o", "--keep-params", ".5", *FEW, "--force"),
           "o", inspected),
    Writer("tensorlrf frontier --plot", bert_and_text,
           command("frontier", "DIR/in", *FEW, "--shares", ".8,.4", "--plot", "DIR/p.png"),
           "p.png", picture),
    Writer("tensorlrf sensitivity", bert_and_text,
           command("sensitivity", "DIR/in", *FEW, "-o", "DIR/s.json", "--force"), "s.json",
           sensitivity),
    Writer("tensorlrf refine", small_and_text,
           command("refine", "DIR/small", "DIR/in", *FEW, "--steps", "4", "-o", "DIR/o",
                   "--force"), "o", inspected),
)  # fmt: skip
