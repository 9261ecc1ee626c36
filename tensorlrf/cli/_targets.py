"""Where results go: looked at before the work begins, and replaced only when asked to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tensorlrf.cli._outcome import warn
from tensorlrf.compression.checkpoint.folder import TENSORS
from tensorlrf.compression.page.document import check_path, is_page
from tensorlrf.errors import ArgumentError, FileError
from tensorlrf.files.folder import present, put_right
from tensorlrf.files.job import JOURNAL, job_folder, of_rank
from tensorlrf.files.replace import check_target, foreign


def check_file(target: Path, source: Path, force: bool) -> None:
    """Raise FileError where a file cannot become `target`, or may not replace what is there."""
    _check_name(target, ".safetensors")
    if os.path.lexists(target):
        if source.exists() and target.exists() and os.path.samefile(source, target):
            raise FileError(f"-o {target} is the source itself; give another name")
        _check_may_replace(target, force)


def check_json(target: Path, force: bool) -> None:
    """Raise FileError where a text cannot become `target`, or may not replace what is there."""
    _check_name(target, ".json")
    if os.path.lexists(target):
        _check_may_replace(target, force)


def check_moments(target: Path, others: Sequence[Path], force: bool, ranks: int) -> None:
    """Raise FileError where moments cannot become `target`, or may not replace what is there and is
    not of a run that goes on, of so many ranks."""
    _check_name(target, ".safetensors")
    if not os.path.lexists(target):
        return
    for other in others:
        if other.exists() and target.exists() and os.path.samefile(other, target):
            raise FileError(f"-o {target} is what is to be added; give another name")
    own = (of_rank(target, rank, ranks) for rank in range(ranks))
    if not any((job_folder(one, as_folder=False) / JOURNAL).exists() for one in own):
        _check_may_replace(target, force)


def check_folder(target: Path, source: Path, force: bool) -> None:
    """Raise FileError where a folder cannot become `target`, or may not replace what is there.

    Only a folder that was written by `compress` is ever replaced.
    """
    if os.path.lexists(target) and not target.is_dir():
        raise FileError(f"-o {target} is a file; a folder gives a folder, so give another name")
    new, old = target.resolve(), source.resolve()
    if new == old or old in new.parents or new in old.parents:
        raise FileError(f"-o {target} and the source {source} lie in each other; give another name")
    _check_parent(new)
    put_right(target)
    if not present(target):
        return
    if not (target / TENSORS).is_file():
        raise FileError(
            f"-o {target} exists and has no {TENSORS}, so it was not written by compress and is "
            "not replaced; give another name"
        )
    _check_may_replace(target, force)


def check_page(html: Path | None, *, only: str = "", none: bool = False) -> None:
    """Raise before any work is done where no page can be written, or where there is none of what is
    `only` shown, or `none` is wanted as well."""
    if html is None:
        return
    if none:
        raise ArgumentError("--html names a page and --no-html wants none; leave out one")
    if only:
        raise ArgumentError(f"--html is of what was done, and {only} does nothing; leave out one")
    check_target(check_path(html, "--html"), overwrite=True)


def page_beside(html: Path | None, target: Path, none: bool) -> Path | None:
    """Where the page of what was written goes: what --html names, or TARGET.html of a folder, if
    nothing else has that name."""
    if html is not None or none or not target.is_dir():
        return html
    whole = target.resolve() if target.name in ("", "..") else target
    beside = whole.with_name(f"{whole.name}.html")
    if os.path.lexists(beside) and not is_page(beside):
        warn(f"{beside} is no page of tensorlrf and stays as it is; --html names another")
        return None
    return beside


def _check_name(target: Path, suffix: str) -> None:
    if target.is_dir():
        raise FileError(f"-o {target} is a folder; give the name of a file")
    if target.suffix != suffix:
        raise FileError(f"-o {target}: files are written as {suffix}; give such a name")
    _check_parent(target)
    if foreign(target):
        raise FileError(f"-o {target} is no file, and no file replaces it; give another name")


def _check_may_replace(target: Path, force: bool) -> None:
    if not force:
        raise FileError(f"-o {target} exists; give another name, or --force to replace it")


def _check_parent(target: Path) -> None:
    parent = target.absolute().parent
    if not parent.is_dir():
        raise FileError(f"-o {target}: the folder {parent} is missing; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise FileError(f"-o {target}: the folder {parent} cannot be written to")
