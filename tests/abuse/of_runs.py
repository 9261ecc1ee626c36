"""Readers of what an earlier run, or a killed one, has left; and of whole folders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorlrf
from tensorlrf.compression.checkpoint.companions import copy_companions
from tensorlrf.compression.journal._kept import KEY as MEASURED
from tensorlrf.compression.refinement._journal import KEY
from tensorlrf.compression.scale import _assembled, _run
from tensorlrf.files.folder import READY, put_right
from tests.abuse import of_texts
from tests.abuse.of_tensors import architecture
from tests.abuse.reader import MINE, WHEN, Reader, Wrong, digest, files_of, of_files, of_model
from tests.compression.refinement.students import batches, pair


class Pulled(BaseException):
    """In the place of a kill, in this process."""


def make_source(folder: Path) -> None:
    """A checkpoint in shards, as transformers writes it."""
    (folder / "in").mkdir()
    state = architecture().state_dict()
    where = {name: f"model-{k % 2}.safetensors" for k, name in enumerate(state)}
    for file in sorted(set(where.values())):
        own = {name: t for name, t in state.items() if where[name] == file}
        save_file(own, folder / "in" / file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "in" / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "in" / "tokenizer.json").write_text("{}")
    (folder / MINE).write_text("mine")
    for file in (folder / "in").iterdir():
        os.utime(file, (WHEN, WHEN))


def stream(folder: Path, **more: Any) -> None:
    tensorlrf.compress_checkpoint(
        folder / "in", folder / "out", keep_params=0.5, shard_bytes=300, threads=1,
        progress=False, **more,
    )  # fmt: skip


def pulled(
    module: Any, name: str, number: int, act: Callable[[Path], None] = stream
) -> Callable[[Path], None]:
    """A run over the source that ends with the n-th call of a function."""

    def make(folder: Path) -> None:
        make_source(folder)
        pull(module, name, number, lambda: act(folder))

    return make


def pull(module: Any, name: str, number: int, act: Callable[[], None]) -> None:
    """Have it end with the n-th call of a function."""
    own, left = getattr(module, name), [number]

    def until(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Pulled
        return own(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, until)
        try:
            act()
        except Pulled:
            return
    raise AssertionError("it has ended before")


@cache
def undisturbed() -> str:
    """What a run gives that nothing has touched."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        make_source(Path(name))
        stream(Path(name))
        return of_files(Path(name) / "out")


@cache
def source() -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        make_source(Path(name))
        return of_files(Path(name) / "in")


def goes_on(folder: Path) -> str:
    try:
        stream(folder)
    finally:
        untouched(folder)
    return of_files(folder / "out")


def untouched(folder: Path) -> None:
    if of_files(folder / "in") != source() or (folder / MINE).read_text() != "mine":
        raise Wrong("a file that is only read was touched")
    if set(os.listdir(folder)) - {"in", "out", MINE}:
        raise Wrong(f"there are {sorted(os.listdir(folder))}")


def compressed(folder: Path) -> str:
    """A source may be anything; it stays as it is, and what comes of it can be read."""
    before = digest(str(item) for item in files_of(folder / "in").items())
    try:
        stream(folder)
    finally:
        if digest(str(item) for item in files_of(folder / "in").items()) != before:
            raise Wrong("the source was touched")
    told = tensorlrf.inspect(folder / "out" / "tensorlrf.safetensors", verify=True)
    return told.to_json()


# ---- refinement --------------------------------------------------------------------------------


def refine(folder: Path) -> nn.Module:
    model, small = pair()
    found, _ = tensorlrf.refine(
        small, model, batches(3), steps=2, random_state=3, journal=folder, progress=False
    )
    return found


def make_refined(folder: Path) -> None:
    refine(folder)


def refined(folder: Path) -> str:
    found = refine(folder)
    if not all(bool(torch.isfinite(p).all()) for p in found.parameters()):
        raise Wrong("a number that is none")
    return of_model(found)


# ---- what was measured -------------------------------------------------------------------------


def evaluate(model: nn.Module) -> list[float]:
    return [-float(x.square().sum()) for x in model(of_texts.batches()[0][:3])]


def look(folder: Path) -> str:
    """A frontier of which all that was measured is there, and what it makes by directions that
    are."""
    found = tensorlrf.frontier(
        of_texts.net(), of_texts.batches(), shares=(0.6,), evaluate=evaluate, journal=folder,
        skip=[], progress=False,
    )  # fmt: skip
    return found.to_json() + of_model(found.apply(0.6)[0])


def shared_out(folder: Path) -> str:
    """A compressed model, of which ranks and metrics are there."""
    small, _ = tensorlrf.compress(
        of_texts.net(), calibration=of_texts.batches(), keep_params=0.5, metric="loss",
        journal=folder, skip=[], progress=False,
    )  # fmt: skip
    if not all(bool(torch.isfinite(p).all()) for p in small.parameters()):
        raise Wrong("a number that is none")
    return of_model(small)


# ---- folders on the way ------------------------------------------------------------------------


def make_ready(folder: Path) -> None:
    """A folder in which a kill has left new files beside the old."""
    ready = folder / "t" / READY
    (ready / "new").mkdir(parents=True)
    (ready / "old").mkdir()
    for name in "ab":
        (ready / "new" / name).write_text(f"new {name}")
    for name in "ac":
        (folder / "t" / name).write_text(f"old {name}")
    values = {"old": ["a", "c"], "new": ["a", "b"]}
    from tensorlrf.files.folder import _Names

    with (ready / "names").open("w+b") as file:
        _Names(**values).write(file.fileno())


def finished(folder: Path) -> str:
    for name in ("new", "old"):  # folders without a file, which `write` does not make
        (folder / "t" / READY / name).mkdir(exist_ok=True)
    put_right(folder / "t")
    nothing_lost(folder)
    return of_files(folder / "t")


def nothing_lost(folder: Path) -> None:
    """All that is new is somewhere."""
    there = set(files_of(folder).values())
    if not {b"new a", b"new b"} <= there:
        raise Wrong(f"of what is new there are {there}")


def make_companions(folder: Path) -> None:
    source = folder / "in"
    (source / "1_Pooling").mkdir(parents=True)
    (source / "modules.json").write_text(json.dumps([{"idx": 1, "path": "1_Pooling"}]))
    for name in ("1_Pooling/config.json", "tokenizer.json", "README.md", "other.txt"):
        (source / name).write_text(name)
    (folder / MINE).write_text("mine")


def copied(folder: Path) -> str:
    target = folder / "out"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    left = copy_companions(folder / "in", target)
    if set(os.listdir(folder)) - {"in", "out", MINE} or (folder / MINE).read_text() != "mine":
        raise Wrong("written outside")
    return of_files(target) + str([str(path) for path in left])


READERS = (
    Reader("source in shards", make_source, compressed, foreign=("in/*",)),
    *(
        Reader(
            f"{what} of {when}",
            pulled(module, name, number),
            goes_on,
            sealed=True,
            foreign=foreign,
            after=untouched,
        )
        for what, foreign in (("journal", ("*/journal",)), ("run", ("out/.tensorlrf.job/*",)))
        for when, module, name, number in (
            ("layers", _run, "store", 3),
            ("shards", _assembled, "write_pieces", 2),
        )
    ),
    Reader("journal of a refinement", make_refined, refined, sealed=True, key=KEY),
    Reader(
        "journal of a frontier",
        lambda folder: look(folder) and None,
        look,
        sealed=True,
        key=MEASURED,
    ),
    Reader(
        "metrics beside a journal",
        lambda folder: shared_out(folder) and None,
        shared_out,
        sealed=True,
        foreign=("*.safetensors",),
        key=MEASURED,
    ),
    Reader(
        "names of a folder on its way",
        make_ready,
        finished,
        sealed=True,
        foreign=("*/names",),
        after=nothing_lost,
    ),
    Reader("companions", make_companions, copied, foreign=("in/modules.json",)),
)
