"""The errors and warnings of tensorlrf.

Whatever is wrong with a *value* is also a `ValueError`, so that code which does not know us
can still catch it. Every message names the argument, the value it had, and what would be right.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings


class TensorlrfError(Exception):
    """Root of everything that tensorlrf raises on purpose."""


class ArgumentError(TensorlrfError, ValueError):
    """An argument has a value that cannot be used."""


class ShapeError(ArgumentError):
    """Tensors whose sizes do not fit each other, or do not fit the layer."""


class RankError(ArgumentError):
    """A rank that is zero, negative, too large, or has the wrong number of entries."""


class UnsupportedError(TensorlrfError, NotImplementedError):
    """A correct request that this version does not serve; the message says what to do instead."""


class FileFormatError(TensorlrfError, ValueError):
    """A file that is damaged, foreign, of a later format version, or made for another model."""


class FileError(TensorlrfError, OSError):
    """A path that cannot be read or written: it exists, is missing, or the system refuses it."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder that is not there."""


class MissingExtraError(TensorlrfError, ImportError):
    """A package that only an extra of tensorlrf brings; the message says how to install it."""


class TensorlrfWarning(UserWarning):
    """Root of everything that tensorlrf warns of."""


class DegenerateWarning(TensorlrfWarning):
    """The tensor has fewer independent directions than were asked for."""


class CalibrationWarning(TensorlrfWarning):
    """Calibration is too thin, or does not reach a layer."""


_WITHIN = (os.path.dirname(__file__) + os.sep, contextlib.__file__)
"""Files of this package, and of the contexts that decorate its functions."""


def warn(message: str, category: type[TensorlrfWarning]) -> None:
    """Warn of the first line outside of this package that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_WITHIN):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def unknown(argument: str, value: object, valid: list[str] | tuple[str, ...]) -> ArgumentError:
    """The error for a word that is not in a list of words."""
    return ArgumentError(f"{argument}={value!r} is unknown; choose one of {', '.join(valid)}")
