"""A folder in which a refinement leaves where it is, and from which it goes on.

It holds one file, replaced whole at each checkpoint: the states and the moments of AdamW as
safetensors, the rest as JSON in its header.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tensorlrf.compression.refinement._course import Course, Progress
from tensorlrf.compression.refinement._settings import differing
from tensorlrf.compression.refinement._student import State
from tensorlrf.compression.report._json import read_dataclass
from tensorlrf.errors import ArgumentError, FileFormatError
from tensorlrf.files.arguments import PathLike, as_path
from tensorlrf.files.replace import cannot_write
from tensorlrf.files.safetensors import opened, plain
from tensorlrf.files.sealed import (
    Stored,
    checked,
    made_by,
    seal,
    unseal,
    write_sealed,
)

NAME = "refinement.safetensors"
KEY = "tensorlrf.refinement"
VERSION = 3
STATES = ("now", "lowest", "kept")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Journal:
    """folder  where it is
    run        what makes a course another one: settings, and checksums of models and data
    """

    folder: Path
    run: Mapping[str, Any]

    @classmethod
    def at(cls, path: PathLike, run: Mapping[str, Any]) -> Journal:
        """Make the folder where it is missing. Raises ArgumentError, FileError."""
        folder = as_path(path, "journal")
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return cls(folder, run)

    def save(self, course: Course) -> None:
        """Write where a course is. Raises FileError."""
        states: dict[str, Mapping[str, Tensor]] = {
            "now": course.student.masters,
            "lowest": course.lowest,
            "kept": {} if course.kept is course.lowest else course.kept,
            **{key: {} for key in MOMENTS},
        }
        if course.optimiser is not None:
            for name, p in course.student.masters.items():
                for key, value in course.optimiser.state.get(p, {}).items():
                    states[key] = {**states[key], name: value}
        tensors = {
            f"{kind}/{name}": plain(t)
            for kind, state in states.items()
            for name, t in state.items()
        }
        values = {
            "version": VERSION,
            "tensorlrf": made_by(),
            "tensors": {name: Stored.of(t).to_json() for name, t in tensors.items()},
            "run": dict(self.run),
            "seed": course.seed,
            "progress": course.at.to_json(),
        }
        write_sealed(self.folder / NAME, KEY, seal(values), tensors, overwrite=True)

    def seed(self, otherwise: int) -> int:
        """The one of the course that it holds, where it holds one.

        Raises ArgumentError for a course of another run, FileFormatError for a damaged file.
        """
        if not os.path.lexists(self.folder / NAME):
            return otherwise
        with opened(self.folder / NAME) as file:
            if KEY not in file.metadata:
                raise file.damaged("it is no journal of tensorlrf.refine")
            root = unseal(file, KEY, VERSION)
            others = differing(root["run"].mapping(), self.run)
            if others:
                raise ArgumentError(
                    f"journal={os.fspath(self.folder)!r} is of another run: it differs in "
                    f"{', '.join(others)}; give the same arguments, or another folder"
                )
            return root["seed"].whole()

    def follow(self, course: Course) -> None:
        """Let a course, just made, go on from where the journal's ends, and be written here."""
        course.save = self.save
        if os.path.lexists(self.folder / NAME):
            self._restore(course)

    def _restore(self, course: Course) -> None:
        with opened(self.folder / NAME) as file:
            root = unseal(file, KEY, VERSION)
            read = checked(file, root["tensors"].each(Stored.read))
            device = next(iter(course.student.masters.values())).device
            states: dict[str, State] = {kind: {} for kind in (*STATES, *MOMENTS)}
            for key in file.tensors:
                kind, _, name = key.partition("/")
                if kind not in states or name not in course.student.masters:
                    raise file.damaged(f"it has a tensor {key!r}")
                # AdamW counts steps on the CPU.
                states[kind][name] = read(key) if kind == "step" else read(key).to(device)
            states["kept"] = states["kept"] or states["lowest"]
            if any(set(states[kind]) != set(course.student.masters) for kind in STATES):
                raise file.damaged("it lacks tensors")
            try:
                at = read_dataclass(Progress, root["progress"].mapping(), "progress")
            except ValueError as error:
                raise FileFormatError(f"path={file.path!r} is no journal: {error}") from None
        moments = {
            name: {key: states[key][name] for key in MOMENTS}
            for name in states["step"]
            if all(name in states[key] for key in MOMENTS)
        }
        course.go_on(at, states["kept"], states["lowest"], states["now"], moments)
