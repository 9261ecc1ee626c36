"""What writes files, as one kind of value: killed at any instant, the old is there or the new."""

from __future__ import annotations

import contextlib
import io as texts
import os
import random
import signal
import time
import traceback
import warnings
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
from tensorlrf.files.folder import present, put_right
from tests.abuse.of_runs import look, make_source, refine
from tests.abuse.of_tensors import architecture, factors
from tests.abuse.reader import digest, files_of, of_factors, of_model, write
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
    """

    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    target: str
    says: Callable[[Path], str]
    repeats: bool = True


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
    return digest(part for name in present(path) for part in (name, (path / name).read_bytes()))


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


# ---- kills -------------------------------------------------------------------------------------


def seconds_of(act: Callable[[Path], None], folder: Path) -> float:
    """That it takes in a process of its own."""
    begun = time.monotonic()
    assert killed_after(act, folder, None)
    return time.monotonic() - begun


def killed_after(act: Callable[[Path], None], folder: Path, seconds: float | None) -> bool:
    """Whether it came to its end, in a process that is killed after so long, if it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads; the child has one
        child = os.fork()
    if child == 0:
        try:
            act(folder)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code == 0


@dataclass
class Kills:
    """kills    how many runs were killed before they ended
    equal       how many were finished with the bytes of an undisturbed run
    torn        how many kills left a target that is neither old nor new
    left        what is beside the target after the last run, and was not there before
    """

    kills: int = 0
    trials: int = 0
    equal: int = 0
    torn: int = 0
    left: tuple[str, ...] = ()


class Trials:
    """A writer that is killed again and again, in a folder of its own."""

    def __init__(self, writer: Writer, folder: Path) -> None:
        self.writer, self.folder = writer, folder
        write({}, folder)
        writer.prepare(folder)
        self.before = files_of(folder)
        self.times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        self.old = self._says()
        self.seconds = seconds_of(writer.act, folder)
        self.new = self._says()
        self.after = set(files_of(folder))
        assert self.new not in ("", self.old)

    def begin(self) -> None:
        """As it was before."""
        write({}, self.folder)
        if self.goes_on:  # in a folder that is there and empty
            (self.folder / self.writer.target).mkdir()
        for name, data in self.before.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            assert isinstance(data, bytes)
            path.write_bytes(data)
            os.utime(path, ns=(self.times[path], self.times[path]))

    def is_whole(self) -> bool:
        """What is there is the old or the new."""
        says = self._says()
        return says in (self.old, self.new) or (not self.writer.repeats and bool(says))

    def finish(self, found: Kills) -> None:
        """Run it to its end, and look at all that is there."""
        assert killed_after(self.writer.act, self.folder, None)
        found.trials += 1
        found.equal += self._says() == self.new
        rest = {name: data for name, data in files_of(self.folder).items() if name in self.before}
        replaced = self.writer.target in self.before
        for name, data in self.before.items():
            if not (replaced and name == self.writer.target):
                assert rest.get(name) == data, f"{name} was touched"
        found.left = tuple(sorted({*found.left, *(set(files_of(self.folder)) - self.after)}))

    def _says(self) -> str:
        path = self.folder / self.writer.target
        if path.is_dir():
            put_right(path)  # as whoever reads it does
        is_there = present(path) if path.is_dir() and not self.goes_on else path.exists()
        return self.writer.says(path) if is_there else ""

    @property
    def goes_on(self) -> bool:
        """The target is the folder of a journal."""
        return not self.writer.repeats


def kills_of(writer: Writer, folder: Path, number: int, seed: int = 0) -> Kills:
    """So many runs killed at random instants, some of them again on the way, and then finished."""
    trials, found, draw = Trials(writer, folder), Kills(), random.Random(seed)
    while found.kills < number:
        trials.begin()
        for _ in range(draw.choice([1, 1, 2, 4])):
            found.kills += not killed_after(writer.act, folder, draw.random() * trials.seconds)
            found.torn += not trials.is_whole()
        trials.finish(found)
    return found
