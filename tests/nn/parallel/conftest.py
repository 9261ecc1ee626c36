"""Checks of several ranks are run when the first of them is asked for, by one start for all."""

from __future__ import annotations

import pytest

from tests.nn.parallel.ranks import results


@pytest.fixture(scope="session")
def of_all_files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """Module -> check -> what went wrong, of the files that have a test in this run."""
    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    modules = {test.module.__name__ for test in tests if "found" in test.fixturenames}
    return results(sorted(modules), tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def found(
    request: pytest.FixtureRequest, of_all_files: dict[str, dict[str, str]]
) -> dict[str, str]:
    """Of the file that asks."""
    return of_all_files[request.module.__name__]
