"""A file comes to be whole or not at all: written beside its place, then named by one rename.

What is being written is called `.NAME.xxxxxxxx.part` and is locked for as long as its writer
lives. One that nobody has locked was left by a kill, and goes when the place is next written to.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tensorlrf.errors import FileError, MissingFileError, TensorlrfWarning, warn
from tensorlrf.files import _locks, system
from tensorlrf.files.arguments import PathLike, as_path

LONGEST_NAME = 255
"""Bytes of a name, in the file systems that are about."""


@contextmanager
def replacing(path: PathLike, *, overwrite: bool) -> Iterator[Path]:
    """A file beside `path`, to write to; at the end it becomes `path`, all or nothing.

    Its bytes are on the disk before it gets the name. It has the permissions that the umask
    leaves, or those of the file that it replaces; a link is replaced, not what it points to.

    Raises FileError where `path` is a folder, a pipe, a device or a socket, where it exists and
    `overwrite` is False (another may have made it meanwhile: that is decided by the system, in the
    moment of the renaming), and where the system refuses; MissingFileError where its folder is not
    there. Any OSError on the way becomes a FileError.
    """
    target = as_path(path)
    part = None
    try:
        check_target(target, overwrite)
        sweep(target.parent, target.name)
        part, lock = new_part(target.parent, target.name)
        try:
            yield part
            if overwrite:
                _keep_mode(target, lock)
            _sync(part, lock)
            _rename(part, target, overwrite)
        finally:
            with suppress(OSError):
                os.unlink(part)
            system.close(lock)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise cannot_write(target, error, part) from error
    sync_written(target)


def check_target(target: Path, overwrite: bool) -> None:
    """Raise FileError where a file cannot become `target`, or may not replace what is there."""
    name = os.fspath(target)
    kind = foreign(target)
    if kind == "folder":
        raise FileError(f"path={name!r} is a folder; give the name of a file")
    if not os.path.isdir(target.parent):
        raise MissingFileError(f"path={name!r}: the folder {str(target.parent)!r} is missing")
    if kind:
        raise FileError(f"path={name!r} is a {kind}, which no file replaces")
    if not overwrite and os.path.lexists(target):
        raise exists(target)


def foreign(path: Path) -> str:
    """In a word, what is there and is no file; empty where it is one, and where nothing is.

    By one look: before a second one, another may have put aside what the first one saw.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    kinds = {
        stat.S_ISREG: "",
        stat.S_ISDIR: "folder",
        stat.S_ISFIFO: "pipe",
        stat.S_ISSOCK: "socket",
    }
    return next((word for test, word in kinds.items() if test(mode)), "device")


def exists(target: Path) -> FileError:
    """The error for a path that is there and may not be replaced."""
    return FileError(
        f"path={os.fspath(target)!r} exists; give another name, or overwrite=True to replace it"
    )


def cannot_write(target: PathLike, error: Exception, part: Path | None = None) -> FileError:
    """The error for a path that the system refuses to write; `part` is what was being written."""
    left = ""
    if part is not None and os.path.lexists(part):
        left = f" ({str(part)!r} could not be removed)"
    return FileError(
        f"path={os.fspath(target)!r} cannot be written: {error}; what was there is as it "
        f"was{left}, give a folder that exists, with room, that you may write to"
    )


# ---- files on the way --------------------------------------------------------------------------


def new_part(folder: Path, name: str, *, as_folder: bool = False) -> tuple[Path, int]:
    """(a new file or folder for what will be `name`, an open file of it that is locked).

    On Windows nothing is locked, and what is open could not be renamed: nothing stays open.
    """
    while True:
        part = folder / f"{_stem(name)}{secrets.token_hex(4)}.part"
        # One who sweeps may see it before it is locked, and take it away.
        if as_folder:
            os.mkdir(part)
            if system.WINDOWS:
                return part, system.NOTHING
            try:
                lock = os.open(part, os.O_RDONLY)
            except FileNotFoundError:
                continue
            except OSError:
                os.rmdir(part)
                raise
        else:
            lock = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | system.BINARY, 0o666)
            if system.WINDOWS:
                return part, system.let_go(lock)
        if _locks.take(lock) is not False and _locks.is_at(lock, part):
            return part, lock
        os.close(lock)


def sweep(folder: Path, name: str) -> None:
    """Remove what a kill left of earlier attempts at `name`; warn of what cannot be removed."""
    pattern = re.compile(re.escape(_stem(name)) + r"[0-9a-f]{8}\.part")
    try:
        entries = os.listdir(folder)
    except PermissionError:  # one may write to it and not look
        return
    for entry in entries:
        if pattern.fullmatch(entry) and not _swept(folder / entry):
            warn(
                f"{str(folder / entry)!r} seems to be left of a writing that did not end; remove "
                "it if no other is going on",
                TensorlrfWarning,
            )


def _swept(part: Path) -> bool:
    """Remove it where nobody is at work on it. False where that cannot be known, or done."""
    try:
        is_folder = stat.S_ISDIR(os.lstat(part).st_mode)
        flags = (os.O_RDONLY if is_folder else os.O_RDWR) | system.NO_LINK | system.BINARY
        file = os.open(part, flags)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        free = _locks.take(file)
        if free and _locks.is_at(file, part):
            remove(part)
        return free is not None and not (free and _locks.is_at(file, part))
    finally:
        os.close(file)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, as far as the system lets."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(path)


def _stem(name: str) -> str:
    """What all parts for a name begin with, short enough for names to be of legal length."""
    room = LONGEST_NAME - len("..") - 8 - len(".part")
    return f".{name.encode('utf-8', 'surrogateescape')[:room].decode('utf-8', 'ignore')}."


# ---- the moment that decides -------------------------------------------------------------------


def _sync(part: Path, lock: int) -> None:
    if lock == system.NOTHING:
        system.sync(part)
    else:
        os.fsync(lock)


def _rename(part: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(part, target)
        return
    try:
        if system.WINDOWS:
            os.rename(part, target)  # which replaces nothing there
            return
        os.link(part, target)  # a second name, which unlike a rename replaces nothing
    except FileExistsError:
        raise exists(target) from None
    except OSError:
        if system.WINDOWS:
            raise
        _reserve(part, target)


def _reserve(part: Path, target: Path) -> None:
    """Where files have one name only: of all who create an empty file, one does."""
    try:
        empty = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | system.BINARY, 0o666)
    except FileExistsError:
        raise exists(target) from None
    try:
        os.replace(part, target)
    finally:
        if _locks.is_at(empty, target):
            os.unlink(target)
        os.close(empty)


def _keep_mode(target: Path, lock: int) -> None:
    """Who may read the old file may read the new one, and nobody else."""
    try:
        old = os.lstat(target)
    except FileNotFoundError:
        return
    if stat.S_ISREG(old.st_mode) and lock != system.NOTHING:
        with suppress(PermissionError):
            os.fchmod(lock, stat.S_IMODE(old.st_mode) & 0o777)


def sync_written(target: Path) -> None:
    """Have the name of what was written on the disk. Raises FileError that says it is there."""
    try:
        sync_names(target.parent)
    except OSError as error:
        raise FileError(
            f"path={os.fspath(target)!r} is written, but whether it would outlive a loss of power "
            f"is not known: {error}"
        ) from error


def sync_names(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system does that."""
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder that may be written to and not be read
        return
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS):
            raise
    finally:
        os.close(file)
