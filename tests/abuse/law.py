"""What becomes of damaged input: the same values, or one of our errors, soon and within bounds."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.abuse.damage import Damaged, damaged
from tests.abuse.reader import Files, Reader, Wrong, files_of, write

SECONDS = 2.0
"""Of CPU, for any input."""

WAIT = 20.0
"""Seconds by the clock after which a reader is taken to wait for ever."""

MOST = 64 << 20
"""Bytes of memory beyond what a reader takes of a valid input, for the small ones that are here."""

REFUSED, SAME, OTHER = "refused", "the same", "other values"
CRASH, HANG, MEMORY, SILENT = "crash", "hang", "memory", "silently wrong"
FAULTS = (CRASH, HANG, MEMORY, SILENT)


@dataclass(frozen=True)
class Seed:
    """A valid input, and what is read of it."""

    reader: Reader
    files: Files
    says: str

    @classmethod
    def of(cls, reader: Reader, folder: Path) -> Seed:
        """Made and read once in a folder that goes. Raises what the reader raises."""
        if folder.exists():
            write({}, folder)
        else:
            folder.mkdir()
        reader.make(folder)
        files = files_of(folder)
        write(files, folder)
        return cls(reader, files, reader.read(folder))

    def case(self, number: int) -> Damaged:
        """The n-th damaged input."""
        return damaged(self.files, self.reader, random.Random(f"{self.reader.name} {number}"))


@dataclass(frozen=True)
class Outcome:
    """kind      of damage
    end       one of the words above
    told      the error, or what is wrong
    seconds   of CPU
    grown     bytes of memory at the most, above what there was
    """

    kind: str
    end: str
    told: str
    seconds: float
    grown: int


def outcome(seed: Seed, case: Damaged, folder: Path) -> Outcome:
    """Of reading it."""
    reader = seed.reader
    write(case.files, folder)
    before = reset_peak()
    begun = time.process_time()
    try:
        with ending(WAIT):
            says = reader.read(folder)
        end, told = SAME if says == seed.says else OTHER, ""
    except reader.errors as error:
        end, told = REFUSED, f"{type(error).__name__}: {error}"
    except Wrong as error:
        end, told = SILENT, str(error)
    except Waited:
        end, told = HANG, f"{WAIT:.0f} s by the clock"
    except Exception as error:
        end, told = CRASH, f"{type(error).__name__}: {error}"
    seconds, grown = time.process_time() - begun, peak() - before
    if end == REFUSED:
        try:
            reader.after(folder)
        except Wrong as error:
            end, told = SILENT, f"{error}, after {told}"
    if end == OTHER and reader.sealed and not case.lies:
        end, told = SILENT, "other values, and no error"
    elif end in (REFUSED, SAME, OTHER) and seconds > SECONDS:
        end, told = HANG, f"{seconds:.1f} s of CPU; {told}"
    elif end in (REFUSED, SAME, OTHER) and grown > MOST:
        end, told = MEMORY, f"{grown >> 20} MiB; {told}"
    return Outcome(case.kind, end, told, seconds, grown)


class Waited(BaseException):
    """It has waited too long."""


@contextmanager
def ending(seconds: float) -> Iterator[None]:
    """Raises Waited after so long, in the main thread."""

    def end(*_: object) -> NoReturn:
        raise Waited

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def reset_peak() -> int:
    """Bytes in memory now; the peak is counted from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Bytes in memory at the most, since."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))
