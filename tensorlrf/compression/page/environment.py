"""With what something was made."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch
from torch import nn

from tensorlrf.compression.page.document import Section
from tensorlrf.compression.page.parts import facts, note
from tensorlrf.files.sealed import made_by


@dataclass(frozen=True)
class Environment:
    """With what a model was compressed; of the machine what it is, and not which.

    Parameters
    ----------
    tensorlrf, torch, python : str
        Their versions.
    system : str
        Its name and the kind of processor.
    device : str
        Where the model was: "cpu", or what the accelerator calls itself.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> small, report = tensorlrf.compress(model, keep_params=0.5, skip=[])
    >>> report.environment.torch == torch.__version__, report.environment.device
    (True, 'cpu')
    """

    tensorlrf: str
    torch: str
    python: str
    system: str
    device: str


def environment_of(model: nn.Module | None) -> Environment:
    """Of this process, with a model where its first parameter is; on no accelerator without one."""
    parameters = () if model is None else model.parameters()
    device = next((p.device for p in parameters), torch.device("cpu"))
    on_gpu = device.type == "cuda"
    return Environment(
        tensorlrf=made_by(),
        torch=str(torch.__version__),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}".strip(),
        device=torch.cuda.get_device_name(device) if on_gpu else device.type,
    )


def environment_section(made: Environment | None, date: str | None) -> Section:
    """With what it was made; of a value that does not say so, with what the page is written."""
    own = environment_of(None) if made is None else made
    rows = [
        ("tensorlrf", own.tensorlrf),
        ("PyTorch", own.torch),
        ("Python", own.python),
        ("System", own.system),
    ]
    rows += [] if made is None else [("Device", own.device)]
    rows += [] if date is None else [("Date", date)]
    what = "With what the model was compressed." if made else "With what this page was written."
    return Section("environment", "Environment and versions", (note(what), facts(rows)))
