"""Compress, save, load, run on, in any order: outputs stay, and reports agree with files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from safetensors.torch import save_file
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression.scale import _run
from tensorlrf.errors import ArgumentError, TensorlrfError
from tensorlrf.nn import FactoredLayer
from tests.abuse.reader import bytes_in, of_files
from tests.draws import seeded32

FILES = ("a.safetensors", "b.safetensors")
FOLDERS = ("one", "two")
METHODS = ("svd", "cp", "kron", "tt_matrix", "blr", "auto")


class Pulled(BaseException):
    """In the place of a kill, in this process."""


def dense(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 6)
    )


def outputs(model: nn.Module) -> bytes:
    with torch.no_grad():
        y: Tensor = model.eval()(seeded32(5, 8))
    assert bool(torch.isfinite(y).all())
    return bytes_in(y)


class Machine(RuleBasedStateMachine):
    """A model and its compressed forms at hand, and what lies in files.

    dense    the architecture, with its values
    model    at hand
    saved    name of a file or folder -> the outputs of what was written there
    streams  folder -> what its run was called with, for those that have not ended
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.dense = dense(0)
        self.model: nn.Module = self.dense
        self.saved: dict[str, bytes] = {}
        self.streams: dict[str, dict[str, Any]] = {}
        self.state: dict[str, Any] | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # ---- models -----------------------------------------------------------------------------

    @rule(seed=st.integers(0, 3))
    def another_model(self, seed: int) -> None:
        """Of the same architecture."""
        self.dense = dense(seed)
        self.model = self.dense

    @rule(method=st.sampled_from(METHODS), keep=st.floats(0.2, 0.95), whole=st.booleans())
    def compress(self, method: str, keep: float, whole: bool) -> None:
        before = outputs(self.model)
        skip: list[str] = [] if whole else ["4"]
        try:
            small, report = tensorlrf.compress(
                self.model, keep_params=keep, method=method, skip=skip, progress=False
            )
        except TensorlrfError:  # what is compressed already, or cannot be so small
            assert outputs(self.model) == before
            return
        assert outputs(self.model) == before
        kept = report.eligible
        assert kept.params_after <= max(keep, 1e-9) * kept.params_before + 1 or not any(
            row.factored for row in report.layers
        )
        self.model = small

    @rule()
    def tune(self) -> None:
        timed = any(isinstance(m, FactoredLayer) and m.timed_paths for m in self.model.modules())
        if timed:
            tensorlrf.tune(self.model, seeded32(5, 8))
        else:
            with pytest.raises(ArgumentError, match="nothing to tune"):
                tensorlrf.tune(self.model, seeded32(5, 8))

    @rule()
    def densify(self) -> None:
        whole = tensorlrf.densify(self.model)
        assert not any(isinstance(module, FactoredLayer) for module in whole.modules())
        with torch.no_grad():  # float32 on factors of any size, which may cancel
            torch.testing.assert_close(
                whole(seeded32(5, 8)), self.model(seeded32(5, 8)), rtol=1e-3, atol=1e-3
            )
        self.model = whole

    # ---- files ------------------------------------------------------------------------------

    @rule(name=st.sampled_from(FILES), overwrite=st.booleans())
    def save(self, name: str, overwrite: bool) -> None:
        try:
            tensorlrf.save(self.model, self.folder / name, overwrite=overwrite)
        except TensorlrfError:
            assert name in self.saved
            assert not overwrite
            return
        assert overwrite or name not in self.saved
        self.saved[name] = outputs(self.model)

    @precondition(lambda self: self.saved)
    @rule(data=st.data(), meta=st.booleans())
    def load(self, data: st.DataObject, meta: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.saved)))
        with torch.device("meta" if meta else "cpu"):
            architecture = dense(7)
        loaded = tensorlrf.load(self.folder / name, architecture)
        assert outputs(loaded) == self.saved[name]
        self.model = loaded

    # ---- runs by layers ---------------------------------------------------------------------

    @rule(name=st.sampled_from(FOLDERS), keep=st.sampled_from([0.3, 0.6]), layers=st.integers(0, 4),
          shards=st.booleans(), overwrite=st.booleans())  # fmt: skip
    def stream(self, name: str, keep: float, layers: int, shards: bool, overwrite: bool) -> None:
        """A run into a folder that is killed once it has written so many layers, or ends; one that
        was killed there before goes on, or is told to be another one."""
        source = self.folder / "source.safetensors"
        save_file(self.dense.state_dict(), source)
        call: dict[str, Any] = {
            "keep_params": keep, "shard_bytes": 500 if shards else 1 << 20, "threads": 1,
        }  # fmt: skip
        before = of_files(self.folder / name) if name in self.saved else ""
        own, left = _run.store, [layers]

        def store(*given: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Pulled
            return own(*given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_run, "store", store)
            try:
                report = tensorlrf.compress_checkpoint(
                    source, self.folder / name, overwrite=overwrite, progress=False, **call
                )
            except Pulled:
                return
            except TensorlrfError:  # it exists, or holds another run
                assert (name in self.saved and not overwrite) or self._job(name).exists()
                return
        told = tensorlrf.inspect(self.folder / name / "tensorlrf.safetensors", verify=True)
        assert {row.name: row.rank for row in told.layers} == {
            row.name: row.rank for row in report.layers
        }
        assert told.tensors == report.tensors
        assert not self._job(name).exists()
        small = tensorlrf.load(self.folder / name, dense(7))
        wanted, _ = tensorlrf.compress(
            self.dense, keep_params=keep, method="svd", skip=[], progress=False
        )
        with torch.no_grad():
            torch.testing.assert_close(small(seeded32(5, 8)), wanted(seeded32(5, 8)))
        self.saved[name] = outputs(small)
        assert before == "" or overwrite or of_files(self.folder / name) == before

    def _job(self, name: str) -> Path:
        return self.folder / name / ".tensorlrf.job"

    @invariant()
    def files_are_what_was_saved(self) -> None:
        names = {path.name for path in self.folder.iterdir()} - {"source.safetensors", *FOLDERS}
        assert names == {name for name in self.saved if name in FILES}
        for name in self.saved:
            path = self.folder / name
            at = path / "tensorlrf.safetensors" if path.is_dir() else path
            tensorlrf.inspect(at, verify=True)


COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=6, stateful_step_count=12, **COMMON)


@pytest.mark.slow
class TestLongMachine(Machine.TestCase):
    settings = settings(max_examples=150, stateful_step_count=40, **COMMON)
