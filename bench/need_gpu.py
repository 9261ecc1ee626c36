"""Say in one line whether there is a GPU; exit 1 where there is none."""

import sys

import torch

if not torch.cuda.is_available():
    sys.exit(
        "no CUDA GPU is visible to this Python's torch "
        f"({torch.__version__}, {sys.executable}), so there is nothing to check or to time. "
        "Run it on a machine with an NVIDIA GPU and name that Python: make gpu-check PYTHON=python3"
    )
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
