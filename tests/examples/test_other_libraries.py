"""The scripts with other libraries run to their end, each in a process that has the library."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.processes import PYTHONPATH, ROOT, python

pytestmark = pytest.mark.slow

LIBRARIES = Path(sys.prefix)
"""`make .venv/timm .venv/diffusers .venv/hf` fills folders in it."""

RUN = """
import runpy, sys
from tests.architectures.of_timm import timm

sys.argv = sys.argv[1:]
if "timm" in sys.argv[0]:
    timm()
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""torchvision needs what `timm()` declares beside a torch without CUDA."""


@pytest.mark.parametrize(
    ("name", "folder", "quickly", "saved"),
    [
        ("with_timm", "timm", ("--crops", 2), "small.safetensors"),
        ("with_diffusers", "diffusers", (), "unet/diffusion_pytorch_model.safetensors"),
        ("with_sentence_transformers", "hf", ("--texts", 16), "model.safetensors"),
    ],
)
def test_the_script_runs_to_its_end(
    name: str, folder: str, quickly: tuple[object, ...], saved: str, tmp_path: Path
) -> None:
    assert (LIBRARIES / folder).is_dir(), f"make .venv/{folder}"
    own = [] if folder == "timm" else [str(LIBRARIES / folder)]
    path = ":".join([*own, PYTHONPATH, str(ROOT / "examples")])
    output = tmp_path / ("out/" + saved if folder == "timm" else "out")
    script = ROOT / "examples" / f"{name}.py"
    done = python(
        "-W", "ignore", "-c", RUN, script, *quickly, "--output", output, PYTHONPATH=path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / saved).is_file()
    apart = re.search(r"saved and loaded differ by at most ([\d.e-]+)", done.stdout)
    assert apart is not None, done.stdout
    # A factor of rank one has other strides once it is loaded, for which a product may round in
    # another way; steps of diffusion magnify that, from 1e-7.
    assert float(apart[1]) <= (1e-4 if folder == "diffusers" else 0)
    sizes = re.search(r"parameters.*: ([\d,]+) to ([\d,]+)", done.stdout)
    assert sizes is not None
    dense, small = (int(n.replace(",", "")) for n in sizes.groups())
    assert small < dense
