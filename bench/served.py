"""Whether our kernels ran, or library products in their place: what a fallback does is not to be
taken for what a kernel does."""

from __future__ import annotations

from tensorlrf_kernels import launches


def forget() -> None:
    """Launches that failed before are tried again."""
    launches._failed.clear()
    launches._apart.clear()


def fallbacks() -> list[str]:
    """Launches that did not compile since, so that the library ran."""
    return [f"{each.op} {each.config}" for each in launches._failed]


def apart() -> list[str]:
    """Cooperative launches that the device refused since, so that two were made of one."""
    return [f"{each.op} {each.config}" for each in launches._apart]
