"""What the benchmark of large tensors measures: memory within the limit, bytes of sockets."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from bench import large
from tests.processes import python

MEASURE = """
import json, sys
from bench.large import run
limits = json.loads(sys.argv[2])
print(json.dumps({what: run(sys.argv[1], what, limit, "10") for what, limit in limits.items()}))
"""


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cube") / "cube.npy"
    large.make(path, 232)
    return path


def test_memory_stays_within_the_limit(cube: Path) -> None:
    """Just above what they take at the least."""
    limits = {"cp": 60_000_000, "tt": 84_000_000, "tucker": 66_000_000, "svd": 100_000_000}
    words = json.dumps({what: str(limit) for what, limit in limits.items()})
    done = python("-c", MEASURE, cube, words, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for what, one in found.items():
        assert one["peak"] < limits[what], what
        assert 0.05 < one["error"] < 0.11  # the noise that it was made with, and no more
    assert found["cp"]["passes"] == 1 + 10 + 1


def test_factors_are_those_in_memory(cube: Path) -> None:
    assert large.as_in_memory(cube) < 1e-4  # twenty sweeps in float32


def test_bytes_are_those_that_went_through_a_socket() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
        server.accept()[0] as other,
    ):
        before = large.sent_by_sockets()
        one.sendall(b"x" * 5000)
        one.shutdown(socket.SHUT_WR)
        while other.recv(1 << 16):
            pass
        assert 5000 <= large.sent_by_sockets() - before <= 5100


def test_the_table_has_times_where_they_are_asked_for(tmp_path: Path) -> None:
    rows = [{"tensor": "a", "method": "cp", "error": 0.5, "seconds": 2.0}, {"tensor": "b"}]
    large.write(tmp_path, "large", rows, times=False)
    assert "| tensor | method | error |" in (tmp_path / "large.md").read_text()
    large.write(tmp_path, "large", rows, times=True)
    assert "| a | cp | 0.5 | 2 |" in (tmp_path / "large.md").read_text()
    assert json.loads((tmp_path / "large.json").read_text())["rows"][0]["seconds"] == 2.0
