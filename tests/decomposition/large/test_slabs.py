"""What slabs are read from, in which order, and what is refused before or at the first look."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlrf
from tensorlrf.decomposition.large._divided import Reading, divided
from tensorlrf.decomposition.large._look import look
from tensorlrf.decomposition.large._memory import RESERVE, bytes_of, parted
from tensorlrf.decomposition.large._stored import stored
from tensorlrf.errors import (
    ArgumentError,
    FileFormatError,
    MissingFileError,
    ShapeError,
)
from tensorlrf.large import Slabs
from tests.decomposition.large.planted import Sliced, npy, slice_of
from tests.draws import seeded


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple),
    data=st.data(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    rows=st.integers(1, 7),
)
def test_pieces_put_together_are_the_tensor(
    shape: tuple[int, ...], data: st.DataObject, dtype: torch.dtype, rows: int
) -> None:
    along = data.draw(st.integers(0, len(shape) - 1))
    order = data.draw(st.permutations(range(len(shape))))
    back = [order.index(k) for k in range(len(shape))]
    tensor = seeded(*(shape[k] for k in order), dtype=dtype).permute(back)  # strides of any order
    reading = Reading(Slabs(tensor, along=along))
    pieces = [piece for _, piece in reading.pieces(rows)]
    assert all(piece.is_contiguous() and len(piece) <= rows for piece in pieces)
    whole = torch.cat(pieces)
    assert torch.equal(whole, tensor.to(whole.dtype).permute(reading.axes))
    assert reading.passes == 1
    assert reading.axes[0] == along


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_files_and_whatever_slices(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = seeded(7, 5, 4, dtype=dtype)
    path = npy(tensor, tmp_path)
    backwards = np.load(path)[::-1]
    foreign = np.load(path).astype(np.dtype(str(dtype)[6:]).newbyteorder(">"))
    sources: list[Any] = [
        path, str(path), np.load(path, mmap_mode="r"), np.load(path), Sliced(tensor), tensor,
        slice_of(tensor, tmp_path), foreign,
    ]  # fmt: skip
    for source in sources:
        found = torch.cat([piece for _, piece in Reading(divided(source, None, None)).raw(3)])
        assert torch.equal(found, tensor), type(source)
    turned = torch.cat([piece for _, piece in Reading(Slabs(backwards)).raw(3)])
    assert torch.equal(turned, tensor.flip(0))


def test_a_slice_in_bfloat16(tmp_path: Path) -> None:
    tensor = seeded(9, 4, 3, dtype=torch.bfloat16)
    slabs = Slabs(slice_of(tensor, tmp_path))
    assert slabs.dtype == torch.bfloat16
    assert slabs.shape == (9, 4, 3)
    assert torch.equal(torch.cat([piece for _, piece in Reading(slabs).raw(2)]), tensor)


def test_slabs_are_cut_where_a_file_is_read_in_one_piece(tmp_path: Path) -> None:
    tensor = seeded(6, 5, 4)
    assert Slabs(npy(tensor, tmp_path)).along == 0
    assert Slabs(npy(tensor, tmp_path, fortran=True)).along == 2
    assert Slabs(seeded(1, 5, 4)).along == 1  # one entry is nothing to cut
    assert Slabs(seeded(1, 1)).along == 0
    assert Slabs(tensor, along=-1).along == 2


def test_a_mapped_file_is_read_without_a_copy(tmp_path: Path) -> None:
    tensor = seeded(6, 5, 4)
    mapped = np.load(npy(tensor, tmp_path), mmap_mode="r")
    reading = Reading(Slabs(mapped))
    for own, piece in reading.pieces(2):
        assert piece.data_ptr() == mapped[own].__array_interface__["data"][0]
    assert reading.row_bytes() == 0
    assert Reading(Slabs(mapped, along=1)).row_bytes() == 6 * 4 * 8
    assert Reading(Slabs(Sliced(tensor.float()))).row_bytes() == 20 * 4
    assert Reading(Slabs(Sliced(tensor.half()))).row_bytes() == 20 * (2 + 4)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e-300, 1e300, 3e-5])
def test_the_first_look_has_the_norm_at_any_scale(scale: float) -> None:
    tensor = seeded(9, 5, 4) * scale
    reading = Reading(Slabs(tensor))
    norm = look(reading)
    largest = float(tensor.abs().max()) or 1.0
    wanted = float(torch.linalg.vector_norm(tensor / largest))
    assert norm * (reading.scale / largest) == pytest.approx(wanted, rel=1e-14)
    assert reading.passes == 1
    assert math.log2(reading.scale) % 2 == 0
    if scale:
        assert 1e-8 < norm < 1e10


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "Inf")])
def test_what_is_no_number_is_named_with_its_slab(value: float, kind: str) -> None:
    tensor = seeded(9, 5, 1 << 18, dtype=torch.float16)  # a slab has three
    tensor[4, 1, 7] = value
    with pytest.raises(ArgumentError, match=rf"{kind} in slab 3 to 5 along mode 0"):
        tensorlrf.large.cp(tensor, 2)


def test_limits_in_words() -> None:
    assert bytes_of("512MB") == 512_000_000
    assert bytes_of("1.5 GiB") == 3 << 29
    assert bytes_of("64mib") == 64 << 20
    assert bytes_of(12) == bytes_of("12") == bytes_of("12 B") == 12
    for wrong in ("", "MB", "-1MB", "3 parsecs", 0, -5, 1.5, True, None):
        with pytest.raises(ArgumentError, match="memory_limit="):
            bytes_of(wrong)


def test_neighbours_in_groups() -> None:
    assert parted([5, 4, 3], 1) == ((0, 3),)
    assert parted([5, 4, 3], 2) == ((0, 1), (1, 3))
    assert parted([5, 4, 3], 3) == ((0, 1), (1, 2), (2, 3))


@pytest.mark.parametrize(
    "call",
    [
        lambda t, m: tensorlrf.large.cp(t, 40, memory_limit=m, n_iter_max=1),
        lambda t, m: tensorlrf.large.tucker(t, 10, memory_limit=m, n_iter_max=1),
        lambda t, m: tensorlrf.large.tt(t, 10, memory_limit=m),
        lambda t, m: tensorlrf.large.svd(t, 10, memory_limit=m, solver="gram"),
        lambda t, m: tensorlrf.large.svd(t, 10, memory_limit=m, solver="randomized"),
    ],
    ids=["cp", "tucker", "tt", "gram", "randomized"],
)
def test_a_limit_below_the_least_names_it_and_the_least_will_do(call: Any) -> None:
    source = Sliced(seeded(40, 30, 20, dtype=torch.float32))
    with pytest.raises(ArgumentError, match=r"memory_limit=\d+ or more.*along=") as refused:
        call(source, RESERVE)
    assert source.read == 0  # before any work
    least = int(str(refused.value).split("give memory_limit=")[1].split()[0])
    assert least > RESERVE
    call(source, least)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (torch.ones(3, 4, dtype=torch.int64, device="cpu"), "cast it"),
        (np.ones((3, 4), complex), "real and imaginary"),
        (np.ones((3, 4), "U3"), "which torch does not have"),
        (np.ma.masked_array([[1.0, 2.0]], mask=[[0, 1]]), "fill it"),
        ([[1.0, 2.0]], "is a list"),
        (object(), "is a object"),
    ],
)
def test_what_cannot_be_sliced_is_refused(given: Any, wanted: str) -> None:
    with pytest.raises(ArgumentError, match=wanted):
        tensorlrf.large.cp(given, 1)


def test_shapes_and_modes_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="at least 2 modes"):
        Slabs(seeded(5))
    with pytest.raises(ShapeError, match="no element"):
        Slabs(torch.ones(3, 0, 2, dtype=torch.float32, device="cpu"))
    with pytest.raises(ArgumentError, match="along=3 is no mode"):
        Slabs(seeded(5, 4, 3), along=3)
    with pytest.raises(ArgumentError, match=r"give it to Slabs"):
        tensorlrf.large.cp(Slabs(seeded(5, 4, 3)), 1, along=0)
    with pytest.raises(ArgumentError, match=r"init_process_group"):
        tensorlrf.large.Sharded(seeded(5, 4, 3))


def test_a_source_whose_shape_is_not_true() -> None:
    source = Sliced(seeded(5, 4, 3))
    source.shape = (6, 4, 3)
    with pytest.raises(ShapeError, match="says it has the shape"):
        tensorlrf.large.cp(source, 1)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        Slabs(tmp_path / "none.npy")
    path = npy(seeded(6, 5, 4), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match="no whole"):
        Slabs(path)
    path.write_bytes(b"something else")
    with pytest.raises(FileFormatError):
        Slabs(path)
    np.savez(tmp_path / "many.npz", a=np.ones(3))
    with pytest.raises(FileFormatError, match="archive"):
        Slabs(tmp_path / "many.npz")
    with pytest.raises(ArgumentError, match="get_slice"):
        Slabs(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["cp", "svd", "tucker", "tt"])
def test_functions_for_tensors_in_memory_name_those_for_others(name: str, tmp_path: Path) -> None:
    for source in (npy(seeded(4, 3, 2), tmp_path), Sliced(seeded(4, 3, 2))):
        with pytest.raises(ArgumentError, match=r"tensorlrf\.large"):
            getattr(tensorlrf, name)(source, 1)
    mapped = np.load(tmp_path / "tensor.npy", mmap_mode="r")
    assert getattr(tensorlrf, name)(mapped, 1).shape == (4, 3, 2)


def test_a_file_without_elements_is_read_as_such(tmp_path: Path) -> None:
    """A rank may have an empty share; of a whole tensor without elements an error tells."""
    path = tmp_path / "none.npy"
    np.save(path, np.empty((5, 0, 3), np.float32))
    assert stored(path).piece(0, 1, 4).shape == (3, 0, 3)
    with pytest.raises(ShapeError, match=r"\(5, 0, 3\), which holds no element"):
        Slabs(path)
