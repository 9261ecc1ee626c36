"""A seed or a generator of the user's, as the generator that is drawn from."""

from __future__ import annotations

import torch

from tensorlrf.errors import ArgumentError


def generator(random_state: int | torch.Generator | None, device: torch.device) -> torch.Generator:
    """A generator on `device`; torch's global one is left alone.

    Parameters
    ----------
    random_state : int, Generator or None
        An int seeds a new one, a Generator is used as it is (and advances), None draws a fresh
        seed.
    device : device

    Returns
    -------
    Generator

    Raises
    ------
    ArgumentError
        For a Generator of another device, a number of more than 64 bits, and anything else.

    Examples
    --------
    >>> from tensorlrf.decomposition.random_state import generator
    >>> generator(7, torch.device("cpu")).initial_seed()
    7
    """
    if isinstance(random_state, torch.Generator):
        if random_state.device.type != device.type:
            raise ArgumentError(
                f"random_state is a Generator on {random_state.device} but the tensor is on "
                f"{device}; make it with torch.Generator('{device}')"
            )
        return random_state
    fresh = torch.Generator(device)
    if random_state is None:
        fresh.seed()
    elif isinstance(random_state, int) and not isinstance(random_state, bool):
        if not -(1 << 63) <= random_state < 1 << 64:
            raise ArgumentError(
                f"random_state={random_state!r} is beyond the seeds of torch; take one of 64 bits"
            )
        fresh.manual_seed(random_state)
    else:
        raise ArgumentError(
            f"random_state={random_state!r} must be an int, a torch.Generator or None"
        )
    return fresh
