"""What Windows refuses, refused here: this process, from `pose` on, has files as it has.

Modules of Unix are not there, nor triton, nor /proc; `os` lacks what it lacks there. A file that is
open is not renamed, replaced or removed, nor a folder with one in it. A folder cannot be opened,
takes no other's place, and names that Windows does not allow are refused. Only what is open for
writing is brought to the disk, and what is not opened as binary gets carriage returns. What is not
posed: the separator of paths, drive letters, case, and torch's own build.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import shutil
import stat
import sys
from typing import Any

ABSENT = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "triton")
LACKING = (
    "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC", "O_SYNC", "fork", "pread", "pwrite",
    "preadv", "fchmod", "fchown", "mkfifo", "sysconf", "statvfs", "getloadavg",
    "sched_getaffinity", "getuid", "geteuid", "getpgid", "setsid", "killpg", "posix_fadvise",
)  # fmt: skip
BINARY = 1 << 30
"""No flag of this system."""
FORBIDDEN = set('<>:"|?*')

text_mode: set[int] = set()
"""Open files that were not opened as binary."""


def pose() -> None:
    """From now on, for what is imported next too."""
    for name in ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]  # the way to have an import fail
    for name in LACKING:
        if hasattr(os, name):
            delattr(os, name)
    os.O_BINARY = BINARY  # type: ignore[attr-defined]  # Windows has it
    for name in ("open", "write", "close", "fsync"):
        setattr(os, name, globals()[f"_{name}"])
    for name in ("unlink", "remove", "rmdir", "mkdir", "rename", "replace"):
        setattr(os, name, _by_name(getattr(os, name)))
    for module, name in ((builtins, "open"), (io, "open"), (os, "listdir")):
        setattr(module, name, _without_proc(getattr(module, name)))
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # so it is there
    real, sys.platform = sys.platform, "win32"
    try:
        import tensorlrf.files.system
    finally:
        sys.platform = real
    assert tensorlrf.files.system.WINDOWS


_real = {
    name: getattr(os, name) for name in ("open", "write", "close", "fsync", "rename", "listdir")
}


def _open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    if dir_fd is not None:
        raise NotImplementedError("dir_fd unavailable on this platform")
    _check_name(path)
    if os.path.isdir(path):
        raise _refused(path)
    file: int = _real["open"](path, flags & ~BINARY, mode)
    if not flags & BINARY:
        text_mode.add(file)
    return file


def _write(file: int, data: Any) -> int:
    if file not in text_mode:
        done: int = _real["write"](file, data)
        return done
    _real["write"](file, bytes(data).replace(b"\n", b"\r\n"))
    return len(data)


def _close(file: int) -> None:
    text_mode.discard(file)
    _real["close"](file)


def _fsync(file: int) -> None:
    if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    _real["fsync"](file)


def _by_name(call: Any) -> Any:
    def checked(source: Any, *more: Any, **named: Any) -> Any:
        if named.get("dir_fd") is not None:
            raise NotImplementedError("dir_fd unavailable on this platform")
        where = [source, *(one for one in more if isinstance(one, (str, os.PathLike)))]
        for path in where:
            _check_name(path)
        if call.__name__ != "mkdir":
            for path in where:
                if _is_open(path):
                    raise _refused(path)
        if len(where) == 2 and all(map(os.path.lexists, where)):
            if call is _real["rename"]:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(where[1]))
            if os.path.isdir(where[1]) or not os.stat(where[1]).st_mode & stat.S_IWUSR:
                raise _refused(where[1])
        return call(source, *more, **named)

    return checked


def _without_proc(call: Any) -> Any:
    """A Mac has no /proc and no /sys either."""

    def opened(path: Any = ".", *more: Any, **named: Any) -> Any:
        if str(path).startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return call(path, *more, **named)

    return opened


def _is_open(path: Any) -> bool:
    """Whether it, or a file in it, is open in this process."""
    path = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
    for file in _real["listdir"]("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{file}")
        except OSError:
            continue  # that of the list itself
        if name == path or name.startswith(f"{path}/"):
            return True
    return False


def _check_name(path: Any) -> None:
    name = os.path.basename(os.fspath(path))
    if FORBIDDEN & set(name) or name.endswith((" ", ".")) or min(name, default="x") < " ":
        raise OSError(errno.EINVAL, "the file name is incorrect", name)


def _refused(path: Any) -> PermissionError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
