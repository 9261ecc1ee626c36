"""Files of a folder come to be all together or not at all, and what they replace is put aside.

They are written to a folder of their own, `new` in a part (see `replace`). Where the folder that
is wanted is not there, `new` becomes it by one rename. Where it is there, it may be a mount, the
working directory, or hold more than ours, and is not to move: the part lies in it, and by one
rename becomes `.tensorlrf.ready`. That decides. What is replaced then moves to `old` in there, and
what is new to its place. Should the process be killed in between, whoever comes next goes on, from
the list of names that lies there too; so does one who comes while it is alive, once that has ended.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tensorlrf.errors import FileError, FileFormatError, MissingFileError, shown
from tensorlrf.files import _locks, system
from tensorlrf.files.arguments import PathLike, as_path
from tensorlrf.files.replace import (
    cannot_write,
    exists,
    foreign,
    new_part,
    remove,
    sweep,
    sync_names,
    sync_written,
)
from tensorlrf.files.strict import JsonNode

READY = ".tensorlrf.ready"
JOB = ".tensorlrf.job"
"""What a run that can be resumed keeps in a folder until it fills that."""
_STEM, _LIST, _SEAL, _LONGEST_LIST = "tensorlrf", "names", "checksum", 1 << 24
_OURS = re.compile(r"\.tensorlrf\.(ready|job|[0-9a-f]{8}\.part)")


@contextmanager
def filling(
    path: PathLike, *, names: Collection[str] | None = None, overwrite: bool
) -> Iterator[Path]:
    """A folder to write files to; at the end they are in the folder `path`, all or none.

    names  the files that are replaced, or go where the new ones lack them; all else in the folder
           stays. None: the folder is replaced as a whole

    The folder is made where it is missing. Raises FileError where one of the names is in it (or,
    for None, anything) and `overwrite` is False, which is decided with the renaming; where the
    system refuses; and MissingFileError where the folder above is not there. Any OSError on the
    way becomes a FileError, and what was there is as it was, unless the error says otherwise.
    """
    part, target = None, Path(os.path.realpath(as_path(path)))
    try:
        put_right(target)
        check_folder(as_path(path), names, overwrite)
        sweep(target.parent, target.name)
        if os.path.isdir(target):
            sweep_parts(target)
            part, lock = new_part(target, _STEM, as_folder=True)
        else:
            part, lock = new_part(target.parent, target.name, as_folder=True)
        try:
            os.mkdir(part / "new")
            os.mkdir(part / "old")
            yield part / "new"
            _sync_tree(part / "new")
            if part.parent == target or not _becomes(target, part / "new"):
                _replace(target, part, names, overwrite)
        finally:
            remove(part)
            system.close(lock)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise cannot_write(path, error, part) from error


def place(target: PathLike, part: Path, *, overwrite: bool) -> None:
    """Put what is in `part / "new"` into the folder `target`, in which `part` lies, in place of all
    that is there; `part` goes. As at the end of `filling`, and raises as that does."""
    try:
        (part / _LIST).unlink(missing_ok=True)  # of one that was killed before it decided
        _replace(as_path(target), part, None, overwrite)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise cannot_write(target, error) from error


def put_right(path: PathLike) -> None:
    """Finish what a kill left half done in a folder, if it did; wait for one who is at it.

    Raises FileError where that cannot be.
    """
    ready = as_path(path) / READY
    while True:
        try:
            folder = _opened(ready)
        except FileNotFoundError:
            return
        except OSError as error:
            if os.path.lexists(ready):
                raise _unfinished(ready, error) from error
            return
        try:
            if _finished(ready, folder):
                return
        except OSError as error:
            if not _locks.is_at(folder, ready):
                continue  # another has done it meanwhile
            if isinstance(error, FileError):
                raise
            raise _unfinished(ready, error) from error
        finally:
            system.close(folder)


def sweep_parts(target: Path) -> None:
    """Take away what the dead were writing into a folder."""
    sweep(target, _STEM)


def check_folder(target: Path, names: Collection[str] | None, overwrite: bool) -> None:
    """Raise FileError where files cannot be put into `target`, or may not replace what is there."""
    if os.path.lexists(target) and not os.path.isdir(target):
        raise FileError(f"path={os.fspath(target)!r} is a file; give the name of a folder")
    if not os.path.isdir(target.parent):
        raise MissingFileError(
            f"path={os.fspath(target)!r}: the folder {str(target.parent)!r} is missing"
        )
    there = present(target, names)
    for name in there if names is not None else ():
        if foreign(target / name):
            raise FileError(f"path={str(target / name)!r} is no file, and no file replaces it")
    if there and not overwrite:
        raise exists(target if names is None else target / there[0])


def present(target: Path, names: Collection[str] | None = None) -> list[str]:
    """Which of the names are in the folder, or for None all but what is being written there."""
    if names is not None:
        return [name for name in names if os.path.lexists(target / name)]
    try:
        return [name for name in sorted(os.listdir(target)) if not _OURS.fullmatch(name)]
    except FileNotFoundError:
        return []


# ---- the renames -------------------------------------------------------------------------------


class _Names(NamedTuple):
    """Of the entries of a folder: what goes, and what comes."""

    old: list[str]
    new: list[str]

    def write(self, file: int) -> None:
        system.rewrite(file, json.dumps({**self._asdict(), _SEAL: self._checksum()}).encode())
        os.fsync(file)

    def _checksum(self) -> str:
        return hashlib.blake2b(json.dumps(self).encode(), digest_size=16).hexdigest()

    @classmethod
    def read(cls, file: int, ready: Path) -> _Names:
        # Whoever made the folder may have made this too: nothing outside of it may move.
        try:
            text = system.read(file, _LONGEST_LIST).decode()
            root = JsonNode.of_text(text, str(ready / _LIST))
            root.keys_are(cls._fields, [_SEAL])  # versions before had no checksum
            found = cls(*([at.text() for at in root[key].entries()] for key in cls._fields))
            if _SEAL in root.mapping() and root[_SEAL].text() != found._checksum():
                root[_SEAL].wrong("the checksum of the names")
        except (UnicodeDecodeError, FileFormatError) as error:
            raise _unfinished(ready, error) from None
        for name in (*found.old, *found.new):
            if not _is_name(name):
                raise _unfinished(ready, f"{name!r} is no name of a file in the folder")
        for folder in (ready, ready / "new", ready / "old"):
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                raise _unfinished(ready, f"{folder.name!r} is no folder")
        return found


def _is_name(name: str) -> bool:
    """Whether an entry of the folder can have it that is not ours."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return name not in ("", ".", "..") and not {"/", "\0"} & {*name} and not _OURS.fullmatch(name)


def _becomes(target: Path, new: Path) -> bool:
    """Rename the new folder to a target that is not there. False where there is one now."""
    try:
        os.rename(new, target)
    except OSError:
        if os.path.isdir(target):
            return False
        raise
    sync_written(target)
    return True


def _replace(target: Path, part: Path, names: Collection[str] | None, overwrite: bool) -> None:
    """Put what is in `part / "new"` into a target that is there, in place of what that has."""
    ready = target / READY
    lock = _opened_list(part, os.O_CREAT | os.O_EXCL)
    try:
        _locks.take(lock)
        while True:
            check_folder(target, names, overwrite)
            moves = _Names(present(target, names), sorted(os.listdir(part / "new")))
            if lock == system.NOTHING:
                lock = _opened_list(part)
            moves.write(lock)
            lock = system.let_go(lock)
            sync_names(part)
            try:
                os.rename(part, ready)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                put_right(target)  # another was first
        try:
            check_folder(target, names, overwrite)  # or was done since that look
            _move(ready, moves)
        except OSError as error:
            _take_back(ready, moves, part, error)
            raise
        with suppress(OSError):  # all is in its place; the next to come finds nothing to move
            _drop(ready)
    finally:
        system.close(lock)


def _opened_list(part: Path, flags: int = 0) -> int:
    return os.open(part / _LIST, os.O_RDWR | system.NO_LINK | system.BINARY | flags, 0o666)


def _opened(ready: Path) -> int:
    """The folder, open, and no link to one; NOTHING on Windows. Raises OSError."""
    if not system.WINDOWS:
        return os.open(ready, os.O_RDONLY | system.NO_LINK)
    if stat.S_ISDIR(os.lstat(ready).st_mode):
        return system.NOTHING
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(ready))


def _finished(ready: Path, folder: int) -> bool:
    """Go on where another was killed. False where that one is not dead, and is done now."""
    if folder == system.NOTHING:
        lock = _opened_list(ready)
    else:
        lock = os.open(_LIST, os.O_RDWR | system.NO_LINK | system.BINARY, dir_fd=folder)
    try:
        _locks.take(lock, wait=True)
        if not _locks.is_at(folder, ready):
            return False
        moves = _Names.read(lock, ready)
        lock = system.let_go(lock)
        _move(ready, moves)
        _drop(ready)
        return True
    finally:
        system.close(lock)


def _move(ready: Path, moves: _Names) -> None:
    """Put aside the old and put the new in its place, as far as that is not done."""
    target, new, old = ready.parent, ready / "new", ready / "old"
    for name in moves.old:
        # What has come already is not what was to go.
        has_come = name in moves.new and not os.path.lexists(new / name)
        if not has_come and not os.path.lexists(old / name):
            _rename(target / name, old / name)
    for name in moves.new:
        _keep_mode(old / name, new / name)
        _rename(new / name, target / name)
    left = sorted(os.listdir(new))
    if left:  # what would go with the rest, and nobody would have it
        raise _unfinished(ready, f"{shown(left)} in it would be lost")
    sync_names(target)


def _take_back(ready: Path, moves: _Names, part: Path, why: OSError) -> None:
    """Undo `_move`, as far as it came. Raises FileError where that fails too."""
    target, new, old = ready.parent, ready / "new", ready / "old"
    try:
        for name in moves.new:
            if not os.path.lexists(new / name):
                _rename(target / name, new / name)
        for name in moves.old:
            _rename(old / name, target / name)
        os.rename(ready, part)
    except OSError as error:
        raise _unfinished(ready, f"{why}; then {error}") from error


def _drop(ready: Path) -> None:
    """What was put aside goes, in a way that a kill leaves as a part."""
    part, lock = new_part(ready.parent, _STEM, as_folder=True)
    try:
        if system.WINDOWS:  # where a folder takes the place of no other
            os.rmdir(part)
        os.rename(ready, part)
    finally:
        remove(part)
        system.close(lock)


def _rename(source: Path, target: Path) -> None:
    with suppress(FileNotFoundError):  # done before
        os.rename(source, target)


def _keep_mode(old: Path, new: Path) -> None:
    with suppress(OSError):
        mode = os.lstat(old).st_mode
        if stat.S_ISREG(mode) and stat.S_ISREG(os.lstat(new).st_mode):
            os.chmod(new, stat.S_IMODE(mode) & 0o777)


def _sync_tree(folder: Path) -> None:
    """Have all files of a folder on the disk, and their names."""
    for above, _, names in os.walk(folder):
        for name in names:
            system.sync(Path(above) / name)
        sync_names(Path(above))


def _unfinished(ready: Path, why: object) -> FileError:
    return FileError(
        f"path={str(ready.parent)!r} holds files that were being put into it, in {READY}, and that "
        f"cannot be finished: {why}; once it can, the next save to or load from the folder does it"
    )
