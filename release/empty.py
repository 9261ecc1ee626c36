"""An environment with nothing in it but what the wheel asks for, and the wheel tried in there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

from release.contents import ReleaseError

CHECKS = "tests/platforms/checks.py"
"""What is to hold of an installed wheel: run as a program."""


class Empty:
    """The environment, in a new folder."""

    def __init__(self, folder: Path, root: Path) -> None:
        venv.create(folder, with_pip=True)
        self.folder, self.root = folder, root
        self._bin = folder / ("Scripts" if sys.platform == "win32" else "bin")
        self.python = self._bin / "python"

    def install(self, wheel: Path) -> None:
        """The wheel with what it depends on, in the versions of requirements.txt and the lock.

        torch comes first, by its version: of a CPU build, where pip finds one, else what PyPI has.
        """
        pins = self.folder / "pins.txt"
        lock, torch = (self.root / "requirements.lock").read_text("utf-8"), self._torch()
        pinned = re.findall(r"^([^\s#]+==[^\\\n]+)", lock, re.MULTILINE)  # markers too, no hashes
        pins.write_text("\n".join([torch, *pinned]), encoding="utf-8")
        pip = ("-m", "pip", "install", "-q", "--disable-pip-version-check")
        self._run(*pip, torch)
        self._run(*pip, "--constraint", str(pins), str(wheel))
        self._run("-m", "pip", "check")

    def packages(self) -> list[str]:
        """What is installed, but pip. Raises ReleaseError where something of ours is not needed."""
        told = json.loads(self._run("-m", "pip", "list", "--format", "json"))
        found = {one["name"].lower(): one["version"] for one in told}
        extra = sorted({"tensorly", "triton", "transformers", "pytest", "safetensors"} & {*found})
        if "+cpu" in found["torch"] and extra:  # a CUDA build brings its triton
            raise ReleaseError(f"{extra} came with the wheel, which asks for none of them")
        return [f"{name} {version}" for name, version in sorted(found.items()) if name != "pip"]

    def try_out(self, version: str) -> list[str]:
        """What the wheel does there, a line for each trial. Raises ReleaseError."""
        where = self._run("-c", "import tensorlrf; print(tensorlrf.__file__)").strip()
        if not Path(where).is_relative_to(self.folder):
            raise ReleaseError(f"tensorlrf is imported from {where}")
        checks = json.loads(self._run(str(self.root / CHECKS)))
        failed = {name: told for name, told in checks.items() if told}
        if failed:
            raise ReleaseError("\n".join(f"{name}: {told}" for name, told in failed.items()))
        said = self._program("--version").strip()
        if said != f"tensorlrf {version}":
            raise ReleaseError(f"`tensorlrf --version` says {said!r}")
        self._program("compress", "--help")
        return [f"{len(checks)} checks hold: {', '.join(checks)}", "the command line answers"]

    def _torch(self) -> str:
        text = (self.root / "requirements.txt").read_text("utf-8")
        found = re.search(r"^torch==\S+$", text, re.MULTILINE)
        assert found is not None  # tests/test_lock.py
        return found[0]

    def _run(self, *arguments: str) -> str:
        """Without the checkout, the user's packages and the environment's variables for Python."""
        return _output(self.folder, str(self.python), "-I", *arguments)

    def _program(self, *arguments: str) -> str:
        return _output(self.folder, str(self._bin / "tensorlrf"), *arguments)


def _output(folder: Path, *command: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout
