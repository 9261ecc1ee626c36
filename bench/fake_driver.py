"""A driver for a GPU that is not there: Triton compiles for it and launches, and nothing runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from tensorlrf_kernels.chips import H200

Launch = tuple[int, tuple[Any, ...]]  # programs, and the arguments in their order


class FakeDriver:
    """As much of a driver as launches ask for; `launched` are those that were made, if kept."""

    def __init__(self, *, keep: bool) -> None:
        self.launched: list[Launch] = []
        self.keep = keep
        self.utils = self

    # ---- the driver -----------------------------------------------------------------------------

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """What launches a kernel: it tells the grid and the arguments to the driver of the day,
        which compiled kernels outlive."""

        def launch(x: int, y: int, z: int, *rest: Any) -> None:
            if driver.active.keep:
                driver.active.launched.append((x * y * z, rest[6:]))

        return launch

    # ---- its tools ------------------------------------------------------------------------------

    def load_binary(self, *_: Any) -> tuple[object, int, int, int, int]:
        return object(), 1, 0, 0, 1024

    def unload_module(self, _: object) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": H200.shared_memory}


@contextmanager
def fake_driver(*, keep: bool = True) -> Iterator[FakeDriver]:
    """Inside, tensors of the CPU are launched on as if they were on an H200."""
    fake = FakeDriver(keep=keep)
    with mock.patch.object(driver, "_active", fake):
        yield fake
