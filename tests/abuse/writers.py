"""What writes files, as one kind of value."""

from __future__ import annotations

import contextlib
import io as texts
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import tensorlrf
from tensorlrf import io
from tensorlrf.cli import main
from tensorlrf.compression.journal._kept import NAME as MEASURED
from tensorlrf.compression.refinement._journal import NAME
from tensorlrf.files.folder import present
from tests.abuse.of_journals import BLOCKS, MOMENTS
from tests.abuse.of_runs import look, make_source, refine
from tests.abuse.of_tensors import architecture, factors
from tests.abuse.reader import digest, files_of, of_factors, of_model
from tests.compression.checkpoint.saved import blank, compressed
from tests.draws import seeded32


@dataclass(frozen=True)
class Writer:
    """What is killed.

    prepare  fills an empty folder with what it reads and, where it replaces, with an old output
    act      writes; called again after a kill
    target   what it writes, in the folder
    says     what the target is, where it is whole; raises where it is not
    repeats  whether it gives the same bytes each time
    loses_one  whether one of the processes that it starts is killed, not all
    in_process whether it may run in a process from which others are forked later
    """

    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    target: str
    says: Callable[[Path], str]
    repeats: bool = True
    loses_one: bool = False
    in_process: bool = True


# ---- what is written ---------------------------------------------------------------------------


def stream(folder: Path, target: str, **more: Any) -> None:
    source = folder / "in"
    if target.endswith(".safetensors"):
        source = folder / "a.safetensors"
    tensorlrf.compress_checkpoint(
        source, folder / target, keep_params=0.5, threads=1, progress=False, **more
    )


def two_sources(folder: Path, width: int = 8) -> None:
    """A file, and shards."""
    make_source(folder)
    torch.manual_seed(0)
    layers = [nn.Linear(width, width, device="cpu", dtype=torch.float32) for _ in range(6)]
    state = {
        f"{k}.{name}": t for k, one in enumerate(layers) for name, t in one.state_dict().items()
    }
    save_file(state, folder / "a.safetensors")
    if width > 8:
        save_file(state, folder / "in" / "model-0.safetensors")
        (folder / "in" / "model-1.safetensors").unlink()
        (folder / "in" / "model.safetensors.index.json").unlink()
        (folder / "in" / "model-0.safetensors").rename(folder / "in" / "model.safetensors")


def inspected(path: Path) -> str:
    """All of it is read, with its checksums."""
    tensorlrf.inspect(path, verify=True)
    if path.is_file():
        return path.read_bytes().hex()
    own = set(present(path))
    held = files_of(path).items()
    return digest(part for item in held if item[0].partition("/")[0] in own for part in item)


def streams(width: int) -> tuple[Writer, ...]:
    """Runs by layers, into one file, a folder with one shard, and one with many."""
    sources = partial(two_sources, width=width)
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "one file": ("b.safetensors", {}),
        "folder": ("out", {}),
        "shards": ("out", {"shard_bytes": 40 * width}),
    }
    return tuple(
        Writer(f"compress_checkpoint, {form}", sources, partial(stream, target=target, **more),
               target, inspected)
        for form, (target, more) in forms.items()
    )  # fmt: skip


def old_model(folder: Path) -> None:
    tensorlrf.save(compressed(seed=1), folder / "f.safetensors")


def save(folder: Path) -> None:
    tensorlrf.save(compressed(), folder / "f.safetensors", overwrite=True)


def command(*words: str) -> Callable[[Path], None]:
    """A command line whose words may have the folder in them."""

    def act(folder: Path) -> None:
        with contextlib.redirect_stdout(texts.StringIO()):
            code = main([word.replace("DIR", str(folder)) for word in words])
        assert code == 0

    return act


def state_and_array(folder: Path) -> None:
    save_file(architecture().state_dict(), folder / "net.safetensors")
    np.save(folder / "k.npy", seeded32(12, 8).numpy())


def moments(folder: Path) -> None:
    batches = [seeded32(40, 8, seed=k) for k in range(2)]
    found = tensorlrf.calibrate(architecture(), batches, skip=[])
    found.save(folder / "m.safetensors", overwrite=True)


def moments_say(path: Path) -> str:
    found = tensorlrf.Moments.load(path)
    for row in found.layers:
        found.kept.read(row)
    return path.read_bytes().hex()


def refined(path: Path) -> str:
    """A journal that is there is one from which a run goes on."""
    if not (path / NAME).exists():
        return "nothing yet"
    return of_model(refine(path))


def looked(path: Path) -> str:
    """Likewise."""
    return look(path) if (path / MEASURED).exists() else "nothing yet"


OTHERS = (
    Writer("save over a file", old_model, save, "f.safetensors",
           lambda path: of_model(tensorlrf.load(path, blank()))),
    Writer("save_factors_dict", lambda _: None,
           lambda folder: io.save_factors_dict(factors(), folder / "f", overwrite=True), "f",
           lambda path: of_factors(io.load_factors_dict(path))),
    Writer("Moments.save", lambda _: None, moments, "m.safetensors", moments_say),
    Writer("calibrate", MOMENTS.make_source, MOMENTS, MOMENTS.target, moments_say),
    Writer("tensorlrf compress", state_and_array,
           command("compress", "DIR/net.safetensors", "-o", "DIR/o.safetensors", "--keep-params",
                   ".5", "--force"), "o.safetensors", inspected),
    Writer("tensorlrf compress --stream", state_and_array,
           command("compress", "DIR/net.safetensors", "-o", "DIR/o", "--keep-params", ".5",
                   "--stream"), "o", inspected),
    Writer("tensorlrf decompose", state_and_array,
           command("decompose", "DIR/k.npy", "-o", "DIR/o.safetensors", "--rank", "2", "--force"),
           "o.safetensors", lambda path: of_factors({"": io.load_factors(path)})),
    Writer("refine with a journal", lambda folder: (folder / "j").mkdir(),
           lambda folder: refine(folder / "j") and None, "j", refined, repeats=False),
    Writer("frontier with a journal", lambda folder: (folder / "j").mkdir(),
           lambda folder: look(folder / "j") and None, "j", looked, repeats=False),
)  # fmt: skip

LONG = (
    Writer("compress_checkpoint, blocks", BLOCKS.make_source, BLOCKS, BLOCKS.target, inspected),
)
"""Each runs a model on inputs, from its first block on."""
