"""Models of diffusers, in a process that has it: `make .venv/diffusers`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.processes import PYTHONPATH, ROOT, python

pytestmark = pytest.mark.slow

FOLDER = Path(sys.prefix) / "diffusers"
LAWS = Path(__file__).with_name("laws_of_diffusers.py")
PATH = ":".join([str(FOLDER), PYTHONPATH, str(ROOT / "examples")])

WITHOUT = """
import sys, tempfile
import torch, tensorlrf
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

unet = UNet2DModel(sample_size=8, layers_per_block=1, block_out_channels=(16,), norm_num_groups=8,
                   down_block_types=("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",))
small, _ = tensorlrf.compress(unet, keep_params=.6, progress=False)
with tempfile.TemporaryDirectory() as folder:
    for save in (small, DDIMPipeline(small, DDIMScheduler())):
        try:
            save.save_pretrained(folder + "/a")
        except ValueError as error:
            assert "import tensorlrf.diffusers" in str(error), error
        else:
            raise SystemExit("was saved")
    tensorlrf.save(small, folder + "/b")
    try:
        UNet2DModel.from_pretrained(folder + "/b")
    except ValueError as error:
        assert "Unknown quantization type, got tensorlrf" in str(error), error
    else:
        raise SystemExit("was loaded")
    assert "tensorlrf.diffusers" not in sys.modules
    again = tensorlrf.load(folder + "/b")
    x = torch.ones(1, 3, 8, 8)
    assert torch.equal(again.eval()(x, 3).sample, small.eval()(x, 3).sample)
print("refused")
"""


def test_models_and_pipelines() -> None:
    assert FOLDER.is_dir(), "make .venv/diffusers"
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", LAWS, PYTHONPATH=PATH)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "11 passed" in done.stdout


def test_without_the_import_nothing_is_drawn() -> None:
    done = python("-W", "ignore", "-c", WITHOUT, PYTHONPATH=PATH)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused" in done.stdout
